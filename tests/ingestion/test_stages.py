"""Stages before and behind the calling thread: order, errors, Ctrl-C, and few items in between."""

import threading

import pytest
from interruptions import Interruption

from rqmoe_store.ingestion.stages import AbandonedError, BackgroundWriter, prefetch


class Counted:
    """Numbers, with the greatest distance between what was made and what was taken so far."""

    def __init__(self, count):
        self.made = self.taken = self.distance = 0
        self.count = count

    def __iter__(self):
        for number in range(self.count):
            self.made += 1
            self.distance = max(self.distance, self.made - self.taken)
            yield number


@pytest.mark.parametrize("depth", [1, 3])
def test_items_come_in_order_and_only_a_few_early(depth):
    numbers, thread = Counted(50), threading.get_ident()
    found = []
    with prefetch(iter(numbers), depth) as items:
        for number in items:
            assert threading.get_ident() == thread
            found.append(number)
            numbers.taken += 1
    assert found == list(range(50))
    assert numbers.distance <= depth + 1


def test_an_error_ahead_is_raised_in_its_turn():
    def failing():
        yield 1
        yield 2
        raise ValueError("no third one")

    found = []
    with pytest.raises(ValueError, match="no third"), prefetch(failing(), 5) as items:
        found.extend(items)
    assert found == [1, 2]


def test_leaving_early_stops_what_is_ahead():
    numbers = Counted(1000)
    with pytest.raises(KeyError), prefetch(iter(numbers), 2) as items:
        assert next(items) == 0
        raise KeyError
    made = numbers.made
    assert made <= 4
    threading.Event().wait(0.05)
    assert numbers.made == made


def test_what_is_behind_gets_all_items_in_another_thread():
    got, threads = [], set()

    def work(items):
        for item in items:
            threads.add(threading.get_ident())
            got.append(item)

    with BackgroundWriter(work, 2) as behind:
        for number in range(50):
            behind.put(number)
    assert got == list(range(50))
    assert threads.isdisjoint({threading.get_ident()})


def test_putting_waits_for_what_is_behind():
    released, started = threading.Event(), threading.Event()
    sent = Counted(20)

    def work(items):
        started.set()
        assert released.wait(30)
        for _ in items:
            sent.taken += 1

    with BackgroundWriter(work, 2) as behind:
        for number in sent:
            behind.put(number)
            if number == 1:
                assert started.wait(30)
                released.set()
    assert sent.taken == 20
    assert sent.distance <= 4


@pytest.mark.parametrize("after", [0, 3])
def test_an_error_behind_is_raised_by_putting_or_by_leaving(after):
    def work(items):
        for _ in range(after):
            next(items)
        raise ValueError("cannot go on")

    sent = []
    with pytest.raises(ValueError, match="cannot go on"), BackgroundWriter(work, 1) as behind:
        for number in range(1000):
            behind.put(number)
            sent.append(number)
    assert len(sent) < 1000


def test_an_error_in_front_abandons_what_is_behind():
    seen = []

    def work(items):
        try:
            for item in items:
                seen.append(item)
        except AbandonedError:
            seen.append("abandoned")
            raise

    with pytest.raises(KeyError), BackgroundWriter(work, 1) as behind:
        behind.put(1)
        behind.put(2)
        raise KeyError
    assert seen[-1] == "abandoned"


def test_ctrl_c_while_putting_abandons_what_is_behind():
    seen = []

    def work(items):
        next(items)
        interruption.wait()
        try:
            list(items)
        except AbandonedError:
            seen.append("abandoned")
            raise

    with (
        Interruption() as interruption,
        pytest.raises(KeyboardInterrupt),
        BackgroundWriter(work, 1) as behind,
    ):
        for number in range(1000):
            behind.put(number)
    assert seen == ["abandoned"]
