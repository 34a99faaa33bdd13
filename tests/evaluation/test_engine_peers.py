"""turbovec, USearch and Qdrant, which are compared with: the right rows, and bytes as they are stored."""

import importlib.util
import tempfile
from pathlib import Path

import numpy as np
import pytest
from _pytest.mark.structures import ParameterSet
from small_searches import DIM, ROWS, clustered, small_corpus

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.engine_peers import (
    build_engine,
    check_engine,
    engine_code_bytes,
    searched_engine,
)
from rqmoe_store.evaluation.peer_names import ENGINES
from rqmoe_store.evaluation.recall import exact_neighbors, k_recall_at_k
from rqmoe_store.evaluation.search_measurement import SearchSetting

QUERIES = clustered(30, seed=1)
TRUTH, _ = exact_neighbors(QUERIES, clustered(), 10, metric="cosine")

MODULES = {"turbovec": "turbovec", "usearch": "usearch", "qdrant": "qdrant_edge"}


def is_missing(name: str) -> bool:
    return importlib.util.find_spec(MODULES[name.partition("-")[0]]) is None


def named(*names: str) -> list[ParameterSet]:
    """Names as parameters, skipped where their library is not installed."""
    skip = pytest.mark.skipif
    return [pytest.param(name, marks=skip(is_missing(name), reason="not installed")) for name in names]


def each_form() -> list[ParameterSet]:
    """All forms of all engines; of Qdrant, which takes a second for each, `make test` tries one a family."""
    names = [f"{family}-{form}" for family, forms in ENGINES.items() for form in forms]
    tried = [f"{family}-{forms[-1]}" for family, forms in ENGINES.items()]
    slow = [name for name in names if name.startswith("qdrant") and name not in tried]
    return [
        *named(*(name for name in names if name not in slow)),
        *(pytest.param(*each.values, marks=[*each.marks, pytest.mark.slow]) for each in named(*slow)),
    ]


LEAST = {
    "turbovec-2": 0.6, "turbovec-4": 0.85, "usearch-i8": 0.95, "usearch-b1": 0.35,
    "qdrant-turbo-1": 0.35, "qdrant-turbo-1.5": 0.4, "qdrant-turbo-2": 0.6, "qdrant-turbo-4": 0.85,
    "qdrant-turbo-8": 0.95, "qdrant-binary-1": 0.35, "qdrant-binary-1.5": 0.35, "qdrant-binary-2": 0.4,
    "qdrant-scalar-8": 0.9, "qdrant-pq-x4": 0.9, "qdrant-pq-x8": 0.7, "qdrant-pq-x16": 0.5,
    "qdrant-pq-x32": 0.3, "qdrant-pq-x64": 0.2, "qdrant-stored-4": 0.8, "qdrant-stored-8": 0.95,
}  # fmt: skip
"""What every form finds at least: nearly everything with 8 bits, and more the more bits there are."""


@pytest.mark.parametrize("name", each_form())
def test_codes_find_what_their_bits_allow(name) -> None:
    codec = searched_engine(name, "cosine")
    assert codec.settings == {"form": name.rpartition("-")[2]}
    found = codec.search(clustered(), QUERIES, 10)
    assert found.shape == (30, 10) and found.dtype == np.int64
    assert k_recall_at_k(found, TRUTH, 10) > LEAST[name]


@pytest.mark.parametrize("name", named("turbovec-4", "usearch-i8", "qdrant-turbo-2"))
def test_few_vectors_leave_places_empty(name) -> None:
    found = searched_engine(name, "cosine").search(clustered(40), QUERIES, 50)
    assert found.shape == (30, 50)
    assert all(sorted(row) == [-1] * 10 + list(range(40)) for row in found.tolist())


@pytest.mark.parametrize("metric", ["l2", "dot"])
@pytest.mark.parametrize("name", named("qdrant-turbo-8", "qdrant-stored-8"))
def test_other_metrics(name, metric) -> None:
    stretched = clustered() * np.random.default_rng(0).uniform(0.5, 2, size=(ROWS, 1)).astype(np.float32)
    truth, _ = exact_neighbors(QUERIES, stretched, 10, metric=metric)
    assert k_recall_at_k(searched_engine(name, metric).search(stretched, QUERIES, 10), truth, 10) > 0.9


