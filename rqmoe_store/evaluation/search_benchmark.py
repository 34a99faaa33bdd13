"""Benchmark of searches on one set of vectors: our tables, LanceDB's compressed indexes, and FAISS's.

Shape suffixes: N vectors, Q queries, D vector dimension, K neighbors.
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
from rqmoe_store.config import CodecConfig, Metric, TrainConfig
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.codec_measurement import require_disk
from rqmoe_store.evaluation.contenders import load_matching
from rqmoe_store.evaluation.engine_peers import build_engine, check_engine
from rqmoe_store.evaluation.lancedb_peers import (
    build_lancedb_pq,
    build_lancedb_rq,
    check_pq_dim,
    check_rq_dim,
)
from rqmoe_store.evaluation.machine import describe_machine
from rqmoe_store.evaluation.peer_names import (
    FAISS_SYSTEMS,
    LANCEDB_PQ,
    LANCEDB_RQ,
    OURS,
    SYSTEM_FORMS,
    SYSTEMS,
    describe_missing,
    family_of,
    form_names,
    has_form,
    installed_peers,
    is_engine,
    is_system,
    missing_peers,
)
from rqmoe_store.evaluation.recall import Indices, exact_neighbors, k_recall_at_k
from rqmoe_store.evaluation.search_measurement import (
    NEIGHBORS,
    PARTITION_ROWS,
    Corpus,
    IndexResult,
    SearchedIndex,
    SearchReport,
    create_docs,
    default_partitions,
    measure_scan,
    measure_search,
)
from rqmoe_store.evaluation.search_scaling import (
    measure_synthetic,
    random_codec,
    random_queries,
    require_room,
)
from rqmoe_store.evaluation.search_systems import build_own
from rqmoe_store.training.trainer import add_refine_codes, train

_TABLES = 2
"""Most space that the temporary database takes, as a multiple of the raw vectors' size."""

_FAISS_PQ, _, _ = FAISS_SYSTEMS

_DEFAULT_CONFIG, _TRAINING = CodecConfig(), TrainConfig()

