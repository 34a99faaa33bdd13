"""Answers found: nDCG@10 and success@k of codecs where it is known which rows answer a query.

The measures are those of `ranx`, from the extra `bench`.

Shape suffixes: N vectors, Q queries, K neighbors, A answers of a query, D vector dimension, S samples of a
bootstrap, 2 a row and its relevance or score.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rqmoe_store.codecs.device import select_device
from rqmoe_store.codecs.vectors import Float32Array, as_vectors
from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.contenders import (
    MeasuredCodec,
    SearchedCodec,
    check_contenders,
    plan_asked,
)
from rqmoe_store.evaluation.machine import describe_machine, require_bench
from rqmoe_store.evaluation.recall import Indices, exact_neighbors, k_recall_at_k
from rqmoe_store.evaluation.tables import format_optional, table_of

NEIGHBORS = 10
RAW = "raw vectors"

_CHUNK_ROWS = 8192
_SAMPLES = 1_000
_BETWEEN = (2.5, 97.5)
_WITHOUT_PARTITIONS = CodecConfig(metric="cosine", num_partitions=0)
_TRAINING = TrainConfig()

Float64Array = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerSettings:
    """Codecs to compare."""

    codecs: tuple[str, ...] = ("rq",)
    """As for `bench codec`."""
    code_bytes: tuple[int, ...] = (8, 16)
    """Sizes to train."""
    refine_bytes: tuple[int, ...] = ()
    """Sizes of refine codes that each of our codecs is also measured with."""
    config: CodecConfig = _WITHOUT_PARTITIONS
    """All other settings of our codecs."""
    training: TrainConfig = _TRAINING
    """How to train each of our codecs."""

    def __post_init__(self) -> None:
        check_contenders(self.codecs, self.code_bytes, self.refine_bytes, self.config)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerResult:
    """What a codec, or the raw vectors, find."""

    codec: str
    code_bytes: int
    """All bytes that are kept per vector."""
    ndcg_10: float
    """nDCG@10: 1 if the rows that answer a query come first."""
    success_1: float
    """Share of queries of which the first row found is an answer."""
    success_10: float
    """Share of queries of which one of the first 10 rows found is an answer."""
    kept: float | None = None
    """nDCG@10 as a share of that of raw vectors; None for these."""
    kept_low: float | None = None
    kept_high: float | None = None
    """Where that share is with a confidence of 95 %, by a bootstrap over the queries."""
    overlap: float | None = None
    """10-recall@10: share of the 10 nearest raw vectors among the 10 rows found; None for raw vectors."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerReport:
    """Results of raw vectors and of all codecs."""

    settings: dict[str, Any]
    machine: dict[str, Any]
    results: list[AnswerResult] = dataclasses.field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """All figures as JSON-ready values."""
        return dataclasses.asdict(self)


def benchmark_answers(
    vectors: Any,
    queries: Any,
    relevant: Sequence[Sequence[int]],
    *,
    settings: AnswerSettings,
    console: Console,
    on_done: Callable[[AnswerReport], None] = lambda report: None,
) -> AnswerReport:
    """Measure what exhaustive searches of raw vectors and of every codec find.

    Codecs are trained on all vectors, as those of a table are. They know neither queries nor answers.

    Args:
        vectors: (N, D).
        queries: (Q, D).
        relevant: of each query, the positions of the vectors that answer it, as `relevance_of` reads them.
        settings: codecs to compare.
        console: console for progress.
        on_done: called with all results so far whenever something has been measured.

    Raises:
        InvalidInputError: vectors and queries do not fit each other, there are too few, or the settings do
            not fit them. Nothing has been trained by then.
        ArtifactError: a folder has no readable codec.
        RQMoEError: the extra `bench` is not installed.
    """
    require_bench("ranx")
    metric = settings.config.metric
    vectors_ND = as_vectors(np.array(vectors), metric=metric)
    queries_QD = as_vectors(queries, dim=vectors_ND.shape[1], metric=metric)
    if len(vectors_ND) < NEIGHBORS:
        raise InvalidInputError(f"Got {len(vectors_ND)} vectors; expected at least {NEIGHBORS}.")
    contenders = plan_asked(
        settings.codecs,
        settings.code_bytes,
        config=settings.config,
        training=settings.training,
        dim=vectors_ND.shape[1],
        training_rows=len(vectors_ND),
        refine_bytes=settings.refine_bytes,
    )
    machine = describe_machine(select_device(settings.training.device))
    report = AnswerReport(settings=dataclasses.asdict(settings), machine=machine)
    truth_QK, _ = exact_neighbors(queries_QD, vectors_ND, NEIGHBORS, metric=metric)
    raw = ranking_measures(truth_QK, relevant)
    report.results.append(_result(RAW, 4 * vectors_ND.shape[1], raw))
    on_done(report)
    for contender in contenders:
        console.print(f"Training and searching {contender}", highlight=False)
        found_QK = _search(contender.prepare(vectors_ND), vectors_ND, queries_QD, settings.config)
        measured = ranking_measures(found_QK, relevant)
        low, share, high = shares_kept(raw["ndcg_10"], measured["ndcg_10"])
        result = dataclasses.replace(
            _result(contender.name, contender.code_bytes, measured),
            kept=share,
            kept_low=low,
            kept_high=high,
            overlap=k_recall_at_k(found_QK, truth_QK, NEIGHBORS),
        )
        report.results.append(result)
        on_done(report)
    return report


