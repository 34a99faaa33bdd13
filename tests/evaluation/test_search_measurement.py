"""Recall, latency, throughput and index size of systems whose answers are known."""

import dataclasses
import time

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_searches import clustered, index_result, small_corpus

from rqmoe_store.evaluation import search_measurement
from rqmoe_store.evaluation.search_measurement import (
    NEIGHBORS,
    SHARES,
    SearchedIndex,
    SearchSetting,
    default_partitions,
    measure_latency,
    measure_scan,
    measure_search,
    positions_of,
    probe_counts,
)

pytestmark = pytest.mark.usefixtures("brief_timing")

QUERIES = clustered(25)

TRUTH = np.arange(250).reshape(25, 10)

SETTING = SearchSetting(nprobes=3)


class Half:
    """Finds five of ten for every query, and notes what it was asked."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, queries, setting):
        assert setting == SETTING
        self.batches.append(len(queries))
        places = [int(np.flatnonzero((query == QUERIES).all(axis=1))[0]) for query in queries]
        found = TRUTH[places].copy()
        found[:, 5:] = -1
        return found


def measured(exhaustive: float | None, half: Half):
    result = index_result("rqmoe", 8, exhaustive_recall=exhaustive)
    index = SearchedIndex(result=result, settings=[SETTING], search=half)
    return measure_search(index, SETTING, QUERIES, TRUTH, batch=10, timed_queries=30)


def test_recall_is_of_all_queries() -> None:
    half = Half()
    found = measured(0.625, half)
    assert found.recall == 0.5
    assert found.share_of_exhaustive == pytest.approx(0.8)
    assert (found.system, found.code_bytes, found.setting) == ("rqmoe", 8, SETTING)
    assert half.batches[:4] == [10, 10, 10, 5]  # one to warm up
    assert half.batches[4:] == [1] * 40  # ten to warm up
    assert 0 < found.p50_ms <= found.p99_ms
    assert found.queries_per_second > 0


@pytest.mark.parametrize("exhaustive", [None, 0.0])
def test_no_share_of_nothing(exhaustive) -> None:
    assert measured(exhaustive, Half()).share_of_exhaustive is None


def test_latency_uses_queries_in_turn() -> None:
    asked = []
    latency = measure_latency(lambda query: asked.append(query.copy()), QUERIES[:4], 6)
    assert [query.shape for query in asked] == [(1, 16)] * 16
    np.testing.assert_array_equal(np.concatenate(asked[10:]), QUERIES[[0, 1, 2, 3, 0, 1]])
    assert dataclasses.asdict(latency).keys() == {"p50_ms", "p99_ms"}


def test_every_share_is_timed_with_one_thread_and_with_all(monkeypatch) -> None:
    monkeypatch.setattr(search_measurement, "num_threads", lambda: 3)
    prepared, runs = [], []

    def scan(queries, share, threads):
        prepared.append((len(queries), share, threads))

        def work() -> int:
            time.sleep(0.005)
            runs.append(share)
            return 1000

        return work

    results = list(measure_scan(scan, index_result("rqmoe", 8), clustered(40)))
    expected = [(threads, share) for threads in (1, 3) for share in SHARES]
    assert [(result.threads, result.share) for result in results] == expected
    assert prepared == [(16, share, threads) for threads, share in expected]
    assert len(runs) == 2 * len(expected)
    for result in results:
        assert (result.system, result.code_bytes) == ("rqmoe", 8)
        assert 0 < result.rows_per_second <= 1000 / 0.005


def test_one_thread_is_timed_once(monkeypatch) -> None:
    monkeypatch.setattr(search_measurement, "num_threads", lambda: 1)
    results = list(measure_scan(lambda *_: lambda: 1, index_result("rqmoe", 8), clustered(2)))
    assert [result.threads for result in results] == [1] * len(SHARES)


def test_rows_of_a_batch_go_to_their_queries() -> None:
    hits = pa.table({"query_index": pa.array([2, 0, 2, 0, 0], pa.int32()), "id": [20, 5, 21, 3, 8]})
    found = positions_of(hits, 4)
    assert found.shape == (4, NEIGHBORS) and found.dtype == np.int64
    assert found[0].tolist() == [5, 3, 8, *[-1] * 7]
    assert found[2].tolist() == [20, 21, *[-1] * 8]
    assert (found[[1, 3]] == -1).all()


def test_a_single_query_has_no_index() -> None:
    assert positions_of(pa.table({"id": [7, 4]}), 1).tolist() == [[7, 4, *[-1] * 8]]
    assert positions_of(pa.table({"id": pa.array([], pa.int64())}), 1).tolist() == [[-1] * 10]


@given(rows=st.integers(1, 10**9))
def test_partitions_have_enough_rows(rows) -> None:
    partitions = default_partitions(rows)
    assert 1 <= partitions <= max(1, rows // 256)
    assert partitions**2 <= rows


def test_probes_beyond_the_partitions_mean_all() -> None:
    assert probe_counts((80, 5, 1, 20), 12) == [1, 5, 12]
    assert probe_counts((80, 5, 1, 20), 100) == [1, 5, 20, 80]
    assert probe_counts((5,), 1) == [1]


def test_the_table_holds_the_vectors_by_position(tmp_path) -> None:
    rows = small_corpus(tmp_path).docs.search().limit(None).to_arrow()
    stored = np.stack(rows["vector"].to_numpy())
    np.testing.assert_array_equal(stored[np.argsort(rows["id"].to_numpy())], clustered())
