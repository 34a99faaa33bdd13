"""What is searched, and how every system is asked.

Shape suffixes: N vectors, Q queries, D vector dimension, K neighbours.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa
from lancedb.db import DBConnection
from lancedb.table import LanceTable

from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import Metric
from rqmoe_store.evaluation.recall import Indices
from rqmoe_store.evaluation.scan_speed import Scan
from rqmoe_store.evaluation.search_results import IndexResult, SearchSetting

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
