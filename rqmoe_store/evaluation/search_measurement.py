"""Measurement of one search system: recall, latency, throughput, scan speed; and the results.

Optional figures are None if they do not apply or are unknown.

Shape suffixes: N vectors, Q queries, D vector dimension, K neighbors.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa
from lancedb.db import DBConnection
from lancedb.table import LanceTable

from rqmoe_store.codecs.parallel import num_threads
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import Metric
from rqmoe_store.evaluation.contenders import cyclic, time_call
from rqmoe_store.evaluation.recall import Indices, k_recall_at_k

NEIGHBORS = 10
"""Rows that every query returns."""

PARTITION_ROWS = 256
"""Fewest rows per partition in LanceDB, which otherwise creates fewer partitions."""

ID, VECTOR = "id", "vector"
"""Columns of the searched table: a row's position among the vectors, and its vector."""

SHARES = (0.1, 1.0)
"""Shares of the partitions that every query scans."""

_QUERIES = 16

_WARM_UP = 10

Scan = Callable[[Float32Array, float, int], Callable[[], int]]
"""Queries (Q, D), share of the partitions, number of threads -> the function that is timed. It computes
look-up tables, scores codes, keeps a shortlist per query, and returns the number of rows scored over all
queries."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchSetting:
    """Search parameters of a query."""

    nprobes: int | None = None
    """Partitions searched; None without partitions."""
    shortlist: int | None = None
    """Rows decoded and reranked (ours)."""
    refine_factor: int | None = None
    """Rows reordered by their raw vectors, as a multiple of those returned (LanceDB)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class IndexResult:
    """Size and build time of one system at one code size, whatever the search parameters."""

    system: str
    """Kind of our codec, or name of another system."""
    code_bytes: int
    """Bytes of one vector's code, without the norm that FAISS's "rq" adds under l2."""
    num_partitions: int
    """Partitions; 0 for none."""
    build_seconds: float
    """Time of training and indexing, or of indexing alone if the codec was loaded."""
    index_bytes: float
    """Bytes of the index on disk per vector. Ours: columns of codes and partitions, and the index on
    partitions; LanceDB: the index; others: the index written to a file, or the files of it."""
    raw_bytes: float
    """Bytes of the raw vectors on disk per vector, which LanceDB and Qdrant keep beside the index."""
    total_bytes: float
    """Bytes of all that a search needs, on disk per vector: with codec (ours) or raw vectors (LanceDB)."""
    resident_bytes: float | None
    """Bytes in memory per vector: codes and row ids."""
    exhaustive_recall: float | None
    """10-recall@10 of exhaustive search over the reconstructions of all vectors (ours)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchResult:
    """Recall and speed of one system with one setting."""

    system: str
    code_bytes: int
    setting: SearchSetting
    recall: float
    """10-recall@10: mean share of the 10 nearest raw vectors among the 10 rows found."""
    share_of_exhaustive: float | None
    """Recall divided by `IndexResult.exhaustive_recall`; None if that is 0 or unknown."""
    p50_ms: float
    """Median time of one query, one at a time."""
    p99_ms: float
    """99 % quantile of the same."""
    queries_per_second: float
    """Throughput in batches."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScanResult:
    """Speed of scoring codes, without the choice of partitions and without reranking."""

    system: str
    code_bytes: int
    threads: int
    share: float
    """Share of the partitions that every query scans."""
    rows_per_second: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyntheticResult:
    """One setting on a table of random codes, opened in a new process."""

    system: str
    code_bytes: int
    rows: int
    nprobes: int | None
    cache: str
    """Where searches read codes: "memory" or "disk"."""
    table_bytes: float
    """Bytes of codes and partitions on disk per row."""
    open_ms: float
    """Time to open the table, its codec included."""
    first_query_ms: float
    """Time of the process's first query, with the first of all nprobes: in memory, it loads the codes."""
    load_growth_bytes: int
    """Largest growth of memory during that query."""
    p50_ms: float
    p99_ms: float
    refresh_ms: float
    """Median time of the first query after a row was added."""
    memory_bytes: int
    """Resident memory of the whole process after these queries, without pages that mirror files."""
    memory_growth_bytes: int
    """Growth of that memory since before the table was opened."""


@dataclasses.dataclass(kw_only=True)
class SearchReport:
    """All results so far. It grows while systems are measured."""

    settings: dict[str, Any]
    machine: dict[str, Any]
    indexes: list[IndexResult] = dataclasses.field(default_factory=list)
    results: list[SearchResult] = dataclasses.field(default_factory=list)
    scans: list[ScanResult] = dataclasses.field(default_factory=list)
    synthetic: list[SyntheticResult] = dataclasses.field(default_factory=list)
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)
    """Systems whose library is not installed -> the command that installs it."""

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON-ready values."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """The vectors, in memory and in a database of their own."""

    docs: LanceTable
    """Columns ID and VECTOR, in the order of the vectors."""
    vectors_ND: Float32Array
    """Vectors, of unit length under cosine."""
    metric: Metric
    num_partitions: int
    """Partitions of every index that is trained on the vectors."""
    nprobes: tuple[int, ...]
    """Numbers of partitions to search, in indexes that have partitions."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchedIndex:
    """A system that is ready to search."""

    result: IndexResult
    settings: Sequence[SearchSetting]
    search: Callable[[Float32Array, SearchSetting], Indices]
    """Queries (Q, D) -> positions of the vectors found, int64 (Q, NEIGHBORS), filled up with -1."""
    reconstructions: Any = None
    """Array-like (N, D) of decoded vectors, in the order of the vectors; None if not needed."""
    scan: Scan | None = None
    """Scoring of codes alone, if it can be measured."""


