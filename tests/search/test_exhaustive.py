"""Exhaustive search against plain numpy."""

import numpy as np
import pytest
from brute_force import plain_distances
from simulated_cuda import simulated_cuda

from rqmoe_store.search import exhaustive
from rqmoe_store.search.exhaustive import exhaustive_search
from rqmoe_store.search.segments import CodeBatch, concatenated


def all_rows(world) -> CodeBatch:
    return concatenated([part.rows() for part in world.store._source.reader().state().resident.selections])


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
@pytest.mark.parametrize("components", [1, 16 * 7, 2**22])
def test_it_finds_what_plain_numpy_finds(worlds, metric, components, monkeypatch) -> None:
    world = worlds(metric, 4)
    monkeypatch.setattr(exhaustive, "_CHUNK_COMPONENTS", components)
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


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
@pytest.mark.parametrize("largest_bytes", [None, 2**12])
def test_a_gpu_finds_the_same(worlds, metric, largest_bytes, monkeypatch) -> None:
    world = worlds(metric, 4)
    rows, queries = all_rows(world), np.random.default_rng(6).normal(size=(6, 16)).astype(np.float32)
    own_Q = rows.row_ids_N[[3, 3, 4, 90, 100, 450]]

    def found(codecs, seen: list[int]) -> list[CodeBatch]:
        batches = [rows[:400], rows[400:400], rows[400:]]
        return exhaustive_search(codecs, queries, batches, 12, excluded_Q=own_Q, advance=seen.append)

    wanted, seen = found(world.store.codecs, []), []
    with simulated_cuda() as devices:
        codecs = world.store.codecs.on("cuda:0")
        codecs.decode_on_gpu(rows.codes[:3])
        devices.waits.clear()
        devices.largest_bytes = largest_bytes
        nearest = found(codecs, seen)
    for one, other in zip(nearest, wanted, strict=True):
        assert one.row_ids_N.tolist() == other.row_ids_N.tolist()
        assert (one.codes.codes == other.codes.codes).all()
    assert sum(seen) == len(rows) and (len(seen) == 2) == (largest_bytes is None)
    assert set(devices.waits) == {"cpu in codecs/distances.py, nearest_of_all"} or largest_bytes


def test_codecs_on_two_devices_decode_on_the_cpu(worlds) -> None:
    world = worlds("l2", 4)
    codes = all_rows(world).codes
    with simulated_cuda():
        assert world.store.codecs.decode_on_gpu(codes) is None
        decoded = world.store.codecs.on("cuda:0").decode_on_gpu(codes)
        assert str(decoded.device) == "cuda:0"
        np.testing.assert_allclose(decoded.cpu().numpy(), world.codec.decode(codes), rtol=1e-5, atol=1e-5)
