"""Documents of many vectors: recall of exact MaxSim, bytes and time of ours, LanceDB's and a peer's searches.

Shape suffixes: B documents, T vectors of all documents, Q queries, K vectors of all queries, D dimension,
N neighbors, F dimension of an encoding, n vectors of a sample or a block.
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import torch
from lancedb.index import IvfPq
from lancedb.table import LanceTable
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rqmoe_store.codecs.base import load_codec
from rqmoe_store.codecs.subject import describe_subject, may_be, of_rows
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import TRANSFORM_KINDS, CodecConfig, Metric, MultiVectorConfig, TrainConfig
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.data import open_array
from rqmoe_store.evaluation.data_sets import BASE, LENGTHS, QUERIES, QUERY_LENGTHS
from rqmoe_store.evaluation.machine import describe_machine
from rqmoe_store.evaluation.recall import Indices, k_recall_at_k
from rqmoe_store.evaluation.residual_codec import ResidualCodec
from rqmoe_store.evaluation.search_measurement import ID, VECTOR, positions_of
from rqmoe_store.evaluation.tables import format_optional, table_of
from rqmoe_store.multivector.fixed_dimensional import FixedDimensionalEncoder
from rqmoe_store.multivector.max_sim import checked_max_sim
from rqmoe_store.multivector.vector_lists import Lengths, starts_of
from rqmoe_store.store.statistics import column_bytes
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import create_table

FEW, MANY = 10, 100
"""Neighbors whose recall is measured."""

_BLOCK_DOCUMENTS = 1_000
_RESIDUAL_BITS = 2
_METRIC: Metric = "cosine"
_TRAINING = TrainConfig(epochs=0)
_ENCODING = MultiVectorConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiVectorSettings:
    """What to compare."""

    sizes: tuple[tuple[int, int], ...] = ((8, 0), (16, 0), (16, 16))
    """Bytes of a vector's code and of its refine code, or 0."""
    kind: str = "rq"
    """Kind of the codec of vectors."""
    encoding: MultiVectorConfig = _ENCODING
    """How rows are found."""
    shortlist: int | None = None
    """Rows scored by all their vectors, of searches for 10; None for the default."""
    training: TrainConfig = _TRAINING
    """How to train each codec."""
    training_documents: int = 4_000
    """Documents whose vectors codecs are trained on."""
    codecs: str | None = None
    """Folder of codecs of vectors without refine codes, "<kind>-<bytes>". One that is there is trained no
    further, and gets refine codes where a size asks for them; others are trained and saved there. None trains
    every codec."""
    centroids: int = 4_096
    """Centroids of the peer with residuals of 2 bits; 0 leaves it out."""
    nprobes: tuple[int, ...] = (20,)
    """Partitions that searches of LanceDB's index probe; without any, none is built."""
    timed_queries: int = 30
    """Queries that are timed, each with all systems in turn."""

    def __post_init__(self) -> None:
        if not self.sizes or self.timed_queries < 1 or self.training_documents < MANY:
            raise InvalidInputError(
                f"Got {len(self.sizes)} sizes, {self.timed_queries} timed queries and "
                f"{self.training_documents} documents to train on; expected at least 1, 1 and {MANY}."
            )
        for size in self.sizes:
            self.config_of(size)
            self._require_kept(size)
        if self.codecs is not None and not Path(self.codecs).is_dir():
            raise InvalidInputError(f"Got codecs={self.codecs!r}, which is no folder; make it first.")
        if self.codecs is not None and self.kind in TRANSFORM_KINDS:
            raise InvalidInputError(
                f"Got codecs={self.codecs!r} with kind={self.kind!r}; expected a kind that is trained. Leave "
                "codecs out: a transform code is fitted in seconds."
            )

    def kept(self, size: tuple[int, int]) -> Path | None:
        """Where the codec for a size is kept; None if codecs are not."""
        return None if self.codecs is None else Path(self.codecs) / f"{self.kind}-{size[0]}"

    def _require_kept(self, size: tuple[int, int]) -> None:
        """Raise InvalidInputError for a kept codec of something else than tables encode."""
        kept, wanted = self.kept(size), of_rows(_METRIC, self.encoding)
        if kept is not None and kept.exists() and not may_be(load_codec(kept).encodes, wanted):
            raise InvalidInputError(
                f"Got codecs={self.codecs!r}, where {kept.name} is not of {describe_subject(wanted)}; "
                "expected one as this benchmark trains it. Give another folder."
            )

    def config_of(self, size: tuple[int, int]) -> CodecConfig:
        """The codec of vectors of a size."""
        return CodecConfig(
            kind=self.kind,  # type: ignore[arg-type]  # checked
            metric=_METRIC,
            code_bytes=size[0],
            refine_bytes=size[1],
            refine_base="decoded",  # as what is ranked by refine codes is decoded
            num_partitions=0,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiVectorData:
    """Documents and queries of many vectors each, of unit length."""

    vectors_TD: Any
    """Array-like, float16 or float32; it is read in parts."""
    lengths_B: Lengths
    queries_KD: Float32Array
    query_lengths_Q: Lengths

    @property
    def queries(self) -> list[Float32Array]:
        """The vectors of each query."""
        return np.split(self.queries_KD, np.cumsum(self.query_lengths_Q)[:-1])

    def blocks(self) -> Iterator[tuple[int, Float32Array, Lengths]]:
        """Some documents at a time: the number of the first one, their vectors and lengths."""
        starts_B1 = starts_of(self.lengths_B)
        for first in range(0, len(self.lengths_B), _BLOCK_DOCUMENTS):
            last = min(first + _BLOCK_DOCUMENTS, len(self.lengths_B))
            block_nD = np.asarray(self.vectors_TD[starts_B1[first] : starts_B1[last]], np.float32)
            yield first, block_nD, self.lengths_B[first:last]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiVectorResult:
    """What one system finds, keeps and takes."""

    system: str
    document_bytes: float
    """All bytes kept of a document's vectors, on average."""
    recall_10: float
    """Share of the 10 best documents by exact MaxSim of raw vectors among the first 10 found."""
    recall_100: float
    milliseconds: float | None
    """Median time of a query for 10 documents; None where it isn't measured."""


@dataclasses.dataclass(kw_only=True)
class MultiVectorReport:
    """All results so far. It grows while systems are measured."""

    settings: dict[str, Any]
    machine: dict[str, Any]
    counts: dict[str, int]
    results: list[MultiVectorResult] = dataclasses.field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """All figures as JSON-ready values."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class _System:
    """A search of one kind, ready to run."""

    name: str
    document_bytes: float
    find: Callable[[Float32Array, int], Indices] | None
    """Positions (at most N) of the best documents for a query (K, D); None if `found_QN` has them."""
    found_QN: Indices | None = None
    is_exact: bool = False
    """Whether it compares all raw vectors, which takes long: only queries that are timed are measured."""


def read_multi_vector_data(folder: Path, most_documents: int, most_queries: int) -> MultiVectorData:
    """The first documents and queries of a data set of kind "tokens".

    Raises:
        InvalidInputError: there is no such data set, or it has too few documents or queries.
    """
    lengths_B, query_lengths_Q = (
        np.asarray(open_array("FOLDER", str(folder / name)), np.int64) for name in (LENGTHS, QUERY_LENGTHS)
    )
    lengths_B, query_lengths_Q = lengths_B[:most_documents], query_lengths_Q[:most_queries]
    if len(lengths_B) < MANY or len(query_lengths_Q) < 1:
        raise InvalidInputError(
            f"Got {len(lengths_B)} documents and {len(query_lengths_Q)} queries; expected at least {MANY} "
            "and 1."
        )
    vectors_TD, queries_KD = (open_array("FOLDER", str(folder / name)) for name in (BASE, QUERIES))
    return MultiVectorData(
        vectors_TD=vectors_TD[: int(lengths_B.sum())],
        lengths_B=lengths_B,
        queries_KD=np.asarray(queries_KD[: int(query_lengths_Q.sum())], np.float32),
        query_lengths_Q=query_lengths_Q,
    )


def benchmark_multi_vector(
    data: MultiVectorData,
    settings: MultiVectorSettings,
    console: Console,
    on_done: Callable[[MultiVectorReport], None] = lambda report: None,
) -> MultiVectorReport:
    """Measure all systems.

    Args:
        data: documents and queries.
        settings: what to compare.
        console: console for progress.
        on_done: called with all results so far once systems have been measured.
    """
    counts = {
        "documents": len(data.lengths_B),
        "vectors": int(data.lengths_B.sum()),
        "dim": data.queries_KD.shape[1],
        "queries": len(data.query_lengths_Q),
        "query_vectors": len(data.queries_KD),
    }
    machine = describe_machine(torch.device("cpu"))
    report = MultiVectorReport(settings=dataclasses.asdict(settings), machine=machine, counts=counts)
    console.print("Comparing all raw vectors", highlight=False)
    truth_QN = best_documents(data, lambda block_nD: block_nD)
    with tempfile.TemporaryDirectory(prefix="rqmoe-bench-") as folder:
        db = lancedb.connect(folder)
        systems = list(_systems(db, data, settings, console))
        console.print("Searching", highlight=False)
        times = _time_in_turn(systems, data.queries[: settings.timed_queries])
        for system in systems:
            asked = data.queries[: settings.timed_queries] if system.is_exact else data.queries
            report.results.append(_measure(system, asked, truth_QN, times.get(system.name)))
            on_done(report)
    return report


def best_documents(data: MultiVectorData, change: Callable[[Float32Array], Float32Array]) -> Indices:
    """The best documents (Q, MANY) by MaxSim of all vectors, after a change of each block of them."""
    scores = [
        checked_max_sim(data.queries_KD, data.query_lengths_Q, change(block_nD), lengths_n)
        for _, block_nD, lengths_n in data.blocks()
    ]
    return _best(np.concatenate(scores, axis=1))


def _best(scores_QB: Float32Array) -> Indices:
    return np.argsort(-scores_QB, axis=1, kind="stable")[:, :MANY].astype(np.int64)


def _systems(
    db: lancedb.DBConnection, data: MultiVectorData, settings: MultiVectorSettings, console: Console
) -> Iterator[_System]:
    def say(what: str) -> None:
        console.print(what, highlight=False)

    say("Writing raw vectors")
    yield (raw := _raw_table(db, data))
    yield _raw_encodings(data, settings)
    for size in settings.sizes:
        say(f"Encoding in {_name_of(size)} bytes a vector")
        yield from _own_tables(db, data, settings, size)
    if settings.centroids:
        say("Encoding centroids and residuals")
        yield _residuals(data, settings)
    # Last, as LanceDB's searches use the index from then on.
    if settings.nprobes:
        say("Indexing raw vectors")
        docs = db.open_table(_RAW)
        assert isinstance(docs, LanceTable), "of a database in a folder"
        docs.create_index(VECTOR, config=IvfPq(distance_type="cosine"))
        index_bytes = sum(index.size_bytes or 0 for index in docs.list_indices()) / len(data.lengths_B)
        for nprobes in settings.nprobes:
            yield _System(
                f"LanceDB IVF_PQ, {nprobes} probes, refined",
                raw.document_bytes + index_bytes,
                _lancedb_search(docs, nprobes),
            )


_RAW = "raw"


def _schema(dim: int) -> pa.Schema:
    return pa.schema([(ID, pa.int64()), (VECTOR, pa.list_(pa.list_(pa.float32(), dim)))])


def _batches(data: MultiVectorData) -> pa.RecordBatchReader:
    """All documents in Arrow, read in parts."""
    schema = _schema(data.queries_KD.shape[1])

    def batches() -> Iterator[pa.RecordBatch]:
        for first, block_nD, lengths_n in data.blocks():
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(block_nD.ravel()), block_nD.shape[1])
            lists = pa.ListArray.from_arrays(pa.array(starts_of(lengths_n), pa.int32()), vectors)
            ids = pa.array(np.arange(first, first + len(lengths_n)))
            yield pa.RecordBatch.from_arrays([ids, lists], schema=schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


def _raw_table(db: lancedb.DBConnection, data: MultiVectorData) -> _System:
    docs = db.create_table(_RAW, _batches(data))
    assert isinstance(docs, LanceTable), "of a database in a folder"
    raw_bytes = column_bytes(docs, [VECTOR]) / len(data.lengths_B)
    return _System("LanceDB, raw vectors", raw_bytes, _lancedb_search(docs, None), is_exact=True)


def _lancedb_search(docs: LanceTable, nprobes: int | None) -> Callable[[Float32Array, int], Indices]:
    def find(query_KD: Float32Array, k: int) -> Indices:
        query: Any = docs.search(query_KD, vector_column_name=VECTOR).distance_type("cosine").limit(k)
        exhaustive = nprobes is None
        query = query.bypass_vector_index() if exhaustive else query.nprobes(nprobes).refine_factor(FEW)
        found_1N = positions_of(query.select([ID, "_distance"]).to_arrow(), 1, k)
        return np.asarray(found_1N[0], np.int64)

    return find


def _raw_encodings(data: MultiVectorData, settings: MultiVectorSettings) -> _System:
    """Exhaustive search over encodings that are not compressed."""
    encoder = _encoder(settings.encoding, data.queries_KD.shape[1])
    encoded_BF = np.concatenate(
        [encoder.encode_documents(block_nD, lengths_n) for _, block_nD, lengths_n in data.blocks()]
    )

    def find(query_KD: Float32Array, k: int) -> Indices:
        scores_B = encoded_BF @ encoder.encode_queries([query_KD])[0]
        near_N = np.argpartition(-scores_B, k)[:k]
        return np.asarray(near_N[np.argsort(-scores_B[near_N], kind="stable")], np.int64)

    return _System("encodings alone, raw", 4.0 * encoder.fde_dim, find)


def _encoder(encoding: MultiVectorConfig, dim: int) -> FixedDimensionalEncoder:
    fields = {**encoding.to_dict()}
    for name in ("code_bytes", "subtract_mean"):
        fields.pop(name)
    return FixedDimensionalEncoder(dim, **fields)


def _own_tables(
    db: lancedb.DBConnection, data: MultiVectorData, settings: MultiVectorSettings, size: tuple[int, int]
) -> Iterator[_System]:
    """A table of ours, searched with all vectors of a shortlist, and of the first size by encodings alone."""
    name = f"codes_{_name_of(size).replace('+', '_')}"
    store = create_table(
        db,
        name,
        schema=_schema(data.queries_KD.shape[1]),
        config=settings.config_of(size),
        multi_vector=settings.encoding,
    )
    kept = settings.kept(size)
    vectors = _sample(data, settings)
    if kept is not None and kept.exists():
        untrained = dataclasses.replace(settings.training, epochs=0, max_minutes=None)
        store.retrain(untrained, vectors=vectors, start=load_codec(kept), progress=False)
    else:
        codec = store.train(settings.training, vectors=vectors, progress=False)
        if kept is not None and not size[1]:
            codec.save(kept)
    store.add(_batches(data))
    if size == settings.sizes[0]:
        alone = float(settings.encoding.code_bytes)
        yield _System("encodings alone, codes", alone, _own_search(store, "none", None))
    document_bytes = store.stats().code_disk_bytes / len(data.lengths_B)
    find = _own_search(store, None, settings.shortlist)
    yield _System(f"ours, {_name_of(size)} bytes a vector", document_bytes, find)


def _sample(data: MultiVectorData, settings: MultiVectorSettings) -> list[Float32Array]:
    """The vectors of documents drawn at random, to train on."""
    starts_B1 = starts_of(data.lengths_B)
    random = np.random.default_rng(settings.training.seed)
    drawn = np.sort(random.permutation(len(data.lengths_B))[: settings.training_documents])
    return [
        np.asarray(data.vectors_TD[starts_B1[each] : starts_B1[each + 1]], np.float32)
        for each in drawn
        if data.lengths_B[each]
    ]


def _own_search(
    store: CompressedTable, rerank: str | None, shortlist: int | None
) -> Callable[[Float32Array, int], Indices]:
    def find(query_KD: Float32Array, k: int) -> Indices:
        query = store.search(query_KD).limit(k).select([ID])
        if rerank is not None:
            query = query.rerank(rerank)  # type: ignore[arg-type]  # a literal above
        if shortlist is not None:
            query = query.shortlist(shortlist * k // FEW)
        return np.asarray(positions_of(query.to_arrow(), 1, k)[0], np.int64)

    return find


def _residuals(data: MultiVectorData, settings: MultiVectorSettings) -> _System:
    """What MaxSim with all centroids and residuals of 2 bits finds; engines look at fewer documents."""
    sample_nD = np.concatenate(_sample(data, settings))
    centroids = min(settings.centroids, len(sample_nD))
    seed = settings.training.seed
    codec = ResidualCodec(sample_nD, centroids=centroids, bits=_RESIDUAL_BITS, seed=seed)
    found_QN = best_documents(data, codec.round_trip)
    document_bytes = codec.code_bytes * float(data.lengths_B.mean())
    return _System("centroids and 2 bits (PLAID)", document_bytes, None, found_QN)


def _name_of(size: tuple[int, int]) -> str:
    return f"{size[0]}+{size[1]}" if size[1] else f"{size[0]}"


def _time_in_turn(systems: list[_System], queries: list[Float32Array]) -> dict[str, float]:
    """Median milliseconds of each system's query for 10; each query with all systems in turn, one after the
    other, so that what else the machine does concerns all alike."""
    finding = [(system.name, system.find) for system in systems if system.find is not None]
    times: dict[str, list[float]] = {name: [] for name, _ in finding}
    for _, find in finding:
        find(queries[0], FEW)  # loads codes
    for query_KD in queries:
        for name, find in finding:
            started = time.perf_counter()
            find(query_KD, FEW)
            times[name].append(1000 * (time.perf_counter() - started))
    return {name: float(np.median(each)) for name, each in times.items()}


def _measure(
    system: _System, queries: list[Float32Array], truth_QN: Indices, milliseconds: float | None
) -> MultiVectorResult:
    recalls = []
    for k in (FEW, MANY):
        if system.find is not None:
            found_QN = np.stack([system.find(query_KD, k) for query_KD in queries])
        else:
            assert system.found_QN is not None, "a system finds, or has found"
            found_QN = system.found_QN
        recalls.append(k_recall_at_k(found_QN, truth_QN[: len(queries)], k))
    return MultiVectorResult(
        system=system.name,
        document_bytes=system.document_bytes,
        recall_10=recalls[0],
        recall_100=recalls[1],
        milliseconds=milliseconds,
    )


def multi_vector_tables(report: MultiVectorReport) -> list[Table]:
    """What `bench multivector` shows."""
    raw = report.results[0].document_bytes
    shown = table_of(
        "Documents of many vectors",
        "system; bytes a document; of raw; R@10; R@100; ms a query",
        caption="R@k: share of the k best documents by MaxSim of raw vectors among the first k found. Bytes: "
        "of vectors, codes and indexes. Time: median of a query for 10, all systems in turn.",
    )
    for result in report.results:
        shown.add_row(
            escape(result.system),
            f"{result.document_bytes:,.0f}",
            f"1/{raw / result.document_bytes:.1f}",
            f"{result.recall_10:.3f}",
            f"{result.recall_100:.3f}",
            format_optional(result.milliseconds, "{:,.1f}"),
        )
    return [shown]
