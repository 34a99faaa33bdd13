"""The machine: its description, memory used, and libraries that only benchmarks need."""

import ctypes
import gc
import importlib.metadata
import importlib.util
import os
import platform
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from rqmoe_store import __version__
from rqmoe_store.errors import RQMoEError


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Processor, memory, GPU if it is used, and versions, as JSON-ready values."""
    import psutil  # of the extra `bench`

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


_INTERVAL_SECONDS = 0.01
_COARSE_SECONDS = 0.05


def resident_bytes() -> int:
    """Memory this process holds, without pages that merely mirror files (where the system tells).

    The system drops those when it needs the room, so reading a large memory-mapped file costs nothing.
    """
    import psutil  # of the extra `bench`

    info = psutil.Process().memory_info()
    return int(info.rss - getattr(info, "shared", 0))


class PeakMemory:
    """Growth of memory inside a `with` block, over what was held when it began.

    A thread looks every 10 ms, so what is held for less may be missed.
    """

    def __init__(self, device: torch.device) -> None:
        self.growth_bytes = 0
        """Largest growth of the process's resident memory."""
        self.cuda_growth_bytes: int | None = None
        """Largest growth of the memory allocated on the GPU; None on a CPU."""
        self._device = device
        self._before = 0
        self._cuda_before = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        gc.collect()
        _return_free_memory()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            self._cuda_before = torch.cuda.memory_allocated(self._device)
        self._before = resident_bytes()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.look()
        self._ended.set()
        self._thread.join()
        if self._device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._device)
            self.cuda_growth_bytes = peak - self._cuda_before

    def _watch(self) -> None:
        while not self._ended.wait(_INTERVAL_SECONDS):
            self.look()

    def look(self) -> None:
        """Take the present moment into account; for what is known to be a peak."""
        self.growth_bytes = max(self.growth_bytes, resident_bytes() - self._before)


class MemoryOverTime:
    """How memory grows inside a `with` block over what was held when it began, twenty times a second."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, int]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "MemoryOverTime":
        gc.collect()
        _return_free_memory()
        self._before, self._started = resident_bytes(), time.perf_counter()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        self._look()

    def peaks(self, parts: int) -> list[int]:
        """The largest growth in each of `parts` equal parts of the time, in bytes; 0 where none was seen."""
        length = self._samples[-1][0] / parts
        peaks = [0] * parts
        for seconds, growth in self._samples:
            part = min(int(seconds / length), parts - 1) if length else 0
            peaks[part] = max(peaks[part], growth)
        return peaks

    def by_second(self) -> list[list[float]]:
        """Every second that was looked at, with the largest growth in it, in bytes."""
        largest: dict[int, int] = {}
        for seconds, growth in self._samples:
            largest[int(seconds)] = max(largest.get(int(seconds), 0), growth)
        return [[second, growth] for second, growth in largest.items()]

    def _watch(self) -> None:
        while not self._ended.wait(_COARSE_SECONDS):
            self._look()

    def _look(self) -> None:
        self._samples.append((time.perf_counter() - self._started, resident_bytes() - self._before))


def _return_free_memory() -> None:
    """Give what the allocator keeps for later back to the system, where it can be asked to.

    Otherwise work would reuse what earlier work has freed, and seem to need less than it does.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):  # glibc has it, musl does not
            libc.malloc_trim(0)


def require_bench(*modules: str) -> None:
    """Raise RQMoEError, with the command that installs them, unless all `modules` are installed."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise RQMoEError(
            f"Not installed: {', '.join(missing)}. Install what measuring needs with: "
            'pip install "rqmoe-store[bench]"'
        )
