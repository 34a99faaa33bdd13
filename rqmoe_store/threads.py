"""Run blocking calls in threads, so that an event loop stays free."""

import asyncio
import concurrent.futures
import contextvars
import os
from collections.abc import Callable
from typing import TypeVar

MAX_THREADS = min(32, (os.cpu_count() or 1) + 4)
"""Calls that run at the same time; more wait for their turn. Some of them wait for storage, so there are
more than cores."""

_Result = TypeVar("_Result")


def _new_threads() -> concurrent.futures.ThreadPoolExecutor:
    # Not the loop's own executor: what users run there could take all of its threads.
    return concurrent.futures.ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="rqmoe-async")


_threads = _new_threads()  # none is started before there is work


async def in_thread(work: Callable[[], _Result]) -> _Result:
    """What `work` returns or raises, done in a thread of this process with the caller's context variables.

    Cancelled before a thread has taken it up, it is never done; after that it goes on to its end, and
    its result is dropped.
    """
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(_threads, context.run, work)


def _renew_threads() -> None:
    global _threads
    _threads = _new_threads()


if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
    os.register_at_fork(after_in_child=_renew_threads)  # a forked process has none of its parent's threads
