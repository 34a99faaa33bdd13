"""Refine codes on a GPU: rows that are scanned there have the refined scores that a CPU computes."""

import concurrent.futures
import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_codecs import SHAPES, as_codec, small_config, stirred, vectors

from rqmoe_store.codecs import device as devices
from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.frame import ScoreUnits
from rqmoe_store.config import METRICS
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.search import device_copies, tensor_refine, tensor_scan
from rqmoe_store.search.row_ids import RowIdMap
from rqmoe_store.search.scan import Refinement, scan
from rqmoe_store.search.segments import CodeBatch, Segment, Selection, grouped
from rqmoe_store.search.shortlists import Shortlists, candidates_of, refined_distances
from rqmoe_store.training.transform import fit_refiner

ROWS, QUERIES, REFINE_BYTES = 160, 3, 8


@pytest.fixture(autouse=True)
def _no_copies_left() -> Iterator[None]:
    """Codecs and segments are kept for all tests here; their copies go with the simulated devices."""
    yield
    device_copies._copies.clear()


@functools.cache
def codec_of(metric: str, shape: str = "rq, partitions", base: str = "additive") -> Codec:
    """A codec with refine codes, on the CPU."""
    plain = as_codec(stirred(small_config(**SHAPES[shape], metric=metric)))
    config = dataclasses.replace(plain.config, refine_bytes=REFINE_BYTES, refine_base=base)
    coder = plain.coder.with_config(config)
    refiner = fit_refiner(coder, unit(vectors(500), metric), 0)
    return Codec(coder, plain.calibration, plain.report, None, refiner)


def unit(vectors_nD: np.ndarray, metric: str) -> np.ndarray:
    lengths_n1 = np.linalg.norm(vectors_nD, axis=1, keepdims=True)
    return vectors_nD / lengths_n1 if metric == "cosine" else vectors_nD


