"""LanceDB's indexes: results, and sizes of index and raw vectors, one index after the other."""

import pytest
from small_searches import DIM, ROWS, clustered, small_corpus

from rqmoe_store.evaluation.recall import exact_neighbors, k_recall_at_k
from rqmoe_store.evaluation.search_measurement import SearchSetting
from rqmoe_store.evaluation.search_systems import build_lancedb_pq, build_lancedb_rq

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
