"""Recall of codecs as a table grows, when they are trained on its first rows only.

Shape suffixes: N vectors, Q queries, K neighbors, D vector dimension.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rqmoe_store.codecs.device import select_device
from rqmoe_store.codecs.neighbors import NearestRows
from rqmoe_store.codecs.vectors import Float32Array, as_vectors
from rqmoe_store.config import CodecConfig, Metric, TrainConfig
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.contenders import (
    Contender,
    MeasuredCodec,
    SearchedCodec,
    check_contenders,
    plan_asked,
)
from rqmoe_store.evaluation.machine import describe_machine
from rqmoe_store.evaluation.peer_names import LANCEDB_RQ, family_of
from rqmoe_store.evaluation.recall import Indices, k_recall_at_k
from rqmoe_store.evaluation.tables import table_of
from rqmoe_store.progress import late_progress

NEIGHBORS = 10

MAX_QUERIES = 1_000
"""Most queries, which are compared with every row exhaustively."""

_CHUNK_ROWS = 8192
_UNDECODED = {"faiss-rabitq", LANCEDB_RQ}
_WITHOUT_PARTITIONS, _TRAINING = CodecConfig(num_partitions=0), TrainConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class GrowthSettings:
    """Codecs to compare, and numbers of rows to compare them at."""

    codecs: tuple[str, ...] = ("rq", "opq")
    """As for `bench codec`; those that only their own library searches are not among them."""
    code_bytes: tuple[int, ...] = (16,)
    """Sizes to train."""
    refine_bytes: tuple[int, ...] = ()
    """Sizes of refine codes that each of our codecs is also measured with."""
    rows: tuple[int, ...] = (60_000, 250_000, 1_000_000)
    """Numbers of rows, ascending. Codecs are trained on as many as the first."""
    config: CodecConfig = _WITHOUT_PARTITIONS
    """All other settings of our codecs."""
    training: TrainConfig = _TRAINING
    """How to train each of our codecs."""

    def __post_init__(self) -> None:
        check_contenders(self.codecs, self.code_bytes, self.refine_bytes, self.config)
        undecoded = [name for name in self.codecs if family_of(name) in _UNDECODED]
        if undecoded:
            raise InvalidInputError(
                f"Got {', '.join(undecoded)}, which only its own library searches; leave it away."
            )
        if not self.rows or self.rows[0] < NEIGHBORS or list(self.rows) != sorted(set(self.rows)):
            raise InvalidInputError(
                f"Got rows {list(self.rows)}; expected ascending numbers from {NEIGHBORS}, such as "
                "60000,250000."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class GrowthResult:
    """A codec at one number of rows."""

    codec: str
    code_bytes: int
    rows: int
    """Rows in which the nearest were looked for."""
    recall: float
    """10-recall@10 of exhaustive search over the reconstructions of these rows."""
    mse: float
    """Mean of ||x - x_hat||^2 over the rows since the number before."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GrowthReport:
    """Results at all numbers of rows."""

    settings: dict[str, Any]
    machine: dict[str, Any]
    results: list[GrowthResult] = dataclasses.field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """All figures as JSON-ready values."""
        return dataclasses.asdict(self)


@dataclasses.dataclass
class _Reconstructions:
    """What a codec makes of some rows of a file: encoded and decoded chunk by chunk, when they are read."""

    codec: MeasuredCodec
    vectors: Any
    metric: Metric
    advance: Callable[[int], None]
    squared_error: float = 0.0

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, rows: slice) -> Float32Array:
        chunk_ND = _checked(self.vectors[rows], self.metric)
        decoded_ND = self.codec.decode(self.codec.encode(chunk_ND))
        self.squared_error += float(np.square(chunk_ND - decoded_ND).sum(dtype=np.float64))
        self.advance(len(chunk_ND))
        return decoded_ND


