"""Searches side by side on one set of vectors: ours, LanceDB's compressed indexes, FAISS's.

Shape suffixes: N vectors, Q queries, D vector dimension, K neighbours.
"""

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import lancedb
from rich.console import Console

from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.device import select_device
from rqmoe_store.codecs.vectors import Float32Array, as_vectors
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.codec_scaling import require_disk
from rqmoe_store.evaluation.machine import describe_machine
from rqmoe_store.evaluation.recall import Indices, exact_neighbours, k_recall_at_k
from rqmoe_store.evaluation.scan_speed import measure_scan
from rqmoe_store.evaluation.search_codecs import load_codecs, train_codec
from rqmoe_store.evaluation.search_index import (
    FAISS_PQ,
    FAISS_RQ,
    LANCEDB_PQ,
    LANCEDB_RQ,
    NEIGHBOURS,
    OURS,
    Corpus,
    SearchedIndex,
    create_docs,
)
from rqmoe_store.evaluation.search_lancedb import build_lancedb_pq, build_lancedb_rq
from rqmoe_store.evaluation.search_measurement import measure_search
from rqmoe_store.evaluation.search_own import build_own
from rqmoe_store.evaluation.search_results import IndexResult, SearchReport
from rqmoe_store.evaluation.search_settings import SearchSettings
from rqmoe_store.evaluation.search_synthetic import measure_synthetic, require_room

_TABLES = 2
"""Times the raw vectors' size that the temporary database takes at most."""

Build = Callable[[], SearchedIndex]


def benchmark_search(
    vectors: Any | None,
    queries: Any,
    *,
    settings: SearchSettings,
    console: Console | None = None,
    on_done: Callable[[SearchReport], None] = lambda report: None,
) -> SearchReport:
    """Index the vectors with every system at every size, and search with every setting.

    Everything lives in databases in temporary folders, which are removed in the end. Recall is that of the 10
    nearest raw vectors. Indexes are trained on the vectors they hold, and so are codecs that are not loaded.

    Args:
        vectors: (N, D), at least 256 for every partition; None to measure tables of random codes alone.
        queries: (Q, D), at least one.
        settings: what to compare.
        console: where progress is shown; None for standard error.
        on_done: called with everything found so far whenever there is more.

    Raises:
        InvalidInputError: unusable vectors or queries, settings that do not fit them, or nothing to do.
            Nothing has been trained by then.
        ArtefactError: a folder without a readable codec.
        RQMoEError: a table of random codes cannot be searched.
    """
    console = console or Console(stderr=True)
    bench = _checked(vectors, queries, settings)
    machine = describe_machine(select_device(settings.training.device))
    report = SearchReport(settings=settings.to_dict(), machine=machine)
    if bench.vectors_ND is not None:
        _compare(bench, bench.vectors_ND, settings, report, console, on_done)
    for result in measure_synthetic(
        list(bench.codecs.values()) if settings.synthetic else [],
        bench.queries_QD,
        rows=settings.synthetic,
        nprobes=settings.nprobes,
        timed_queries=settings.timed_queries,
        seed=settings.training.seed,
        on_start=lambda what: console.print(what, highlight=False),
    ):
        report.synthetic.append(result)
        on_done(report)
    return report


@dataclasses.dataclass(frozen=True)
class _Bench:
    """What is known to fit together."""

    vectors_ND: Float32Array | None
    queries_QD: Float32Array
    codecs: dict[int, Codec]


def _checked(vectors: Any | None, queries: Any, settings: SearchSettings) -> _Bench:
    if vectors is None and not settings.synthetic:
        raise InvalidInputError("Got no vectors; expected some, or numbers of rows of random codes.")
    metric = settings.config.metric
    vectors_ND = None if vectors is None else as_vectors(vectors, metric=metric)
    try:
        queries_QD = as_vectors(
            queries, dim=None if vectors_ND is None else vectors_ND.shape[1], metric=metric
        )
    except InvalidInputError as error:
        raise InvalidInputError(f"Queries: {error}") from error
    if len(queries_QD) == 0:
        raise InvalidInputError("Got no queries; expected at least one.")
    dim = queries_QD.shape[1]
    if vectors_ND is not None:
        settings.require_fit(len(vectors_ND), dim)
        require_disk(len(vectors_ND), _TABLES * 4 * dim)
    codecs = load_codecs(settings, dim)
    if settings.synthetic:
        require_room(codecs.values(), settings.synthetic)
    return _Bench(vectors_ND, queries_QD, codecs)


