"""Tasks on several threads, and chunks that fit the memory."""

import _thread
import concurrent.futures
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_codecs import as_codec, small_config, stirred, vectors

from rqmoe_store.codecs import decoding, encoding, parallel
from rqmoe_store.codecs.encoding import encoding_tables
from rqmoe_store.codecs.parallel import (
    num_threads,
    rows_in_budget,
    run_chunks,
    run_chunks_parallel,
    run_parallel,
    set_num_threads,
)
from rqmoe_store.codecs.quantizer import ResidualQuantizer
from rqmoe_store.errors import InvalidInputError


@pytest.fixture
def two_threads():
    before = num_threads()
    set_num_threads(2)
    yield
    set_num_threads(before)


@pytest.fixture
def torch_has_two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_tasks(two_threads):
    assert run_parallel(lambda number=number: number**2 for number in range(50)) == [n**2 for n in range(50)]


def test_two_tasks_run_at_the_same_time(two_threads):
    together = threading.Barrier(2, timeout=30)  # breaks unless both wait at it
    assert sorted(run_parallel([together.wait, together.wait])) == [0, 1]


@pytest.mark.parametrize("tasks", [2, 5])
def test_no_more_tasks_run_at_a_time_than_there_are_threads(two_threads, tasks):
    """However many callers there are, and whether or not they run tasks themselves."""
    running, most, lock = 0, 0, threading.Lock()

    def task() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.002)
        with lock:
            running -= 1

    with concurrent.futures.ThreadPoolExecutor(8) as callers:
        for _ in callers.map(lambda _: run_parallel([task] * tasks), range(8)):
            pass
    assert most == 2


def test_tasks_of_tasks_run_where_these_do(two_threads):
    def outer() -> bool:
        return run_parallel([threading.current_thread] * 3) == [threading.current_thread()] * 3

    assert run_parallel([outer] * 4) == [True] * 4


def test_the_last_of_few_tasks_runs_where_they_were_called_for(two_threads):
    def fail() -> None:
        raise ValueError("broken")

    def nested() -> list[threading.Thread]:
        return run_parallel([threading.current_thread] * 3)

    run_parallel([threading.current_thread] * 3)  # the pool has threads now
    for _ in range(5):  # of which a failure takes none
        with pytest.raises(ValueError, match="broken"):
            run_parallel([threading.current_thread, fail])
        with pytest.raises(ValueError, match="broken"):
            run_parallel([fail, threading.current_thread])
    other, own = run_parallel([nested, nested])
    assert own == [threading.current_thread()] * 3
    assert len(set(other)) == 1 and other[0] != threading.current_thread()
    assert threading.current_thread() not in run_parallel([threading.current_thread] * 3)


def test_callers_beside_others_run_no_tasks_themselves() -> None:
    before = num_threads()
    set_num_threads(4)
    try:
        begun, done = threading.Barrier(3), threading.Event()

        def wait() -> None:
            begun.wait(60)
            assert done.wait(60)

        with concurrent.futures.ThreadPoolExecutor(1) as other:
            waiting = other.submit(run_parallel, [wait, wait])
            begun.wait(60)
            beside = run_parallel([threading.current_thread] * 2)
            done.set()
            waiting.result()
        assert threading.current_thread() not in beside
        run_parallel([threading.current_thread] * 2)  # a new pool has threads from now on
        assert run_parallel([threading.current_thread] * 2)[1] == threading.current_thread()
    finally:
        set_num_threads(before)


def test_torch_has_one_core_on_the_pool_and_its_own_threads_elsewhere(torch_has_two_threads):
    before = num_threads()
    set_num_threads(3)  # new threads, which nothing has settled yet
    try:
        together = threading.Barrier(3, timeout=30)

        def threads_of_torch() -> int:
            together.wait()  # so that each of the threads does one
            return torch.get_num_threads()

        assert run_parallel([threads_of_torch] * 3, one_core=True) == [1, 1, 1]
        assert run_parallel([torch.get_num_threads], one_core=True) == [1]
    finally:
        set_num_threads(before)
    with concurrent.futures.ThreadPoolExecutor(1) as others:
        assert others.submit(torch.get_num_threads).result() == 2
    assert torch.get_num_threads() == 2


def test_a_single_task_runs_where_it_is_called(two_threads):
    assert run_parallel([threading.current_thread]) == [threading.current_thread()]
    assert run_parallel([threading.current_thread], one_core=True) != [threading.current_thread()]


def test_one_thread_does_everything_itself(two_threads):
    set_num_threads(1)
    assert run_parallel([threading.current_thread] * 3) == [threading.current_thread()] * 3


def test_the_number_of_threads_can_change_while_tasks_run(two_threads):
    def resized(count: int) -> int:
        set_num_threads(1 + count % 3)
        return sum(run_parallel([lambda: count] * 5))

    with concurrent.futures.ThreadPoolExecutor(4) as callers:
        assert list(callers.map(resized, range(60))) == [5 * count for count in range(60)]


@pytest.mark.parametrize("count", [0, -1, 1025, 2.5, True, "2", None])
def test_numbers_of_threads_out_of_range_are_refused(count) -> None:
    before = num_threads()
    with pytest.raises(InvalidInputError, match="count"):
        set_num_threads(count)
    assert num_threads() == before


