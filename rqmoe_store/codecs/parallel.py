"""Work that releases the interpreter's lock, done on several cores."""

import concurrent.futures
import functools
import os
import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch

from rqmoe_store.codecs.forks import Lock

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
