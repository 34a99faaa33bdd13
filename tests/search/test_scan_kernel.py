"""The scan kernel finds what the compiled loop for CPUs does, to the last tie, and compiles for an H100."""

import json

import numpy as np
import pytest
import torch
import triton_kernels
from hypothesis import given, settings
from hypothesis import strategies as st
from small_scans import PARTITIONS, rows_of, selections_of, tables_of

from rqmoe_store.codecs.additive import LookupTables
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.frame import ScoreUnits
from rqmoe_store.search import scan_kernel, tensor_scan
from rqmoe_store.search.scan import scan
from rqmoe_store.search.scan_kernel import TileShape
from rqmoe_store.search.segments import CodeBatch, Selection, grouped
from rqmoe_store.search.shortlists import Shortlists

SHAPE = TileShape(rows=16, warps=1)


def found_by_kernel(selection, tables, probed, size, *, sample=64, room=64) -> Shortlists | None:
    """The best rows by the kernel, from a small sample and with little room, as of millions of rows."""
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(scan_kernel, "_SAMPLE_ROWS", sample)
        patch.setattr(scan_kernel, "_LEAST_CAPACITY", room)
        patch.setattr(scan_kernel, "_CAPACITY_FACTOR", 4)
        runs = tensor_scan.Runs.of(selection.segment, probed)
        scorer = tensor_scan.Scorer(selection, tables, probed, runs, triton_kernels.DEVICE)
        found = scan_kernel.scan_tiles(scorer, size, SHAPE)
    return (
        None if found is None else tensor_scan._Output(selection.segment, None).shortlists(*found).best(size)
    )


