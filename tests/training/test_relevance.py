"""Training by relevance: the loss, the split of queries and the measures, each against its definition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.training.relevance import (
    LEAST_QUERIES,
    RelevanceReport,
    joined_rows,
    ndcg,
    nearest_rows,
    pairwise_slopes,
    recall,
    split_queries,
)

STEEPNESS = 17.6


def loss(distances: np.ndarray, ranked_by: np.ndarray, relevant: np.ndarray) -> float:
    """JPQ's loss of one query as it is written, with ranks held fixed."""
    ranks = np.argsort(np.argsort(ranked_by, kind="stable"), kind="stable") + 1
    total = 0.0
    for near in np.flatnonzero(relevant):
        for far in np.flatnonzero(~relevant & np.isfinite(distances)):
            weight = abs(1 / ranks[near] - 1 / ranks[far])
            total += weight * np.log1p(np.exp(STEEPNESS * (distances[near] - distances[far])))
    return total


@given(st.integers(0, 2**32 - 1))
def test_slopes_are_derivatives_of_the_loss(seed):
    random = np.random.default_rng(seed)
    distances = random.uniform(0, 0.3, size=9)
    relevant = np.zeros(9, bool)
    relevant[random.permutation(8)[: random.integers(1, 4)]] = True
    distances[8] = np.inf  # no row
    slopes = pairwise_slopes(distances[None].astype(np.float32), relevant[None])[0]
    for place in range(8):
        moved = np.zeros(9)
        moved[place] = 1e-4
        expected = loss(distances + moved, distances, relevant) - loss(distances - moved, distances, relevant)
        assert slopes[place] == pytest.approx(expected / 2e-4, rel=1e-2, abs=1e-2)
    assert slopes[8] == 0


def test_equal_queries_are_on_the_same_side():
    queries = np.repeat(np.arange(LEAST_QUERIES, dtype=np.float32)[:, None], 3, axis=0)
    training, held = split_queries(queries, 0.3, seed=1)
    assert len(held) == 90 and len(training) == 210
    assert not set(queries[training, 0]) & set(queries[held, 0])
    with pytest.raises(InvalidInputError, match="99 different queries"):
        split_queries(queries[:-3], 0.3, seed=1)


def test_measures_by_hand():
    hits = np.zeros((3, 10), bool)
    hits[0, [0, 2]], hits[1, :] = True, True
    relevant = np.array([3, 40, 1])
    ideal = 1 + 1 / np.log2(3) + 1 / 2
    np.testing.assert_allclose(ndcg(hits, relevant), [(1 + 1 / 2) / ideal, 1, 0])
    np.testing.assert_allclose(recall(hits, relevant), [2 / 3, 1, 0])


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
def test_nearest_rows_are_those_of_brute_force(metric):
    random = np.random.default_rng(0)
    queries, rows = (random.normal(size=(count, 5)).astype(np.float32) for count in (40, 300))
    products = queries @ rows.T
    distances = {
        "l2": np.square(queries[:, None] - rows).sum(axis=2),
        "dot": -products,
        "cosine": -products / np.linalg.norm(rows, axis=1),
    }[metric]
    found = nearest_rows(queries, rows, 7, metric)
    np.testing.assert_array_equal(found, np.argsort(distances, axis=1)[:, :7])


def test_relevant_rows_join_those_found():
    joined = joined_rows(np.array([[3, 1], [0, 2]]), [np.array([1]), np.array([0, 5, 6])])
    assert [set(each) - {-1} for each in joined.tolist()] == [{3, 1}, {0, 2, 5, 6}]


def test_only_a_clear_gain_is_kept():
    before = np.full(100, 0.5), np.full(100, 0.5)
    noisy = 0.5 + np.tile([0.1, -0.1], 50), np.full(100, 0.5)
    better = 0.5 + np.tile([0.1, -0.05], 50), np.full(100, 0.6)
    kept = RelevanceReport.of(before, better, labeled=True, training_queries=9)
    assert kept.kept and kept.ndcg_gain_low > 0 and kept.recall_after == pytest.approx(0.6)
    assert not RelevanceReport.of(before, noisy, labeled=True, training_queries=9).kept
    assert not RelevanceReport.of(before, before, labeled=False, training_queries=9).kept
