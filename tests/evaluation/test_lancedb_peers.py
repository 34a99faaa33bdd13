"""LanceDB's indexes as systems and codecs that are compared: the right rows, and bytes as on disk."""

import lancedb
import numpy as np
import pytest
from lancedb.index import IvfPq, IvfRq
from small_searches import DIM, ROWS, clustered, small_corpus

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.lancedb_peers import (
    build_lancedb_pq,
    build_lancedb_rq,
    check_pq_dim,
    check_rq_dim,
    pq_code_bytes,
    pq_sub_vectors,
    rq_code_bytes,
    searched_pq,
    searched_rq,
)
from rqmoe_store.evaluation.peer_names import FORMS, LANCEDB_RQ
from rqmoe_store.evaluation.recall import exact_neighbors, k_recall_at_k
from rqmoe_store.evaluation.search_measurement import VECTOR, SearchSetting, create_docs

QUERIES = clustered(30, seed=1)

SETTINGS = [
    SearchSetting(nprobes=1),
    SearchSetting(nprobes=2),
    SearchSetting(nprobes=1, refine_factor=10),
    SearchSetting(nprobes=2, refine_factor=10),
]


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("form", ["pq", "rq"])
def test_raw_vectors_and_all_partitions_find_nearly_all(form, metric, tmp_path) -> None:
    corpus = small_corpus(tmp_path, metric)
    index = build_lancedb_pq(corpus, 4) if form == "pq" else build_lancedb_rq(corpus)
    assert list(index.settings) == SETTINGS
    truth, _ = exact_neighbors(QUERIES, clustered(), 10, metric=metric)
    recalls = [k_recall_at_k(index.search(QUERIES, setting), truth, 10) for setting in SETTINGS]
    assert recalls[3] > 0.95
    assert recalls[3] >= recalls[2] and recalls[3] > recalls[1] > 0.2
    single = index.search(QUERIES[:1], SETTINGS[3])
    assert single.tolist() == index.search(QUERIES, SETTINGS[3])[:1].tolist()


def test_sizes(tmp_path) -> None:
    corpus = small_corpus(tmp_path)
    first = build_lancedb_pq(corpus, 4).result
    assert (first.system, first.code_bytes, first.num_partitions) == ("lancedb-ivf-pq", 4, 2)
    second = build_lancedb_pq(corpus, 8).result
    assert second.index_bytes > first.index_bytes > 4  # the second replaced the first
    rq = build_lancedb_rq(corpus).result
    assert (rq.system, rq.code_bytes) == ("lancedb-ivf-rq", 2 + 20)
    assert len(corpus.docs.list_indices()) == 1
    for result in (first, second, rq):
        raw = result.raw_bytes
        assert result.total_bytes == pytest.approx(result.index_bytes + raw)
        assert 4 * DIM <= raw < 4 * DIM * 1.1
        assert result.resident_bytes is None and result.exhaustive_recall is None
    assert corpus.docs.count_rows() == ROWS


def test_an_index_of_more_bits_takes_and_finds_more(tmp_path) -> None:
    corpus = small_corpus(tmp_path)
    truth, _ = exact_neighbors(QUERIES, clustered(), 10, metric="l2")
    one, five = (build_lancedb_rq(corpus, f"{LANCEDB_RQ}-{bits}") for bits in (1, 5))
    assert (one.result.system, one.result.code_bytes) == ("lancedb-ivf-rq-1", 22)
    assert (five.result.system, five.result.code_bytes) == ("lancedb-ivf-rq-5", rq_code_bytes(DIM, 5))
    assert five.result.index_bytes > one.result.index_bytes
    # Without raw vectors, all partitions.
    assert k_recall_at_k(five.search(QUERIES, SETTINGS[1]), truth, 10) > 0.9


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_product_quantization_as_a_codec(metric) -> None:
    truth, _ = exact_neighbors(QUERIES, clustered(), 10, metric=metric)
    few, many = (searched_pq(size, metric).search(clustered(), QUERIES, 10) for size in (1, DIM))
    assert searched_pq(4, metric).settings == {"num_sub_vectors": 4}
    assert k_recall_at_k(many, truth, 10) > 0.9 > k_recall_at_k(few, truth, 10)