@functools.cache
def segment_of(metric: str, rows: int = ROWS, shape: str = "rq, partitions") -> Segment:
    """A segment of rows of which some are equal."""
    codec = codec_of(metric, shape)
    codes = codec.encode(unit(vectors(rows, seed=4), metric)[np.arange(rows) // 2])
    row_ids = np.random.default_rng(5).permutation(3 * rows)[:rows].astype(np.uint64)
    return grouped(CodeBatch(row_ids, codes), codec.num_partitions)


def fresh(segment: Segment) -> Segment:
    """The segment in other memory, of which no device has a copy."""
    return dataclasses.replace(segment, codes_NM=segment.codes_NM.copy(), refine_NR=segment.refine_NR.copy())


def queries_of(metric: str, count: int = QUERIES) -> np.ndarray:
    return unit(vectors(count, seed=6), metric)


def searched(
    selections: list[Selection], metric: str, device: str, size: int, lower: float | None = None, **more
) -> list[Shortlists]:
    """Shortlists of a device that scores refine codes if it can."""
    codec = more.get("codec") or codec_of(metric)
    queries_QD = queries_of(metric, more.get("queries", QUERIES))
    probed_QP = more.get("probed_QP", np.ones((len(queries_QD), codec.num_partitions), dtype=bool))
    tables = {0: codec.lookup_tables(queries_QD)}
    refinements = {0: Refinement(codec, queries_QD)}
    return scan(selections, tables, probed_QP, size, lower, device, refinements)


def ranked(found: Shortlists, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Row ids and distances of all queries, in the order of results."""
    if len(found) == 0:
        return found.rows.row_ids_N, found.scores_H
    codec, queries_QD = codec_of(metric), queries_of(metric, int(found.queries_H.max(initial=0)) + 1)
    units, scores_H = codec.lookup_tables(queries_QD).units, found.refined_H
    if scores_H is None:
        lookup, refine = codec.lookup_tables(queries_QD), codec.refine_tables(queries_QD)
        scores_H = codec.refined_scores(lookup, refine, found.queries_H, found.rows.codes)
    distances_H = refined_distances(found.queries_H, scores_H, units, metric)
    order_H = np.lexsort((found.rows.row_ids_N, distances_H, found.queries_H))
    return found.rows.row_ids_N[order_H], distances_H[order_H]


def require_same(found: list[Shortlists], wanted: list[Shortlists], metric: str) -> None:
    for side, other in zip(found, wanted, strict=True):
        assert (side.refined_H is None) == (len(side) == 0) and other.refined_H is None
        assert side.rows.codes.refine is None
        np.testing.assert_array_equal(side.queries_H, other.queries_H)
        np.testing.assert_array_equal(side.rows.row_ids_N, other.rows.row_ids_N)
        np.testing.assert_array_equal(side.rows.codes.codes, other.rows.codes.codes)
        row_ids, distances = ranked(side, metric)
        expected_ids, expected = ranked(other, metric)
        np.testing.assert_array_equal(row_ids, expected_ids)
        np.testing.assert_allclose(distances, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10**6),
    size=st.sampled_from([1, 7, 40, 2 * ROWS]),
    lower=st.sampled_from([None, 0.4]),
    share=st.sampled_from([0.0, 0.1, 0.7, 1.0]),
    cut=st.integers(0, ROWS),
    chunk=st.sampled_from([50, ROWS]),
    turn=st.sampled_from([1, 2, QUERIES]),
)
def test_results_are_those_of_a_cpu(gpu, metric, seed, size, lower, share, cut, chunk, turn) -> None:
    random, whole = np.random.default_rng(seed), segment_of(metric)
    places = np.arange(len(whole))
    parts = [whole.part(places[:cut]), whole.part(places[cut:])]
    allowed = whole.row_ids(places[random.random(len(whole)) < share])
    selections = [Selection(part).only(allowed) for part in parts]
    probed = random.random((QUERIES, codec_of(metric).num_partitions)) < 0.7
    wanted = searched(selections, metric, "cpu", size, lower, probed_QP=probed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_scan.Scorer, "chunk_rows", chunk)
        patch.setattr(tensor_refine, "_TABLE_BYTES", 4 * 256 * REFINE_BYTES * turn)
        patch.setattr(tensor_refine, "_CHUNK_BYTES", 24 * (4 + REFINE_BYTES) * 30)
        found = searched(selections, metric, "cuda", size, lower, probed_QP=probed)
    require_same(found, wanted, metric)


@pytest.mark.parametrize("metric", ["l2", "dot"])  # under cosine, two libraries take a square root
def test_scores_have_the_bits_of_the_compiled_loop(cuda, metric: str) -> None:
    (found,) = searched([Selection(segment_of(metric))], metric, "cuda", 90)
    (wanted,) = searched([Selection(segment_of(metric))], metric, "cpu", 90)
    np.testing.assert_array_equal(ranked(found, metric)[1], ranked(wanted, metric)[1])


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_as_many_rows_as_the_kernel_scans(real_gpu, metric: str) -> None:
    rows = 2 * tensor_scan.KERNEL_ROWS
    few, random = segment_of(metric), np.random.default_rng(8)
    drawn = np.sort(random.integers(0, len(few), rows))
    segment = Segment(
        few.codes_NM[drawn],
        RowIdMap.of(random.permutation(rows).astype(np.uint64)),
        np.searchsorted(drawn, few.starts_P),
        random.integers(0, 256, (rows, REFINE_BYTES)).astype(np.uint8),
    )
    found, wanted = (searched([Selection(segment)], metric, device, 50) for device in ("cuda", "cpu"))
    require_same(found, wanted, metric)


@pytest.mark.parametrize("metric", METRICS)
def test_the_host_waits_twice_for_a_batch(cuda, metric: str) -> None:
    selections = [Selection(fresh(segment_of(metric)))]
    for _ in range(2):  # codes and refine codes are uploaded first
        cuda.waits.clear()
        searched(selections, metric, "cuda", 50)
    assert dict(cuda.waits) == {
        "nonzero in search/tensor_scan.py, scan_chunk": 1,
        "synchronize in codecs/decoding.py, wait": 1,
    }


def test_refine_codes_are_uploaded_once_for_each_device(cuda) -> None:
    segment = fresh(segment_of("l2"))
    for device in ("cuda", "cuda:0", "cuda:1", "cuda:1"):
        searched([Selection(segment)], "l2", device, 9)
    places = [place for key, place in device_copies._copies if key == id(segment.refine_NR)]
    assert sorted(map(str, places)) == ["cuda:0", "cuda:1"]


def test_each_of_two_gpus_scores_its_own_table(gpu, in_thread) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    metrics = {"cuda:0": "l2", "cuda:1": "cosine"}
    wanted = {metric: searched([Selection(segment_of(metric))], metric, "cpu", 30) for metric in METRICS}

    def search(device: str) -> None:
        for _ in range(3):
            metric = metrics[device]
            found = searched([Selection(segment_of(metric))], metric, device, 30)
            require_same(found, wanted[metric], metric)

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(in_thread(lambda each=each: search(each))) for each in [*metrics] * 2]:
            done.result()


@pytest.mark.parametrize("part", ["codes_NM", "refine_NR"])
def test_what_does_not_fit_is_ranked_on_the_cpu(cuda, monkeypatch, part: str) -> None:
    segment = fresh(segment_of("l2"))
    room = {"codes_NM": 2 * 6 * ROWS - 1, "refine_NR": 2 * REFINE_BYTES * ROWS - 1}[part]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (room, 2**37))
    for name in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda device: 0)
    (found,) = searched([Selection(segment)], "l2", "cuda", 30)
    assert found.refined_H is None and found.rows.codes.refine is not None
    assert device_copies.has_copy(segment.codes_NM, torch.device("cuda:0")) == (part == "refine_NR")
    (wanted,) = searched([Selection(segment)], "l2", "cpu", 30)
    np.testing.assert_array_equal(ranked(found, "l2")[0], ranked(wanted, "l2")[0])
    # Memory that torch has reserved and does not use counts as free.
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 1)
    (found,) = searched([Selection(segment)], "l2", "cuda", 30)
    assert (found.refined_H is not None) == (part == "refine_NR")


def test_out_of_memory_while_refine_codes_are_uploaded_is_told(cuda) -> None:
    segment = fresh(segment_of("l2"))
    wanted = searched([Selection(segment)], "l2", "cpu", 30)
    searched([Selection(dataclasses.replace(segment, refine_NR=None))], "l2", "cuda", 30)  # codes are there
    cuda.largest_bytes = 0
    with pytest.warns(UserWarning, match=r"ordered by on the CPU\. .* 1,280 bytes .*codec\.to\('cpu'\)"):
        assert not tensor_refine.prepare("cuda", [segment], [codec_of("l2")])
    cuda.largest_bytes = None
    require_same(searched([Selection(segment)], "l2", "cuda", 30), wanted, "l2")


@pytest.mark.parametrize("metric", METRICS)
def test_less_memory_gives_the_same_in_smaller_chunks(cuda, monkeypatch, metric: str) -> None:
    segment, queries = segment_of(metric), 2
    wanted = searched([Selection(segment)], metric, "cpu", ROWS, queries=queries)
    searched([Selection(segment)], metric, "cuda", ROWS, queries=queries)
    sizes, score = [], tensor_refine.RefineScorer.scores

    def watched(scorer, queries_H, rows_H):
        sizes.append(len(rows_H))
        if len(rows_H) > 60:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return score(scorer, queries_H, rows_H)

    monkeypatch.setattr(tensor_refine.RefineScorer, "scores", watched)
    require_same(searched([Selection(segment)], metric, "cuda", ROWS, queries=queries), wanted, metric)
    assert sizes[0] == 2 * ROWS and max(sizes[-4:]) <= 60


def test_without_memory_for_a_row_the_error_says_so(cuda, monkeypatch) -> None:
    def fail(*given):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(tensor_refine.RefineScorer, "scores", fail)
    with pytest.raises(InvalidInputError, match=r"ran out of memory with a single .*codec\.to\('cpu'\)"):
        searched([Selection(segment_of("l2"))], "l2", "cuda", 30)


def test_the_kernels_rows_are_left_to_array_operations_without_memory(cuda, monkeypatch) -> None:
    segment = segment_of("l2")
    wanted = searched([Selection(segment)], "l2", "cpu", 30)
    tried, score = [], tensor_refine.RefineScorer.scores

    def by_kernel(name, work):
        queries_C = torch.zeros(3, dtype=torch.long, device="cuda:0")
        return queries_C, torch.zeros(3, device="cuda:0"), queries_C

    def short_of_memory(scorer, queries_H, rows_H):
        tried.append(len(rows_H))
        if len(tried) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return score(scorer, queries_H, rows_H)

    for name, stand_in in (("KERNEL_ROWS", 1), ("has_kernels", lambda _: True), ("run_kernel", by_kernel)):
        monkeypatch.setattr(tensor_scan, name, stand_in)
    monkeypatch.setattr(tensor_refine.RefineScorer, "scores", short_of_memory)
    require_same(searched([Selection(segment)], "l2", "cuda", 30), wanted, "l2")
    assert tried[0] == 3 and len(tried) == 2


def test_decoded_bases_and_codes_alone_are_ranked_on_the_cpu(cuda) -> None:
    codec = codec_of("l2", "rq", "decoded")
    codes = codec.encode(vectors(50))
    segment = grouped(CodeBatch(np.arange(50, dtype=np.uint64), codes), 1)
    (found,) = searched([Selection(segment)], "l2", "cuda", 9, codec=codec)
    assert found.refined_H is None and found.rows.codes.refine is not None
    alone = dataclasses.replace(segment_of("l2"), refine_NR=None)
    (found,) = searched([Selection(alone)], "l2", "cuda", 9)
    assert found.refined_H is None


def test_a_forked_process_is_told_to_start_in_another_way(cuda, monkeypatch) -> None:
    monkeypatch.setattr(devices._ForkedGpu, "lost", True)
    with pytest.raises(InvalidInputError, match="forked"):
        searched([Selection(segment_of("l2"))], "l2", "cuda", 30)


def test_candidates_keep_refined_scores(cuda) -> None:
    (found,) = searched([Selection(segment_of("l2"))], "l2", "cuda", 20)
    stages = [range(2)] * QUERIES
    candidates = candidates_of([found], [5, 20], stages, ScoreUnits.plain(QUERIES), [False] * QUERIES)
    again = candidates.joined([(range(QUERIES), candidates), ([1, 2], candidates[1:3])])
    assert len(again.rows) >= len(candidates.rows)
    by_row = dict(zip(found.rows.row_ids_N.tolist(), found.refined_H.tolist(), strict=False))
    assert by_row and again.refined_H is not None and len(again.refined_H) == len(again.rows)
    for query, each in enumerate(candidates.each()):
        mine = found.queries_H == query
        expected = dict(zip(found.rows.row_ids_N[mine].tolist(), found.refined_H[mine].tolist(), strict=True))
        assert dict(zip(each.rows.row_ids_N.tolist(), each.refined_H.tolist(), strict=True)) == expected
    nearest_Q = candidates.rows.row_ids_N[candidates.starts_Q[:-1]]
    left = candidates.without(nearest_Q)
    np.testing.assert_array_equal(left.refined_H, np.delete(candidates.refined_H, candidates.starts_Q[:-1]))


def test_candidates_of_which_some_lack_refined_scores_are_read_again(cuda) -> None:
    stages = [range(1)] * QUERIES, ScoreUnits.plain(QUERIES), [False] * QUERIES
    scored, plain = (
        candidates_of(searched([Selection(segment_of("l2"))], "l2", device, 20), [20], *stages)
        for device in ("cuda", "cpu")
    )
    assert scored.refined_H is not None and plain.rows.codes.refine is not None
    for parts in ([scored, plain], [plain, scored]):
        joined = scored.joined([(range(QUERIES), each) for each in parts])
        assert joined.refined_H is None and joined.rows.codes.refine is None
        assert sorted(joined.rows.row_ids_N) == sorted(plain.rows.row_ids_N)
