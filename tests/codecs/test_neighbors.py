"""Nearest rows by brute force: however rows are added, those of a full sort, ties by id."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rqmoe_store.codecs import neighbors
from rqmoe_store.codecs.neighbors import NearestRows, nearest_rows


@pytest.mark.parametrize("metric", ["l2", "dot"])
@given(
    count=st.integers(1, 30),
    cuts=st.lists(st.integers(0, 40), max_size=4).map(sorted),
    chunk_rows=st.integers(1, 50),
    distances=st.integers(1, 200),
    seed=st.integers(0, 99),
)
def test_rows_in_any_order_and_any_pieces(metric, count, cuts, chunk_rows, distances, seed) -> None:
    generator = np.random.default_rng(seed)
    # Whole numbers whose means over up to 4 queries are whole: ties occur, and every sum is exact.
    queries = 12 * generator.integers(0, 3, (4, 3)).astype(np.float32)
    vectors = 12 * generator.integers(0, 3, (40, 3)).astype(np.float32)
    ids = generator.permutation(100)[:40]
    by_id = np.argsort(ids)
    products = queries @ vectors.T
    exact = 1 - products if metric == "dot" else ((queries[:, None] - vectors) ** 2).sum(axis=2)
    order = by_id[np.argsort(exact[:, by_id], axis=1, kind="stable")][:, :count]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbors, "_CHUNK_ROWS", chunk_rows)
        patch.setattr(neighbors, "_MAX_DISTANCES", distances)
        nearest = NearestRows(queries, count, metric)
        for piece in np.split(np.arange(40), cuts):
            nearest.add(vectors[piece], ids[piece])
    np.testing.assert_array_equal(nearest.ids_QK, ids[order])
    np.testing.assert_array_equal(nearest.distances_QK, np.take_along_axis(exact, order, axis=1))


def test_vectors_far_from_the_origin_keep_their_order() -> None:
    """Squares of such vectors have no digits left for differences in float32."""
    generator = np.random.default_rng(0)
    vectors = (1e4 + generator.normal(size=(200, 8))).astype(np.float32)
    found = nearest_rows(vectors[:20], vectors, 5, "l2")
    exact = np.square(vectors[:20, None].astype(np.float64) - vectors).sum(axis=2)
    np.testing.assert_array_equal(found, np.argsort(exact, axis=1, kind="stable")[:, :5])
