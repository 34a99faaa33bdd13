"""FAISS's partitioned indexes: sizes, recall that grows with probes, and rows scored by a scan."""

import dataclasses

import faiss
import numpy as np
import pytest
from small_searches import DIM, ROWS, clustered, small_corpus

from rqmoe_store.evaluation import faiss_peers
from rqmoe_store.evaluation.faiss_peers import build_faiss
from rqmoe_store.evaluation.recall import exact_neighbors, k_recall_at_k
from rqmoe_store.evaluation.search_measurement import SearchSetting

QUERIES = clustered(30, seed=1)


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
@pytest.mark.parametrize("form", ["pq", "rq"])
def test_indexes_answer(form, metric, tmp_path, capfd) -> None:
    index = build_faiss(small_corpus(tmp_path, metric), form, 4)
    assert list(index.settings) == [SearchSetting(nprobes=1), SearchSetting(nprobes=2)]
    truth, _ = exact_neighbors(QUERIES, clustered(), 10, metric=metric)
    found = [index.search(QUERIES, setting) for setting in index.settings]
    assert found[0].dtype == np.int64 and found[0].shape == (30, 10)
    few, many = (k_recall_at_k(rows, truth, 10) for rows in found)
    assert many >= few and many > 0.4
    norm = 1 if form == "rq" and metric == "l2" else 0
    assert index.result.resident_bytes == 4 + norm + 8
    assert index.result.index_bytes == index.result.total_bytes > 256 * DIM * 4 / ROWS
    assert (index.result.system, index.result.code_bytes) == (f"faiss-ivf-{form}", 4)
    assert capfd.readouterr().err == ""  # no warning for each codebook


def test_a_scan_scores_its_share_of_the_rows(tmp_path) -> None:
    index = build_faiss(small_corpus(tmp_path), "pq", 4)
    threads = faiss.omp_get_max_threads()
    assert index.scan(QUERIES, 1.0, 1)() == 30 * ROWS
    half = index.scan(QUERIES, 0.5, threads + 1)
    assert 0 < half() < 30 * ROWS
    assert half() == half()
    assert index.scan(QUERIES, 1e-6, 1)() == half()  # no less than one of two partitions
    assert faiss.omp_get_max_threads() == threads


def test_training_rows_are_limited(tmp_path, monkeypatch) -> None:
    corpus = small_corpus(tmp_path)
    monkeypatch.setattr(faiss_peers, "_TRAINING_ROWS", 300)
    sampled = faiss_peers._sample(corpus.vectors_ND)
    assert len(np.unique(sampled, axis=0)) == 300
    whole = faiss_peers._sample(dataclasses.replace(corpus, vectors_ND=clustered(300)).vectors_ND)
    np.testing.assert_array_equal(whole, clustered(300))
    result = build_faiss(corpus, "rq", 2).result
    assert result.index_bytes > 3  # filled with all vectors all the same
