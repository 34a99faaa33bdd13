"""Tasks on several threads, and chunks that fit the memory."""

import concurrent.futures
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_codecs import as_codec, small_config, stirred, vectors

from rqmoe_store.codecs import decoding, encoding, parallel
from rqmoe_store.codecs.parallel import rows_in_budget, run_chunks, run_chunks_parallel, run_parallel
from rqmoe_store.codecs.quantizer import ResidualQuantizer
from rqmoe_store.errors import InvalidInputError


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
    before, done = torch.get_num_threads(), np.zeros(total, dtype=int)

    def work(start: int, stop: int, size: int) -> None:
        assert 0 < stop - start <= size == rows
        done[start:stop] += 1

    torch.set_num_threads(threads)
    try:
        run_chunks_parallel(total, rows, work)
    finally:
        torch.set_num_threads(before)
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
    codec, rows = as_codec(stirred(small_config(num_partitions=3))), vectors(90, seed=5)
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

    monkeypatch.setattr(encoding, "run_chunks_parallel", run_chunks)  # as on a GPU
    monkeypatch.setattr(encoding, "encode", encode_if_it_fits)
    monkeypatch.setattr(ResidualQuantizer, "decode", decode_if_it_fits)
    again = codec.encode(rows)
    assert (again.codes == codes.codes).mean() > 0.99  # smaller products may round differently
    np.testing.assert_allclose(codec.decode(codes), decoded, atol=1e-5)
    assert decoding.chunk_rows(codec._coder.quantizer) > 8
