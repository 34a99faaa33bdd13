"""What tuning a codec for queries gains: nDCG@10 and recall@10 before and after, of queries held out.

Shape suffixes: N vectors, Q queries, D vector dimension.
"""

import dataclasses
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
from rich.table import Table

from rqmoe_store.arguments import whole_number
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import CodecConfig, Metric, TrainConfig
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.data import read_described
from rqmoe_store.evaluation.data_sets import Relevant, read_relevance
from rqmoe_store.evaluation.search_measurement import ID, VECTOR
from rqmoe_store.evaluation.tables import table_of
from rqmoe_store.tables import compress
from rqmoe_store.training.relevance import RelevanceReport
from rqmoe_store.training.trainer import train

_ALL = 2**32


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelevanceBenchmarkSettings:
    """What to measure."""

    code_bytes: tuple[int, ...] = (8, 16, 32)
    config: CodecConfig = dataclasses.field(default_factory=lambda: CodecConfig(kind="rq", metric="cosine"))
    """Of the codecs, but for their size."""
    training: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    splits: int = 3
    """Each of them holds out other queries."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "splits", whole_number("splits", self.splits, 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelevanceResult:
    """What tuning one codec gains, split by split."""

    kind: str
    code_bytes: int
    validation_mse: float
    """Of the codec."""
    splits: list[RelevanceReport]

    def mean(self, figure: str) -> float:
        """Mean over the splits of a figure of their reports, by its name."""
        return statistics.fmean(getattr(split, figure) for split in self.splits)


@dataclasses.dataclass(kw_only=True)
class RelevanceBenchmarkReport:
    """All results so far."""

    settings: dict[str, Any]
    machine: dict[str, Any]
    data: dict[str, Any]
    results: list[RelevanceResult] = dataclasses.field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON-ready values."""
        return dataclasses.asdict(self)


def read_relevance_data(
    vectors: str, queries: str, relevance: str | None, vector_column: str, *, metric: Metric, seed: int
) -> tuple[Float32Array, Float32Array, Relevant | None, dict[str, Any]]:
    """Read all vectors and queries, what answers them, if that is named, and a description for the report.

    Raises:
        InvalidInputError: as `read_relevance`; answers are named by position, and rows come from a table.
        TableError: as `read_described`.
    """
    for option, location in (("--vectors", vectors), ("--queries", queries)):
        if relevance is not None and Path(location).suffix != ".npy":
            raise InvalidInputError(
                f"Got --relevance and {option} {location!r}; expected a .npy file, as rows of tables come in "
                "random order, and answers are positions."
            )
    most = _ALL, _ALL
    vectors_ND, queries_QD, data = read_described(
        vectors, queries, vector_column, most, metric=metric, seed=seed
    )
    assert vectors_ND is not None, "vectors are named"
    positives = None
    if relevance is not None:
        positives = read_relevance("--relevance", relevance, len(queries_QD), len(vectors_ND))
    return vectors_ND, queries_QD, positives, data | {"relevance": relevance}


def benchmark_relevance(
    vectors_ND: Float32Array,
    queries_QD: Float32Array,
    positives: Relevant | None,
    settings: RelevanceBenchmarkSettings,
    on_done: Callable[[RelevanceResult], None],
) -> None:
    """Train a codec of each size, and tune it in a table for a part of the queries, split by split.

    Args:
        vectors_ND: rows of the table.
        queries_QD: queries.
        positives: what they should find; None for their 10 exact neighbors.
        settings: what to measure.
        on_done: called with every result.

    Raises:
        InvalidInputError: as `CompressedTable.tune_codec`.
    """
    for size in settings.code_bytes:
        config = dataclasses.replace(settings.config, code_bytes=size)
        codec = train(vectors_ND, config=config, training=settings.training)
        with tempfile.TemporaryDirectory(prefix="rqmoe-bench-") as folder:
            lists = pa.FixedSizeListArray.from_arrays(vectors_ND.ravel(), vectors_ND.shape[1])
            rows = pa.table({ID: np.arange(len(vectors_ND)), VECTOR: lists})
            docs = lancedb.connect(Path(folder)).create_table("docs", rows)
            store = compress(
                docs, codec, "codes", vector_column=VECTOR, keep_vectors="float32", progress=False
            )
            version, reports = store.version, list[RelevanceReport]()
            for seed in range(settings.splits):
                on = None if positives is None else ID
                reports.append(store.tune_codec(queries_QD, positives, on=on, seed=seed, progress=False))
                if reports[-1].kept:
                    store.restore(version)
        error = codec.report.validation_mse
        on_done(RelevanceResult(kind=config.kind, code_bytes=size, validation_mse=error, splits=reports))


def relevance_table(report: RelevanceBenchmarkReport) -> Table:
    """What `bench relevance` shows."""
    shown = table_of(
        "Relevance",
        "codec; bytes; nDCG@10 before; after; gain between; and; recall@10 before; recall@10 after; kept",
        caption=f"Of queries held out, means of {report.settings['splits']} splits. Gain: where that of "
        "nDCG@10 is with a confidence of 95 %.",
    )
    ndcg = ("ndcg_before", "ndcg_after", "ndcg_gain_low", "ndcg_gain_high")
    for each in report.results:
        means = [f"{each.mean(figure):.3f}" for figure in (*ndcg, "recall_before", "recall_after")]
        kept = sum(split.kept for split in each.splits)
        shown.add_row(each.kind, f"{each.code_bytes}", *means, f"{kept} of {len(each.splits)}")
    return shown