def benchmark_growth(
    vectors: Any,
    queries: Any,
    *,
    settings: GrowthSettings,
    console: Console,
    on_done: Callable[[GrowthReport], None] = lambda report: None,
) -> GrowthReport:
    """Train every codec on the first rows, and measure it at every number of rows.

    Args:
        vectors: (N, D), possibly memory-mapped: it is read in chunks, once for the true neighbors and once
            for every codec. Vectors in the order in which the table grows.
        queries: (Q, D), at most 1,000.
        settings: codecs, and numbers of rows.
        console: console for progress.
        on_done: called with all results so far whenever a codec has been measured.

    Raises:
        InvalidInputError: there are too few vectors or too many queries, or the settings do not fit them.
            Nothing has been trained by then.
        ArtifactError: a folder has no readable codec.
        RQMoEError: FAISS is needed and not installed.
    """
    metric, most = settings.config.metric, settings.rows[-1]
    if len(vectors) < most or not 1 <= len(queries) <= MAX_QUERIES:
        raise InvalidInputError(
            f"Got {len(vectors):,} vectors and {len(queries):,} queries; expected at least {most:,} vectors, "
            f"as --rows says, and 1 to {MAX_QUERIES:,} queries."
        )
    training_ND = _checked(vectors[: settings.rows[0]], metric)
    queries_QD = as_vectors(queries, dim=training_ND.shape[1], metric=metric)
    contenders = plan_asked(
        settings.codecs,
        settings.code_bytes,
        config=settings.config,
        training=settings.training,
        dim=training_ND.shape[1],
        training_rows=len(training_ND),
        refine_bytes=settings.refine_bytes,
    )
    machine = describe_machine(select_device(settings.training.device))
    report = GrowthReport(settings=dataclasses.asdict(settings), machine=machine)
    console.print("Finding the true neighbors", highlight=False)
    parts = [vectors[start:stop] for start, stop in _bounds(settings.rows)]
    truths = list(_nearest(queries_QD, parts, metric))
    for contender in contenders:
        if contender.is_trained:
            console.print(f"Training {contender}", highlight=False)
        codec = contender.prepare(training_ND)
        assert not isinstance(codec, SearchedCodec), "the settings have none"
        with late_progress(f"Encoding and searching {contender}", most) as advance:
            made = [_Reconstructions(codec, part, metric, advance) for part in parts]
            for part, truth_QK, found_QK in zip(
                made, truths, _nearest(queries_QD, made, metric), strict=True
            ):
                report.results.append(_result(contender, part, truth_QK, found_QK, report, settings.rows))
        on_done(report)
    return report


def _checked(vectors: Any, metric: Metric) -> Float32Array:
    # A copy, so that results do not depend on which pages of the file the system has in memory.
    return as_vectors(np.array(vectors), metric=metric)


def _bounds(rows: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip((0, *rows[:-1]), rows, strict=True))


def _nearest(queries_QD: Float32Array, parts: Sequence[Any], metric: Metric) -> Iterator[Indices]:
    """The nearest rows (Q, K) of the first part, of the first two, and so on."""
    nearest, first = NearestRows(queries_QD, NEIGHBORS, metric), 0
    for part in parts:
        for start in range(0, len(part), _CHUNK_ROWS):
            chunk_ND = as_vectors(part[start : start + _CHUNK_ROWS], dim=queries_QD.shape[1], metric=metric)
            nearest.add(chunk_ND, np.arange(first, first + len(chunk_ND)))
            first += len(chunk_ND)
        yield nearest.ids_QK


def _result(
    contender: Contender,
    part: _Reconstructions,
    truth_QK: Indices,
    found_QK: Indices,
    report: GrowthReport,
    rows: Sequence[int],
) -> GrowthResult:
    done = sum(
        (result.codec, result.code_bytes) == (contender.name, contender.code_bytes)
        for result in report.results
    )
    return GrowthResult(
        codec=contender.name,
        code_bytes=contender.code_bytes,
        rows=rows[done],
        recall=k_recall_at_k(found_QK, truth_QK, NEIGHBORS),
        mse=part.squared_error / len(part),
    )


def growth_tables(report: GrowthReport) -> list[Table]:
    """What `bench growth` shows: recall and error by the number of rows."""
    counts = list(dict.fromkeys(result.rows for result in report.results))
    columns = "; ".join(["codec", "bytes", *(f"{count:,} rows" for count in counts)])
    first = f"{counts[0]:,}"
    recalls = table_of(
        "10-recall@10 as the table grows",
        columns,
        caption=f"Codecs are trained on the first {first} rows. Exhaustive search over reconstructions.",
    )
    errors = table_of(
        "MSE of the rows added",
        columns,
        caption="Mean of ||x - x_hat||^2 over the rows since the number before; the first are trained on.",
    )
    codecs = dict.fromkeys((result.codec, result.code_bytes) for result in report.results)
    for name, size in codecs:
        results = [each for each in report.results if (each.codec, each.code_bytes) == (name, size)]
        recalls.add_row(escape(name), str(size), *(f"{each.recall:.3f}" for each in results))
        errors.add_row(escape(name), str(size), *(f"{each.mse:.4g}" for each in results))
    return [recalls, errors]
