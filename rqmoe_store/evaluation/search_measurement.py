"""Measuring one searched system: recall, latency, throughput and scan speed, and the results.

Shape suffixes: Q queries, D vector dimension, K neighbors.

Shape suffixes: N vectors, Q queries, D vector dimension, K neighbors.

Shape suffixes: Q queries, D vector dimension.

Optional figures are None where they do not apply or are not known.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch
from lancedb.db import DBConnection
from lancedb.table import LanceTable

from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import Metric
from rqmoe_store.evaluation.contenders import cyclic, timed
from rqmoe_store.evaluation.recall import Indices, k_recall_at_k


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchSetting:
    """What a query is told."""

    nprobes: int | None = None
    """Partitions searched; None where there is nothing to skip."""
    shortlist: int | None = None
    """Rows decoded and reranked (ours)."""
    refine_factor: int | None = None
    """Times as many rows as wanted are ordered again by their raw vectors (LanceDB)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class IndexResult:
    """What one system of one size takes, whatever its queries are told."""

    system: str
    """Kind of our codec, or name of another system."""
    code_bytes: int
    """Bytes of one vector's code; the norms that FAISS's "rq" adds under l2 come on top."""
    num_partitions: int
    """0 for none."""
    build_seconds: float
    """Training and indexing; only the latter for a codec that was loaded."""
    index_bytes: float
    """Of the index on disk per vector. Ours: code and partition columns and the index on partitions;
    LanceDB: the index; FAISS: the index as it is written to a file."""
    total_bytes: float
    """Everything needed to answer, on disk per vector: with the codec (ours) or the raw vectors (LanceDB)."""
    resident_bytes: float | None
    """Held in memory per vector: codes and row ids."""
    exhaustive_recall: float | None
    """10-recall@10 of exhaustive search over the reconstructions of all vectors (ours)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchResult:
    """How well and how quickly one system answers with one setting."""

    system: str
    code_bytes: int
    setting: SearchSetting
    recall: float
    """10-recall@10: mean share of the 10 nearest raw vectors among the 10 rows found."""
    share_of_exhaustive: float | None
    """The same divided by `IndexResult.exhaustive_recall`; None where that is 0 or not known."""
    p50_ms: float
    """Median time of one query, one at a time."""
    p99_ms: float
    """... of which 99 in a hundred take no longer."""
    queries_per_second: float
    """In batches."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScanResult:
    """How fast codes are scored, without finding partitions and without reranking."""

    system: str
    code_bytes: int
    threads: int
    share: float
    """Share of the partitions that every query scans."""
    rows_per_second: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyntheticResult:
    """One setting on a table of random codes, opened in a process of its own."""

    system: str
    code_bytes: int
    rows: int
    nprobes: int | None
    table_bytes: float
    """Of codes and partitions on disk per row."""
    open_ms: float
    """Opening the table, its codec included."""
    first_query_ms: float
    """The process's first query, which was told the first of all nprobes."""
    p50_ms: float
    p99_ms: float
    memory_bytes: int
    """Resident memory of the whole process after these queries, pages that mirror files left out."""
    memory_growth_bytes: int
    """The same less what it was before the table was opened."""


