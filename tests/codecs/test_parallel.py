"""Tasks on several threads."""

import threading

import pytest
import torch

from rqmoe_store.codecs.parallel import side_by_side


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_tasks(two_threads):
    assert side_by_side(lambda number=number: number**2 for number in range(50)) == [n**2 for n in range(50)]


def test_two_tasks_run_at_the_same_time(two_threads):
    together = threading.Barrier(2, timeout=30)  # breaks unless both wait at it
    assert sorted(side_by_side([together.wait, together.wait])) == [0, 1]


def test_one_thread_does_everything_itself(two_threads):
    torch.set_num_threads(1)
    assert side_by_side([threading.current_thread] * 3) == [threading.current_thread()] * 3


def test_a_failure_is_raised(two_threads):
    def fail() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        side_by_side([lambda: None, fail])
