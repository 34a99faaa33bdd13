"""Run the demo: its phases one after another, each of them timed.

Shape suffixes: N rows, Q queries, D dimension, K neighbors.
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
from rich.markup import escape
from rich.table import Table

from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.demo.texts import (
    DEFAULT_LIMIT,
    Document,
    Embedder,
    collect,
    embed_cached,
    sentence_embedder,
)
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.recall import exact_neighbors, k_recall_at_k
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

_NEIGHBORS = 10
_QUERY_EVERY = 35  # of 10,500 texts this holds out 300 as queries
_MARKER = ".rqmoe-demo"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """Options of `rqmoe demo`."""

    directory: Path = Path("rqmoe-demo")
    """Folder for the LanceDB database. That of an earlier demo is replaced."""
    cache_dir: Path = Path("~/.cache/rqmoe_store")
    """Folder that caches embeddings for the next run."""
    minutes: float = 1.5
    """Training time, at most MAX_MINUTES."""
    limit: int = DEFAULT_LIMIT
    """Most texts to collect."""

    def __post_init__(self) -> None:
        if not 0 < self.minutes <= MAX_MINUTES:
            raise InvalidInputError(
                f"Got {self.minutes} minutes of training; expected more than 0 and at most {MAX_MINUTES:g}. "
                "Use rqmoe_store.train on your own table for longer runs."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoResult:
    """Everything that the demo measured."""

    rows: int
    dim: int
    bytes_per_vector_before: float
    """Bytes of the vector column in the raw table's data files, per row."""
    bytes_per_vector_after: float
    """Bytes of the code columns in the compressed table's data files, per row."""
    disk_bytes_before: int
    """Size of all files of the raw table."""
    disk_bytes_after: int
    """Size of all files of the database without the raw table: rows, codes and codec."""
    codec_bytes: int
    break_even_rows: int | None
    """Rows from which on codes and codec together take less space than raw vectors; None for never."""
    queries: int
    recall: float
    """Share of the 10 exact nearest neighbors among the first 10 rows that compressed search finds."""
    latency_ms: float
    """Median time of one query at a time, texts of the hits included."""
    validation_mse: float
    rq_validation_mse: float
    seconds: dict[str, float]
    """Time of each phase."""

    @property
    def break_even(self) -> str:
        """`break_even_rows` in words."""
        return "never" if self.break_even_rows is None else f"from about {self.break_even_rows:,} rows"


def run(
    settings: DemoSettings,
    console: Console,
    *,
    roots: Sequence[Path] | None = None,
    make_embedder: Callable[[], Embedder] = sentence_embedder,
) -> DemoResult:
    """Run the whole demo, and print its results.

    Args:
        settings: see DemoSettings.
        console: console to print to.
        roots: folders of Python source to collect docstrings from. None means everything installed.
        make_embedder: returns the embedding function; called if embeddings are not cached.

    Raises:
        InvalidInputError: `settings.directory` has content that is not of an earlier demo.
        RQMoEError: the extra `demo` is not installed.
    """
    clock = _Clock(console)
    db = _replace_database(settings.directory)
    material = _prepare(settings, clock, roots, make_embedder)
    with clock.phase("store raw vectors"):
        docs: Any = db.create_table(RAW_TABLE, _as_arrow(material))
    before = _Sizes(column_bytes(docs, ["vector"]), _folder_bytes(settings.directory / f"{RAW_TABLE}.lance"))
    with clock.phase("search them exactly"):
        truth_QK, _ = exact_neighbors(material.queries_QD, material.vectors_ND, _NEIGHBORS, metric="cosine")
    with clock.phase("train"):
        codec = train(
            docs,
            config=CodecConfig(code_bytes=16, metric="cosine"),
            training=TrainConfig(max_minutes=settings.minutes, seed=0, progress=console.is_terminal),
        )
    with clock.phase("compress, drop raw vectors"):
        store = compress(docs, codec, into=COMPRESSED_TABLE, progress=False)
        db.drop_table(RAW_TABLE)
    _print_answers(console, store, material.questions_QD)
    with clock.phase("measure recall and latency"):
        recall, latency_ms = _measure(store, material.queries_QD, truth_QK)
    result = _result(settings, store, before, len(truth_QK), recall, latency_ms, clock.seconds)
    print_result(console, result, settings.directory)
    return result


@dataclasses.dataclass(frozen=True)
class _Material:
    """Texts and vectors to store, and vectors to search for."""

    documents: list[Document]
    vectors_ND: Float32Array
    queries_QD: Float32Array
    questions_QD: Float32Array


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """Bytes of the raw table on disk: its column of vectors, and all of it."""

    column: int
    table: int