def test_bytes_of_product_quantization(tmp_path) -> None:
    sizes = []
    for rows in (4_000, 12_000):
        vectors = np.random.default_rng(0).normal(size=(rows, 16)).astype(np.float32)
        docs = create_docs(lancedb.connect(tmp_path / str(rows)), vectors)
        config = IvfPq(num_partitions=2, num_sub_vectors=8, max_iterations=2, sample_rate=8)
        docs.create_index(VECTOR, config=config)
        sizes.append(sum(index.size_bytes for index in docs.list_indices()))
    found = (sizes[1] - sizes[0]) / 8_000
    assert pq_code_bytes(8) - 7 < found < pq_code_bytes(8) * 1.01


def test_sub_vectors_within_a_number_of_bytes() -> None:
    assert [pq_sub_vectors(total, 384) for total in (8, 9, 16, 48, 64, 1000)] == [None, 1, 8, 32, 48, 384]
    check_pq_dim(12, [3, 4], "a")
    with pytest.raises(InvalidInputError, match=r"got \[5\]"):
        check_pq_dim(12, [3, 5], "a")


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
def test_more_bits_find_more_of_the_neighbors(metric) -> None:
    truth, _ = exact_neighbors(QUERIES, clustered(), 10, metric=metric)
    recalls = []
    for bits in (1, 3, 7):
        codec = searched_rq(bits, metric)
        assert codec.settings == {"num_bits": bits}
        found = codec.search(clustered(), QUERIES, 25)
        assert found.shape == (30, 25) and found.dtype == np.int64
        assert all(len(set(rows)) == 25 for rows in found.tolist())
        recalls.append(k_recall_at_k(found, truth, 10))
    assert 0.3 < recalls[0] < recalls[1] < recalls[2] and recalls[2] > 0.95


@pytest.mark.parametrize("dim", [64, pytest.param(72, marks=pytest.mark.slow)])
@pytest.mark.parametrize("bits", [1, 2, pytest.param(5, marks=pytest.mark.slow)])
def test_bytes_are_those_on_disk(dim, bits, tmp_path) -> None:
    sizes = []
    for rows in (4_000, 12_000):
        vectors = np.random.default_rng(0).normal(size=(rows, dim)).astype(np.float32)
        docs = create_docs(lancedb.connect(tmp_path / str(rows)), vectors)
        docs.create_index(VECTOR, config=IvfRq(num_partitions=4, num_bits=bits, max_iterations=2))
        sizes.append(sum(index.size_bytes for index in docs.list_indices()))
    # What does not grow with rows, such as centroids, falls out. Row ids of 8 bytes compress to 1 at best.
    found = (sizes[1] - sizes[0]) / 8_000
    assert rq_code_bytes(dim, bits) - 7 < found < rq_code_bytes(dim, bits) * 1.01


def test_bytes_of_384_dimensions() -> None:
    assert [rq_code_bytes(384, bits) for bits in (1, 2, 4, 5)] == [68, 124, 220, 268]
    assert rq_code_bytes(384) == rq_code_bytes(384, 1)


def test_dimensions_are_whole_bytes() -> None:
    check_rq_dim(24, LANCEDB_RQ)
    with pytest.raises(InvalidInputError, match=r"multiple of 8; got 12\. Leave out lancedb-ivf-rq-2"):
        check_rq_dim(12, f"{LANCEDB_RQ}-2")


@pytest.mark.slow
def test_lancedb_takes_the_bits_that_we_name() -> None:
    for bits in FORMS[LANCEDB_RQ]:
        assert (searched_rq(int(bits), "l2").search(clustered(), QUERIES, 3)[:, 0] >= 0).all()
