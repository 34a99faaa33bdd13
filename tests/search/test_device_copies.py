"""Codes are uploaded once for a device, for all codecs of a table, and counted against its free memory."""

import gc
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_scans import PARTITIONS, rows_of

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.search import device_copies
from rqmoe_store.search.device_copies import copy_of, device_of, fits, has_copy, upload, upload_codes
from rqmoe_store.search.segments import grouped

CPU, META = torch.device("cpu"), torch.device("meta")


def test_a_copy_is_made_once_for_a_device_and_dropped_with_the_array() -> None:
    gc.collect()  # what other tests left behind
    codes, before = np.arange(12, dtype=np.uint8).reshape(3, 4), len(device_copies._copies)
    first = copy_of(codes, CPU, upload_codes)
    assert copy_of(codes, CPU, upload_codes) is first
    assert copy_of(codes, META, upload_codes) is not first
    assert has_copy(codes, CPU) and has_copy(codes, META)
    assert len(device_copies._copies) == before + 2
    del codes
    gc.collect()
    assert len(device_copies._copies) == before


def test_the_codecs_of_a_table_share_one_copy_of_its_codes() -> None:
    segment = grouped(rows_of(2, 30), PARTITIONS)
    older, newer = segment.of_partitions(slice(0, 1)), segment.of_partitions(slice(1, PARTITIONS))
    assert copy_of(older.codes_NM, CPU, upload_codes) is copy_of(newer.codes_NM, CPU, upload_codes)


def test_threads_that_need_a_copy_at_once_make_one() -> None:
    codes, started, made = np.zeros((3, 4), np.uint8), threading.Barrier(4), []

    def convert(array, device):
        made.append(len(made))
        return upload_codes(array, device)

    def need() -> None:
        started.wait()
        copy_of(codes, CPU, convert)

    threads = [threading.Thread(target=need) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [0]


def test_after_an_upload_that_failed_the_next_one_is_tried() -> None:
    codes = np.zeros((3, 4), np.uint8)

    def fail(array, device):
        raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB")

    with pytest.raises(InvalidInputError, match=r"ran out of memory for 12 bytes .*codec\.to\('cpu'\)"):
        copy_of(codes, CPU, fail)
    assert copy_of(codes, CPU, upload_codes).shape == (3, 1)


@given(rows=st.integers(1, 5), code_bytes=st.integers(1, 17), seed=st.integers(0, 99))
def test_codes_in_words_are_the_same_bytes(rows, code_bytes, seed) -> None:
    codes = np.random.default_rng(seed).integers(0, 256, (rows, code_bytes)).astype(np.uint8)
    words = upload_codes(codes, CPU)
    assert words.dtype == torch.int32 and words.shape == (rows, -(-code_bytes // 4))
    np.testing.assert_array_equal(words.numpy().view(np.uint8)[:, :code_bytes], codes)
    assert not words.numpy().view(np.uint8)[:, code_bytes:].any()


def test_norms_keep_their_bits() -> None:
    norms = np.array([0, 1, 2**15, 2**16 - 1], np.uint16)
    np.testing.assert_array_equal(upload(norms, CPU).numpy().view(np.uint16), norms)


def test_a_gpu_without_a_number_is_the_current_one(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert device_of("cuda") == torch.device("cuda:3")
    assert device_of("cuda:1") == torch.device("cuda:1")
    assert device_of("cpu") == CPU


def test_memory_that_torch_has_reserved_and_does_not_use_is_free(monkeypatch) -> None:
    segment, gpu = grouped(rows_of(2, 1000), PARTITIONS), torch.device("cuda:0")
    needed = 2 * 1000 * (4 + 2)  # a word and a norm, and as much again for the scan
    memory = {"mem_get_info": (needed - 500, 2**30), "memory_reserved": 900, "memory_allocated": 400}
    for name, value in memory.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert fits(segment, gpu)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 401)
    assert not fits(segment, gpu)
    assert fits(segment, CPU)
