"""The scan by array operations finds what the compiled one does, to the last tie."""

import gc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_scans import PARTITIONS, STEPS, ids_of, rows_of, selections_of, tables_of

from rqmoe_store.search import tensor_scan as scanning
from rqmoe_store.search.scan import scan
from rqmoe_store.search.segments import Selection, grouped
from rqmoe_store.search.shortlists import Shortlists, sides_of

CPU = torch.device("cpu")


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
        patch.setattr(scanning, "_SCORES", chunk)
        found = best_on("cpu", selections, tables, probed, size, lower)
    require_equal(found, scan(selections, {0: tables}, probed, size, lower))


def test_rows_without_a_score_are_passed_over() -> None:
    rows, tables = rows_of(1, 40), tables_of(1, 1)
    tables.scores_QT[0, PARTITIONS] = np.nan  # the first codeword of the first step
    everything = np.ones((1, PARTITIONS), dtype=bool)
    (found,) = best_on("cpu", selections_of(rows, []), tables, everything, 100, None)
    assert ids_of(found) == sorted(rows.row_ids_N[rows.codes.codes[:, 0] != 0].tolist())


def test_a_segment_is_copied_once_and_forgotten_with_it() -> None:
    segment, tables = grouped(rows_of(2, 30), PARTITIONS), tables_of(2, 1, "cosine")
    gc.collect()  # segments of other tests
    before = len(scanning._copies)
    first = scanning._copy_of(segment, tables, CPU)
    assert scanning._copy_of(segment, tables, CPU) is first
    assert len(scanning._copies) == before + 1
    del segment
    gc.collect()
    assert len(scanning._copies) == before


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_finds_what_the_cpu_does() -> None:
    rows, tables = rows_of(4, 5_000), tables_of(4, 3)
    probed = np.random.default_rng(4).random((3, PARTITIONS)) < 0.7
    selections = selections_of(rows, [1_000])
    wanted = scan(selections, {0: tables}, probed, 50)
    require_equal(scan(selections, {0: tables}, probed, 50, device="cuda"), wanted)
