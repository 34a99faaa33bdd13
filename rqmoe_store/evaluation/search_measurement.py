"""Recall, latency and throughput of one system with one setting.

Shape suffixes: Q queries, D vector dimension, K neighbours.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.evaluation.codec_timing import cyclic, timed
from rqmoe_store.evaluation.recall import Indices, k_recall_at_k
from rqmoe_store.evaluation.search_index import NEIGHBOURS, SearchedIndex
from rqmoe_store.evaluation.search_results import SearchResult, SearchSetting

_WARM_UP = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds of one query."""

    p50_ms: float
    p99_ms: float


def measure_latency(ask: Callable[[Float32Array], Any], queries_QD: Float32Array, count: int) -> Latency:
    """Time `count` queries one after the other, after ten that do not count.

    Args:
        ask: answers queries (1, D).
        queries_QD: used in turn, from the first again after the last.
    """
    milliseconds = np.empty(count)
    for query_D in cyclic(queries_QD, _WARM_UP):
        ask(query_D[None])
    for place, query_D in enumerate(cyclic(queries_QD, count)):
        started = time.perf_counter()
        ask(query_D[None])
        milliseconds[place] = 1e3 * (time.perf_counter() - started)
    p50_ms, p99_ms = np.percentile(milliseconds, [50, 99])
    return Latency(p50_ms=float(p50_ms), p99_ms=float(p99_ms))


def measure_search(
    index: SearchedIndex,
    setting: SearchSetting,
    queries_QD: Float32Array,
    truth_QK: Indices,
    *,
    batch: int,
    timed_queries: int,
) -> SearchResult:
    """Ask everything in batches, then some of it one by one.

    Args:
        queries_QD: at least one.
        truth_QK: the NEIGHBOURS nearest vectors of every query.
        batch: queries asked together.
        timed_queries: queries asked one by one.
    """

    def ask(asked_QD: Float32Array) -> Indices:
        return index.search(asked_QD, setting)

    batches = [queries_QD[start : start + batch] for start in range(0, len(queries_QD), batch)]
    ask(batches[0])
    seconds, found_QK = timed(lambda: np.concatenate([ask(asked_QD) for asked_QD in batches]), least=1)
    latency = measure_latency(ask, queries_QD, timed_queries)
    recall = k_recall_at_k(found_QK, truth_QK, NEIGHBOURS)
    exhaustive = index.result.exhaustive_recall
    return SearchResult(
        system=index.result.system,
        code_bytes=index.result.code_bytes,
        setting=setting,
        recall=recall,
        share_of_exhaustive=recall / exhaustive if exhaustive else None,
        p50_ms=latency.p50_ms,
        p99_ms=latency.p99_ms,
        queries_per_second=len(queries_QD) / seconds,
    )
