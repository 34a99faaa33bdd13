"""Recall: exact neighbors agree with a full sort, and ratios follow their definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rqmoe_store.codecs import neighbors
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.recall import exact_neighbors, k_recall_at_k, one_recall_at


def full_sort(queries: np.ndarray, vectors: np.ndarray, k: int, metric: str) -> tuple[np.ndarray, np.ndarray]:
    queries, vectors = queries.astype(np.float64), vectors.astype(np.float64)
    if metric == "cosine":
        queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    distances = ((queries[:, None] - vectors) ** 2).sum(axis=2) if metric == "l2" else 1 - queries @ vectors.T
    order = np.argsort(distances.astype(np.float32), axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(distances, order, axis=1)


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
@settings(max_examples=20, deadline=None)
@given(k=st.integers(1, 40), rows=st.integers(40, 90), chunk=st.integers(1, 100), seed=st.integers(0, 99))
def test_exact_neighbors_are_those_of_a_full_sort(metric, k, rows, chunk, seed) -> None:
    generator = np.random.default_rng(seed)
    # Small whole numbers: exact duplicates and ties occur, and every sum is exact.
    queries, vectors = generator.integers(1, 4, (7, 3)), generator.integers(1, 4, (rows, 3))
    found, distances = exact_neighbors(queries, vectors, k, metric=metric, chunk_rows=chunk)
    wanted, wanted_distances = full_sort(queries, vectors, k, metric)
    assert found.dtype == np.int64 and distances.dtype == np.float32
    np.testing.assert_allclose(distances, wanted_distances, atol=1e-6)
    if metric != "cosine":
        assert (found == wanted).all()


def test_blocks_of_queries_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    queries, vectors = generator.normal(size=(9, 5)), generator.normal(size=(60, 5))
    whole = exact_neighbors(queries, vectors, 4)
    monkeypatch.setattr(neighbors, "_MAX_DISTANCES", 40)
    parts = exact_neighbors(queries, vectors, 4, chunk_rows=20)
    assert (whole[0] == parts[0]).all() and (whole[1] == parts[1]).all()


def test_the_vector_itself_is_nearest() -> None:
    vectors = np.random.default_rng(1).normal(size=(50, 6)).astype(np.float32)
    found, distances = exact_neighbors(vectors, vectors, 1)
    assert found[:, 0].tolist() == list(range(50))
    assert np.abs(distances).max() < 1e-6


def test_one_recall_at() -> None:
    found, truth = [[1, 2, 3], [4, 5, 6], [7, -1, -1]], [[1], [6], [8]]
    assert one_recall_at(found, truth, 1) == pytest.approx(1 / 3)
    assert one_recall_at(found, truth, 3) == pytest.approx(2 / 3)


def test_k_recall_at_k() -> None:
    found, truth = [[1, 2, 3], [4, 4, -1]], [[3, 2, 1], [4, 5, 6]]
    assert k_recall_at_k(found, truth, 3) == pytest.approx((1 + 1 / 3) / 2)
    assert k_recall_at_k(found, truth, 1) == pytest.approx(0.5)
    assert k_recall_at_k(truth, truth, 3) == 1


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: exact_neighbors(np.ones((1, 2)), np.ones((3, 2)), 4), "at least k vectors"),
        (lambda: exact_neighbors(np.ones((1, 2)), np.ones((3, 2)), 0), "k=0"),
        (lambda: exact_neighbors(np.ones((1, 2)), np.ones((3, 2)), 1, metric="hamming"), "unknown"),
        (lambda: exact_neighbors(np.ones((1, 2)), np.ones((3, 4)), 1), "dimension 4; expected 2"),
        (lambda: exact_neighbors(np.ones(2), np.ones((3, 2)), 1), "two dimensions"),
        (lambda: one_recall_at([[1]], [[1], [2]], 1), "1 queries in found and 2 in truth"),
        (lambda: one_recall_at(np.zeros((0, 1), int), np.zeros((0, 1), int), 1), "at least one"),
        (lambda: one_recall_at([[1]], [[1]], 2), "2 or more"),
        (lambda: k_recall_at_k([[1, 2]], [[1]], 2), "truth of shape"),
        (lambda: k_recall_at_k([[1.5]], [[1]], 1), "float64"),
        (lambda: k_recall_at_k([[1]], [[1]], 0), "1 or more"),
    ],
)
def test_unusable_arguments(call, reason) -> None:
    with pytest.raises(InvalidInputError, match=reason):
        call()
