"""Recall, latency and throughput of a system with known results."""

import dataclasses

import numpy as np
import pytest
from small_searches import clustered, index_result

from rqmoe_store.evaluation.search_measurement import (
    SearchedIndex,
    SearchSetting,
    measure_latency,
    measure_search,
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
