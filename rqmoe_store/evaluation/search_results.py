"""What the comparison of searches found, as plain values that JSON can hold.

Optional figures are None where they do not apply or are not known.
"""

import dataclasses
from typing import Any


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
