"""Keeping the threads of coroutines busy, so that a test decides when their work begins."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable
from typing import TypeVar

from rqmoe_store.threads import MAX_THREADS, in_thread

PATIENCE_SECONDS = 60.0
"""What never comes is waited for no longer than this, and fails the test."""

_Result = TypeVar("_Result")


@contextlib.asynccontextmanager
async def all_threads_busy() -> AsyncIterator[None]:
    """No thread takes up work until the block ends; afterwards none has any left from before it."""
    loop, release, taken = asyncio.get_running_loop(), threading.Event(), asyncio.Semaphore(0)

    def wait() -> None:
        loop.call_soon_threadsafe(taken.release)
        assert release.wait(PATIENCE_SECONDS)

    waiting = [asyncio.create_task(in_thread(wait)) for _ in range(MAX_THREADS)]
    try:
        for _ in waiting:
            await asyncio.wait_for(taken.acquire(), PATIENCE_SECONDS)
        yield
    finally:
        release.set()
        await asyncio.gather(*waiting)


async def assert_done_by_threads(call: Awaitable[_Result]) -> _Result:
    """The result of `call`, which must do nothing but wait as long as there is no thread for it."""
    async with all_threads_busy():
        task = asyncio.ensure_future(call)
        for _ in range(20):  # turns of the loop, in which it would get to its end if it did the work itself
            await asyncio.sleep(0)
        assert not task.done()
    return await asyncio.wait_for(task, PATIENCE_SECONDS)
