"""The scan by array operations finds what the compiled one does, to the last tie."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from live_tensors import LiveBytes
from small_scans import PARTITIONS, STEPS, ids_of, rows_of, selections_of, tables_of

from rqmoe_store.codecs.additive import LookupTables
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.frame import ScoreUnits
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.search import tensor_scan as scanning
from rqmoe_store.search.scan import scan
from rqmoe_store.search.segments import CodeBatch, Selection, grouped
from rqmoe_store.search.shortlists import Shortlists, sides_of


def best_on(device, selections, tables, probed, size, lower):
    """The shortlists of every side, by array operations on a device."""
    sides = sides_of(lower)
    found = [[Shortlists.none(STEPS)] for _ in sides]
    for selection in selections:
        parts = scanning.nearest(device, selection, tables, probed, sides, size)
        for side, more in zip(found, parts, strict=True):
            side += more
    return [Shortlists.joined(side).best(size) for side in found]


def require_equal(found, wanted) -> None:
    for side, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(side.queries_H, other.queries_H)
        np.testing.assert_array_equal(side.rows.row_ids_N, other.rows.row_ids_N)
        np.testing.assert_allclose(side.scores_H, other.scores_H, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(0, 80),
    queries=st.integers(1, 3),
    size=st.integers(1, 30),
    cuts=st.lists(st.integers(0, 80), max_size=2),
    lower=st.sampled_from([None, 0.0, 1.5]),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    chunk=st.integers(1, 100),
)
def test_results_are_those_of_the_compiled_scan(
    metric, seed, count, queries, size, cuts, lower, share, chunk
) -> None:
    random = np.random.default_rng(seed)
    rows, tables = rows_of(seed, count), tables_of(seed, queries, metric)
    probed = random.random((queries, PARTITIONS)) < 0.6
    allowed_ids = rows.row_ids_N[random.random(count) < share]
    selections = [selection.only(allowed_ids) for selection in selections_of(rows, cuts)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scanning.Scorer, "chunk_rows", chunk)
        found = best_on("cpu", selections, tables, probed, size, lower)
    require_equal(found, scan(selections, {0: tables}, probed, size, lower))


def test_rows_without_a_score_are_passed_over() -> None:
    rows, tables = rows_of(1, 40), tables_of(1, 1)
    tables.scores_QT[0, PARTITIONS] = np.nan  # the first codeword of the first step
    everything = np.ones((1, PARTITIONS), dtype=bool)
    (found,) = best_on("cpu", selections_of(rows, []), tables, everything, 100, None)
    assert ids_of(found) == sorted(rows.row_ids_N[rows.codes.codes[:, 0] != 0].tolist())


@pytest.mark.parametrize("lower", [None, 0.5])
def test_without_memory_for_a_chunk_rows_are_scanned_in_smaller_ones(monkeypatch, lower) -> None:
    rows, tables, sizes = rows_of(5, 400), tables_of(5, 2, "cosine"), []
    everything, to_host = np.ones((2, PARTITIONS), dtype=bool), scanning.to_host
    selections = selections_of(rows, [])
    wanted = scan(selections, {0: tables}, everything, 20, lower)

    def short_of_memory(*found):
        sizes.append(len(found[1]))
        if len(sizes) in (1, 2, 5, 8):  # in the middle of a chunk, too, whose first side is done
            raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB")
        return to_host(*found)

    monkeypatch.setattr(scanning, "to_host", short_of_memory)
    require_equal(best_on("cpu", selections, tables, everything, 20, lower), wanted)
    assert len(sizes) > 8


def test_without_memory_for_a_row_the_error_says_so(monkeypatch) -> None:
    def out_of_memory(scorer, rows):
        raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB")

    monkeypatch.setattr(scanning.Scorer, "scores", out_of_memory)
    rows, tables = rows_of(6, 40), tables_of(6, 1)
    everything = np.ones((1, PARTITIONS), dtype=bool)
    with pytest.raises(InvalidInputError, match=r"ran out of memory with a single .*codec\.to\('cpu'\)"):
        best_on("cpu", selections_of(rows, []), tables, everything, 20, None)


@pytest.mark.parametrize(("queries", "steps"), [(1, 3), (64, 3), (1000, 40)])
def test_a_chunk_takes_no_more_memory_than_planned(queries, steps) -> None:
    """The most that tensors of one chunk take together, counted operation by operation."""
    random = np.random.default_rng(7)
    codes = Codes(random.integers(0, 256, (3_000, steps)).astype(np.uint8), np.zeros(3_000, np.int32))
    selection = Selection(grouped(CodeBatch(np.arange(3_000, dtype=np.uint64), codes), 1))
    entries_QT = random.random((queries, 1 + 256 * steps), dtype=np.float32)
    units, none = ScoreUnits.plain(queries), np.zeros(queries, np.float32)
    tables = LookupTables("l2", entries_QT, entries_QT[0, :0], none, 1, 256, units)
    probed, sides = np.ones((queries, 1), dtype=bool), sides_of(None)
    runs = scanning.Runs.of(selection.segment, probed)
    with torch.inference_mode():
        scorer = scanning.Scorer(selection, tables, probed, runs, torch.device("cpu"))
        with LiveBytes() as memory:
            scanning._scan_chunks(scorer, scanning._Output(selection.segment, None), sides, 10)
    assert scorer.chunk_rows > 3_000, "one chunk"
    assert memory.peak <= 3_000 * (scanning._CHUNK_BYTES / scorer.chunk_rows) + 2**20


def test_other_devices_than_the_cpu_use_array_operations(monkeypatch) -> None:
    """As far as that shows without a GPU: the scan hands the device on, and asks whether codes fit."""
    asked, on_device = [], scanning.nearest

    def nearest(device, *arguments):
        asked.append(device)
        return on_device("cpu", *arguments)

    monkeypatch.setattr(scanning, "nearest", nearest)
    rows, tables = rows_of(3, 50), tables_of(3, 2)
    everything = np.ones((2, PARTITIONS), dtype=bool)
    selections = [Selection(grouped(rows, PARTITIONS))]
    wanted = scan(selections, {0: tables}, everything, 9)
    require_equal(scan(selections, {0: tables}, everything, 9, device="meta"), wanted)
    assert asked == ["meta"]
    monkeypatch.setattr(scanning, "fits", lambda segment, device: False)
    require_equal(scan(selections, {0: tables}, everything, 9, device="meta"), wanted)
    assert asked == ["meta"]
