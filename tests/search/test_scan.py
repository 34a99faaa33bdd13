"""The scan: shortlists are the smallest scores, however rows are cut and shared out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_scans import PARTITIONS, STEPS, best, each_query, ids_of, rows_of, selections_of, tables_of

from rqmoe_store.codecs.additive import LookupTables
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.frame import ScoreUnits
from rqmoe_store.codecs.parallel import num_threads, set_num_threads
from rqmoe_store.search.scan import scan
from rqmoe_store.search.segments import CodeBatch, Selection, grouped

everything = np.ones((1, PARTITIONS), dtype=bool)


def tables_at_random(
    random: np.random.Generator, metric: str, queries: int, steps: int, codewords: int, partitions: int
) -> LookupTables:
    height = partitions + steps * codewords
    norms = random.uniform(0.5, 1.5, height if metric == "cosine" else 0) / steps
    return LookupTables(
        metric,
        (random.normal(size=(queries, height)) * 10.0 ** random.integers(-3, 4)).astype(np.float32),
        norms.astype(np.float32),
        random.normal(size=queries).astype(np.float32) * np.float32(10.0 ** random.integers(-3, 4)),
        partitions,
        codewords,
        ScoreUnits.plain(queries),
    )


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(0, 80),
    queries=st.integers(1, 3),
    size=st.integers(1, 30),
    cuts=st.lists(st.integers(0, 80), max_size=3),
)
def test_shortlists_are_the_smallest_scores(metric, seed, count, queries, size, cuts) -> None:
    rows, tables = rows_of(seed, count), tables_of(seed, queries, metric)
    probed = np.random.default_rng(seed).random((queries, PARTITIONS)) < 0.6
    (found,) = scan(selections_of(rows, cuts), {0: tables}, probed, size)
    (unordered,) = scan(selections_of(rows, cuts), {0: tables}, probed, size, ordered=False)
    assert (np.diff(unordered.queries_H) >= 0).all()
    scores = tables.score(rows.codes)
    for query, shortlist in enumerate(each_query(found, queries)):
        assert set(ids_of(each_query(unordered, queries)[query])) == set(ids_of(shortlist))
        some = probed[query][rows.codes.partitions]
        assert ids_of(shortlist) == best(scores[query], rows.row_ids_N, some, size)
        place = {row_id: index for index, row_id in enumerate(rows.row_ids_N.tolist())}
        at = [place[row_id] for row_id in shortlist.rows.row_ids_N.tolist()]
        assert (shortlist.rows.codes.codes == rows.codes.codes[at]).all()
        assert (shortlist.rows.codes.partitions == rows.codes.partitions[at]).all()
        np.testing.assert_allclose(shortlist.scores_H, scores[query][at], rtol=1e-6, atol=1e-6)
        order = np.lexsort((shortlist.rows.row_ids_N, shortlist.scores_H))
        np.testing.assert_array_equal(order, np.arange(len(shortlist)))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 20), lower=st.integers(-4, 4))
def test_a_lower_bound_keeps_rows_on_both_sides(seed, size, lower) -> None:
    rows, tables = rows_of(seed, 60), tables_of(seed, 1)
    found = scan(selections_of(rows, [20]), {0: tables}, everything, size, float(lower))
    (scores,) = tables.score(rows.codes)
    beyond = best(scores, rows.row_ids_N, scores >= lower, size)
    within = best(-scores, rows.row_ids_N, scores < lower, size)
    assert [ids_of(side) for side in found] == [beyond, within]


@given(seed=st.integers(0, 10**6), share=st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_rows_that_are_not_allowed_are_passed_over(seed, share) -> None:
    rows, tables = rows_of(seed, 60), tables_of(seed, 1)
    allowed_ids = rows.row_ids_N[np.random.default_rng(seed).random(60) < share]
    selection = Selection(grouped(rows, PARTITIONS))
    (found,) = scan([selection.only(allowed_ids)], {0: tables}, everything, 10)
    (scores,) = tables.score(rows.codes)
    assert ids_of(found) == best(scores, rows.row_ids_N, np.isin(rows.row_ids_N, allowed_ids), 10)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_do_not_change_a_shortlist(threads, monkeypatch) -> None:
    rows, tables = rows_of(5, 2_000), tables_of(5, 2)
    probed = np.array([[True, False, True], [True, True, True]])
    (alone,) = scan([Selection(grouped(rows, PARTITIONS))], {0: tables}, probed, 50)
    monkeypatch.setattr("rqmoe_store.search.scan._ROWS_PER_TASK", 100)
    usual = num_threads()
    try:
        set_num_threads(threads)
        (shared,) = scan([Selection(grouped(rows, PARTITIONS))], {0: tables}, probed, 50)
    finally:
        set_num_threads(usual)
    np.testing.assert_array_equal(shared.rows.row_ids_N, alone.rows.row_ids_N)
    np.testing.assert_array_equal(shared.queries_H, alone.queries_H)


def test_rows_without_a_score_are_passed_over() -> None:
    rows, tables = rows_of(1, 40), tables_of(1, 1)
    tables.scores_QT[0, PARTITIONS] = np.nan  # the first codeword of the first step
    (found,) = scan(selections_of(rows, []), {0: tables}, everything, 100)
    assert ids_of(found) == sorted(rows.row_ids_N[rows.codes.codes[:, 0] != 0].tolist())


def test_scan_of_nothing() -> None:
    for lower in (None, 1.0):
        found = scan([], {0: tables_of(0, 2)}, np.ones((2, PARTITIONS), bool), 5, lower)
        assert [len(side) for side in found] == ([0] if lower is None else [0, 0])
        assert found[0].rows.codes.codes.shape == (0, STEPS)


@pytest.mark.parametrize(("steps", "codewords"), [(8, 256), (16, 4), (19, 256), (4, 7), (1, 256)])
@pytest.mark.parametrize("metric", ["l2", "cosine"])
@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 2_000), size=st.integers(1, 60))
def test_codes_of_any_length_are_summed(steps, codewords, metric, seed, count, size) -> None:
    random = np.random.default_rng(seed)
    codes = random.integers(0, codewords, (count, steps)).astype(np.uint8)
    tables = tables_at_random(random, metric, 1, steps, codewords, 1)
    rows = CodeBatch(random.permutation(count).astype(np.uint64), Codes(codes, np.zeros(count, np.int32)))
    (found,) = scan([Selection(grouped(rows, 1))], {0: tables}, np.ones((1, 1), dtype=bool), size)
    (scores,) = tables.score(rows.codes)
    kept = scores[np.argsort(rows.row_ids_N)][found.rows.row_ids_N.astype(np.int64)]
    close = 1e-3 * max(1.0, float(np.abs(scores).max()))
    np.testing.assert_allclose(found.scores_H, kept, rtol=1e-3, atol=close)
    np.testing.assert_allclose(np.sort(found.scores_H), np.sort(scores)[:size], rtol=1e-3, atol=close)
    assert len(set(found.rows.row_ids_N.tolist())) == min(size, count)


@pytest.mark.parametrize(("steps", "codewords"), [(16, 256), (3, 2), (19, 7)])
@pytest.mark.parametrize("metric", ["l2", "cosine"])
@settings(max_examples=12)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(0, 9_000),
    queries=st.integers(8, 70),
    size=st.integers(1, 60),
    share=st.sampled_from([0.1, 0.5, 1.0]),
    lower=st.sampled_from([None, 0.7]),
    filtered=st.booleans(),
)
def test_many_queries_find_what_each_finds_alone(
    steps, codewords, metric, seed, count, queries, size, share, lower, filtered
) -> None:
    random = np.random.default_rng(seed)
    tables = tables_at_random(random, metric, queries, steps, codewords, PARTITIONS)
    codes = random.integers(0, codewords, (count, steps)).astype(np.uint8)
    partitions = random.integers(0, PARTITIONS, count).astype(np.int32)
    rows = CodeBatch(random.permutation(count).astype(np.uint64), Codes(codes, partitions))
    selection = Selection(grouped(rows, PARTITIONS))
    if filtered:
        selection = selection.only(rows.row_ids_N[random.random(count) < 0.6])
    probed = random.random((queries, PARTITIONS)) < share
    found = scan([selection], {0: tables}, probed, size, lower)
    for query in range(queries):
        alone = scan([selection], {0: tables.select([query])}, probed[[query]], size, lower)
        for side, expected in zip(found, alone, strict=True):
            own = each_query(side, queries)[query]
            np.testing.assert_array_equal(own.rows.row_ids_N, expected.rows.row_ids_N)
            np.testing.assert_array_equal(own.scores_H, expected.scores_H)


def test_queries_with_entries_that_are_not_finite_find_what_each_finds_alone() -> None:
    random = np.random.default_rng(3)
    tables = tables_at_random(random, "l2", 9, 4, 8, 1)
    tables.scores_QT[4, 5] = np.nan
    tables.scores_QT[5, 7] = np.inf
    codes = random.integers(0, 8, (9_000, 4)).astype(np.uint8)
    rows = CodeBatch(np.arange(9_000, dtype=np.uint64), Codes(codes, np.zeros(9_000, np.int32)))
    every = np.ones((9, 1), dtype=bool)
    (found,) = scan([Selection(grouped(rows, 1))], {0: tables}, every, 20)
    for query in range(9):
        (alone,) = scan([Selection(grouped(rows, 1))], {0: tables.select([query])}, every[:1], 20)
        np.testing.assert_array_equal(each_query(found, 9)[query].rows.row_ids_N, alone.rows.row_ids_N)
