"""Exhaustive search against plain numpy."""

import numpy as np
import pytest
from brute_force import plain_distances

from rqmoe_store.search import rerank
from rqmoe_store.search.rerank import exhaustive_search
from rqmoe_store.search.segments import CodeBatch, concatenated


def all_rows(world) -> CodeBatch:
    return concatenated([part.rows() for part in world.store._source.reader().state().resident.selections])


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
@pytest.mark.parametrize("components", [1, 16 * 7, 2**22])
def test_it_finds_what_plain_numpy_finds(worlds, metric, components, monkeypatch) -> None:
    world = worlds(metric, 4)
    monkeypatch.setattr(rerank, "_CHUNK_COMPONENTS", components)
    rows, queries = all_rows(world), np.random.default_rng(5).normal(size=(6, 16)).astype(np.float32)
    own_Q, seen = rows.row_ids_N[[3, 3, 4, 90, 100, 450]], []
    wanted = plain_distances(metric, queries[:, None], world.codec.decode(rows.codes)[None])
    for excluded in (None, own_Q):
        batches = [rows[:33], rows[33:33], rows[33:]]
        found = exhaustive_search(
            world.store.codecs, queries, batches, 12, excluded_Q=excluded, advance=seen.append
        )
        for query, nearest in enumerate(found):
            near = wanted[query].copy()
            if excluded is not None:
                near[rows.row_ids_N == excluded[query]] = np.inf
            places = np.lexsort((rows.row_ids_N, near))[:12]
            assert nearest.row_ids_N.tolist() == rows.row_ids_N[places].tolist()
            assert (nearest.codes.codes == rows.codes.codes[places]).all()
            assert (nearest.codes.partitions == rows.codes.partitions[places]).all()
    assert sum(seen) == 2 * len(rows)


def test_fewer_rows_than_wanted(world) -> None:
    rows = all_rows(world)[:3]
    queries = world.vectors[:2]
    found = exhaustive_search(
        world.store.codecs, queries, [rows], 10, excluded_Q=rows.row_ids_N[:2], advance=lambda _: None
    )
    assert [len(nearest) for nearest in found] == [2, 2]
    assert all(own not in nearest.row_ids_N for own, nearest in zip(rows.row_ids_N, found, strict=False))