def _compare(
    bench: _Bench,
    vectors_ND: Float32Array,
    settings: SearchSettings,
    report: SearchReport,
    console: Console,
    on_done: Callable[[SearchReport], None],
) -> None:
    """Add one system of one size after another to the report."""
    metric = settings.config.metric
    console.print("Finding the true neighbours", highlight=False)
    truth_QK, _ = exact_neighbours(bench.queries_QD, vectors_ND, NEIGHBOURS, metric=metric)
    with tempfile.TemporaryDirectory(prefix="rqmoe-bench-") as folder:
        corpus = Corpus(
            docs=create_docs(lancedb.connect(folder), vectors_ND),
            vectors_ND=vectors_ND,
            metric=metric,
            num_partitions=settings.partitions(len(vectors_ND)),
            nprobes=settings.nprobes,
        )
        for name, build in _plan(settings, corpus, bench.codecs):
            console.print(f"Measuring {name}", highlight=False)
            _measure(build(), bench.queries_QD, truth_QK, settings, report)
            on_done(report)


def _plan(settings: SearchSettings, corpus: Corpus, codecs: dict[int, Codec]) -> Iterator[tuple[str, Build]]:
    """What to index with, by size, and how; LanceDB's IVF_RQ, of the one size it has, comes last."""
    systems = settings.systems
    for size in sorted(set(settings.code_bytes)):
        if OURS in systems:
            kind = settings.config.kind
            yield f"{kind}, {size} bytes", functools.partial(_own, settings, corpus, codecs.get(size), size)
        if LANCEDB_PQ in systems:
            yield f"{LANCEDB_PQ}, {size} bytes", functools.partial(build_lancedb_pq, corpus, size)
        for form, name in (("pq", FAISS_PQ), ("rq", FAISS_RQ)):
            if name in systems:
                yield f"{name}, {size} bytes", functools.partial(_faiss, corpus, form, size)
    if LANCEDB_RQ in systems:
        yield LANCEDB_RQ, functools.partial(build_lancedb_rq, corpus)


def _own(settings: SearchSettings, corpus: Corpus, loaded: Codec | None, code_bytes: int) -> SearchedIndex:
    codec, seconds = loaded, 0.0
    if codec is None:
        codec, seconds = train_codec(settings, corpus.vectors_ND, code_bytes, corpus.num_partitions)
    return build_own(corpus, codec, shortlists=settings.shortlists, training_seconds=seconds)


def _faiss(corpus: Corpus, form: Any, code_bytes: int) -> SearchedIndex:
    from rqmoe_store.evaluation.search_faiss import build_faiss  # of the extra `bench`

    return build_faiss(corpus, form, code_bytes)


def _measure(
    index: SearchedIndex,
    queries_QD: Float32Array,
    truth_QK: Indices,
    settings: SearchSettings,
    report: SearchReport,
) -> None:
    """Add everything about one index to the report."""
    index = dataclasses.replace(index, result=_with_exhaustive(index, queries_QD, truth_QK, settings))
    report.indexes.append(index.result)
    for setting in index.settings:
        report.results.append(
            measure_search(
                index,
                setting,
                queries_QD,
                truth_QK,
                batch=settings.batch,
                timed_queries=settings.timed_queries,
            )
        )
    if index.scan is not None:
        report.scans += measure_scan(index.scan, index.result, queries_QD)


def _with_exhaustive(
    index: SearchedIndex, queries_QD: Float32Array, truth_QK: Indices, settings: SearchSettings
) -> IndexResult:
    if index.reconstructions is None:
        return index.result
    found_QK, _ = exact_neighbours(
        queries_QD, index.reconstructions, NEIGHBOURS, metric=settings.config.metric
    )
    recall = k_recall_at_k(found_QK, truth_QK, NEIGHBOURS)
    return dataclasses.replace(index.result, exhaustive_recall=recall)