@dataclasses.dataclass(kw_only=True)
class SearchReport:
    """Everything found so far; grows while systems are being measured."""

    settings: dict[str, Any]
    machine: dict[str, Any]
    indexes: list[IndexResult] = dataclasses.field(default_factory=list)
    results: list[SearchResult] = dataclasses.field(default_factory=list)
    scans: list[ScanResult] = dataclasses.field(default_factory=list)
    synthetic: list[SyntheticResult] = dataclasses.field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON-ready values."""
        return dataclasses.asdict(self)


SHARES = (0.1, 1.0)
"""Shares of the partitions that every query scans."""

_QUERIES = 16

Scan = Callable[[Float32Array, float, int], Callable[[], int]]
"""Queries (Q, D), share of the partitions and number of threads -> the work that is timed: it makes look-up
tables, keeps a shortlist for every query, and returns how many rows it scored for all of them."""


def measure_scan(scan: Scan, index: IndexResult, queries_QD: Float32Array) -> Iterator[ScanResult]:
    """A scan's speed by share of partitions, with one thread and with as many as torch has.

    Args:
        scan: what to time; run once before.
        index: whose codes it scores.
        queries_QD: the first 16 are scanned for, in one call.
    """
    for threads in dict.fromkeys((1, torch.get_num_threads())):
        for share in SHARES:
            work = scan(queries_QD[:_QUERIES], share, threads)
            work()
            seconds, rows = timed(work, least=1)
            yield ScanResult(
                system=index.system,
                code_bytes=index.code_bytes,
                threads=threads,
                share=share,
                rows_per_second=rows / seconds,
            )


NEIGHBOURS = 10
"""Rows that every query asks for."""

OURS = "ours"
LANCEDB_PQ, LANCEDB_RQ = "lancedb-ivf-pq", "lancedb-ivf-rq"
FAISS_PQ, FAISS_RQ = "faiss-ivf-pq", "faiss-ivf-rq"
SYSTEMS = (OURS, LANCEDB_PQ, LANCEDB_RQ, FAISS_PQ, FAISS_RQ)
"""What can be compared."""

PARTITION_ROWS = 256
"""Rows that a partition of LanceDB's has at least: it makes fewer partitions where there are not enough."""

ID, VECTOR = "id", "vector"
"""Columns of the table that is searched: a row's position among the vectors, and its vector."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """The vectors, in memory and in a database of their own."""

    docs: LanceTable
    """Columns ID and VECTOR, in the order of the vectors."""
    vectors_ND: Float32Array
    """Of unit length under cosine."""
    metric: Metric
    num_partitions: int
    """Of every index that is trained on the vectors."""
    nprobes: tuple[int, ...]
    """To search with, wherever there are partitions."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchedIndex:
    """A system that is ready to answer."""

    result: IndexResult
    settings: Sequence[SearchSetting]
    search: Callable[[Float32Array, SearchSetting], Indices]
    """Queries (Q, D) -> positions of the vectors found, int64 (Q, NEIGHBOURS); -1 where there are fewer."""
    reconstructions: Any = None
    """Array-like (N, D), what the codes say in the order of the vectors; None where nobody asks."""
    scan: Scan | None = None
    """Scoring of codes alone, where it can be had."""


def create_docs(db: DBConnection, vectors_ND: Float32Array) -> LanceTable:
    """A table of the vectors and their positions."""
    numbers = pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.ravel()), vectors_ND.shape[1])
    rows = pa.table({ID: np.arange(len(vectors_ND)), VECTOR: numbers})
    return cast(LanceTable, db.create_table("docs", rows))


def default_partitions(rows: int) -> int:
    """The square root of the rows, but no more than leave every partition enough of them."""
    return max(1, min(math.isqrt(rows), rows // PARTITION_ROWS))


def probe_counts(nprobes: Iterable[int], num_partitions: int) -> list[int]:
    """The numbers without those that mean no more than another: there are only so many partitions."""
    return list(dict.fromkeys(min(probes, num_partitions) for probes in sorted(nprobes)))


def positions_of(hits: pa.Table, num_queries: int) -> Indices:
    """Positions (Q, NEIGHBOURS) from what LanceDB or one of our tables returns, best first.

    Args:
        hits: with the column ID, and `query_index` where there were several queries.
    """
    ids_N = hits[ID].to_numpy()
    query_N = hits["query_index"].to_numpy() if num_queries > 1 else np.zeros(len(ids_N), np.int64)
    order_N = np.argsort(query_N, kind="stable")
    query_N = query_N[order_N]
    rank_N = np.arange(len(ids_N)) - np.searchsorted(query_N, query_N)
    found_QK = np.full((num_queries, NEIGHBOURS), -1, dtype=np.int64)
    found_QK[query_N, rank_N] = ids_N[order_N]
    return found_QK


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
