"""Searches side by side on one set of vectors: ours, LanceDB's compressed indexes, FAISS's.

Shape suffixes: N vectors, Q queries, D vector dimension, K neighbors.

Shape suffixes: N vectors, D vector dimension.
"""

import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lancedb
from rich.console import Console

from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.device import select_device
from rqmoe_store.codecs.vectors import Float32Array, as_vectors
from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.codec_measurement import require_disk
from rqmoe_store.evaluation.contenders import load_fitting
from rqmoe_store.evaluation.machine import describe_machine
from rqmoe_store.evaluation.recall import Indices, exact_neighbors, k_recall_at_k
from rqmoe_store.evaluation.search_measurement import (
    FAISS_PQ,
    FAISS_RQ,
    LANCEDB_PQ,
    LANCEDB_RQ,
    NEIGHBOURS,
    OURS,
    PARTITION_ROWS,
    SYSTEMS,
    Corpus,
    IndexResult,
    SearchedIndex,
    SearchReport,
    create_docs,
    default_partitions,
    measure_scan,
    measure_search,
)
from rqmoe_store.evaluation.search_scaling import measure_synthetic, require_room
from rqmoe_store.evaluation.search_systems import RQ_DIMENSIONS, build_lancedb_pq, build_lancedb_rq, build_own
from rqmoe_store.training.trainer import train

_DEFAULT_CONFIG, _TRAINING = CodecConfig(), TrainConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """What to compare, and how."""

    systems: tuple[str, ...] = SYSTEMS
    code_bytes: tuple[int, ...] = (8, 16, 32)
    """Sizes; LanceDB's IVF_RQ has the one that follows from the dimension."""
    codecs: Path | None = None
    """Folder of our codecs, `{kind}-{bytes}` each; None to train them on the vectors."""
    config: CodecConfig = _DEFAULT_CONFIG
    """Kind and metric, and of codecs that are trained every other setting. `num_partitions` also is that of
    other systems' indexes; None for the square root of the rows, but at least 256 rows each."""
    training: TrainConfig = _TRAINING
    """How our codecs are trained."""
    nprobes: tuple[int, ...] = (1, 5, 20, 80)
    """Partitions searched, wherever there are partitions."""
    shortlists: tuple[int, ...] = (20, 30, 100)
    """Rows that ours decodes and reranks."""
    batch: int = 64
    """Queries asked together when throughput is measured."""
    timed_queries: int = 500
    """Queries asked one by one, for latency."""
    synthetic: tuple[int, ...] = ()
    """Rows of tables of random codes that are opened and searched too, with every codec of `codecs`."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.systems if name not in SYSTEMS]
        if unknown or not self.systems:
            raise InvalidInputError(f"Got systems {list(self.systems)}; choose some of {', '.join(SYSTEMS)}.")
        for size in self.code_bytes:
            dataclasses.replace(self.config, code_bytes=size)  # checks it
        for name, least in (("nprobes", 1), ("shortlists", NEIGHBOURS)):
            numbers = getattr(self, name)
            if not numbers or min(numbers) < least:
                raise InvalidInputError(
                    f"Got {name}={numbers}; expected numbers of at least {least}, and at least one of them."
                )
        if self.batch < 1 or self.timed_queries < 1:
            raise InvalidInputError(
                f"Got batch={self.batch}, timed_queries={self.timed_queries}; expected at least 1 of each."
            )
        if self.synthetic and (self.codecs is None or min(self.synthetic) < 1):
            raise InvalidInputError(
                f"Got synthetic={self.synthetic}, codecs={self.codecs}; expected numbers of rows from 1, and "
                "a folder of codecs to draw codes for."
            )
        select_device(self.training.device)

    def partitions(self, rows: int) -> int:
        """Partitions of every index that is made here: at least 1."""
        chosen = self.config.num_partitions
        return default_partitions(rows) if chosen is None else max(1, chosen)

    def require_fit(self, rows: int, dim: int) -> None:
        """Raise InvalidInputError unless every system can index so many vectors of this dimension."""
        partitions = self.partitions(rows)
        if rows < PARTITION_ROWS * partitions:
            raise InvalidInputError(
                f"Got {rows} vectors for {partitions} partitions; expected at least {PARTITION_ROWS} for "
                "each. Give more vectors or fewer partitions."
            )
        products = [name for name in (LANCEDB_PQ, FAISS_PQ) if name in self.systems]
        uneven = [size for size in self.code_bytes if dim % size]
        if products and uneven:
            raise InvalidInputError(
                f"Product quantization of dimension {dim} takes code sizes that divide it; got {uneven}. "
                f"Choose other sizes, or leave out {', '.join(products)}."
            )
        if LANCEDB_RQ in self.systems and dim % RQ_DIMENSIONS:
            raise InvalidInputError(
                f"LanceDB's IVF_RQ takes dimensions that are a multiple of {RQ_DIMENSIONS}; got {dim}. "
                f"Leave out {LANCEDB_RQ}."
            )

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-ready values."""
        fields = dataclasses.asdict(self)
        del fields["config"]["code_bytes"]  # the other `code_bytes` says that
        return {**fields, "codecs": None if self.codecs is None else str(self.codecs)}


def load_codecs(settings: SearchSettings, dim: int) -> dict[int, Codec]:
    """Size -> codec, from the folder that the settings name; empty where they name none.

    Raises:
        InvalidInputError: a size is missing, or a codec does not fit the vectors or the metric.
        ArtifactError: a codec cannot be read.
    """
    if settings.codecs is None:
        return {}
    codecs, kind = {}, settings.config.kind
    for size in settings.code_bytes:
        folder = settings.codecs.expanduser() / f"{kind}-{size}"
        if not folder.is_dir():
            raise InvalidInputError(
                f"There is no codec {str(folder)!r}; expected one of every size, as `bench codec --save` "
                "makes them. Choose other sizes or another kind, or name no folder to train them."
            )
        codec = load_fitting(
            str(folder), dim=dim, metric=settings.config.metric, device=settings.training.device
        )
        if codec.config.code_bytes != size:
            raise InvalidInputError(
                f"The codec in {str(folder)!r} has {codec.config.code_bytes} code bytes; expected {size}, as "
                "its folder is called."
            )
        codecs[size] = codec
    return codecs


def train_codec(
    settings: SearchSettings, vectors_ND: Float32Array, code_bytes: int, num_partitions: int
) -> tuple[Codec, float]:
    """A codec trained on the vectors, and the seconds that took."""
    partitions = num_partitions if num_partitions > 1 else 0  # one is the same as none
    config = dataclasses.replace(settings.config, code_bytes=code_bytes, num_partitions=partitions)
    started = time.perf_counter()
    codec = train(vectors_ND, config=config, training=settings.training)
    return codec, time.perf_counter() - started


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
        ArtifactError: a folder without a readable codec.
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
    console.print("Finding the true neighbors", highlight=False)
    truth_QK, _ = exact_neighbors(bench.queries_QD, vectors_ND, NEIGHBOURS, metric=metric)
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
    from rqmoe_store.evaluation.faiss_peers import build_faiss  # of the extra `bench`

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
    found_QK, _ = exact_neighbors(
        queries_QD, index.reconstructions, NEIGHBOURS, metric=settings.config.metric
    )
    recall = k_recall_at_k(found_QK, truth_QK, NEIGHBOURS)
    return dataclasses.replace(index.result, exhaustive_recall=recall)
