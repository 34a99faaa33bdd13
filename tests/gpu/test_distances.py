"""Distances on a GPU: those of decoded vectors, of which one number for each code comes back."""

import concurrent.futures
import warnings

import numpy as np
import pytest
import torch
from small_codecs import DIM, SHAPES, as_codec, exact_distances, small_config, stirred, trained_small, vectors

from rqmoe_store.codecs import decoding, graphs
from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.distances import Distances, distinct, nearest_of_all
from rqmoe_store.codecs.frame import Frame, to_float32
from rqmoe_store.config import METRICS
from rqmoe_store.errors import InvalidInputError

ROWS, QUERIES = vectors(300, seed=4), vectors(3, seed=5)
FRAMES = {
    "plain": Frame.plain(DIM),
    "far off": Frame(np.linspace(1e4, 3e4, DIM).astype(np.float32), 0),
    "tiny": Frame(np.zeros(DIM, np.float32), -120),
    "beyond float32": Frame(np.full(DIM, -3e38, np.float32), 126),
}


def codec_of(name: str, metric: str = "l2") -> Codec:
    codec = as_codec(stirred(small_config(**SHAPES[name], metric=metric)))
    return Codec.from_artifact(codec.to_artifact(), device="cuda")


def computed(codec: Codec, codes: Codes, queries_n: np.ndarray, precision: str = "float32") -> np.ndarray:
    """Distances of codes, each to a query of its own, or products."""
    distances = codec.gpu_distances(precision)
    assert distances is not None
    return distances.start(codes, QUERIES, queries_n).wait()


def expected(vectors_nD: np.ndarray, metric: str, queries_n: np.ndarray) -> np.ndarray:
    found_n = exact_distances(QUERIES, vectors_nD, metric)[queries_n, np.arange(len(queries_n))]
    return 1 - found_n if metric == "dot" else found_n


def numbers(count: int) -> np.ndarray:
    return np.sort(np.random.default_rng(6).integers(0, len(QUERIES), count))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", ["rq, partitions", "rqmoe, partitions", "rqmoe, narrow, 2 layers", "qinco"])
