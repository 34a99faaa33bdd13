"""The systems that are compared: ours and LanceDB's indexes, one index after the other."""

import numpy as np
import pytest
import torch
from small_searches import DIM, ROWS, clustered, small_codec, small_corpus

from rqmoe_store.evaluation.recall import exact_neighbors, k_recall_at_k
from rqmoe_store.evaluation.search_measurement import SearchSetting
from rqmoe_store.evaluation.search_systems import build_lancedb_pq, build_lancedb_rq, build_own
from rqmoe_store.search.rerank import exact_distances

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
    assert (rq.system, rq.code_bytes) == ("lancedb-ivf-rq", 2)
    assert len(corpus.docs.list_indices()) == 1
    for result in (first, second, rq):
        raw = result.total_bytes - result.index_bytes
        assert 4 * DIM <= raw < 4 * DIM * 1.1
        assert result.resident_bytes is None and result.exhaustive_recall is None
    assert corpus.docs.count_rows() == ROWS


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_everything_shortlisted_is_exhaustive_search(metric, tmp_path) -> None:
    corpus, codec = small_corpus(tmp_path, metric), small_codec(metric=metric)
    index = build_own(corpus, codec, shortlists=(10, 600), training_seconds=5)
    assert [(setting.nprobes, setting.shortlist) for setting in index.settings] == [
        (1, 10), (2, 10), (1, 600), (2, 600),
    ]  # fmt: skip
    _, exhaustive = exact_neighbors(QUERIES, index.reconstructions, 10, metric=metric)
    found = index.search(QUERIES, index.settings[-1])
    # Some codes are equal, and nothing says which of them comes first: only distances can be compared.
    decoded = index.reconstructions[:]
    for query, rows, expected in zip(QUERIES, found, exhaustive, strict=True):
        np.testing.assert_allclose(exact_distances(query, decoded[rows], metric), expected, atol=1e-5)
    np.testing.assert_array_equal(found[:1], index.search(QUERIES[:1], index.settings[-1]))
    assert index.result.build_seconds > 5


def test_reconstructions_are_in_the_order_of_the_vectors(tmp_path) -> None:
    codec = small_codec()
    index = build_own(small_corpus(tmp_path), codec, shortlists=(50,), training_seconds=0)
    assert len(index.reconstructions) == ROWS
    again = codec.decode(codec.encode(clustered()))
    np.testing.assert_allclose(index.reconstructions[100:300], again[100:300], atol=1e-6)


def test_bytes_are_those_of_the_table(tmp_path) -> None:
    result = build_own(small_corpus(tmp_path), small_codec(), shortlists=(50,), training_seconds=0).result
    assert (result.system, result.code_bytes, result.num_partitions) == ("rq", 4, 2)
    artifact = small_codec().to_artifact()
    codec_bytes = len(artifact.config_json) + len(artifact.weights)
    assert 4 < result.index_bytes < 40  # 600 rows do not outweigh the index on partitions
    assert result.total_bytes - result.index_bytes == pytest.approx(codec_bytes / ROWS, rel=0.01)
    assert 12 <= result.resident_bytes < 12.1  # code, row id, and where partitions start
    assert result.exhaustive_recall is None


def test_without_partitions_there_is_nothing_to_probe(tmp_path) -> None:
    codec = small_codec(num_partitions=0)
    index = build_own(small_corpus(tmp_path), codec, shortlists=(50,), training_seconds=0)
    assert list(index.settings) == [SearchSetting(shortlist=50)]
    assert index.result.num_partitions == 0
    assert (index.search(QUERIES, index.settings[0]) >= 0).all()


def test_a_scan_scores_its_share_of_the_rows(tmp_path) -> None:
    index = build_own(small_corpus(tmp_path), small_codec(), shortlists=(50,), training_seconds=0)
    threads = torch.get_num_threads()
    assert index.scan(QUERIES, 1.0, 1)() == 30 * ROWS
    half = index.scan(QUERIES, 0.5, threads + 1)
    assert 0 < half() < 30 * ROWS
    assert torch.get_num_threads() == threads
