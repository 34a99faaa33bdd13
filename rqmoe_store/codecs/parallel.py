"""Parallel work: one pool of threads, chunks that fit the memory, compiled loops, and forked processes.

All work on a CPU is divided into tasks that need nothing of each other, each for one thread of a pool. The
pool serves all callers, so many calls at a time use no more cores than one does. A team of threads, which
torch has behind an operation, works differently: its threads wait for each other at the end of every
operation. As soon as another program takes a core, all of them wait for the thread that lost it. So torch
computes on one core in the pool's threads. In the user's threads it keeps the user's settings.

A forked process has the memory of its parent but only one of its threads. A lock that another thread held is
never released there. torch's threads are gone, so the first operation that torch distributes to them would
wait forever. This module resets locks, the pool and torch's thread count after a fork, so that codecs work in
forked processes. LanceDB cannot work there: once its parent has used it, writing in a forked process mostly
crashes or waits forever, and reading sometimes does.
"""

import concurrent.futures
import contextlib
import functools
import math
import operator
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba.core.compiler_lock import global_compiler_lock
from rich.console import Console

from rqmoe_store.arguments import whole_number
from rqmoe_store.errors import InvalidInputError, TableError

Result = TypeVar("Result")

_locks: "weakref.WeakSet[Lock]" = weakref.WeakSet()

_first_process = os.getpid()

_TASKS = Path("/proc/self/task")
_THREADS_OF_LANCE = ("lancedb-", "lance-", "lance_")


class Lock:
    """A lock for `with` that is free in a forked process."""

    # Searches enter several locks: by these properties, `with` calls the methods of `_lock` themselves.
    __enter__: Any = property(operator.attrgetter("_lock.__enter__"))
    __exit__: Any = property(operator.attrgetter("_lock.__exit__"))

    def __init__(self) -> None:
        self._lock = threading.Lock()
        _locks.add(self)

    def reset(self) -> None:
        """Free the lock, whoever holds it."""
        self._lock = threading.Lock()


MAX_THREADS = 1_024
"""Most threads that the pool can have."""

_VARIABLES = ("RQMOE_NUM_THREADS", "OMP_NUM_THREADS")
"""Environment variables with the number of threads, the first one that is set counts."""

_QUOTAS = Path("/sys/fs/cgroup")

_thread_count_lock = Lock()


class _Pool:
    """The threads of this process that compute; none is started before there is work.

    A caller that waits for few tasks may run one of them itself, which saves waking another thread. It then
    has one of the slots that threads of the pool need, too, so that no more tasks run at a time. Callers
    beside others do not: they would keep slots while they wait for Python's lock.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._size: int | None = None
        self._executor: concurrent.futures.ThreadPoolExecutor | None = None
        self._slots = threading.Semaphore(0)
        self._callers = 0

    @property
    def size(self) -> int:
        if self._size is None:
            self._size = default_threads()
        return self._size

    def resize(self, size: int) -> None:
        with self._lock:
            if size != self._size and self._executor is not None:
                self._executor.shutdown(wait=False)  # what it was given before is still done
                self._executor = None
            self._size = size

    def submit(self, tasks: list[Callable[[], Result]]) -> "list[concurrent.futures.Future[Result]]":
        size = self.size
        with self._lock:
            if self._executor is None:
                self._executor = concurrent.futures.ThreadPoolExecutor(
                    size, thread_name_prefix="rqmoe-compute", initializer=_enter_pool
                )
                self._slots = threading.Semaphore(size)
            return [self._executor.submit(_run_in_slot, self._slots, task) for task in tasks]

    def free_slot(self) -> threading.Semaphore | None:
        """The slots, one of which the caller now has and must release; None if all are in use."""
        slots = self._slots
        return slots if self._executor is not None and slots.acquire(blocking=False) else None

    @contextlib.contextmanager
    def calling(self) -> Iterator[bool]:
        """A context for a call that waits for tasks; whether no other call waits for any as it begins."""
        with self._lock:
            self._callers += 1
            is_alone = self._callers == 1
        try:
            yield is_alone
        finally:
            with self._lock:
                self._callers -= 1

    def forget(self) -> None:
        """Have no threads and no callers, in a forked process."""
        self._executor, self._callers = None, 0


_pool = _Pool()
_here = threading.local()


def _enter_pool() -> None:
    _here.in_pool = True


def _run_in_slot(slots: threading.Semaphore, task: Callable[[], Result]) -> Result:
    """Run a task in a thread of the pool, as soon as there is a slot."""
    with slots:
        return task()


def _run_in_caller(slots: threading.Semaphore, task: Callable[[], Result]) -> Result:
    """Run a task in the thread that called for it, which has one of the slots."""
    _here.in_pool = True
    try:
        return task()
    finally:
        _here.in_pool = False
        slots.release()


def num_threads() -> int:
    """Threads that this package computes with on a CPU, all calls of the process together.

    Unless `set_num_threads` was called, the environment variable RQMOE_NUM_THREADS decides, else
    OMP_NUM_THREADS, else the number of cores that this process may use: by its affinity, and by the CPU quota
    of its container.
    """
    return _pool.size


def set_num_threads(count: int) -> None:
    """Set how many threads this package computes with on a CPU, all calls of the process together.

    Training, encoding, decoding and searches share these threads. Settings of torch stay as they are.

    Args:
        count: 1 to 1024. With 1, searches compute in the thread that calls them.

    Raises:
        InvalidInputError: another number.
    """
    _pool.resize(whole_number("count", count, 1, MAX_THREADS))


def default_threads() -> int:
    """Number of threads by environment variables, or else the cores that this process may use."""
    for name in _VARIABLES:
        # OMP_NUM_THREADS may be a list, one number for each level of nested teams.
        value = os.environ.get(name, "").partition(",")[0].strip()
        if value.isdecimal() and 1 <= int(value) <= MAX_THREADS:
            return int(value)
        if value and name == _VARIABLES[0]:
            raise InvalidInputError(
                f"Got {name}={value!r} in the environment; expected a number of threads from 1 to "
                f"{MAX_THREADS}."
            )
    has_affinity = hasattr(os, "sched_getaffinity")  # Linux only
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    quota = container_cores(_QUOTAS)
    return max(1, min(cores if quota is None else min(cores, math.ceil(quota)), MAX_THREADS))


def container_cores(folder: Path) -> float | None:
    """CPU quota of this container, in cores, by the control groups (version 2 or 1) in a folder; None for no
    quota. Threads beyond it would be stopped in turn, while others wait for them."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu" / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu" / "cpu.cfs_period_us").read_text()
        return None if quota == "max" or int(quota) <= 0 else int(quota) / int(period)
    except (OSError, ValueError):  # not Linux, or no such control group
        return None