def _search(
    codec: MeasuredCodec | SearchedCodec,
    vectors_ND: Float32Array,
    queries_QD: Float32Array,
    config: CodecConfig,
) -> Indices:
    if isinstance(codec, SearchedCodec):
        return codec.search(vectors_ND, queries_QD, NEIGHBORS)
    decoded_ND = np.empty_like(vectors_ND)
    for start in range(0, len(vectors_ND), _CHUNK_ROWS):
        block = slice(start, start + _CHUNK_ROWS)
        decoded_ND[block] = codec.decode(codec.encode(vectors_ND[block]))
    return exact_neighbors(queries_QD, decoded_ND, NEIGHBORS, metric=config.metric)[0]


def ranking_measures(found_QK: Indices, relevant: Sequence[Sequence[int]]) -> dict[str, Float64Array]:
    """Measure "ndcg_10", "success_1" and "success_10" of every query (Q), by ranx.

    Args:
        found_QK: rows, best first; negative ones mean "nothing found".
        relevant: of each query, the rows that answer it.
    """
    from ranx.metrics import hit_rate, ndcg

    # Pairs of a row and its relevance or score, as ranx takes them. It skips pairs of no relevance, and rows
    # below all that are relevant, which negative ones are.
    most = max(map(len, relevant))
    padded = [[(row, 1) for row in rows] + [(-1, 0)] * (most - len(rows)) for rows in relevant]
    answers_QA2 = np.array(padded, dtype=np.float64)
    scores_QK = np.broadcast_to(-np.arange(found_QK.shape[1]), found_QK.shape)
    run_QK2 = np.stack([found_QK, scores_QK], axis=2).astype(np.float64)
    return {
        "ndcg_10": ndcg(answers_QA2, run_QK2, 10),
        "success_1": hit_rate(answers_QA2, run_QK2, 1),
        "success_10": hit_rate(answers_QA2, run_QK2, 10),
    }


def shares_kept(raw_Q: Float64Array, kept_Q: Float64Array) -> tuple[float, float, float]:
    """The sum of one measure as a share of that of the other, between its bounds with a confidence of 95 %.

    The bounds are those of a bootstrap over the queries, each of which has both measures.

    Raises:
        InvalidInputError: raw vectors find no answers, so that there is nothing to keep.
    """
    samples_SQ = np.random.default_rng(0).integers(len(raw_Q), size=(_SAMPLES, len(raw_Q)))
    raw_S, kept_S = raw_Q[samples_SQ].sum(axis=1), kept_Q[samples_SQ].sum(axis=1)
    if not raw_S.all():
        raise InvalidInputError(
            f"Raw vectors find answers to {np.count_nonzero(raw_Q)} of {len(raw_Q)} queries only; expected "
            "more queries, or other embeddings."
        )
    low, high = np.percentile(kept_S / raw_S, _BETWEEN)
    return float(low), float(kept_Q.sum() / raw_Q.sum()), float(high)


def _result(name: str, code_bytes: int, measured: dict[str, Float64Array]) -> AnswerResult:
    return AnswerResult(
        codec=name,
        code_bytes=code_bytes,
        ndcg_10=float(measured["ndcg_10"].mean()),
        success_1=float(measured["success_1"].mean()),
        success_10=float(measured["success_10"].mean()),
    )


def answer_tables(report: AnswerReport) -> list[Table]:
    """What `bench answers` shows."""
    shown = table_of(
        "Answers found",
        "codec; bytes; nDCG@10; kept; 95 % between; success@1; success@10; 10-R@10",
        caption="Kept: nDCG@10 as a share of that of raw vectors. 10-R@10: share of the 10 nearest raw "
        "vectors among the 10 rows found. Exhaustive search.",
    )
    for result in report.results:
        between = "-" if result.kept_low is None else f"{result.kept_low:.3f} to {result.kept_high:.3f}"
        shown.add_row(
            escape(result.codec),
            f"{result.code_bytes:,}",
            f"{result.ndcg_10:.3f}",
            format_optional(result.kept, "{:.3f}"),
            between,
            f"{result.success_1:.3f}",
            f"{result.success_10:.3f}",
            format_optional(result.overlap, "{:.3f}"),
        )
    return [shown]
