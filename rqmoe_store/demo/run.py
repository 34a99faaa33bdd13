"""The demo's stages, one after another, each measured as it runs.

Shape suffixes: N rows, Q queries, D dimension, K neighbours.
"""

import contextlib
import dataclasses
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lancedb.db import DBConnection
from rich.console import Console

from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.demo import corpus, report
from rqmoe_store.demo.embedding import Embedder, Float32Array, embed_cached, sentence_embedder
from rqmoe_store.demo.report import DemoResult
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.recall import exact_neighbours, k_recall_at_k
from rqmoe_store.store.statistics import column_bytes
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import compress
from rqmoe_store.training.trainer import train

MAX_MINUTES = 3.0
RAW_TABLE = "docs"
COMPRESSED_TABLE = "docs_compressed"
QUESTIONS = (
    "How do I read a file inside a zip archive?",
    "wait until several threads have reached the same point",
    "find the eigenvalues of a matrix",
)

_NEIGHBOURS = 10
_QUERY_EVERY = 35  # of 10,500 texts this holds out 300 as queries
_MARKER = ".rqmoe-demo"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """What `rqmoe demo` can be told."""

    directory: Path = Path("rqmoe-demo")
    """Where the LanceDB database goes; what an earlier demo left there is replaced."""
    cache_dir: Path = Path("~/.cache/rqmoe_store")
    """Where embeddings are kept for the next run."""
    minutes: float = 1.5
    """Training time, at most MAX_MINUTES."""
    limit: int = corpus.DEFAULT_LIMIT
    """Texts collected at most."""

    def __post_init__(self) -> None:
        if not 0 < self.minutes <= MAX_MINUTES:
            raise InvalidInputError(
                f"Got {self.minutes} minutes of training; expected more than 0 and at most {MAX_MINUTES:g}. "
                "Use rqmoe_store.train on your own table for longer runs."
            )


def run(
    settings: DemoSettings,
    console: Console,
    *,
    roots: Sequence[Path] | None = None,
    make_embedder: Callable[[], Embedder] = sentence_embedder,
) -> DemoResult:
    """Run the whole demo and print what it finds.

    Args:
        settings: see DemoSettings.
        console: where to print.
        roots: folders of Python source to take docstrings from; None for everything installed.
        make_embedder: makes the embedding function if embeddings are not cached.

    Raises:
        InvalidInputError: `settings.directory` holds something else than an earlier demo.
        RQMoEError: the `demo` extra is not installed.
    """
    clock = _Clock(console)
    db = _fresh_database(settings.directory)
    material = _prepare(settings, clock, roots, make_embedder)
    with clock.phase("store raw vectors"):
        docs: Any = db.create_table(RAW_TABLE, _as_arrow(material))
    before = _Sizes(column_bytes(docs, ["vector"]), _folder_bytes(settings.directory / f"{RAW_TABLE}.lance"))
    with clock.phase("search them exactly"):
        truth_QK, _ = exact_neighbours(material.queries_QD, material.vectors_ND, _NEIGHBOURS, metric="cosine")
    with clock.phase("train"):
        codec = train(
            docs,
            config=CodecConfig(code_bytes=16, metric="cosine"),
            training=TrainConfig(max_minutes=settings.minutes, seed=0, progress=console.is_terminal),
        )
    with clock.phase("compress, drop raw vectors"):
        store = compress(docs, codec, into=COMPRESSED_TABLE, progress=False)
        db.drop_table(RAW_TABLE)
    _answer(console, store, material.questions_QD)
    with clock.phase("measure recall and latency"):
        recall, latency_ms = _measure(store, material.queries_QD, truth_QK)
    result = _result(settings, store, before, len(truth_QK), recall, latency_ms, clock.seconds)
    report.print_result(console, result, settings.directory)
    return result


@dataclasses.dataclass(frozen=True)
class _Material:
    """The texts to store with their vectors, and the vectors to ask with."""

    documents: list[corpus.Document]
    vectors_ND: Float32Array
    queries_QD: Float32Array
    questions_QD: Float32Array


@dataclasses.dataclass(frozen=True)
class _Sizes:
    column: int
    table: int