Build = Callable[[], SearchedIndex]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """Systems to compare, and how to measure them."""

    systems: tuple[str, ...] = (OURS, LANCEDB_PQ, LANCEDB_RQ, "faiss-ivf-pq", "faiss-ivf-rq")
    """Some of `SYSTEMS`, and forms of the families of `SYSTEM_FORMS`."""
    code_bytes: tuple[int, ...] = (8, 16, 32)
    """Code sizes. That of LanceDB's IVF_RQ follows from the dimension, and so does that of forms."""
    refine_bytes: tuple[int, ...] = ()
    """Sizes of refine codes that each of our codecs is also searched with."""
    codecs: Path | None = None
    """Folder of our codecs, `{kind}-{bytes}` each; None to train them on the vectors."""
    config: CodecConfig = _DEFAULT_CONFIG
    """Kind and metric, and all other settings of codecs that are trained. `num_partitions` also applies to
    other systems' indexes; None means the square root of the rows, but at least 256 rows per partition."""
    training: TrainConfig = _TRAINING
    """How to train our codecs."""
    nprobes: tuple[int, ...] = (1, 5, 20, 80)
    """Numbers of partitions to search, in indexes that have partitions."""
    shortlists: tuple[int, ...] = (20, 30, 100)
    """Numbers of rows that our tables decode and rerank."""
    batch: int = 64
    """Queries per batch, to measure throughput."""
    timed_queries: int = 500
    """Queries run one at a time, to measure latency."""
    synthetic: tuple[int, ...] = ()
    """Rows of tables of random codes that are also opened and searched, with every codec of `codecs`, or else
    with a codec of every size made from random vectors. Its partitions suit the largest of these tables."""

    def __post_init__(self) -> None:
        _check_systems(self.systems)
        for size in self.code_bytes:
            dataclasses.replace(self.config, code_bytes=size)  # checks it
        for size in self.refine_bytes:
            dataclasses.replace(self.config, refine_bytes=size)
        for name, least in (("nprobes", 1), ("shortlists", NEIGHBORS)):
            numbers = getattr(self, name)
            if not numbers or min(numbers) < least:
                raise InvalidInputError(
                    f"Got {name}={numbers}; expected numbers of at least {least}, and at least one of them."
                )
        if self.batch < 1 or self.timed_queries < 1:
            raise InvalidInputError(
                f"Got batch={self.batch}, timed_queries={self.timed_queries}; expected at least 1 of each."
            )
        if self.synthetic and min(self.synthetic) < 1:
            raise InvalidInputError(f"Got synthetic={self.synthetic}; expected numbers of rows from 1.")
        select_device(self.training.device)

    def partitions(self, rows: int) -> int:
        """Partitions of every index built here, at least 1."""
        chosen = self.config.num_partitions
        return default_partitions(rows) if chosen is None else max(1, chosen)

    def require_fit(self, rows: int, dim: int) -> None:
        """Raise InvalidInputError unless every system can index `rows` vectors of this dimension."""
        partitions = self.partitions(rows)
        if rows < PARTITION_ROWS * partitions:
            raise InvalidInputError(
                f"Got {rows} vectors for {partitions} partitions; expected at least {PARTITION_ROWS} for "
                "each. Give more vectors or fewer partitions."
            )
        products = [name for name in (LANCEDB_PQ, _FAISS_PQ) if name in self.systems]
        if products:
            check_pq_dim(dim, self.code_bytes, ", ".join(products))
        for name in installed_peers(self.systems):
            if name == LANCEDB_RQ or family_of(name) == LANCEDB_RQ:
                check_rq_dim(dim, name)
            elif is_engine(name):
                check_engine(name, self.config.metric, dim)
            elif has_form(name):
                _check_faiss(name, self.config.metric)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-ready values."""
        fields = dataclasses.asdict(self)
        for name in ("code_bytes", "refine_bytes"):
            del fields["config"][name]  # the sizes above say that
        return {**fields, "codecs": None if self.codecs is None else str(self.codecs)}


def benchmark_search(
    vectors: Any | None,
    queries: Any,
    *,
    settings: SearchSettings,
    console: Console | None = None,
    on_done: Callable[[SearchReport], None] = lambda report: None,
) -> SearchReport:
    """Index the vectors with every system at every size, and search with every setting.

    Everything is in databases in temporary folders. Recall is that of the 10 nearest raw vectors. Indexes,
    and codecs that are not loaded, are trained on the vectors that they index.

    Args:
        vectors: (N, D), at least 256 per partition; None to measure only tables of random codes.
        queries: (Q, D), at least one.
        settings: systems to compare, and how.
        console: console for progress. None means standard error.
        on_done: called with all results so far whenever there is another one.

    Raises:
        InvalidInputError: vectors or queries are unusable, settings do not fit them, or there is nothing to
            do. Nothing has been trained by then.
        ArtifactError: a folder has no readable codec.
        RQMoEError: a table of random codes cannot be searched.
    """
    console = console or Console(stderr=True)
    bench = _checked(vectors, queries, settings)
    machine = describe_machine(select_device(settings.training.device))
    skipped = missing_peers(settings.systems)
    for line in describe_missing(skipped):
        console.print(line, highlight=False, soft_wrap=True)
    report = SearchReport(settings=settings.to_dict(), machine=machine, skipped=skipped)
    if bench.vectors_ND is not None:
        _compare(bench, bench.vectors_ND, settings, report, console, on_done)
    for result in measure_synthetic(
        _codecs_to_scale(bench, settings),
        bench.queries_QD,
        rows=settings.synthetic,
        nprobes=settings.nprobes,
        timed_queries=settings.timed_queries,
        seed=settings.training.seed,
        on_start=lambda description: console.print(description, highlight=False),
    ):
        report.synthetic.append(result)
        on_done(report)
    return report


def _check_systems(names: tuple[str, ...]) -> None:
    """Raise unless there are names, all known, and what one of them needs is installed."""
    unknown = [name for name in names if not is_system(name)]
    if unknown or not names:
        raise InvalidInputError(
            f"Got systems {list(names)}; choose some of {', '.join(SYSTEMS)}, {form_names(SYSTEM_FORMS)}."
        )
    installed_peers(names)


def _check_faiss(name: str, metric: Metric) -> None:
    from rqmoe_store.evaluation.faiss_peers import check_metric  # of the extra `bench`

    check_metric(name, family_of(name).replace("-ivf", ""), metric)


def _codecs_to_scale(bench: "_Bench", settings: SearchSettings) -> list[Codec]:
    """The codecs that tables of random codes have."""
    if not settings.synthetic or bench.codecs:
        return list(bench.codecs.values()) if settings.synthetic else []
    partitions = settings.partitions(max(settings.synthetic))
    configs = [
        dataclasses.replace(settings.config, code_bytes=size, num_partitions=partitions)
        for size in settings.code_bytes
    ]
    return [random_codec(each, bench.queries_QD.shape[1], settings.training.seed) for each in configs]


@dataclasses.dataclass(frozen=True)
class _Bench:
    """Vectors, queries and codecs that were checked to fit each other."""

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
        require_room(settings.code_bytes, settings.synthetic)
    return _Bench(vectors_ND, queries_QD, codecs)


def _compare(
    bench: _Bench,
    vectors_ND: Float32Array,
    settings: SearchSettings,
    report: SearchReport,
    console: Console,
    on_done: Callable[[SearchReport], None],
) -> None:
    """Measure one system of one size after another, and add the results to the report."""
    metric = settings.config.metric
    console.print("Finding the true neighbors", highlight=False)
    truth_QK, _ = exact_neighbors(bench.queries_QD, vectors_ND, NEIGHBORS, metric=metric)
    with tempfile.TemporaryDirectory(prefix="rqmoe-bench-") as folder:
        corpus = Corpus(
            docs=create_docs(lancedb.connect(folder), vectors_ND),
            vectors_ND=vectors_ND,
            metric=metric,
            num_partitions=settings.partitions(len(vectors_ND)),
            nprobes=settings.nprobes,
        )
        for name, build in _plan(settings, corpus, bench.codecs, Path(folder)):
            console.print(f"Measuring {name}", highlight=False)
            _measure(build(), bench.queries_QD, truth_QK, settings, report)
            on_done(report)


def _plan(
    settings: SearchSettings, corpus: Corpus, codecs: dict[int, Codec], folder: Path
) -> Iterator[tuple[str, Build]]:
    """Names of indexes and functions that build them, by size; those that have one size are last."""
    systems = installed_peers(settings.systems)
    for size in sorted(set(settings.code_bytes)):
        if OURS in systems:
            trained = functools.cache(functools.partial(_codec, settings, corpus, codecs.get(size), size))
            for refine_bytes in (0, *settings.refine_bytes):
                name = f"{settings.config.kind}, {size} and {refine_bytes} bytes"
                yield name, functools.partial(_own, settings, corpus, trained, refine_bytes)
        if LANCEDB_PQ in systems:
            yield f"{LANCEDB_PQ}, {size} bytes", functools.partial(build_lancedb_pq, corpus, size)
        for name in FAISS_SYSTEMS:
            if name in systems:
                yield f"{name}, {size} bytes", functools.partial(_faiss, corpus, name, size)
    for name in dict.fromkeys(systems):
        if name == LANCEDB_RQ or family_of(name) == LANCEDB_RQ:
            yield name, functools.partial(build_lancedb_rq, corpus, name)
        elif is_engine(name):
            yield name, functools.partial(build_engine, corpus, name, folder / name)
        elif has_form(name):
            yield name, functools.partial(_faiss, corpus, name, None)


def _codec(
    settings: SearchSettings, corpus: Corpus, loaded: Codec | None, code_bytes: int
) -> tuple[Codec, float]:
    """The codec of a size, loaded or trained, and the seconds that training took."""
    if loaded is not None:
        return loaded, 0.0
    return train_codec(settings, corpus.vectors_ND, code_bytes, corpus.num_partitions)


def _own(
    settings: SearchSettings,
    corpus: Corpus,
    trained: Callable[[], tuple[Codec, float]],
    refine_bytes: int,
) -> SearchedIndex:
    codec, seconds = trained()
    if refine_bytes:
        started = time.perf_counter()
        kind = settings.config.refine_kind
        codec = add_refine_codes(codec, corpus.vectors_ND, refine_bytes=refine_bytes, refine_kind=kind)
        seconds += time.perf_counter() - started
    return build_own(corpus, codec, shortlists=settings.shortlists, training_seconds=seconds)


def _faiss(corpus: Corpus, name: str, code_bytes: int | None) -> SearchedIndex:
    from rqmoe_store.evaluation.faiss_peers import build_faiss  # of the extra `bench`

    return build_faiss(corpus, name, code_bytes)


def _measure(
    index: SearchedIndex,
    queries_QD: Float32Array,
    truth_QK: Indices,
    settings: SearchSettings,
    report: SearchReport,
) -> None:
    """Measure one index, and add the results to the report."""
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
    found_QK, _ = exact_neighbors(queries_QD, index.reconstructions, NEIGHBORS, metric=settings.config.metric)
    recall = k_recall_at_k(found_QK, truth_QK, NEIGHBORS)
    return dataclasses.replace(index.result, exhaustive_recall=recall)


def load_codecs(settings: SearchSettings, dim: int | None) -> dict[int, Codec]:
    """Load codecs from the folder of the settings: size -> codec; empty without a folder.

    Args:
        settings: of the benchmark.
        dim: dimension of the vectors; None for that of the first codec.

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
        codec = load_matching(
            str(folder), dim=dim, metric=settings.config.metric, device=settings.training.device
        )
        if codec.config.code_bytes != size:
            raise InvalidInputError(
                f"The codec in {str(folder)!r} has {codec.config.code_bytes} code bytes; expected {size}, as "
                "its folder is called."
            )
        codecs[size], dim = codec, codec.dim
    return codecs


