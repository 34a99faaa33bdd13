"""Machine: its description, memory usage, and libraries that only benchmarks need."""

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
from rqmoe_store.codecs.parallel import num_threads
from rqmoe_store.errors import RQMoEError

_LIBRARIES = ("torch", "numpy", "lancedb", "faiss-cpu", "turbovec", "usearch", "qdrant-edge-py")
_INTERVAL_SECONDS = 0.01
_COARSE_SECONDS = 0.05


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Processor, memory, GPU (if used), versions, and what else runs, as JSON-ready values."""
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
        "threads": num_threads(),
        "load_average": psutil.getloadavg()[0],  # of the last minute: what other work there was
        "versions": {"rqmoe-store": __version__, **_versions(*_LIBRARIES)},
    }


def _versions(*names: str) -> dict[str, str]:
    """Versions of those distributions that are installed."""
    installed = importlib.metadata.distributions()
    return {found.name: found.version for found in installed if found.name in names}


def _cpu_name() -> str:
    # Python knows the architecture only. Linux lists the model here.
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def require_bench(*modules: str) -> None:
    """Raise RQMoEError, with the command that installs them, unless all `modules` are installed."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise RQMoEError(
            f"Not installed: {', '.join(missing)}. Install the libraries of the benchmarks with: "
            'pip install "rqmoe-store[bench]"'
        )


def resident_bytes() -> int:
    """Resident memory of this process, without pages that mirror files (if the system tells them apart).

    The system drops such pages when it needs memory, so reading a large memory-mapped file costs nothing.
    """
    import psutil  # of the extra `bench`

    info = psutil.Process().memory_info()
    return int(info.rss - getattr(info, "shared", 0))


class PeakMemory:
    """Growth of memory inside a `with` block.

    A thread samples it every 10 ms, so shorter peaks may be missed.
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
        self.sample()
        self._ended.set()
        self._thread.join()
        if self._device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._device)
            self.cuda_growth_bytes = peak - self._cuda_before

    def _watch(self) -> None:
        while not self._ended.wait(_INTERVAL_SECONDS):
            self.sample()

    def sample(self) -> None:
        """Sample memory now, at a moment that is known to be a peak."""
        self.growth_bytes = max(self.growth_bytes, resident_bytes() - self._before)


class MemoryOverTime:
    """Growth of memory over time inside a `with` block, sampled twenty times a second."""

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
        self._sample()

    def peaks(self, parts: int) -> list[int]:
        """The largest growth in each of `parts` equal parts of the time, in bytes; 0 if there was none."""
        length = self._samples[-1][0] / parts
        peaks = [0] * parts
        for seconds, growth in self._samples:
            part = min(int(seconds / length), parts - 1) if length else 0
            peaks[part] = max(peaks[part], growth)
        return peaks

    def by_second(self) -> list[list[float]]:
        """Every sampled second with the largest growth in it, in bytes."""
        largest: dict[int, int] = {}
        for seconds, growth in self._samples:
            largest[int(seconds)] = max(largest.get(int(seconds), 0), growth)
        return [[second, growth] for second, growth in largest.items()]

    def _watch(self) -> None:
        while not self._ended.wait(_COARSE_SECONDS):
            self._sample()

    def _sample(self) -> None:
        self._samples.append((time.perf_counter() - self._started, resident_bytes() - self._before))


def _return_free_memory() -> None:
    """Return memory that the allocator keeps to the system, where that is possible.

    Otherwise the measured work would reuse memory that earlier work has freed, and seem to need less.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):  # glibc has it, musl does not
            libc.malloc_trim(0)
