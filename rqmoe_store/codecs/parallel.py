"""Parallel work on a CPU: compiled loops, threads, chunks that fit the memory, and forked processes.

It has the memory of the process it comes from, but one thread of it. A lock that another thread held is never
released there, and torch's own threads are gone: the first operation that torch shares out among them would
wait for ever. Codecs are made to work all the same. LanceDB cannot be: once it has been used, writing in a
forked process crashes or waits for ever more often than not, and even reading does at times.
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


def compiled(function: Any) -> Any:
    """The function, compiled at its first call, and from then on for good where a file can be kept.

    It releases the interpreter's lock, so calls of several threads run side by side. Multiplications and
    additions may be contracted into one instruction.
    """
    try:
        return numba.njit(nogil=True, cache=True, fastmath={"contract"})(function)
    except RuntimeError:  # neither the package's folder nor the user's cache folder can be written to
        return numba.njit(nogil=True, fastmath={"contract"})(function)


_locks: "weakref.WeakSet[Lock]" = weakref.WeakSet()


class Lock:
    """A lock for `with`; in a forked process nobody holds it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def renew(self) -> None:
        """Take it from whoever holds it."""
        self._lock = threading.Lock()


_process = os.getpid()

_TASKS = Path("/proc/self/task")
_THREADS_OF_LANCE = ("lancedb-", "lance-", "lance_")


class _Storage:
    """Whether LanceDB is in use, and whether it can be used."""

    used = False
    """By this package, in this process."""
    lost = False
    """Because it was in use when this process was forked."""


def use_storage() -> None:
    """To be called before LanceDB is.

    Raises:
        TableError: this process was forked from one in which LanceDB was in use.
    """
    if _Storage.lost:
        raise TableError(
            "This process was forked from one that has used LanceDB, which does not work in such a process: "
            "it crashes or waits for ever. Start processes by 'spawn' or 'forkserver', as in "
            "multiprocessing.get_context('spawn') or DataLoader(multiprocessing_context='spawn'), or fork "
            "before a database is opened and open it in each of the new processes."
        )
    _Storage.used = True


def _look_for_threads() -> None:
    """Take note of LanceDB's threads, if any: it may have been used without this package."""
    if _Storage.used or not _TASKS.is_dir():  # where the system does not tell, the package's own use counts
        return
    for task in list(_TASKS.iterdir()):
        with contextlib.suppress(OSError):  # a thread that has ended meanwhile
            if (task / "comm").read_text().startswith(_THREADS_OF_LANCE):
                _Storage.used = True


def progress_console() -> Console | None:
    """Where to show progress: None for the console that rich shares out, which a forked process may have got
    in the middle of a bar of the other one."""
    return None if os.getpid() == _process else Console()


def _begin_anew() -> None:
    _Storage.lost, _Storage.used = _Storage.lost or _Storage.used, False
    torch.set_num_threads(1)
    for lock in list(_locks):
        lock.renew()
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == __name__.partition(".")[0]:
            _renew_cached_properties(vars(module))


def _renew_cached_properties(names: dict[str, Any]) -> None:
    """Up to Python 3.11 these have a lock, held while the value is computed."""
    for kind in list(names.values()):
        if not isinstance(kind, type):
            continue
        for cached in list(vars(kind).values()):
            if isinstance(cached, functools.cached_property) and hasattr(cached, "lock"):
                cached.lock = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
    os.register_at_fork(before=_look_for_threads, after_in_child=_begin_anew)
    # Compiling is waited for: what it leaves half-done could not be gone on with.
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )


Result = TypeVar("Result")

_settling = Lock()


def side_by_side(tasks: Iterable[Callable[[], Result]]) -> list[Result]:
    """What the tasks return, in their order; done on as many threads as torch may use.

    Of several tasks each has one core, also for what torch computes in it; a single one has all of them.
    """
    tasks = list(tasks)
    if len(tasks) == 1 or torch.get_num_threads() == 1:
        return [task() for task in tasks]
    return list(_threads(os.getpid()).map(lambda task: task(), tasks))


@functools.cache
def _threads(process: int) -> concurrent.futures.ThreadPoolExecutor:
    """The threads of this process; a forked one has none of its parent's."""
    return concurrent.futures.ThreadPoolExecutor(
        torch.get_num_threads(), thread_name_prefix="rqmoe-compute", initializer=_use_one_core
    )


def _use_one_core() -> None:
    """Have torch compute on one core in this thread.

    Threads of torch that share one operation wait for each other after each of them. As soon as anything else
    wants a core, all wait for the one that lost it.
    """
    with _settling:
        usual = torch.get_num_threads()
        torch.set_num_threads(1)
        # Threads that torch has not seen yet begin with what was set last: one of them sets that back.
        others = threading.Thread(target=torch.set_num_threads, args=(usual,))
        others.start()
        others.join()


def in_chunks(total: int, rows: int, work: Callable[[int, int, int], None]) -> None:
    """Call `work(start, stop, rows)` for consecutive chunks of at most `rows` rows.

    A chunk for which the GPU has too little memory is done again, from its start, in halves.

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


def side_by_side_chunks(total: int, rows: int, work: Callable[[int, int, int], None]) -> None:
    """Call `work` as `in_chunks` does, for several chunks at once, each on a core of its own.

    For work on a CPU: nothing is done again there for lack of memory.
    """
    side_by_side(
        functools.partial(work, start, min(start + rows, total), rows) for start in range(0, total, rows)
    )


def rows_in_budget(budget_bytes: int, floats_per_row: int, most: int) -> int:
    """The largest power of two of float32 rows that fits a budget, from 1 to `most`."""
    rows = max(1, budget_bytes // (4 * max(1, floats_per_row)))
    return int(min(most, 2 ** (rows.bit_length() - 1)))
