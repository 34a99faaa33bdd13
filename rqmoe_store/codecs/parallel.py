"""Work that releases the interpreter's lock, done on several cores."""

import concurrent.futures
import functools
import os
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch

Result = TypeVar("Result")


def side_by_side(tasks: Iterable[Callable[[], Result]]) -> list[Result]:
    """What the tasks return, in their order; done on as many threads as torch may use."""
    tasks = list(tasks)
    if len(tasks) == 1 or torch.get_num_threads() == 1:
        return [task() for task in tasks]
    return list(_threads(os.getpid()).map(lambda task: task(), tasks))


@functools.cache
def _threads(process: int) -> concurrent.futures.ThreadPoolExecutor:
    """The threads of this process; a forked one has none of its parent's."""
    return concurrent.futures.ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="rqmoe-compute")