def run_parallel(tasks: Iterable[Callable[[], Result]], *, one_core: bool = False) -> list[Result]:
    """Run tasks on the threads of the pool; returns their results in order.

    A single task runs in the calling thread, as does every task if the pool has a single thread. So do tasks
    that a task of the pool runs in its turn, and the last of few tasks if no other call uses the pool.

    Args:
        tasks: functions that need nothing of each other. After one has failed, those that have not begun are
            not run.
        one_core: have torch compute each task on one core. Then even a single task runs on the pool.
    """
    tasks = list(tasks)
    if one_core:
        tasks = [functools.partial(_compute_on_one_core, task) for task in tasks]
    if getattr(_here, "in_pool", False) or (not one_core and (len(tasks) < 2 or num_threads() == 1)):
        return [task() for task in tasks]
    with _pool.calling() as is_alone:
        may_run_one = is_alone and not one_core and len(tasks) <= num_threads()
        slots = _pool.free_slot() if may_run_one else None
        futures = _pool.submit(tasks if slots is None else tasks[:-1])
        try:
            own = [] if slots is None else [_run_in_caller(slots, tasks[-1])]
            return [*(future.result() for future in futures), *own]
        finally:
            for future in futures:
                future.cancel()


def _compute_on_one_core(task: Callable[[], Result]) -> Result:
    if not getattr(_here, "torch_has_one_core", False):
        _give_torch_one_core()
        _here.torch_has_one_core = True
    return task()


def _give_torch_one_core() -> None:
    """Make torch compute on one core in this thread, and in no other one."""
    import torch

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
        except _out_of_memory() as error:
            if rows == 1:
                raise InvalidInputError(
                    f"The GPU ran out of memory with a single vector (after {start} of {total}): {error} "
                    "Free memory on it, or move the codec to the CPU with codec.to('cpu')."
                ) from error
            rows = (rows + 1) // 2
            sys.modules["torch"].cuda.empty_cache()
        else:
            start = stop


def _out_of_memory() -> tuple[type[BaseException], ...]:
    """What torch raises when a GPU runs out of memory; nothing if torch is not loaded."""
    torch = sys.modules.get("torch")
    return () if torch is None else (torch.OutOfMemoryError,)


def run_chunks_parallel(
    total: int, rows: int, work: Callable[[int, int, int], None], *, one_core: bool = False
) -> None:
    """Call `work` as `run_chunks` does, on a CPU and for several chunks at once, by `run_parallel`.

    Unlike `run_chunks`, this repeats nothing when memory runs out.
    """
    chunks = (
        functools.partial(work, start, min(start + rows, total), rows) for start in range(0, total, rows)
    )
    run_parallel(chunks, one_core=one_core)


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
    _pool.forget()
    vars(_here).clear()
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
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