def stored_bytes(name: str, dim: int) -> float:
    """Bytes of a vector's code in what the engine stores, as they grow with the number of vectors."""
    if name.startswith("qdrant"):
        return _qdrant_bytes(name, dim)
    sizes = []
    for rows in (640, 1280):  # turbovec stores blocks of 32
        vectors = np.random.default_rng(0).normal(size=(rows, dim)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        sizes.append(_saved(name, vectors))
    return (sizes[1] - sizes[0]) / 640


def _saved(name: str, vectors: np.ndarray) -> int:
    if name.startswith("turbovec"):
        from turbovec import TurboQuantIndex

        index = TurboQuantIndex(dim=vectors.shape[1], bit_width=int(name[-1]))
        index.add(vectors)
        return len(index.to_bytes())
    from usearch.index import Index

    rows = np.packbits(vectors > 0, axis=1) if name == "usearch-b1" else vectors
    ndim = 8 * rows.shape[1] if name == "usearch-b1" else rows.shape[1]
    index = Index(ndim=ndim, metric="hamming" if name == "usearch-b1" else "cos", dtype=name[-2:])
    index.add(np.arange(len(rows)), rows)
    # The file begins with all vectors; their number and size are ahead of them.
    count, size = np.frombuffer(index.save()[:8], dtype=np.uint32)
    assert count == len(rows)
    return int(count * size)


def _qdrant_bytes(name: str, dim: int) -> float:
    from rqmoe_store.evaluation import engine_peers

    vectors = np.random.default_rng(0).normal(size=(300, dim)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        engine_peers._build(name, vectors, "cosine", Path(folder), exhaustive=True)
        stored = "tq_vectors.dat" if "stored" in name else "quantized.data"
        (path,) = (path for path in Path(folder).rglob(stored) if path.stat().st_size >= 300)
        return path.stat().st_size / 300


@pytest.mark.parametrize("dim", [64, pytest.param(104, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", each_form())
def test_bytes_are_those_that_are_stored(name, dim) -> None:
    assert stored_bytes(name, dim) == engine_code_bytes(name, dim)


def test_bytes_of_384_dimensions() -> None:
    expected = {
        "turbovec-2": 100, "turbovec-4": 196, "usearch-i8": 384, "usearch-b1": 48, "qdrant-turbo-1": 56,
        "qdrant-turbo-1.5": 80, "qdrant-turbo-2": 104, "qdrant-turbo-4": 200, "qdrant-turbo-8": 388,
        "qdrant-binary-1": 48, "qdrant-binary-1.5": 80, "qdrant-binary-2": 96, "qdrant-scalar-8": 388,
        "qdrant-pq-x64": 24, "qdrant-stored-4": 196, "qdrant-stored-8": 388,
    }  # fmt: skip
    assert {name: engine_code_bytes(name, 384) for name in expected} == expected


@pytest.mark.parametrize("name", named("turbovec-4", "usearch-i8", "qdrant-scalar-8", "qdrant-stored-8"))
def test_indexes_answer(name, tmp_path) -> None:
    index = build_engine(small_corpus(tmp_path, "cosine"), name, tmp_path / "new" / name)
    result = index.result
    assert (result.system, result.code_bytes) == (name, engine_code_bytes(name, DIM))
    assert result.index_bytes > result.code_bytes and result.num_partitions == 0
    assert result.total_bytes == pytest.approx(result.index_bytes + result.raw_bytes)
    # Only Qdrant has raw vectors besides, except where they are stored as codes.
    assert (result.raw_bytes >= 4 * DIM) == (name == "qdrant-scalar-8")
    recalls = [k_recall_at_k(index.search(QUERIES, setting), TRUTH, 10) for setting in index.settings]
    assert min(recalls) > 0.85
    if result.raw_bytes:
        assert list(index.settings) == [SearchSetting(), SearchSetting(refine_factor=10)]
        assert recalls[1] > 0.99
    single = index.search(QUERIES[:1], index.settings[0])
    assert single.shape == (1, 10)


def test_what_engines_do_not_take() -> None:
    check_engine("turbovec-2", "dot", 64)
    check_engine("usearch-b1", "l2", 12)
    check_engine("qdrant-binary-1", "l2", 12)
    with pytest.raises(InvalidInputError, match=r"turbovec-2 takes .* got 64 and 'l2'"):
        check_engine("turbovec-2", "l2", 64)
    with pytest.raises(InvalidInputError, match=r"turbovec-4 takes .* got 12 and 'cosine'"):
        check_engine("turbovec-4", "cosine", 12)
    with pytest.raises(InvalidInputError, match=r"usearch-i8 is for vectors of length 1.*'dot'"):
        check_engine("usearch-i8", "dot", 64)
