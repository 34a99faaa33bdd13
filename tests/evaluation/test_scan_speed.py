"""Scan speed: rows over time, for every share and number of threads, after one run that does not count."""

import time

import pytest
import torch
from small_searches import clustered, index_result

from rqmoe_store.evaluation.search_measurement import SHARES, measure_scan

pytestmark = pytest.mark.usefixtures("brief_timing")


def test_every_share_is_timed_with_one_thread_and_with_all(monkeypatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
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
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    results = list(measure_scan(lambda *_: lambda: 1, index_result("rqmoe", 8), clustered(2)))
    assert [result.threads for result in results] == [1] * len(SHARES)
