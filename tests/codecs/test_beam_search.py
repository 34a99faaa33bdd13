"""The compiled encoder and decoder: they equal torch's, and no row depends on the rows beside it."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_codecs import DIM, SHAPES, as_codec, small_config, stirred, vectors

from rqmoe_store.codecs import beam_search
from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.beam_search import CompiledQuantizer
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.decoding import decode_with_torch
from rqmoe_store.codecs.encoding import EncodingTables, encode_with_torch, encoding_tables
from rqmoe_store.codecs.parallel import num_threads, set_num_threads

ROWS = vectors(90, seed=5)


@functools.cache
def tables_of(shape: str) -> EncodingTables:
    quantizer = stirred(small_config(**SHAPES[shape]))
    return encoding_tables(quantizer, quantizer.fold())


@functools.cache
def compiled_of(shape: str) -> CompiledQuantizer:
    return tables_of(shape).compiled


@functools.cache
def codes_of(shape: str) -> Codes:
    return compiled_of(shape).encode(ROWS, beam=4, preselect=12)


shapes = st.sampled_from(list(SHAPES))
cuts = st.lists(st.integers(1, len(ROWS) - 1), max_size=8, unique=True).map(sorted)


def parts(cuts: list[int]) -> list[slice]:
    return [slice(start, stop) for start, stop in zip([0, *cuts], [*cuts, len(ROWS)], strict=True)]


@settings(max_examples=60)
@given(shape=shapes, cuts=cuts)
def test_codes_do_not_depend_on_batches(shape: str, cuts: list[int]) -> None:
    expected = codes_of(shape)
    for rows in parts(cuts):
        found = compiled_of(shape).encode(ROWS[rows], beam=4, preselect=12)
        np.testing.assert_array_equal(found.codes, expected.codes[rows])
        np.testing.assert_array_equal(found.partitions, expected.partitions[rows])


@settings(max_examples=60)
@given(shape=shapes, cuts=cuts)
def test_decoded_vectors_do_not_depend_on_batches(shape: str, cuts: list[int]) -> None:
    expected_nD = compiled_of(shape).decode(codes_of(shape))
    for rows in parts(cuts):
        found_nD = compiled_of(shape).decode(codes_of(shape)[rows])
        np.testing.assert_array_equal(found_nD, expected_nD[rows])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("threads", "most_rows"), [(1, 1), (1, 7), (3, 5), (3, 64)])
def test_results_do_not_depend_on_how_work_is_divided(
    monkeypatch: pytest.MonkeyPatch, shape: str, threads: int, most_rows: int
) -> None:
    monkeypatch.setattr(beam_search, "_MOST_ROWS", most_rows)
    before = num_threads()
    set_num_threads(threads)
    try:
        codes = compiled_of(shape).encode(ROWS, beam=4, preselect=12)
        decoded_nD = compiled_of(shape).decode(codes)
    finally:
        set_num_threads(before)
    np.testing.assert_array_equal(codes.codes, codes_of(shape).codes)
    np.testing.assert_array_equal(decoded_nD, compiled_of(shape).decode(codes_of(shape)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("beam", "preselect"), [(1, None), (1, 1), (4, 4), (4, 12), (3, None), (20, 40)])
def test_codes_are_those_of_torch(shape: str, beam: int, preselect: int | None) -> None:
    tables = tables_of(shape)
    expected = encode_with_torch(tables.quantizer, tables, ROWS, beam=beam, preselect=preselect)
    found = compiled_of(shape).encode(ROWS, beam=beam, preselect=preselect)
    np.testing.assert_array_equal(found.partitions, expected.partitions)
    # Other sums give the same distances: of two that are as good as equal, either may come out ahead.
    assert (found.codes == expected.codes).all(axis=1).mean() > 0.97
    errors = [
        float(np.square(ROWS - compiled_of(shape).decode(codes)).sum(axis=1).mean())
        for codes in (found, expected)
    ]
    np.testing.assert_allclose(*errors, rtol=1e-2)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_decoded_vectors_are_those_of_torch(shape: str, steps: int) -> None:
    tables, codes = tables_of(shape), codes_of(shape)[:, :steps]
    expected_nD = decode_with_torch(tables.quantizer, tables.folded, codes)
    np.testing.assert_allclose(compiled_of(shape).decode(codes), expected_nD, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_codes_in_any_memory_decode(shape: str) -> None:
    codes, expected_nD = codes_of(shape), compiled_of(shape).decode(codes_of(shape))
    fixed = Codes(codes.codes.copy(), codes.partitions.copy())
    fixed.codes.flags.writeable = fixed.partitions.flags.writeable = False
    np.testing.assert_array_equal(compiled_of(shape).decode(fixed), expected_nD)
    in_columns = Codes(np.asfortranarray(codes.codes), codes.partitions)
    np.testing.assert_array_equal(compiled_of(shape).decode(in_columns)[::-1], expected_nD[::-1])


def test_a_code_of_one_byte() -> None:
    codec: Codec = as_codec(stirred(small_config(code_bytes=1)))
    codes = codec.encode(ROWS)
    codebook_KD = codec.decode(np.arange(16, dtype=np.uint8)[:, None])
    distances_nK = np.square(ROWS[:, None] - codebook_KD).sum(axis=2)
    np.testing.assert_array_equal(codes.codes[:, 0], distances_nK.argmin(axis=1))


def test_no_rows() -> None:
    compiled = compiled_of("rqmoe")
    codes = compiled.encode(np.empty((0, DIM), np.float32), beam=4, preselect=12)
    assert codes.codes.shape == (0, 4)
    assert compiled.decode(codes).shape == (0, DIM)
