"""How much memory a piece of work needs at most."""

import ctypes
import gc
import sys
import threading
from types import TracebackType

import psutil
import torch

_INTERVAL_SECONDS = 0.01


def resident_bytes() -> int:
    """Memory this process holds, without pages that merely mirror files (where the system tells).

    The system drops those when it needs the room, so reading a large memory-mapped file costs nothing.
    """
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


def _return_free_memory() -> None:
    """Give what the allocator keeps for later back to the system, where it can be asked to.

    Otherwise work would reuse what earlier work has freed, and seem to need less than it does.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):  # glibc has it, musl does not
            libc.malloc_trim(0)
