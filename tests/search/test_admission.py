"""Searches that compute at the same time: as many as there are threads, in the order in which they came."""

import copy
import os
import signal
import threading
import time

import pytest

from rqmoe_store.codecs.parallel import num_threads, set_num_threads
from rqmoe_store.search.admission import Admission, search_admission

PATIENCE_SECONDS = 60


@pytest.fixture(params=[1, 3])
def admitted(request):
    """The number of calls that are admitted at a time."""
    before = num_threads()
    set_num_threads(request.param)
    yield max(2, request.param)
    set_num_threads(before)


def wait_for(condition) -> None:
    """Wait until something holds that other threads bring about."""
    until = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


class Calls:
    """Calls that begin one after the other, and end when they are told to."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.begun: list[int] = []
        self._ends: list[threading.Event] = []
        self._threads: list[threading.Thread] = []

    def begin(self) -> None:
        """Begin a call, which is admitted or waits when this returns."""
        number, end = len(self._ends), threading.Event()

        def call() -> None:
            with self.admission.admitted():
                self.begun.append(number)
                assert end.wait(PATIENCE_SECONDS)

        before = len(self.begun) + self.admission.waiting
        self._ends.append(end)
        self._threads.append(threading.Thread(target=call))
        self._threads[-1].start()
        wait_for(lambda: len(self.begun) + self.admission.waiting > before)

    def end(self, number: int) -> None:
        """End an admitted call."""
        self._ends[number].set()
        self._threads[number].join(PATIENCE_SECONDS)
        assert not self._threads[number].is_alive()


def test_calls_are_admitted_in_their_order_and_no_more_than_threads_at_a_time(admitted) -> None:
    calls = Calls(Admission())
    for _ in range(6):
        calls.begin()
    assert sorted(calls.begun) == list(range(admitted))
    for number in range(6):
        calls.end(number)
        wait_for(lambda number=number: len(calls.begun) == min(6, number + 1 + admitted))
        assert sorted(calls.begun[: number + 1 + admitted]) == list(range(min(6, number + 1 + admitted)))
    assert calls.admission.waiting == 0


def test_a_call_that_fails_leaves_its_place_to_others(admitted) -> None:
    admission = Admission()
    for _ in range(3):
        with pytest.raises(KeyError), admission.admitted():
            raise KeyError
    calls = Calls(admission)
    calls.begin()
    calls.end(0)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="signals to threads")
def test_an_interrupted_call_waits_no_longer(admitted) -> None:
    calls = Calls(Admission())
    for _ in range(admitted):
        calls.begin()

    def interrupt() -> None:
        wait_for(lambda: calls.admission.waiting == 1)
        signal.pthread_kill(main, signal.SIGINT)

    main = threading.main_thread().ident
    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    with pytest.raises(KeyboardInterrupt), calls.admission.admitted():
        pytest.fail("was admitted")
    interrupter.join()
    assert calls.admission.waiting == 0
    for number in range(admitted):
        calls.end(number)
    calls.begin()
    calls.end(admitted)


def test_more_threads_admit_those_that_wait() -> None:
    before = num_threads()
    try:
        set_num_threads(1)
        calls = Calls(Admission())
        for _ in range(4):
            calls.begin()
        set_num_threads(3)
        calls.end(0)
        wait_for(lambda: len(calls.begun) == 4)
        for number in range(1, 4):
            calls.end(number)
    finally:
        set_num_threads(before)


@pytest.mark.parametrize("change", ["none", "where", "disk", "batch"])
def test_searches_that_only_compute_wait_for_each_other_and_no_others_do(world, change, admitted) -> None:
    found: list[int] = []
    store = copy.copy(world.store).use_cache("disk" if change == "disk" else "memory")
    queries = world.vectors[: 20 if change == "batch" else 1]
    query = store.search(queries).limit(3).where("id >= 0" if change == "where" else None)
    expected = query.to_arrow()  # and codes are in memory
    calls = Calls(search_admission)
    for _ in range(admitted):
        calls.begin()
    searching = threading.Thread(target=lambda: found.append(query.to_arrow() == expected))
    searching.start()
    if change == "none":
        wait_for(lambda: search_admission.waiting == 1)
        assert not found
    else:
        searching.join(PATIENCE_SECONDS)
        assert found == [True]
    for number in range(admitted):
        calls.end(number)
    searching.join(PATIENCE_SECONDS)
    assert found == [True]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_process_waits_for_none_of_its_parent(admitted) -> None:
    calls = Calls(search_admission)
    for _ in range(admitted + 1):
        calls.begin()
    process = os.fork()
    if process == 0:
        signal.alarm(PATIENCE_SECONDS)
        with search_admission.admitted():
            os._exit(search_admission.waiting)
    assert os.waitpid(process, 0)[1] == 0
    for number in range(admitted + 1):
        calls.end(number)