class _Clock:
    """Times named phases and prints each when it is over."""

    def __init__(self, console: Console) -> None:
        self.seconds: dict[str, float] = {}
        self._console = console

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[Callable[[str], None]]:
        notes: list[str] = []
        self._console.print(f"[dim]{name} ...[/dim]")
        started = time.perf_counter()
        yield notes.append
        self.seconds[name] = time.perf_counter() - started
        self._console.print(f"  {', '.join([f'{self.seconds[name]:.1f} s', *notes])}", highlight=False)


def _fresh_database(directory: Path) -> DBConnection:
    """An empty database at `directory`, which must be new, empty, or left by an earlier demo."""
    marker = directory / _MARKER
    if directory.exists():
        if not marker.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise InvalidInputError(
                f"{directory} holds something that is not an earlier demo; nothing in it was touched. "
                "Choose another place with --directory."
            )
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
    marker.touch()
    return lancedb.connect(directory)


def _prepare(
    settings: DemoSettings,
    clock: _Clock,
    roots: Sequence[Path] | None,
    make_embedder: Callable[[], Embedder],
) -> _Material:
    with clock.phase("collect docstrings"):
        documents = corpus.collect(roots, limit=settings.limit)
    with clock.phase("embed them") as note:
        texts = [document.text for document in documents]
        cache_dir = settings.cache_dir.expanduser()
        # One list, so that a second run needs no model for the questions either.
        vectors_ND, cached = embed_cached([*texts, *QUESTIONS], cache_dir, make_embedder)
        note(f"{len(texts):,} texts{', from the cache' if cached else ''}")
    vectors_ND, questions_QD = vectors_ND[: len(texts)], vectors_ND[len(texts) :]
    held_out = np.arange(len(texts)) % _QUERY_EVERY == 0
    kept = [document for document, held in zip(documents, held_out, strict=True) if not held]
    return _Material(kept, vectors_ND[~held_out], vectors_ND[held_out], questions_QD)


def _as_arrow(material: _Material) -> pa.Table:
    documents, dim = material.documents, material.vectors_ND.shape[1]
    return pa.table(
        {
            "id": pa.array(range(len(documents)), pa.int64()),
            "package": [document.package for document in documents],
            "name": [document.name for document in documents],
            "text": [document.text for document in documents],
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(material.vectors_ND.ravel()), dim),
        }
    )


def _answer(console: Console, store: CompressedTable, questions_QD: Float32Array) -> None:
    for question, vector_D in zip(QUESTIONS, questions_QD, strict=True):
        hits = store.search(vector_D).select(["name", "text"]).limit(3).to_list()
        report.print_hits(console, question, hits)


def _measure(
    store: CompressedTable, queries_QD: Float32Array, truth_QK: npt.NDArray[np.int64]
) -> tuple[float, float]:
    """Recall@10 against exact search, and the median latency in milliseconds."""
    found, times = [], []
    for query_D in queries_QD:
        started = time.perf_counter()
        hits = store.search(query_D).select(["id", "name", "text"]).limit(_NEIGHBOURS).to_arrow()
        times.append(time.perf_counter() - started)
        found.append(hits["id"].to_numpy())
    return k_recall_at_k(np.stack(found), truth_QK, _NEIGHBOURS), statistics.median(times) * 1000


def _result(
    settings: DemoSettings,
    store: CompressedTable,
    before: _Sizes,
    queries: int,
    recall: float,
    latency_ms: float,
    seconds: dict[str, float],
) -> DemoResult:
    stats, trained = store.stats(), store.codec.report
    return DemoResult(
        rows=stats.rows,
        dim=stats.dim,
        bytes_per_vector_before=before.column / stats.rows,
        bytes_per_vector_after=stats.bytes_per_vector,
        disk_bytes_before=before.table,
        disk_bytes_after=_folder_bytes(settings.directory),
        codec_bytes=stats.codec_bytes,
        break_even_rows=stats.break_even_rows,
        queries=queries,
        recall=recall,
        latency_ms=latency_ms,
        validation_mse=trained.validation_mse,
        rq_validation_mse=trained.rq_validation_mse,
        seconds=seconds,
    )


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
