"""The rerank: exact distances in LanceDB's definition, ordered by (distance, row id)."""

import numpy as np
import pytest

from rqmoe_store.codecs.codes import Codes
from rqmoe_store.config import Metric
from rqmoe_store.search import rerank as distances
from rqmoe_store.search import rerank as module
from rqmoe_store.search.rerank import Hits, exact_distances, rerank, within
from rqmoe_store.search.segments import CodeBatch
from rqmoe_store.search.shortlists import Candidates

QUERY = np.array([3.0, 4.0], np.float32)
VECTORS = np.array([[3, 4], [0, 0], [-3, -4], [4, -3], [6, 8]], np.float32)


@pytest.mark.parametrize(
    ("metric", "wanted"),
    [("l2", [0, 25, 100, 50, 25]), ("dot", [-24, 1, 26, 1, -49]), ("cosine", [0, np.nan, 2, 1, 0])],
)
def test_exact_distances(metric: Metric, wanted: list[float]) -> None:
    found = exact_distances(QUERY, VECTORS, metric)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_distances_in_slices_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = exact_distances(QUERY, VECTORS, "l2")
    monkeypatch.setattr(distances, "_MAX_COMPONENTS", 4)
    assert (exact_distances(QUERY, VECTORS, "l2") == whole).all()
    assert len(exact_distances(QUERY, VECTORS[:0], "l2")) == 0


def test_near_ties_far_from_the_origin_keep_their_order() -> None:
    query = np.full(4, 1e4, np.float32)
    offsets = np.array([0.01, 0.02, 0.03, 0.04], np.float32)
    vectors = query + offsets[:, None] * np.eye(4, dtype=np.float32)
    assert (np.diff(exact_distances(query, vectors, "l2")) > 0).all()


def of_one_stage(row_ids: np.ndarray, codes: Codes) -> Candidates:
    return Candidates(CodeBatch(row_ids, codes), np.zeros(len(codes)), np.zeros(len(codes), np.int64))


def shortlists(world, sizes: list[int]) -> list[Candidates]:
    codes = world.codec.encode(world.vectors[: max(sizes)])
    return [of_one_stage(world.row_ids[:size], codes[:size]) for size in sizes]


def test_rerank_in_turns_is_the_same(world, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = world.vectors[:4] + np.float32(0.1)
    lists = shortlists(world, [30, 0, 20, 25])
    whole = rerank(world.store.codecs, queries, lists)
    monkeypatch.setattr(module, "MAX_DECODED", 40)
    turned = rerank(world.store.codecs, queries, lists)
    assert [len(hits) for hits in whole] == [30, 0, 20, 25]
    for first, second in zip(whole, turned, strict=True):
        assert (first.row_ids_S == second.row_ids_S).all()
        assert (first.distances_S == second.distances_S).all()
        assert (np.diff(first.distances_S) >= 0).all()


def test_equal_distances_come_in_row_id_order(world) -> None:
    codes = world.codec.encode(world.vectors[:1])
    same = Codes(np.repeat(codes.codes, 5, axis=0), np.repeat(codes.partitions, 5))
    row_ids = np.array([9, 3, 7, 1, 5], np.uint64)
    (hits,) = rerank(world.store.codecs, world.vectors[:1], [of_one_stage(row_ids, same)])
    assert hits.row_ids_S.tolist() == [1, 3, 5, 7, 9]


def test_bounds_are_lower_inclusive_and_upper_exclusive() -> None:
    hits = Hits(np.arange(5, dtype=np.uint64), np.array([0.0, 0.1, 0.2, 0.2, 0.5], np.float32))

    def rows(lower: float | None, upper: float | None) -> list[int]:
        return within(hits, lower, upper).row_ids_S.tolist()

    assert rows(0.1, None) == [1, 2, 3, 4]
    assert rows(None, 0.2) == [0, 1]
    assert rows(0.2, 0.5) == [2, 3]
    assert rows(None, None) == [0, 1, 2, 3, 4]


def test_a_vector_does_not_depend_on_what_else_is_decoded(world) -> None:
    codes = world.codec.encode(world.vectors[:40])
    whole = world.store.codecs.decode(codes)
    for count in (1, 2, 7, 30):
        assert (world.store.codecs.decode(codes[:count]) == whole[:count]).all()