def test_are_those_of_decoded_vectors(gpu, name: str, metric: str) -> None:
    codec = codec_of(name, metric)
    codes = codec.encode(ROWS)
    for part in (codes, codes[::-1], codes[:1], codes[:0], codes[:37], codes):
        queries_n = numbers(len(part))
        wanted = expected(codec.decode(part), metric, queries_n)
        np.testing.assert_allclose(computed(codec, part, queries_n), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("frame", FRAMES)
def test_are_in_the_units_of_the_input(gpu, frame: str, metric: str) -> None:
    cuda = torch.device("cuda:0")
    decoded_nD = ROWS.copy()
    decoded_nD[:2] = 0
    outside_nD = FRAMES[frame].inverse_transform(decoded_nD)
    queries_QD = to_float32(outside_nD[3:6].astype(np.float64) * 1.01)
    queries_n = numbers(len(ROWS))
    wanted = [
        exact_distances(queries_QD[[query]], outside_nD[[row]], metric)[0, 0]
        for row, query in enumerate(queries_n)
        if metric != "cosine" or outside_nD[row].any()
    ]
    distances = Distances(FRAMES[frame], metric, cuda)
    places_n = np.arange(len(ROWS))[::-1]
    arrays = decoded_nD[places_n], queries_QD, places_n.astype(np.int32), queries_n.astype(np.int32)
    arguments = [torch.from_numpy(each).to(cuda) for each in arrays]
    for compute in (distances.of, distances.by_operations):
        found = compute(*arguments).cpu().numpy()
        if metric == "cosine":
            assert np.isnan(found[~outside_nD.any(axis=1)]).all()
            found = found[outside_nD.any(axis=1)]
        np.testing.assert_allclose(1 - found if metric == "dot" else found, wanted, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("count", [5, 200, 5_000])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_equal_codes_have_equal_distances(gpu, precision: str, count: int) -> None:
    codec = codec_of("rqmoe")
    same = codec.encode(ROWS[:1])[np.zeros(count, np.int64)]
    assert len(np.unique(computed(codec, same, np.ones(count, np.int64), precision))) == 1


def test_the_host_waits_once(cuda, monkeypatch) -> None:
    monkeypatch.setattr(decoding, "_MOST_ROWS", 128)
    codec, queries_n = codec_of("rqmoe, partitions"), numbers(300)
    codes = codec.encode(ROWS)
    recorded = cuda.recorded
    for count, place in ((100, "graphs"), (100, "graphs"), (300, "decoding")):  # in three chunks
        computed(codec, codes[:count], queries_n[:count])
        cuda.waits.clear()
        computed(codec, codes[:count], queries_n[:count])
        assert dict(cuda.waits) == {f"synchronize in codecs/{place}.py, wait": 1}
        assert cuda.recorded == recorded + 1


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_shortlist_is_one_launch_with_its_copies(cuda, precision: str) -> None:
    codec, queries_n = codec_of("rqmoe, partitions"), numbers(300)
    codes = codec.encode(ROWS)
    computed(codec, codes, queries_n, precision)
    cuda.calls.clear()
    computed(codec, codes, queries_n, precision)
    assert +cuda.calls == {"replay in codecs/graphs.py, replay": 1}


def test_callers_at_a_time_have_a_recording_each(cuda, monkeypatch) -> None:
    monkeypatch.setattr(graphs, "_MOST_IDLE", 2)
    codec, queries_n = codec_of("rqmoe"), numbers(300)
    codes, distances = codec.encode(ROWS), codec.gpu_distances("float32")
    parts = [slice(start, start + 64) for start in (0, 64, 128, 192)]
    before = cuda.recorded
    wanted = [computed(codec, codes[part], queries_n[part]) for part in parts]
    assert cuda.recorded == before + 1
    for recordings in (before + 4, before + 6):  # two of four were kept
        started = [distances.start(codes[part], QUERIES, queries_n[part]) for part in parts]
        assert cuda.recorded == recordings
        for each, expected_n in zip(reversed(started), reversed(wanted), strict=True):
            np.testing.assert_array_equal(each.wait(), expected_n)
    for _ in range(3):  # what nobody waits for is lost, and holds nobody up
        distances.start(codes[:64], QUERIES, queries_n[:64])
    np.testing.assert_array_equal(computed(codec, codes[:64], queries_n[:64]), wanted[0])


def test_a_replay_forgets_the_last_one(gpu) -> None:
    codec, queries_n = codec_of("rqmoe, partitions"), numbers(300)
    codes = codec.encode(ROWS)
    wanted = expected(codec.decode(codes), "l2", queries_n)
    for rows in (slice(0, 60), slice(200, 250), slice(0, 60), slice(299, 300)):
        found = computed(codec, codes[rows], queries_n[rows])
        np.testing.assert_allclose(found, wanted[rows], rtol=1e-5, atol=1e-5)


def test_recordings_that_fail_cost_time_only(cuda) -> None:
    codec, queries_n = codec_of("rqmoe"), numbers(300)
    codes = codec.encode(ROWS)
    computed(codec, codes[:3], queries_n[:3])
    cuda.refuse_recordings = 2
    wanted = expected(codec.decode(codes), "l2", queries_n)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(30):
            np.testing.assert_allclose(computed(codec, codes, queries_n), wanted, rtol=1e-5, atol=1e-5)
    assert cuda.refuse_recordings == 0


@pytest.mark.parametrize("recorded", [False, True])
def test_less_memory_gives_the_same_in_smaller_chunks(cuda, monkeypatch, recorded: bool) -> None:
    if not recorded:
        monkeypatch.setattr(graphs, "LARGEST_BATCH", 0)
    codec, queries_n = codec_of("rqmoe, partitions"), numbers(300)
    codes = codec.encode(ROWS)
    wanted = computed(codec, codes, queries_n)
    cuda.largest_bytes = 2**14
    np.testing.assert_allclose(computed(codec_of("rqmoe, partitions"), codes, queries_n), wanted, rtol=1e-6)
    fresh = codec_of("rqmoe, partitions").gpu_distances("float32")
    cuda.largest_bytes = 2**6
    with pytest.raises(InvalidInputError, match=r"ran out of memory with a single vector .*codec\.to"):
        fresh.start(codes[:8], QUERIES, queries_n[:8])


def test_many_threads_at_a_time(gpu, in_thread) -> None:
    codec, queries_n = codec_of("rqmoe"), numbers(300)
    codes = codec.encode(ROWS)
    wanted = computed(codec, codes, queries_n)

    def compute(count: int) -> None:
        for _ in range(5):
            found = computed(codec, codes[:count], queries_n[:count])
            np.testing.assert_allclose(found, wanted[:count], rtol=1e-5, atol=1e-5)

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        done = [threads.submit(in_thread(lambda count=count: compute(count))) for count in (1, 30, 170, 300)]
    for each in done:
        each.result()


def test_codecs_that_decode_on_a_cpu_have_none(gpu) -> None:
    codec = as_codec(stirred(small_config(kind="rq")))
    assert codec.gpu_distances("auto") is None
    assert codec.to("cuda").gpu_distances("float32") is not None
    assert trained_small(ROWS, kind="pq").to("cuda").gpu_distances("auto") is None


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("count", [1, 7, 300, 900])
def test_the_nearest_of_all(gpu, metric: str, count: int) -> None:
    vectors_CD = np.concatenate([ROWS, np.zeros((1, DIM), np.float32)])
    excluded_QC = np.random.default_rng(7).random((len(QUERIES), len(vectors_CD))) < 0.3
    wanted_QC = exact_distances(QUERIES, vectors_CD, metric)
    wanted_QC[np.isnan(wanted_QC)] = np.inf
    on_gpu = torch.from_numpy(vectors_CD).to("cuda:0")
    for excluded in (None, excluded_QC):
        left_QC = wanted_QC if excluded is None else np.where(excluded, np.inf, wanted_QC)
        found_QK, places_QK = nearest_of_all(QUERIES.astype(np.float64), on_gpu, metric, count, excluded)
        np.testing.assert_allclose(found_QK, np.take_along_axis(left_QC, places_QK, axis=1), atol=1e-9)
        np.testing.assert_allclose(np.sort(found_QK), np.sort(left_QC)[:, :count], atol=1e-9)


@pytest.mark.parametrize("count", [0, 1, 7, 3_000])
@pytest.mark.parametrize("partitions", [1, 5])
def test_distinct_codes(count: int, partitions: int) -> None:
    random = np.random.default_rng(count)
    codes = Codes(
        random.integers(0, 6, (count, 3)).astype(np.uint8),
        random.integers(0, partitions, count).astype(np.int32),
    )
    for given in (codes, codes[::-1]):
        first, places = distinct(given)
        whole = np.column_stack([given.codes, given.partitions])
        assert len(first) == len(np.unique(whole, axis=0))
        np.testing.assert_array_equal(whole[first][places], whole)
