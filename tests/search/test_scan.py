"""The scan: shortlists are the smallest scores, however the stream is cut."""

import itertools

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from rqmoe_store.codecs.additive import LookupTables
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.search.scan import CodeBatch, QueryGroup, Shortlist, scan, smallest


def batch_of(row_ids: np.ndarray, partitions: np.ndarray | None = None, codebook_size: int = 8) -> CodeBatch:
    codes = (row_ids[:, None] * [3, 5] % codebook_size).astype(np.uint8)
    parts = np.zeros(len(row_ids), np.int32) if partitions is None else partitions.astype(np.int32)
    return CodeBatch(row_ids.astype(np.uint64), Codes(codes, parts))


def tables(num_queries: int, num_partitions: int = 1, codebook_size: int = 8) -> LookupTables:
    generator = torch.Generator().manual_seed(0)
    height = num_partitions + 2 * codebook_size
    return LookupTables(
        metric="dot",
        # Few distinct values, so that ties are frequent.
        scores_TX=torch.randint(0, 3, (height, num_queries), generator=generator).float(),
        constants_Q=torch.ones(num_queries),
        num_partitions=num_partitions,
        codebook_size=codebook_size,
    )


def expected(scores: np.ndarray, row_ids: np.ndarray, count: int) -> list[int]:
    return row_ids[np.lexsort((row_ids, scores))[:count]].tolist()


scores_lists = st.lists(st.integers(0, 4), max_size=60)


@given(scores=scores_lists, count=st.integers(1, 70), seed=st.integers(0, 5))
def test_smallest_agrees_with_a_full_sort(scores: list[int], count: int, seed: int) -> None:
    row_ids = np.random.default_rng(seed).permutation(len(scores))
    array = np.array(scores, np.float32)
    found = row_ids[smallest(array, row_ids, count)]
    assert sorted(found.tolist()) == sorted(expected(array, row_ids, count))


@given(scores=scores_lists, size=st.integers(1, 20), cuts=st.lists(st.integers(0, 60), max_size=5))
def test_shortlist_does_not_depend_on_batches(scores: list[int], size: int, cuts: list[int]) -> None:
    row_ids = np.random.default_rng(len(scores)).permutation(len(scores))
    array, rows = np.array(scores, np.float32), batch_of(row_ids)
    shortlist = Shortlist(size)
    edges = [0, *sorted(min(cut, len(scores)) for cut in cuts), len(scores)]
    for start, end in itertools.pairwise(edges):
        shortlist.add(array[start:end], rows[start:end])
    found = [] if shortlist.rows is None else shortlist.rows.row_ids_N.tolist()
    assert sorted(found) == sorted(expected(array, row_ids, size))


def test_shortlist_keeps_the_codes_of_its_rows() -> None:
    row_ids = np.arange(40)
    shortlist = Shortlist(5)
    for start in range(0, 40, 7):
        part = row_ids[start : start + 7]
        shortlist.add(-part.astype(np.float32), batch_of(part))
    assert shortlist.rows is not None
    assert (shortlist.rows.codes.codes == batch_of(shortlist.rows.row_ids_N.astype(int)).codes.codes).all()
    assert sorted(shortlist.rows.row_ids_N.tolist()) == [35, 36, 37, 38, 39]


def test_shortlist_passes_over_nan() -> None:
    shortlist = Shortlist(5)
    shortlist.add(np.array([np.nan, 1, np.nan, 0], np.float32), batch_of(np.arange(4)))
    assert shortlist.rows is not None
    assert sorted(shortlist.rows.row_ids_N.tolist()) == [1, 3]


def test_scan_many_queries_in_slices(monkeypatch) -> None:
    row_ids = np.arange(100)
    rows, lookup = batch_of(row_ids), tables(3)
    whole = scan([rows], [QueryGroup(range(3), lookup, None)], 10)
    monkeypatch.setattr("rqmoe_store.search.scan.MAX_SCORES", 20)
    sliced = scan([rows[:30], rows[30:]], [QueryGroup(range(3), lookup, None)], 10)
    scores = lookup.score(rows.codes)
    for query, (first, second) in enumerate(zip(whole, sliced, strict=True)):
        assert first is not None and second is not None
        assert sorted(first.row_ids_N.tolist()) == sorted(second.row_ids_N.tolist())
        assert sorted(first.row_ids_N.tolist()) == sorted(expected(scores[query], row_ids, 10))


def test_scan_considers_only_the_probed_partitions_of_each_query() -> None:
    row_ids = np.arange(60)
    partitions = row_ids % 3
    probed = np.array([[True, False, False], [False, True, True]])
    groups = [QueryGroup([query], tables(1, 3), probed[query]) for query in range(2)]
    found = scan([batch_of(row_ids, partitions)], groups, 100)
    assert found[0] is not None and found[1] is not None
    assert sorted(found[0].row_ids_N.tolist()) == row_ids[partitions == 0].tolist()
    assert sorted(found[1].row_ids_N.tolist()) == row_ids[partitions != 0].tolist()


def test_scan_with_a_lower_bound_keeps_rows_on_both_sides() -> None:
    row_ids = np.arange(100)
    rows, lookup = batch_of(row_ids), tables(1)
    scores, lower = lookup.score(rows.codes)[0], -1.5
    (found,) = scan([rows], [QueryGroup([0], lookup, None)], 4, lower)
    assert found is not None
    beyond, within = scores >= lower, scores < lower
    wanted = expected(scores[beyond], row_ids[beyond], 4) + expected(-scores[within], row_ids[within], 4)
    assert sorted(found.row_ids_N.tolist()) == sorted(wanted)


def test_scan_of_nothing() -> None:
    assert scan([], [QueryGroup(range(2), tables(2), None)], 5) == [None, None]
    assert scan([], [QueryGroup(range(2), tables(2), None)], 5, 1.0) == [None, None]
