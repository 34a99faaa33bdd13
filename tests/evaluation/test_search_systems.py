"""Our tables as a system that is compared."""

import numpy as np
import pytest
from simulated_cuda import simulated_cuda
from small_searches import ROWS, clustered, small_codec, small_corpus

from rqmoe_store.codecs.parallel import num_threads
from rqmoe_store.evaluation.recall import exact_neighbors
from rqmoe_store.evaluation.search_measurement import SearchSetting
from rqmoe_store.evaluation.search_systems import build_own
from rqmoe_store.search.rerank import exact_distances

QUERIES = clustered(30, seed=1)


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
    assert 4 <= result.resident_bytes < 4.2  # code, runs of row ids, and where partitions start
    assert result.exhaustive_recall is None


def test_without_partitions_there_is_nothing_to_probe(tmp_path) -> None:
    codec = small_codec(num_partitions=0)
    index = build_own(small_corpus(tmp_path), codec, shortlists=(50,), training_seconds=0)
    assert list(index.settings) == [SearchSetting(shortlist=50)]
    assert index.result.num_partitions == 0
    assert (index.search(QUERIES, index.settings[0]) >= 0).all()


def test_a_scan_scores_its_share_of_the_rows(tmp_path) -> None:
    index = build_own(small_corpus(tmp_path), small_codec(), shortlists=(50,), training_seconds=0)
    threads = num_threads()
    assert index.scan(QUERIES, 1.0, 1)() == 30 * ROWS
    half = index.scan(QUERIES, 0.5, threads + 1)
    assert 0 < half() < 30 * ROWS
    assert num_threads() == threads


def test_a_table_on_a_gpu_is_searched_and_scanned_there(tmp_path) -> None:
    setting = SearchSetting(nprobes=2, shortlist=50)
    on_cpu = build_own(small_corpus(tmp_path / "cpu"), small_codec(), shortlists=(50,), training_seconds=0)
    with simulated_cuda() as devices:
        codec = small_codec().to("cuda")
        index = build_own(small_corpus(tmp_path / "gpu"), codec, shortlists=(50,), training_seconds=0)
        found = index.search(QUERIES, setting)
        assert {place.partition(" in ")[2] for place in devices.waits} >= {"codecs/decoding.py, wait"}
        devices.waits.clear()
        index.scan(QUERIES, 1.0, 1)()
        assert {place.partition(" in ")[2].partition(",")[0] for place in devices.waits} >= {
            "search/tensor_scan.py"
        }
    np.testing.assert_array_equal(found, on_cpu.search(QUERIES, setting))
