"""Parallel work: threads on a CPU, chunks that fit the memory, compiled loops, and forked processes.

A forked process has the memory of its parent but only one of its threads. A lock that another thread held is
never released there. torch's threads are gone, so the first operation that torch distributes to them would
wait forever. This module resets locks and torch's thread count after a fork, so that codecs work in forked
processes. LanceDB cannot work there: once its parent has used it, writing in a forked process mostly crashes
or waits forever, and reading sometimes does.
"""

import concurrent.futures
import contextlib
import functools
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numba
import torch
from numba.core.compiler_lock import global_compiler_lock
from rich.console import Console

from rqmoe_store.errors import InvalidInputError, TableError

Result = TypeVar("Result")

_locks: "weakref.WeakSet[Lock]" = weakref.WeakSet()

_first_process = os.getpid()

_TASKS = Path("/proc/self/task")
_THREADS_OF_LANCE = ("lancedb-", "lance-", "lance_")


class Lock:
    """A lock for `with` that is free in a forked process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def reset(self) -> None:
        """Free the lock, whoever holds it."""
        self._lock = threading.Lock()


_thread_count_lock = Lock()


def run_parallel(tasks: Iterable[Callable[[], Result]]) -> list[Result]:
    """Run tasks on as many threads as torch may use; returns their results in order.

    Each of several tasks has one core, also for what torch computes in it. A single task has all cores.
    """
    tasks = list(tasks)
    if len(tasks) == 1 or torch.get_num_threads() == 1:
        return [task() for task in tasks]
    return list(_thread_pool(os.getpid()).map(lambda task: task(), tasks))


@functools.cache
def _thread_pool(process: int) -> concurrent.futures.ThreadPoolExecutor:
    """The thread pool of a process; a forked process has none of its parent's threads."""
    return concurrent.futures.ThreadPoolExecutor(
        torch.get_num_threads(), thread_name_prefix="rqmoe-compute", initializer=_use_one_core
    )


def _use_one_core() -> None:
    """Make torch compute on one core in this thread.

    Threads that share an operation wait for each other at its end. As soon as another program takes a core,
    all of them wait for the thread that lost it.
    """
    with _thread_count_lock:
        usual = torch.get_num_threads()
        torch.set_num_threads(1)
        # A thread new to torch begins with the count that was set last, so another new thread restores it.
        others = threading.Thread(target=torch.set_num_threads, args=(usual,))
        others.start()
        others.join()


def run_chunks(total: int, rows: int, work: Callable[[int, int, int], None]) -> None:
    """Call `work(start, stop, rows)` for consecutive chunks of at most `rows` rows.

    When the GPU runs out of memory, this repeats the chunk in halves, from its start.

    Raises:
        InvalidInputError: the GPU has no memory for a single row.
    """
    start = 0
    while start < total:
        stop = min(start + rows, total)
        try:
            work(start, stop, rows)
        except torch.OutOfMemoryError as error:
            if rows == 1:
                raise InvalidInputError(
                    f"The GPU ran out of memory with a single vector (after {start} of {total}): {error} "
                    "Free memory on it, or move the codec to the CPU with codec.to('cpu')."
                ) from error
            rows = (rows + 1) // 2
            torch.cuda.empty_cache()
        else:
            start = stop


def run_chunks_parallel(total: int, rows: int, work: Callable[[int, int, int], None]) -> None:
    """Call `work` as `run_chunks` does, on a CPU and for several chunks at once, each on its own core.

    Unlike `run_chunks`, this repeats nothing when memory runs out.
    """
    run_parallel(
        functools.partial(work, start, min(start + rows, total), rows) for start in range(0, total, rows)
    )


def rows_in_budget(budget_bytes: int, floats_per_row: int, most: int) -> int:
    """The number of float32 rows that fit a budget: a power of two from 1 to `most`."""
    rows = max(1, budget_bytes // (4 * max(1, floats_per_row)))
    return int(min(most, 2 ** (rows.bit_length() - 1)))


def compiled(function: Any) -> Any:
    """The function, compiled by numba at its first call and cached on disk if a cache folder is writable.

    It releases the interpreter's lock, so several threads run it in parallel. A multiplication and an
    addition may be contracted into one instruction.
    """
    try:
        return numba.njit(nogil=True, cache=True, fastmath={"contract"})(function)
    except RuntimeError:  # neither the package's folder nor the user's cache folder can be written to
        return numba.njit(nogil=True, fastmath={"contract"})(function)


class _LanceDBState:
    """Whether this process uses LanceDB, and whether it may."""

    used = False
    """Whether this process has used LanceDB."""
    lost = False
    """Whether LanceDB is unusable, because its parent process used it before the fork."""


def use_storage() -> None:
    """Take note that this process uses LanceDB. Call it before LanceDB is called.

    Raises:
        TableError: this process was forked from one that had used LanceDB.
    """
    if _LanceDBState.lost:
        raise TableError(
            "This process was forked from one that has used LanceDB, which does not work in such a process: "
            "it crashes or waits forever. Start processes by 'spawn' or 'forkserver', as in "
            "multiprocessing.get_context('spawn') or DataLoader(multiprocessing_context='spawn'), or fork "
            "before a database is opened and open it in each of the new processes."
        )
    _LanceDBState.used = True


def progress_console() -> Console | None:
    """The console for progress bars: None for the one that rich shares, or a new one in a forked process,
    which may have been forked while a bar of its parent was on the shared console."""
    return None if os.getpid() == _first_process else Console()


def _detect_lance_threads() -> None:
    """Take note if LanceDB has threads: the program may have used it without this package."""
    if _LanceDBState.used or not _TASKS.is_dir():  # systems without /proc list no threads
        return
    for task in list(_TASKS.iterdir()):
        with contextlib.suppress(OSError):  # the thread has ended meanwhile
            if (task / "comm").read_text().startswith(_THREADS_OF_LANCE):
                _LanceDBState.used = True


def _reset_after_fork() -> None:
    """Free the locks of a forked process, and keep torch from waiting for threads that are gone."""
    _LanceDBState.lost, _LanceDBState.used = _LanceDBState.lost or _LanceDBState.used, False
    torch.set_num_threads(1)
    for lock in list(_locks):
        lock.reset()
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == __name__.partition(".")[0]:
            _reset_cached_properties(vars(module))


def _reset_cached_properties(names: dict[str, Any]) -> None:
    """Replace the lock that a cached property has up to Python 3.11; a thread may have held it."""
    for kind in list(names.values()):
        if not isinstance(kind, type):
            continue
        for cached in list(vars(kind).values()):
            if isinstance(cached, functools.cached_property) and hasattr(cached, "lock"):
                cached.lock = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
    os.register_at_fork(before=_detect_lance_threads, after_in_child=_reset_after_fork)
    # Forking waits for compilation to end: the new process could not finish it.
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )
