"""What the figures of a benchmark were measured on."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import psutil
import torch

from rqmoe_store import __version__


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Processor, memory, GPU if it is used, and versions, as JSON-ready values."""
    return {
        "cpu": _cpu_name(),
        "logical_cores": os.cpu_count(),
        "physical_cores": psutil.cpu_count(logical=False),
        "memory_bytes": psutil.virtual_memory().total,
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "versions": {"rqmoe-store": __version__, **_versions("torch", "numpy", "lancedb", "faiss-cpu")},
    }


def _versions(*names: str) -> dict[str, str]:
    """Those of the distributions that are installed."""
    installed = importlib.metadata.distributions()
    return {found.name: found.version for found in installed if found.name in names}


def _cpu_name() -> str:
    # Python knows the architecture only; Linux tells the model here.
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
