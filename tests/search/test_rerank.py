"""The rerank: exact distances in LanceDB's definition, ordered by (distance, row id)."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated_cuda import simulated_cuda
from small_codecs import SHAPES, as_codec, small_config, stirred, vectors

from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.selection import EVERY_ROW
from rqmoe_store.codecs.vectors import as_vectors
from rqmoe_store.config import Metric
from rqmoe_store.search import rerank as distances
from rqmoe_store.search import rerank as module
from rqmoe_store.search.rerank import Hits, exact_distances, rerank, within
from rqmoe_store.search.segments import CodeBatch, concatenated
from rqmoe_store.search.shortlists import Candidates
from rqmoe_store.store.table_codec import TableCodec, generation_metadata, metadata_of

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


def of_one_stage(rows: CodeBatch, sizes: list[int]) -> Candidates:
    """Candidates of queries: rows one after the other, so many for each query."""
    starts, exhausted = np.concatenate([[0], np.cumsum(sizes)]), np.zeros(len(sizes), dtype=bool)
    return Candidates(rows, np.zeros(len(rows)), np.zeros(len(rows), np.int64), starts, exhausted)


def shortlists(world, sizes: list[int]) -> Candidates:
    codes = world.codec.encode(world.vectors[: max(sizes)])
    parts = [CodeBatch(world.row_ids[:size], codes[:size]) for size in sizes]
    return of_one_stage(concatenated(parts), sizes)


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
    (hits,) = rerank(world.store.codecs, world.vectors[:1], of_one_stage(CodeBatch(row_ids, same), [5]))
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


@given(data=st.data())
def test_candidates_of_later_stages_join_those_of_earlier_ones(data: st.DataObject) -> None:
    queries, parts, expected = data.draw(st.integers(1, 5)), [], {}
    numbers = list(range(queries))
    for stage in range(data.draw(st.integers(1, 4))):
        rows = [data.draw(st.lists(st.integers(0, 9), unique=True, max_size=6)) for _ in numbers]
        exhausted = data.draw(st.lists(st.booleans(), min_size=len(numbers), max_size=len(numbers)))
        ids = np.array([row for each in rows for row in each], np.uint64)
        codes = Codes((ids[:, None] + stage).astype(np.uint8), np.zeros(len(ids), np.int32))
        starts = np.concatenate([[0], np.cumsum([len(each) for each in rows])])
        part = Candidates(
            CodeBatch(ids, codes), ids + 100.0 * stage, np.full(len(ids), stage), starts, np.array(exhausted)
        )
        parts.append((numbers, part))
        for number, each, is_last in zip(numbers, rows, exhausted, strict=True):
            found = expected.setdefault(number, [{}, False])
            found[0] = dict.fromkeys(each, stage) | found[0]
            found[0] = {row: found[0][row] for row in sorted(found[0], key=lambda row: found[0][row])}
            found[1] = is_last
        numbers = data.draw(st.lists(st.sampled_from(numbers), unique=True, min_size=1).map(sorted))
    joined = Candidates.joined(parts)
    assert len(joined) == queries and joined.counts_Q.tolist() == [
        len(expected[q][0]) for q in range(queries)
    ]
    for number, each in enumerate(joined.each()):
        stages, is_exhausted = expected[number]
        made = dict(zip(each.rows.row_ids_N.tolist(), each.stages_H.tolist(), strict=True))
        assert made == stages and each.stages_H.tolist() == sorted(each.stages_H)
        assert (each.rows.codes.codes[:, 0] == each.rows.row_ids_N + each.stages_H).all()
        assert (each.estimates_H == each.rows.row_ids_N + 100.0 * each.stages_H).all()
        assert each.exhausted_Q.tolist() == [is_exhausted]


def codecs_of_two_generations(metric: Metric) -> TableCodec:
    """Codecs with experts, the second one with partitions."""
    shapes = SHAPES["rqmoe"], SHAPES["rqmoe, partitions"]
    codecs = [as_codec(stirred(small_config(**shape, metric=metric))) for shape in shapes]
    generations = tuple(generation_metadata(codec) for codec in codecs)
    metadata = dataclasses.replace(metadata_of(codecs[0], "vector", "none"), generations=generations)
    return TableCodec.of(metadata, codecs)


def drawn_candidates(codecs: TableCodec, sizes: list[int], seed: int) -> Candidates:
    """Rows of 200 for every query; a third of the 200 have equal codes."""
    random, rows = np.random.default_rng(seed), sum(sizes)
    codes = random.integers(0, 16, (200, 4)).astype(np.uint8)
    partitions = random.integers(0, codecs.num_partitions, 200).astype(np.int32)
    codes[::3], partitions[::3] = codes[0], partitions[0]
    ids = np.concatenate([random.permutation(200)[:size] for size in [0, *sizes]])
    chosen = CodeBatch(ids.astype(np.uint64), Codes(codes, partitions)[ids])
    lists = of_one_stage(chosen, sizes)
    return dataclasses.replace(lists, stages_H=random.integers(0, 3, rows), estimates_H=random.random(rows))


def require_same_hits(found: list[Hits], wanted: list[Hits], most: int) -> None:
    """Require all hits, or those that are among the nearest of any number of stages."""
    for hits, others in zip(found, wanted, strict=True):
        for stage in range(3):
            kept = others[others.stages_S <= stage][:most]
            same = hits[hits.stages_S <= stage][: len(kept)]
            assert same.row_ids_S.tolist() == kept.row_ids_S.tolist()
            assert (same.stages_S == kept.stages_S).all() and (same.estimates_S == kept.estimates_S).all()
            largest = np.abs(kept.distances_S).max(initial=0)
            np.testing.assert_allclose(same.distances_S, kept.distances_S, rtol=1e-4, atol=1e-5 * largest)
        assert most < EVERY_ROW or len(hits) == len(others)


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-25, 1e25])  # the last three need tie breaks
def test_a_gpu_reranks_as_a_cpu_does(metric: Metric, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_DECODED", 100)
    if metric == "cosine" and scale != 1:
        pytest.skip("vectors are of unit length")
    codecs = codecs_of_two_generations(metric)
    queries = as_vectors(vectors(4, seed=1) * np.float32(scale), metric=metric)
    with simulated_cuda() as devices:
        for seed, sizes in enumerate([[30], [1], [0], [0, 7, 0, 60], [90, 50, 2, 110]]):
            candidates = drawn_candidates(codecs, sizes, seed)
            for generation in codecs.generations:
                generation.codec.to("cpu")
            wanted = rerank(codecs, queries[: len(sizes)], candidates)
            for generation in codecs.generations:
                generation.codec.to("cuda")
            for most in (EVERY_ROW, 5):
                found = rerank(codecs, queries[: len(sizes)], candidates, most=most)
                require_same_hits(found, wanted, most)
        assert {place.partition(" in ")[2] for place in devices.waits} <= {
            "codecs/decoding.py, wait",
            "codecs/graphs.py, wait",
            *PREPARING,
        }


PREPARING = {"codecs/decoding.py, unit_and_offset", "codecs/prepared.py, of"}
"""Where the host waits when a codec is first used."""


def test_vectors_that_are_needed_come_from_the_gpu(worlds) -> None:
    codecs = codecs_of_two_generations("l2")
    candidates = drawn_candidates(codecs, [20], 3)
    with simulated_cuda():
        codecs.generations[1].codec.to("cuda")
        (hits,) = rerank(codecs, vectors(1), candidates, with_vectors=True)
        (without,) = rerank(codecs, vectors(1), candidates)  # of two devices
    assert hits.vectors_SD is not None and hits.row_ids_S.tolist() == without.row_ids_S.tolist()
