"""Recall at full density: estimates from a sample against the recall among all rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_clusters import clustered

from rqmoe_store.advice.estimate import (
    Distances,
    confidence_interval,
    probabilities_of_fewer,
    recalls_at_full_size,
    recalls_in_sample,
    shortlists,
)
from rqmoe_store.advice.sample import Sample, SampleSizes, draw_sample
from rqmoe_store.advice.vectors import ArrayVectors
from rqmoe_store.evaluation.recall import exact_neighbors, k_recall_at_k

ROWS, K = 6_000, 10


def sample_of(vectors: np.ndarray, queries: np.ndarray, encoded: int, metric="l2", seed=0) -> Sample:
    sizes = SampleSizes(queries=len(queries), training=100, encoded=encoded, k=K, seed=seed)
    return draw_sample(ArrayVectors("array", vectors), queries, metric, sizes, lambda rows: None)


class Lossy:
    """Stands for a codec: moves every vector by noise of its own."""

    def __init__(self, vectors: np.ndarray, noise: float) -> None:
        moves = np.random.default_rng(9).normal(size=vectors.shape) * noise
        self.decoded = (vectors + moves).astype(np.float32)
        self._places = {vector.tobytes(): place for place, vector in enumerate(vectors)}

    def decode(self, sample: Sample) -> np.ndarray:
        return self.decoded[[self._places[vector.tobytes()] for vector in sample.encoded_ED]]


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return clustered(ROWS, 16, seed=1)


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return clustered(120, 16, seed=2)


@pytest.mark.parametrize("noise", [0.05, 0.15, 0.4])
@pytest.mark.parametrize("encoded", [400, 3_000])
def test_the_estimate_is_near_the_recall_among_all_rows(vectors, queries, noise, encoded):
    lossy = Lossy(vectors, noise)
    truth, _ = exact_neighbors(queries, vectors, K)
    found, _ = exact_neighbors(queries, lossy.decoded, K)
    real = k_recall_at_k(found, truth, K)
    sample = sample_of(vectors, queries, encoded)
    assert not sample.is_complete
    estimate = recalls_at_full_size(sample, Distances.of(sample, lossy.decode(sample))).mean()
    assert estimate == pytest.approx(real, abs=0.03)


def test_a_sample_alone_overstates_recall(vectors, queries):
    lossy = Lossy(vectors, 0.4)
    sample = sample_of(vectors, queries, 600)
    exact = Distances.of(sample, sample.encoded_ED)
    decoded = Distances.of(sample, lossy.decode(sample))
    estimate = recalls_at_full_size(sample, decoded).mean()
    assert recalls_in_sample(sample, exact, decoded).mean() > estimate + 0.05


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
def test_nothing_is_estimated_where_all_rows_are_encoded(queries, metric):
    vectors = clustered(900, 16, seed=3)
    sample = sample_of(vectors, queries, 900, metric)
    assert sample.is_complete
    decoded = sample.encoded_ED + np.random.default_rng(0).normal(size=(900, 16)).astype(np.float32) * 0.3
    truth, _ = exact_neighbors(queries, sample.encoded_ED, K, metric=metric)
    # Codes of directions are compared by angle, whatever their lengths.
    found, _ = exact_neighbors(queries, decoded, K, metric=metric)
    recalls = recalls_at_full_size(sample, Distances.of(sample, decoded))
    assert recalls.mean() == pytest.approx(k_recall_at_k(found, truth, K), abs=1e-3)


def test_duplicates_are_as_good_as_each_other(queries):
    """Each vector is there 40 times, and any of its copies is a neighbor."""
    vectors = np.repeat(clustered(100, 16, seed=4), 40, axis=0)
    for encoded in (500, len(vectors)):
        sample = sample_of(vectors, queries, encoded)
        recalls = recalls_at_full_size(sample, Distances.of(sample, sample.encoded_ED))
        np.testing.assert_allclose(recalls, 1.0)


def test_near_rows_are_the_exact_ones_of_all_rows(vectors, queries):
    sample = sample_of(vectors, queries, 600)
    truth, distances = exact_neighbors(queries, vectors, sample.near_QK.shape[1])
    np.testing.assert_array_equal(sample.encoded_ED[sample.near_QK], vectors[truth])
    np.testing.assert_allclose(sample.near_distances_QK, distances, rtol=1e-5)


def test_a_shortlist_counts_rows_that_were_not_encoded(vectors, queries):
    """A shortlist of 120 of 6,000 rows has about a fiftieth of the random sample."""
    sample = sample_of(vectors, queries, 600)
    near, random = shortlists(sample, Distances.of(sample, sample.encoded_ED), 120)
    assert near.sum(axis=1).mean() == sample.near_QK.shape[1]
    assert 0.2 < random.sum(axis=1).mean() / (sample.random_rows * 120 / ROWS) < 3


@given(
    limit=st.integers(1, 20),
    ahead=st.lists(st.integers(0, 50), min_size=1, max_size=20),
    share=st.floats(0.001, 1.0),
)
def test_probabilities_are_probabilities(limit, ahead, share):
    ahead_Q, shares_Q = np.array(ahead, dtype=float), np.full(len(ahead), share)
    fewer = probabilities_of_fewer(limit, ahead_Q, shares_Q)
    assert ((fewer >= 0) & (fewer <= 1)).all()
    assert (fewer <= probabilities_of_fewer(limit + 1, ahead_Q, shares_Q) + 1e-12).all()
    assert (fewer[ahead_Q >= limit] == 0).all()


@given(limit=st.integers(1, 20), ahead=st.lists(st.integers(0, 50), min_size=1, max_size=20))
def test_rows_that_are_all_seen_are_counted(limit, ahead):
    ahead_Q = np.array(ahead, dtype=float)
    fewer = probabilities_of_fewer(limit, ahead_Q, np.ones(len(ahead)))
    np.testing.assert_allclose(fewer, ahead_Q < limit)


def test_the_interval_narrows_with_more_queries():
    recalls = np.random.default_rng(0).choice([0.7, 0.8, 0.9, 1.0], 1_600)
    low, high = confidence_interval(recalls, 0)
    assert low < recalls.mean() < high
    few_low, few_high = confidence_interval(recalls[:100], 0)
    assert (high - low) * 3 < few_high - few_low