def measure_search(
    index: SearchedIndex,
    setting: SearchSetting,
    queries_QD: Float32Array,
    truth_QK: Indices,
    *,
    batch: int,
    timed_queries: int,
) -> SearchResult:
    """Run all queries in batches, then some of them one at a time.

    Args:
        index: the system to search.
        setting: the search parameters.
        queries_QD: at least one query.
        truth_QK: the NEIGHBORS nearest vectors of every query.
        batch: queries per batch.
        timed_queries: queries run one at a time.
    """

    def search(some_QD: Float32Array) -> Indices:
        return index.search(some_QD, setting)

    batches = [queries_QD[start : start + batch] for start in range(0, len(queries_QD), batch)]
    search(batches[0])
    seconds, found_QK = time_call(lambda: np.concatenate([search(each_QD) for each_QD in batches]), least=1)
    latency = measure_latency(search, queries_QD, timed_queries)
    recall = k_recall_at_k(found_QK, truth_QK, NEIGHBORS)
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latency:
    """Median and 99 % quantile of the time of one query, in milliseconds."""

    p50_ms: float
    p99_ms: float


def measure_latency(search: Callable[[Float32Array], Any], queries_QD: Float32Array, count: int) -> Latency:
    """Time `count` queries one after the other, after ten to warm up.

    Args:
        search: searches for queries (1, D).
        queries_QD: the queries, repeated if there are fewer than `count`.
        count: number of queries to time.
    """
    milliseconds = np.empty(count)
    for query_D in cyclic(queries_QD, _WARM_UP):
        search(query_D[None])
    for place, query_D in enumerate(cyclic(queries_QD, count)):
        started = time.perf_counter()
        search(query_D[None])
        milliseconds[place] = 1e3 * (time.perf_counter() - started)
    p50_ms, p99_ms = np.percentile(milliseconds, [50, 99])
    return Latency(p50_ms=float(p50_ms), p99_ms=float(p99_ms))


def measure_scan(scan: Scan, index: IndexResult, queries_QD: Float32Array) -> Iterator[ScanResult]:
    """Measure a scan by share of partitions, with one thread and with as many as the package uses.

    Args:
        scan: the scan to time, after one run to warm up.
        index: the index whose codes it scores.
        queries_QD: queries, of which the first 16 are scanned for in one call.
    """
    for threads in dict.fromkeys((1, num_threads())):
        for share in SHARES:
            work = scan(queries_QD[:_QUERIES], share, threads)
            work()
            seconds, rows = time_call(work, least=1)
            yield ScanResult(
                system=index.system,
                code_bytes=index.code_bytes,
                threads=threads,
                share=share,
                rows_per_second=rows / seconds,
            )


def create_docs(db: DBConnection, vectors_ND: Float32Array) -> LanceTable:
    """Create a table of the vectors and their positions."""
    numbers = pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.ravel()), vectors_ND.shape[1])
    rows = pa.table({ID: np.arange(len(vectors_ND)), VECTOR: numbers})
    return cast(LanceTable, db.create_table("docs", rows))


def default_partitions(rows: int) -> int:
    """The square root of the number of rows, or fewer if partitions would have too few rows."""
    return max(1, min(math.isqrt(rows), rows // PARTITION_ROWS))


def probe_counts(nprobes: Iterable[int], num_partitions: int) -> list[int]:
    """The numbers, sorted, limited to the number of partitions, and without duplicates."""
    return list(dict.fromkeys(min(probes, num_partitions) for probes in sorted(nprobes)))


def positions_of(hits: pa.Table, num_queries: int, k: int = NEIGHBORS) -> Indices:
    """Positions (Q, k), best first, from the results of LanceDB or of our tables.

    Args:
        hits: results with the column ID, and with `query_index` if there were several queries.
        num_queries: Q.
        k: most results of a query.
    """
    ids_N = hits[ID].to_numpy()
    query_N = hits["query_index"].to_numpy() if num_queries > 1 else np.zeros(len(ids_N), np.int64)
    order_N = np.argsort(query_N, kind="stable")
    query_N = query_N[order_N]
    rank_N = np.arange(len(ids_N)) - np.searchsorted(query_N, query_N)
    found_QK = np.full((num_queries, k), -1, dtype=np.int64)
    found_QK[query_N, rank_N] = ids_N[order_N]
    return found_QK
