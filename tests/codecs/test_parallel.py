"""Tasks that run in parallel on several threads."""

import concurrent.futures
import threading

import pytest
import torch

from rqmoe_store.codecs import parallel
from rqmoe_store.codecs.parallel import run_parallel


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_tasks(two_threads):
    assert run_parallel(lambda number=number: number**2 for number in range(50)) == [n**2 for n in range(50)]


def test_two_tasks_run_at_the_same_time(two_threads):
    together = threading.Barrier(2, timeout=30)  # breaks unless both wait at it
    assert sorted(run_parallel([together.wait, together.wait])) == [0, 1]


def test_each_of_several_tasks_has_torch_use_one_thread(two_threads):
    parallel._thread_pool.cache_clear()  # those that earlier tests have used are settled
    together = threading.Barrier(2, timeout=30)

    def threads_of_torch() -> int:
        together.wait()  # so that each of the two threads does one
        return torch.get_num_threads()

    assert run_parallel([threads_of_torch] * 2) == [1, 1]
    with concurrent.futures.ThreadPoolExecutor(1) as others:
        assert others.submit(torch.get_num_threads).result() == 2
    assert torch.get_num_threads() == 2


def test_a_single_task_has_torch_use_all_threads(two_threads):
    assert run_parallel([torch.get_num_threads]) == [2]


def test_one_thread_does_everything_itself(two_threads):
    torch.set_num_threads(1)
    assert run_parallel([threading.current_thread] * 3) == [threading.current_thread()] * 3


def test_a_failure_is_raised(two_threads):
    def fail() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        run_parallel([lambda: None, fail])