def synthetic_queries(settings: SearchSettings, dim: int, count: int) -> tuple[Float32Array, dict[str, Any]]:
    """Random unit vectors to search tables of random codes for, and a description of them for the report.

    Args:
        settings: of the benchmark.
        dim: dimension where the settings name no folder of codecs, which have one.
        count: number of queries.

    Raises as `load_codecs`, and InvalidInputError for a dimension below 1.
    """
    if dim < 1:
        raise InvalidInputError(f"Got dim={dim}; expected the dimension of the codecs, at least 1.")
    # One of them has the dimension of all.
    first = dataclasses.replace(settings, code_bytes=settings.code_bytes[:1])
    dims = [codec.dim for codec in load_codecs(first, None).values()]
    queries_QD = random_queries(dims[0] if dims else dim, count, settings.training.seed)
    data = {"vectors": None, "queries": None, "metric": settings.config.metric, "dim": queries_QD.shape[1]}
    counts = {"rows": 0, "rows_used": 0, "query_rows": count, "query_rows_used": count}
    return queries_QD, {**data, **counts}


def train_codec(
    settings: SearchSettings, vectors_ND: Float32Array, code_bytes: int, num_partitions: int
) -> tuple[Codec, float]:
    """Train a codec on the vectors; returns it and the seconds that it took."""
    # One partition is the same as none, and a transform code has none.
    partitions = 0 if settings.config.is_transform or num_partitions == 1 else num_partitions
    config = dataclasses.replace(settings.config, code_bytes=code_bytes, num_partitions=partitions)
    started = time.perf_counter()
    codec = train(vectors_ND, config=config, training=settings.training)
    return codec, time.perf_counter() - started