class _Clock:
    """Times named phases, and prints each at its end."""

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


def _replace_database(directory: Path) -> DBConnection:
    """Create an empty database in `directory`, which must be new, empty, or of an earlier demo."""
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
        documents = collect(roots, limit=settings.limit)
    with clock.phase("embed them") as note:
        texts = [document.text for document in documents]
        cache_dir = settings.cache_dir.expanduser()
        # Questions are in the same list, so that a second run needs no model for them either.
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


def _print_answers(console: Console, store: CompressedTable, questions_QD: Float32Array) -> None:
    for question, vector_D in zip(QUESTIONS, questions_QD, strict=True):
        hits = store.search(vector_D).select(["name", "text"]).limit(3).to_list()
        print_hits(console, question, hits)


def _measure(
    store: CompressedTable, queries_QD: Float32Array, truth_QK: npt.NDArray[np.int64]
) -> tuple[float, float]:
    """Measure recall@10 against exact search, and the median latency in milliseconds."""
    found, times = [], []
    for query_D in queries_QD:
        started = time.perf_counter()
        hits = store.search(query_D).select(["id", "name", "text"]).limit(_NEIGHBORS).to_arrow()
        times.append(time.perf_counter() - started)
        found.append(hits["id"].to_numpy())
    return k_recall_at_k(np.stack(found), truth_QK, _NEIGHBORS), statistics.median(times) * 1000


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


def print_hits(console: Console, question: str, hits: list[dict[str, Any]]) -> None:
    """Print a question and its nearest texts."""
    table = Table(title=f"[bold]{escape(question)}[/bold]", title_justify="left", expand=True)
    table.add_column("distance", justify="right", no_wrap=True)
    table.add_column("name", overflow="fold", ratio=2)
    table.add_column("docstring", ratio=3)
    for hit in hits:
        table.add_row(f"{hit['_distance']:.3f}", escape(hit["name"]), escape(hit["text"]))
    console.print()
    console.print(table)


def print_result(console: Console, result: DemoResult, directory: Path) -> None:
    """Print everything measured, and what to try next."""
    table = Table(title="Measured on this machine, just now", title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("value", justify="right")
    for name, value in _lines(result):
        table.add_row(name, value)
    table.add_section()
    for name, seconds in result.seconds.items():
        table.add_row(f"time: {name}", f"{seconds:.1f} s")
    table.add_row("time: all phases", f"{sum(result.seconds.values()):.1f} s")
    console.print()
    console.print(table)
    if result.validation_mse >= result.rq_validation_mse:
        console.print(
            "[yellow]Training found nothing better than plain RQ in this time, so the codec is plain RQ. "
            "Try --minutes 3, or a less busy machine.[/yellow]"
        )
    sizes = _megabytes(result.disk_bytes_before), _megabytes(result.disk_bytes_after)
    if result.disk_bytes_after < result.disk_bytes_before:
        console.print(f"The database shrank from {sizes[0]} to {sizes[1]}, codec included.")
    else:
        console.print(
            f"[yellow]With {result.rows:,} rows the codec is larger than the space that codes save. "
            f"It pays for itself: {result.break_even}.[/yellow]"
        )
    console.print(f"The table is in {directory}. To see its size: rqmoe stats {directory} docs_compressed")


def _lines(result: DemoResult) -> list[tuple[str, str]]:
    before, after = result.bytes_per_vector_before, result.bytes_per_vector_after
    ratio = result.validation_mse / result.rq_validation_mse
    return [
        ("rows", f"{result.rows:,} of dimension {result.dim}"),
        ("bytes per vector on disk, before", f"{before:,.1f}"),
        ("bytes per vector on disk, after", f"{after:,.1f} ({before / after:.0f} times less)"),
        ("whole table on disk, before", _megabytes(result.disk_bytes_before)),
        ("whole database on disk, after", _megabytes(result.disk_bytes_after)),
        ("  of which the codec (one for all rows)", _megabytes(result.codec_bytes)),
        ("the codec pays for itself", result.break_even),
        ("recall@10 against exact raw search", f"{result.recall:.3f} ({result.queries} held-out queries)"),
        ("median query latency", f"{result.latency_ms:.1f} ms"),
        ("validation MSE", f"{result.validation_mse:.4f} ({ratio:.3f} of plain RQ's)"),
        ("  of plain RQ, same bytes and beam", f"{result.rq_validation_mse:.4f}"),
    ]


def _megabytes(size: int) -> str:
    return f"{size / 10**6:,.1f} MB"