@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        ({"RQMOE_NUM_THREADS": "7", "OMP_NUM_THREADS": "3"}, 7),
        ({"OMP_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "3,2"}, 3),
    ],
)
def test_the_environment_decides_the_number_of_threads(monkeypatch, environment, threads) -> None:
    for name in ("RQMOE_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert parallel.default_threads() == threads


@pytest.mark.parametrize("value", ["none", "0", "-2", "1.5", "4096"])
def test_a_wrong_number_in_the_environment_is_an_error(monkeypatch, value) -> None:
    monkeypatch.setenv("RQMOE_NUM_THREADS", value)
    with pytest.raises(InvalidInputError, match=f"RQMOE_NUM_THREADS='{value}'"):
        parallel.default_threads()


def test_threads_keep_to_the_cores_of_the_container(monkeypatch, tmp_path) -> None:
    for name in ("RQMOE_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(parallel, "_QUOTAS", tmp_path)
    every_core = parallel.default_threads()
    assert parallel.container_cores(tmp_path) is None
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert parallel.container_cores(tmp_path) is None and parallel.default_threads() == every_core
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert parallel.container_cores(tmp_path) == 0.5 and parallel.default_threads() == 1
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert parallel.container_cores(tmp_path) is None
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("250000\n")
    assert parallel.container_cores(tmp_path) == 2.5


def test_an_interrupted_call_drops_its_tasks_and_leaves_the_pool_to_others(two_threads):
    begun = []

    def task() -> None:
        begun.append(None)
        if len(begun) == 3:
            _thread.interrupt_main()
        time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt):
        run_parallel([task] * 500)
    assert run_parallel([lambda: 1, lambda: 2]) == [1, 2]
    ended_at = len(begun)
    assert run_parallel([lambda: 3, lambda: 4]) == [3, 4]
    assert 3 <= len(begun) == ended_at < 500


def test_tasks_that_have_not_begun_are_dropped_when_one_fails(two_threads):
    begun = []

    def fail() -> None:
        raise ValueError("broken")

    def other() -> None:
        begun.append(None)
        time.sleep(0.01)

    with pytest.raises(ValueError, match="broken"):
        run_parallel([fail, *[other] * 200])
    dropped_at = len(begun)
    run_parallel([lambda: None] * 4)
    assert len(begun) <= dropped_at + 2 < 200


def test_a_failure_is_raised(two_threads):
    def fail() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        run_parallel([lambda: None, fail])


@given(total=st.integers(0, 200), rows=st.integers(1, 50), fits=st.integers(1, 50))
def test_every_row_is_done_once_whatever_fits(total: int, rows: int, fits: int) -> None:
    done: list[int] = []

    def work(start: int, stop: int, size: int) -> None:
        assert stop - start <= size
        if size > fits:
            raise torch.OutOfMemoryError("out of memory")
        done.extend(range(start, stop))

    run_chunks(total, rows, work)
    assert done == list(range(total))


@pytest.mark.parametrize("threads", [1, 2])
@given(total=st.integers(0, 200), rows=st.integers(1, 50))
def test_every_row_is_done_once_in_parallel(threads: int, total: int, rows: int) -> None:
    before, done = num_threads(), np.zeros(total, dtype=int)

    def work(start: int, stop: int, size: int) -> None:
        assert 0 < stop - start <= size == rows
        done[start:stop] += 1

    set_num_threads(threads)
    try:
        run_chunks_parallel(total, rows, work)
    finally:
        set_num_threads(before)
    assert (done == 1).all()


def test_a_single_row_that_does_not_fit_is_an_error() -> None:
    def work(start: int, stop: int, size: int) -> None:
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(InvalidInputError, match=r"after 0 of 5.*move the codec to the CPU"):
        run_chunks(5, 4, work)


@given(budget=st.integers(0, 2**30), floats=st.integers(0, 2**16), most=st.sampled_from([1, 2**10]))
def test_chunks_stay_in_the_budget(budget: int, floats: int, most: int) -> None:
    rows = rows_in_budget(budget, floats, most)
    assert 1 <= rows <= most
    assert rows & (rows - 1) == 0
    assert rows == 1 or 4 * rows * floats <= budget


def test_a_codec_goes_on_in_smaller_chunks_when_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer, rows = stirred(small_config(num_partitions=3)), vectors(90, seed=5)
    tables, codec = encoding_tables(quantizer, quantizer.fold()), as_codec(quantizer)
    codes = codec.encode(rows)
    decoded = codec.decode(codes)
    real_encode, real_decode = encoding.encode, ResidualQuantizer.decode

    def encode_if_it_fits(quantizer, tables, vectors_BD, **settings):
        if len(vectors_BD) > 8:
            raise torch.OutOfMemoryError("out of memory")
        return real_encode(quantizer, tables, vectors_BD, **settings)

    def decode_if_it_fits(quantizer, codes_BM, partitions_B, folded):
        if len(codes_BM) > 8:
            raise torch.OutOfMemoryError("out of memory")
        return real_decode(quantizer, codes_BM, partitions_B, folded)

    def run_as_on_a_gpu(total, rows, work, *, one_core):
        run_chunks(total, rows, work)

    monkeypatch.setattr(decoding, "run_chunks_parallel", run_as_on_a_gpu)
    monkeypatch.setattr(encoding, "encode", encode_if_it_fits)
    monkeypatch.setattr(ResidualQuantizer, "decode", decode_if_it_fits)
    again = encoding.encode_with_torch(quantizer, tables, rows, beam=4, preselect=12)
    assert (again.codes == codes.codes).mean() > 0.99  # other products may round differently
    in_parts = decoding.decode_with_torch(quantizer, tables.folded, codes)
    np.testing.assert_allclose(in_parts, decoded, atol=1e-5)
    assert decoding.chunk_rows(quantizer) > 8