def require_equal(found: Shortlists, wanted: Shortlists) -> None:
    np.testing.assert_array_equal(found.queries_H, wanted.queries_H)
    np.testing.assert_array_equal(found.rows.row_ids_N, wanted.rows.row_ids_N)
    np.testing.assert_allclose(found.scores_H, wanted.scores_H, rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:invalid value encountered in subtract:RuntimeWarning")  # infinite bounds
@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
@settings(max_examples=4, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(60, 250),
    steps=st.integers(1, 17),
    partitions=st.sampled_from([1, 1, 7]),
    queries=st.sampled_from([1, 6, 40]),
    size=st.integers(1, 40),
    share=st.sampled_from([None, 0.3]),
    magnitude=st.sampled_from([1.0, 1e-20, 1e20]),
)
def test_finds_what_the_compiled_loop_does(
    metric, seed, rows, steps, partitions, queries, size, share, magnitude
) -> None:
    random = np.random.default_rng(seed)
    magnitude = 1.0 if metric == "cosine" else magnitude
    codes = Codes(
        random.integers(0, 256, (rows, steps)).astype(np.uint8),
        random.integers(0, partitions, rows).astype(np.int32),
    )
    height = partitions + 256 * steps
    entries_QT = random.standard_normal((queries, height)).astype(np.float32) * np.float32(magnitude)
    tables = LookupTables(
        metric,
        entries_QT,
        random.random(height if metric == "cosine" else 0, dtype=np.float32) + np.float32(0.1),
        random.standard_normal(queries).astype(np.float32) * np.float32(magnitude),
        partitions,
        256,
        ScoreUnits.plain(queries),
    )
    probed = random.random((queries, partitions)) < (0.6 if partitions > 1 else 2)
    probed[0] = True
    row_ids = random.permutation(3 * rows)[:rows].astype(np.uint64)
    allowed = None if share is None else random.random(rows) < share
    selection = Selection(grouped(CodeBatch(row_ids, codes), partitions), allowed)
    found = found_by_kernel(selection, tables, probed, size)
    assert found is not None
    require_equal(found, scan([selection], {0: tables}, probed, size)[0])


@pytest.mark.parametrize("size", [1, 30])
def test_ties_are_decided_by_row_id(size) -> None:
    rows, tables = rows_of(3, 200), tables_of(3, 2)
    everything = np.ones((2, PARTITIONS), dtype=bool)
    (selection,) = selections_of(rows, [])
    found = found_by_kernel(selection, tables, everything, size, room=400)
    assert found is not None
    require_equal(found, scan([selection], {0: tables}, everything, size)[0])


def test_more_equal_rows_than_there_is_room_for_are_left_to_array_operations() -> None:
    codes = Codes(np.zeros((300, 2), np.uint8), np.zeros(300, np.int32))
    selection = Selection(grouped(CodeBatch(np.arange(300, dtype=np.uint64), codes), 1))
    entries_QT = np.random.default_rng(0).random((2, 513), dtype=np.float32)
    tables = LookupTables("l2", entries_QT, entries_QT[0, :0], entries_QT[:, 0], 1, 256, ScoreUnits.plain(2))
    assert found_by_kernel(selection, tables, np.ones((2, 1), dtype=bool), 5) is None


def test_a_level_with_too_many_candidates_is_scanned_again_with_a_lower_bound() -> None:
    random = np.random.default_rng(1)
    codes = np.stack([np.ones(600), random.integers(0, 256, 600)], axis=1).astype(np.uint8)
    codes[401:419, 0] = 0  # near rows, none of which the sample sees: it has one in 60 rows
    batch = CodeBatch(np.arange(600, dtype=np.uint64), Codes(codes, np.zeros(600, np.int32)))
    entries_QT = np.zeros((1, 513), np.float32)
    entries_QT[0, 2], entries_QT[0, 257:] = 1000, np.arange(256)
    tables = LookupTables("l2", entries_QT, entries_QT[0, :0], entries_QT[:, 0], 1, 256, ScoreUnits.plain(1))
    selection, everything = Selection(grouped(batch, 1)), np.ones((1, 1), dtype=bool)
    found = found_by_kernel(selection, tables, everything, 5, sample=10, room=20)
    assert found is not None
    require_equal(found, scan([selection], {0: tables}, everything, 5)[0])


@given(tiles=st.integers(1, 10**6), rows=st.sampled_from([16, 256]))
def test_every_tile_is_in_one_level(tiles, rows) -> None:
    levels = scan_kernel._levels(tiles, rows)
    assert sum(level.size(tiles) for level in levels) == tiles
    assert levels[-1].stride == 1 and not levels[0].skips


def test_tables_of_a_group_fit_the_first_cache() -> None:
    for steps in (1, 8, 16, 32, 64, 256):
        for queries in (1, 4, 5, 64, 1000):
            words = scan_kernel._words_per_group(steps, queries)
            assert words == 1 or steps * 256 * 4 * words <= 160 * 2**10
            assert words == 1 or 4 * words < 2 * queries


_COMPILE = """
import json, sys
from hopper import compile_kernel
from rqmoe_store.search.scan_kernel import TILE_SHAPE, _scan_kernel
steps, words, norms, mask = json.loads(sys.argv[1])
pointers = {"codes_ptr": "*i32", "entries_ptr": "*i32", "offsets_ptr": "*fp32", "slopes_ptr": "*fp32",
            "norms_ptr": "*i16", "mask_ptr": "*u8", "first_ptr": "*i64", "last_ptr": "*i64",
            "partition_ptr": "*i32", "counts_ptr": "*i32", "rows_ptr": "*i64"}
numbers = dict.fromkeys(("capacity", "queries", "first_norm", "stride", "between"), "i32")
constants = {"STEPS": steps, "CODE_WORDS": -(-steps // 4), "WORDS": words, "ROWS": TILE_SHAPE.rows,
             "HAS_NORMS": norms, "HAS_MASK": mask}
made = compile_kernel(_scan_kernel, {**pointers, **numbers}, constants, num_warps=TILE_SHAPE.warps)
print(json.dumps([made.registers, made.stack, made.spills, made.code.count("LDG.E.128")]))
"""


@pytest.mark.parametrize(("steps", "words", "norms", "mask"), [(16, 8, False, False), (8, 8, True, True)])
def test_compiles_for_an_h100_without_spills(steps, words, norms, mask) -> None:
    output = triton_kernels.compile_for_hopper(_COMPILE, json.dumps([steps, words, norms, mask]))
    registers, stack, spills, wide_loads = json.loads(output)
    assert stack == 0 and spills == 0
    assert registers <= 168  # three programs of 128 threads share the registers of a multiprocessor
    # A step of a tile: every thread loads 16 bytes of table entries at a time.
    assert wide_loads >= steps * 256 * words * 4 // (128 * 16)
