"""Shortlists: parts of them, and what lies on either side of a distance."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from small_scans import each_query, ids_of, rows_of

from rqmoe_store.codecs.frame import ScoreUnits
from rqmoe_store.search.shortlists import Shortlists, candidates_of, sides_of


@given(seed=st.integers(0, 10**6), queries=st.integers(1, 4), size=st.integers(0, 12))
def test_the_best_rows_of_every_query_come_in_order(seed: int, queries: int, size: int) -> None:
    random, rows = np.random.default_rng(seed), rows_of(seed, 30)
    scores = random.integers(0, 4, 30).astype(np.float32)
    shortlists = Shortlists(random.integers(0, queries, 30), scores, rows)
    kept = shortlists.best(size)
    expected = [
        row
        for query in range(queries)
        for row in sorted(
            np.flatnonzero(shortlists.queries_H == query), key=lambda at: (scores[at], rows.row_ids_N[at])
        )[:size]
    ]
    np.testing.assert_array_equal(kept.rows.row_ids_N, rows.row_ids_N[expected])
    np.testing.assert_array_equal(kept.scores_H, scores[expected])
    np.testing.assert_array_equal(kept.counts(queries), np.bincount(kept.queries_H, minlength=queries))


def test_parts_of_shortlists() -> None:
    rows = rows_of(3, 10)
    shortlists = Shortlists(np.repeat([0, 1], 5), np.arange(10, dtype=np.float32)[::-1].copy(), rows)
    assert ids_of(shortlists.only(rows.row_ids_N[:4])) == sorted(rows.row_ids_N[:4].tolist())
    assert len(Shortlists.joined([shortlists, shortlists])) == 20
    assert (shortlists.shifted(7).rows.codes.partitions == rows.codes.partitions + 7).all()


@given(seed=st.integers(0, 10**6), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3).map(sorted))
def test_candidates_are_the_shortlists_of_their_stages(seed: int, sizes: list[int]) -> None:
    """On both sides of a distance, for stages that earlier scans did not serve."""
    random, queries = np.random.default_rng(seed), 3
    sides = [
        Shortlists(
            random.integers(0, queries, 30),
            random.integers(0, 4, 30).astype(np.float32),
            rows_of(seed + side, 30),
        ).best(sizes[-1])
        for side in range(2)
    ]
    stages = [range(*sorted(random.integers(0, len(sizes) + 1, 2).tolist())) for _ in range(queries)]
    exhausted = [bool(each) for each in random.random(queries) < 0.5]
    found = candidates_of(sides, sizes, stages, ScoreUnits.plain(queries), exhausted)
    for query, each in enumerate(found.each()):
        assert each.exhausted_Q.tolist() == [exhausted[query]]
        assert set(each.stages_H.tolist()) <= set(stages[query])
        for stage in stages[query]:
            considered = each.rows.row_ids_N[each.stages_H <= stage].tolist()
            wanted = [
                row_id
                for side in sides
                for row_id in each_query(side, queries)[query].rows.row_ids_N[: sizes[stage]]
            ]
            assert considered == wanted
        assert len(each.estimates_H) == len(each.rows)


def test_sides_share_no_score_and_leave_none_out() -> None:
    (every,) = sides_of(None)
    beyond, within = sides_of(0.5)
    for score in (-1.0, 0.49, 0.5, 3.0):
        assert every.low <= score < every.high
        assert (beyond.low <= score < beyond.high) != (within.low <= score < within.high)
    assert (beyond.sign, within.sign) == (1, -1)
