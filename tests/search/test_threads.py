"""Threads for coroutines: bounded, apart from those of the loop, and whole after a cancellation or a fork."""

import asyncio
import concurrent.futures
import contextvars
import os
import signal
import threading

import pytest
from busy_threads import PATIENCE_SECONDS, all_threads_busy

from rqmoe_store.threads import MAX_THREADS, in_thread


def test_results_and_errors_arrive() -> None:
    assert asyncio.run(in_thread(lambda: 5)) == 5
    error = KeyError("told")

    def fail() -> None:
        raise error

    with pytest.raises(KeyError) as raised:
        asyncio.run(in_thread(fail))
    assert raised.value is error


def test_context_variables_are_those_of_the_caller() -> None:
    variable = contextvars.ContextVar("variable", default="unset")

    async def main() -> None:
        variable.set("set")
        assert await in_thread(variable.get) == "set"
        await in_thread(lambda: variable.set("changed"))
        assert variable.get() == "set"

    asyncio.run(main())


def test_no_more_threads_than_allowed() -> None:
    async def main() -> list[str]:
        async with all_threads_busy():
            more = [asyncio.create_task(in_thread(lambda: threading.current_thread().name)) for _ in range(9)]
            await asyncio.sleep(0)
            ours = [thread for thread in threading.enumerate() if thread.name.startswith("rqmoe-async")]
            assert len(ours) == MAX_THREADS
        return await asyncio.gather(*more)

    assert all(name.startswith("rqmoe-async") for name in asyncio.run(main()))


def test_threads_of_the_loop_may_all_be_taken() -> None:
    async def main() -> int:
        loop, release = asyncio.get_running_loop(), threading.Event()
        loop.set_default_executor(concurrent.futures.ThreadPoolExecutor(1))
        blocked = loop.run_in_executor(None, release.wait)
        try:
            return await asyncio.wait_for(in_thread(lambda: 7), PATIENCE_SECONDS)
        finally:
            release.set()
            await blocked

    assert asyncio.run(main()) == 7


def test_work_cancelled_before_its_turn_is_never_done() -> None:
    done: list[str] = []

    async def main() -> None:
        async with all_threads_busy():
            cancelled, kept = (
                asyncio.create_task(in_thread(lambda name=name: done.append(name))) for name in ("one", "two")
            )
            await asyncio.sleep(0)
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
        await kept

    asyncio.run(main())
    assert done == ["two"]


def test_work_cancelled_while_it_is_done_comes_to_its_end() -> None:
    begun, release, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        assert release.wait(PATIENCE_SECONDS)
        ended.set()

    async def main() -> None:
        task = asyncio.create_task(in_thread(work))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())  # its loop is gone before the work ends
    release.set()
    assert ended.wait(PATIENCE_SECONDS)
    assert asyncio.run(in_thread(lambda: 3)) == 3


@pytest.mark.filterwarnings("ignore")
def test_a_forked_process_has_threads_of_its_own() -> None:
    assert asyncio.run(in_thread(lambda: 1)) == 1
    process = os.fork()
    if process == 0:
        signal.alarm(20)
        os._exit(asyncio.run(in_thread(lambda: 0)))
    assert os.waitpid(process, 0)[1] == 0
    assert asyncio.run(in_thread(lambda: 2)) == 2
