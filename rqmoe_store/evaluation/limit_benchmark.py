"""Benchmark after LIMIT: answers that vectors, codes of them, full-text search and hybrid search find.

Shape suffixes: N documents, Q queries, K results, D dimension.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.db import DBConnection
from lancedb.index import FTS
from lancedb.rerankers import RRFReranker
from lancedb.table import LanceTable
from rich.table import Table

from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.limit_data import LimitData
from rqmoe_store.evaluation.limit_free import FreeResult
from rqmoe_store.evaluation.recall import Indices, exact_neighbors
from rqmoe_store.evaluation.search_measurement import ID, VECTOR, positions_of
from rqmoe_store.evaluation.tables import table_of
from rqmoe_store.search.text import words_query
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import compress
from rqmoe_store.training.trainer import add_refine_codes, train

DEPTHS = (2, 10, 20, 100)
"""Numbers of results among which answers are looked for."""

TEXT = "text"
MOST_CODE_BYTES = 16
"""Bytes of the code; what a size has beyond it is a refine code, as in presets."""

VECTORS, CODES, WORDS = "vectors", "codes", "full text"
HYBRID_VECTORS, HYBRID_CODES = "hybrid, vectors", "hybrid, codes"

_FLOAT_BYTES = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class LimitSettings:
    """What to measure."""

    code_bytes: tuple[int, ...] = (8, 16, 32, 64, 128, 192)
    """Bytes altogether."""
    hybrid_bytes: tuple[int, ...] = (16, 64)
    """Those of the sizes whose hybrid search is measured, too."""
    config: CodecConfig = dataclasses.field(
        default_factory=lambda: CodecConfig(kind="rq", metric="cosine", num_partitions=0)
    )
    """Of the codec, but for its bytes."""
    training: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the sentence model."""

    def __post_init__(self) -> None:
        if self.precision not in ("float32", "bfloat16"):
            raise InvalidInputError(f"Got precision {self.precision!r}; expected 'float32' or 'bfloat16'.")
        if not self.code_bytes or not set(self.hybrid_bytes) <= set(self.code_bytes):
            raise InvalidInputError(
                f"Got sizes {list(self.code_bytes)} and hybrid search of {list(self.hybrid_bytes)}; expected "
                "at least one size, and hybrid search of some of them."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LimitResult:
    """Recall of one way to search one set of documents."""

    documents: int
    search: str
    """One of VECTORS, CODES, WORDS, HYBRID_VECTORS, HYBRID_CODES."""
    vector_bytes: int | None
    """Bytes per vector, those of raw vectors included; None for full-text search."""
    recall: dict[int, float]
    """Number of results -> mean share of the two answers among them."""


@dataclasses.dataclass(kw_only=True)
class LimitReport:
    """All results so far."""

    settings: dict[str, Any]
    machine: dict[str, Any]
    results: list[LimitResult] = dataclasses.field(default_factory=list)
    free: list[FreeResult] = dataclasses.field(default_factory=list)
    """Those of free embeddings."""

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON-ready values."""
        return dataclasses.asdict(self)


def benchmark_limit(
    data: LimitData,
    documents_ND: Float32Array,
    queries_QD: Float32Array,
    settings: LimitSettings,
    on_done: Callable[[LimitResult], None],
) -> None:
    """Search the documents that answer queries alone, and then among distractors.

    Codecs are trained on all documents. Tables are in a temporary database.

    Args:
        data: the texts, and which of them answer which query.
        documents_ND: their embeddings.
        queries_QD: those of the queries.
        settings: what to measure.
        on_done: called with every result.
    """
    codecs = _train_codecs(documents_ND, settings)
    with tempfile.TemporaryDirectory(prefix="rqmoe-bench-") as folder:
        for count in dict.fromkeys((data.num_answering, len(documents_ND))):
            searched = _Searched(data, documents_ND[:count], queries_QD, Path(folder) / f"{count}")
            for search, num_bytes, found_QK in _searches(searched, codecs, settings):
                recall = recalls(found_QK, data.answers_Q2, count)
                on_done(LimitResult(documents=count, search=search, vector_bytes=num_bytes, recall=recall))


def recalls(found_QK: Indices, answers_Q2: Indices, documents: int) -> dict[int, float]:
    """The mean share of both answers among the first results, at depths below the number of documents."""
    hit_Q2K = answers_Q2[:, :, None] == found_QK[:, None, :]
    return {depth: float(hit_Q2K[:, :, :depth].any(axis=2).mean()) for depth in DEPTHS if depth < documents}


def _train_codecs(documents_ND: Float32Array, settings: LimitSettings) -> dict[int, Codec]:
    """A codec of every size: code alone, or a code of 16 bytes and a refine code."""
    codes: dict[int, Codec] = {}
    codecs = {}
    for total in settings.code_bytes:
        code_bytes = min(total, MOST_CODE_BYTES)
        if code_bytes not in codes:
            config = dataclasses.replace(settings.config, code_bytes=code_bytes)
            codes[code_bytes] = train(documents_ND, config=config, training=settings.training)
        codecs[total] = codes[code_bytes]
        if total > code_bytes:
            codecs[total] = add_refine_codes(codecs[total], documents_ND, refine_bytes=total - code_bytes)
    return codecs


class _Searched:
    """Documents in a table of LanceDB with a full-text index, and ways to search them."""

    def __init__(
        self, data: LimitData, documents_ND: Float32Array, queries_QD: Float32Array, folder: Path
    ) -> None:
        self.documents_ND, self.queries_QD = documents_ND, queries_QD
        self.depth = min(max(DEPTHS), len(documents_ND))
        self._words = [words_query(query, TEXT) for query in data.queries]
        self._db: DBConnection = lancedb.connect(folder)
        numbers = pa.array(documents_ND.ravel())
        columns = {
            ID: np.arange(len(documents_ND)),
            TEXT: data.documents[: len(documents_ND)],
            VECTOR: pa.FixedSizeListArray.from_arrays(numbers, documents_ND.shape[1]),
        }
        self.table: Any = self._db.create_table("docs", pa.table(columns))
        self.table.create_index(TEXT, config=FTS())

    def compressed(self, codec: Codec, name: str) -> CompressedTable:
        """The same rows with codes, and an index of their own."""
        store = compress(self.table, codec, into=name, vector_column=VECTOR, progress=False)
        store.create_fts_index(TEXT)
        return store

    def by_vector(self) -> Indices:
        return exact_neighbors(self.queries_QD, self.documents_ND, self.depth, metric="cosine")[0]

    def by_code(self, store: CompressedTable) -> Indices:
        hits = store.search(self.queries_QD).limit(self.depth).select([ID]).to_arrow()
        return positions_of(hits, len(self.queries_QD), self.depth)

    def by_words(self) -> Indices:
        return self._one_by_one(
            self.table.search(words, query_type="fts").limit(self.depth) for words in self._words
        )

    def by_both(self, table: LanceTable | CompressedTable) -> Indices:
        """Ranks of both searches, fused."""
        searches: Any = table
        fuse = RRFReranker()
        return self._one_by_one(
            searches.search(query_type="hybrid").vector(query_D).text(words).limit(self.depth).rerank(fuse)
            for query_D, words in zip(self.queries_QD, self._words, strict=True)
        )

    def _one_by_one(self, queries: Iterator[Any]) -> Indices:
        found = [positions_of(query.to_arrow(), 1, self.depth) for query in queries]
        return np.concatenate(found)


def _searches(
    searched: _Searched, codecs: dict[int, Codec], settings: LimitSettings
) -> Iterator[tuple[str, int | None, Indices]]:
    """All ways to search: name, bytes per vector, and what is found."""
    raw_bytes = _FLOAT_BYTES * searched.documents_ND.shape[1]
    yield VECTORS, raw_bytes, searched.by_vector()
    stores = {total: searched.compressed(codec, f"bytes-{total}") for total, codec in codecs.items()}
    for total, store in stores.items():
        yield CODES, total, searched.by_code(store)
    yield WORDS, None, searched.by_words()
    yield HYBRID_VECTORS, raw_bytes, searched.by_both(searched.table)
    for total in settings.hybrid_bytes:
        yield HYBRID_CODES, total, searched.by_both(stores[total])


def limit_tables(report: LimitReport) -> list[Table]:
    """The results as tables for a terminal."""
    counts = dict.fromkeys(result.documents for result in report.results)
    tables = [
        _recall_table(name, [each for each in report.results if each.documents == count])
        for name, count in zip(("Small", "Large"), counts, strict=False)
    ]
    return [*tables, *([_documents_table(report.free), _share_table(report.free)] if report.free else [])]


def _recall_table(name: str, results: Sequence[LimitResult]) -> Table:
    depths = list(results[0].recall)
    shown = table_of(
        f"{name}: both answers among the first k of {results[0].documents:,} documents",
        "; ".join(["search", "bytes per vector", *(f"R@{depth}" for depth in depths)]),
    )
    for result in results:
        size = "-" if result.vector_bytes is None else f"{result.vector_bytes:,}"
        shown.add_row(result.search, size, *(f"{result.recall[depth]:.3f}" for depth in depths))
    return shown


def _documents_table(results: Sequence[FreeResult]) -> Table:
    sizes = list(results[0].encoded_documents)
    shown = table_of(
        "Free: most documents of which every pair is told apart",
        "; ".join(["dimension", "vectors", *(_bytes(size) for size in sizes)]),
    )
    for result in results:
        counts = [result.documents, *result.encoded_documents.values()]
        shown.add_row(f"{result.dim}", *map(str, counts))
    return shown


def _share_table(results: Sequence[FreeResult]) -> Table:
    sizes = list(results[0].encoded_share)
    shown = table_of(
        "Kept: share of the pairs that codes tell apart, where vectors tell all apart",
        "; ".join(["dimension", "documents", *(_bytes(size) for size in sizes)]),
    )
    for result in results:
        shares = [f"{share:.3f}" for share in result.encoded_share.values()]
        shown.add_row(f"{result.dim}", f"{result.documents}", *shares)
    return shown


def _bytes(size: int) -> str:
    return f"{size} byte" if size == 1 else f"{size} bytes"
