"""What a forked process makes anew, and what it cannot use.

It has the memory of the process it comes from, but one thread of it. A lock that another thread held is never
released there, and torch's own threads are gone: the first operation that torch shares out among them would
wait for ever. Codecs are made to work all the same. LanceDB cannot be: once it has been used, writing in a
forked process crashes or waits for ever more often than not, and even reading does at times.
"""

import contextlib
import functools
import os
import sys
import threading
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from numba.core.compiler_lock import global_compiler_lock
from rich.console import Console

from rqmoe_store.errors import TableError

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
