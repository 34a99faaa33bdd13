"""Training by relevance (JPQ): correct the distances of codes for queries and the rows that are to be found.

Codes stay as they are. What is trained is a `DistanceCorrection`: rows that codes select, in the span of the
queries' principal directions; and, folded into these rows, a linear map of queries. The loss is that of JPQ
(Zhan et al., 2021), log(1 + exp(t (d_i - d_j))) |1 / rank_i - 1 / rank_j| over pairs of a relevant row i and
another row j, out of the rows that the current distances rank first. Some of the queries decide when to stop.

Shape legend: Q queries, B queries of a batch, C rows found for a query, M steps, D dimension, R directions,
T rows of the correction, S samples of a bootstrap.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rqmoe_store.arguments import open_share, whole_number
from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.correction import DistanceCorrection
from rqmoe_store.codecs.frame import Float64Array
from rqmoe_store.codecs.neighbors import nearest_rows
from rqmoe_store.codecs.rounding import round_to_bfloat16
from rqmoe_store.codecs.subject import require_vectors
from rqmoe_store.codecs.vectors import Float32Array, as_vectors
from rqmoe_store.config import CodecConfig, Metric
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.storage_errors import translates_errors
from rqmoe_store.training.positives import Positions, positions_in

LEAST_QUERIES = 100
"""Fewer distinct queries could not tell a gain from chance."""
FOUND_ROWS = 400
"""Rows found for each query, among which negatives are searched."""
RANKED = 10
"""Recall and nDCG are those of the first 10 rows."""
HELD_OUT = 0.3
"""Share of the queries that decide, unless another is asked for."""

_DIRECTIONS = 64
_NEGATIVES = 200
_BATCH_QUERIES = 32
_STOPPING_SHARE = 0.2
_EPOCHS, _PATIENCE = 16, 3
_STEEPNESS = 17.6
"""Temperature of the loss, in units of the usual difference between the first and the 200th distance."""
_STEP = 0.055
"""How far a step of Adam moves distances at most, in the same units."""
_MOMENTUM, _SQUARES = 0.9, 0.999
_SAMPLES, _BETWEEN = 1_000, (2.5, 97.5)

Mask = npt.NDArray[np.bool_]
Parameters = dict[str, Float32Array]


@dataclasses.dataclass(frozen=True, eq=False)
class FoundRows:
    """For each query the rows found, in any order, and those that should have been found."""

    queries_QD: Float32Array
    """Checked queries (normalized under cosine)."""
    distances_QC: Float32Array
    """Distances to decoded vectors; infinite where there is no row."""
    partitions_QC: npt.NDArray[np.int32]
    codes_QCM: npt.NDArray[np.uint8]
    relevant_QC: Mask
    """Every query has at least one relevant row."""

    def __len__(self) -> int:
        return len(self.queries_QD)

    def select(self, queries: Positions) -> "FoundRows":
        """The rows of some of the queries."""
        fields = (getattr(self, each.name)[queries] for each in dataclasses.fields(self))
        return FoundRows(*fields)

    def amounts(self, correction: DistanceCorrection) -> Float32Array:
        """What a correction takes off the distances (Q, C)."""
        shape = self.distances_QC.shape
        codes = Codes(self.codes_QCM.reshape(-1, self.codes_QCM.shape[2]), self.partitions_QC.reshape(-1))
        queries_n = np.repeat(np.arange(shape[0]), shape[1])
        return correction.amounts(self.queries_QD, queries_n, codes).reshape(shape).astype(np.float32)


def split_queries(queries_QD: Float32Array, held_out: float, seed: int) -> tuple[Positions, Positions]:
    """Positions of queries to train with and of those held out. Equal queries are on the same side.

    Raises:
        InvalidInputError: there are too few different queries.
    """
    _, groups_Q = np.unique(queries_QD, axis=0, return_inverse=True)
    groups_Q = groups_Q.reshape(-1)
    count = int(groups_Q.max(initial=-1)) + 1
    if count < LEAST_QUERIES:
        raise InvalidInputError(
            f"Got {count} different queries; expected at least {LEAST_QUERIES}, of which a share is held out "
            "to decide whether tuning pays. Pass more queries."
        )
    held = min(count - 2, max(1, round(held_out * count)))
    is_held_Q = np.isin(groups_Q, np.random.default_rng(seed).permutation(count)[:held])
    return np.flatnonzero(~is_held_Q), np.flatnonzero(is_held_Q)


def train_correction(codec: Codec, found: FoundRows, seed: int = 0) -> DistanceCorrection | None:
    """Train a correction; None if none ranks the queries that are set aside any better.

    Args:
        codec: the codec of the codes. A correction that it has is not used.
        found: queries, the rows that searches find for them without a correction, and relevant rows.
        seed: seed of the order of queries.
    """
    order_Q = np.random.default_rng(seed).permutation(len(found))
    aside = max(1, round(_STOPPING_SHARE * len(found)))
    stopping, training = found.select(order_Q[:aside]), found.select(order_Q[aside:])
    scale = _Scale.of(codec, training)
    best, highest = None, float(measures(stopping, stopping.distances_QC)[0].mean())
    for with_map in (False, True):
        correction, reached = _descend(scale, training, stopping, with_map, seed)
        if reached > highest:
            best, highest = correction, reached
    return best


@dataclasses.dataclass(frozen=True, eq=False)
class _Scale:
    """What a correction is trained on, in units that do not depend on the data."""

    codec: Codec
    directions_RD: Float32Array
    codewords_TD: Float32Array
    """Vectors whose sums are what codes stand for, in units of their usual length."""
    unit: float
    """Usual difference between the first and the 200th distance."""
    length: float
    """Usual length of projected queries."""

    @classmethod
    def of(cls, codec: Codec, training: FoundRows) -> "_Scale":
        queries_QD = training.queries_QD.astype(np.float64)
        _, _, directions_XD = np.linalg.svd(queries_QD, full_matrices=False)
        directions_RD = directions_XD[:_DIRECTIONS].astype(np.float32)
        projected_QR = queries_QD @ directions_RD.T
        distances_QC = np.sort(training.distances_QC, axis=1)
        counts_Q = np.isfinite(distances_QC).sum(axis=1)
        lasts_Q = np.minimum(counts_Q, _NEGATIVES) - 1
        gaps_Q = distances_QC[np.arange(len(training)), lasts_Q].astype(np.float64) - distances_QC[:, 0]
        unit = float(np.median(gaps_Q)) or 1.0
        length = float(np.sqrt(np.mean(np.square(projected_QR).sum(axis=1)))) or 1.0
        return cls(codec, directions_RD, _codewords(codec), unit, length)

    def project(self, queries_QD: Float32Array) -> Float32Array:
        """Projected queries of unit length, usually, with a constant 1 (Q, R + 1)."""
        projected_QC = np.ones((len(queries_QD), len(self.directions_RD) + 1), np.float32)
        projected_QC[:, :-1] = queries_QD @ self.directions_RD.T / np.float32(self.length)
        return projected_QC

    def correction(self, rows_TC: Float32Array) -> DistanceCorrection:
        """The correction with these rows, in the units of distances and queries."""
        units_C = np.full(rows_TC.shape[1], self.unit / self.length, np.float32)
        units_C[-1] = self.unit
        rows_TC = round_to_bfloat16(rows_TC * units_C)
        partitions, config = self.codec.num_partitions, self.codec.config
        return DistanceCorrection(rows_TC, self.directions_RD, partitions, config.codebook_size)


def _codewords(codec: Codec) -> Float32Array:
    """One vector per partition and per (step, codeword), so that those of a code sum to what tables score."""
    config, partitions = codec.config, codec.num_partitions
    steps, size = config.code_bytes, config.codebook_size
    codes_TM = np.zeros((partitions + steps * size, steps), np.uint8)
    partitions_T = np.zeros(len(codes_TM), np.int32)
    partitions_T[:partitions] = np.arange(partitions)
    for step in range(steps):
        start = partitions + step * size
        codes_TM[start : start + size, step] = np.arange(size)
    vectors_TD = codec.coder.approximate(Codes(codes_TM, partitions_T))
    vectors_TD[partitions:] -= vectors_TD[0]
    spread = codec.coder.approximate(codec.calibration)
    length = float(np.sqrt(np.mean(np.square(spread.astype(np.float64)).sum(axis=1)))) or 1.0
    return np.asarray(vectors_TD / np.float32(length))


def _descend(
    scale: _Scale, training: FoundRows, stopping: FoundRows, with_map: bool, seed: int
) -> tuple[DistanceCorrection, float]:
    """The correction that ranks the queries set aside best, of those after each epoch, and its nDCG."""
    (rows, dim), columns = scale.codewords_TD.shape, len(scale.directions_RD) + 1
    values: Parameters = {"rows": np.zeros((rows, columns), np.float32)}
    if with_map:
        values["map"] = np.zeros((dim, columns), np.float32)
    adam = _Adam(values, _STEP / (np.sqrt(columns) * training.codes_QCM.shape[2]))
    random, best, highest, since = np.random.default_rng(seed), values["rows"], -1.0, 0
    for _ in range(_EPOCHS):
        order_Q = random.permutation(len(training))
        for start in range(0, len(order_Q), _BATCH_QUERIES):
            batch = training.select(order_Q[start : start + _BATCH_QUERIES])
            adam.step(_gradients(scale, batch, values))
        rows_TC = _merged(scale, values)
        corrected_QC = stopping.distances_QC - stopping.amounts(scale.correction(rows_TC))
        reached, since = float(measures(stopping, corrected_QC)[0].mean()), since + 1
        if reached > highest:
            best, highest, since = rows_TC, reached, 0
        if since == _PATIENCE:
            break
    return scale.correction(best), highest


def _merged(scale: _Scale, values: Parameters) -> Float32Array:
    """The rows with the map of queries folded in: <W x, P q> is linear in the codewords of x."""
    if "map" not in values:
        return values["rows"].copy()
    return np.asarray(values["rows"] + scale.codewords_TD @ values["map"], dtype=np.float32)


def _gradients(scale: _Scale, batch: FoundRows, values: Parameters) -> Parameters:
    """Gradients of the loss of some queries."""
    rows_TC = _merged(scale, values)
    projected_BC = scale.project(batch.queries_QD)
    products_BT = projected_BC @ rows_TC.T
    entries_BCX = _entries(scale.codec, batch)
    shape = entries_BCX.shape
    amounts_BC = np.take_along_axis(products_BT, entries_BCX.reshape(len(batch), -1), axis=1)
    distances_BC = batch.distances_QC / np.float32(scale.unit) - amounts_BC.reshape(shape).sum(axis=2)
    slopes_BC = pairwise_slopes(distances_BC, batch.relevant_QC)
    selected_BT = np.zeros(products_BT.shape, np.float32)
    for query, entries_CX in enumerate(entries_BCX):
        weights = np.repeat(slopes_BC[query], shape[2])
        selected_BT[query] = np.bincount(entries_CX.ravel(), weights, len(rows_TC))
    # The amount is taken off, so that a larger one makes a distance smaller.
    of_rows_TC = np.asarray(-(selected_BT.T @ projected_BC) / len(batch), dtype=np.float32)
    gradients: Parameters = {"rows": of_rows_TC}
    if "map" in values:
        gradients["map"] = np.asarray(scale.codewords_TD.T @ of_rows_TC, dtype=np.float32)
    return gradients


def _entries(codec: Codec, batch: FoundRows) -> Positions:
    """The rows of a correction that codes select (B, C, 1 + M)."""
    steps_M = np.arange(batch.codes_QCM.shape[2], dtype=np.int64) * codec.config.codebook_size
    by_step = batch.codes_QCM + (steps_M + codec.num_partitions)
    return np.concatenate([batch.partitions_QC[:, :, None].astype(np.int64), by_step], axis=2)


def pairwise_slopes(distances_BC: Float32Array, relevant_BC: Mask) -> Float64Array:
    """Derivatives (B, C) of the sum over queries of JPQ's loss by the distances."""
    slopes_BC = np.zeros(distances_BC.shape)
    order_BC = np.argsort(distances_BC, axis=1, kind="stable")
    weights_BC = np.empty(distances_BC.shape)
    np.put_along_axis(weights_BC, order_BC, 1 / np.arange(1.0, distances_BC.shape[1] + 1)[None], axis=1)
    is_negative_BC = ~relevant_BC & np.isfinite(distances_BC) & (weights_BC >= 1 / _NEGATIVES)
    for query, distances_C in enumerate(distances_BC.astype(np.float64)):
        relevant = np.flatnonzero(relevant_BC[query])
        others = np.flatnonzero(is_negative_BC[query])
        margins = _STEEPNESS * (distances_C[relevant][:, None] - distances_C[others])
        weights = np.abs(weights_BC[query][relevant][:, None] - weights_BC[query][others])
        slopes = _STEEPNESS * weights / (1 + np.exp(np.clip(-margins, -500, 500)))
        slopes_BC[query][relevant] = slopes.sum(axis=1)
        slopes_BC[query][others] = -slopes.sum(axis=0)
    return slopes_BC


class _Adam:
    """Adam (Kingma & Ba, 2015), which changes arrays in place."""

    def __init__(self, values: Parameters, step_size: float) -> None:
        self._values, self._step_size, self._steps = values, step_size, 0
        self._means = {name: np.zeros_like(array) for name, array in values.items()}
        self._squares = {name: np.zeros_like(array) for name, array in values.items()}

    def step(self, gradients: Mapping[str, Float32Array]) -> None:
        """Take one step down the gradients."""
        self._steps += 1
        for name, gradient in gradients.items():
            mean, square = self._means[name], self._squares[name]
            mean += (1 - _MOMENTUM) * (gradient - mean)
            square += (1 - _SQUARES) * (np.square(gradient) - square)
            upward = mean / (1 - _MOMENTUM**self._steps)
            spread = np.sqrt(square / (1 - _SQUARES**self._steps)) + np.float32(1e-8)
            self._values[name] -= np.float32(self._step_size) * (upward / spread)


def ndcg(hits_QC: Mask, relevant_Q: Positions) -> Float64Array:
    """nDCG@10 (Q,), given which of the first 10 rows are relevant and how many rows are in all."""
    discounts = 1 / np.log2(np.arange(2, RANKED + 2))
    ideal_Q = np.cumsum(discounts)[np.minimum(relevant_Q, RANKED) - 1]
    return np.asarray((hits_QC * discounts[: hits_QC.shape[1]]).sum(axis=1) / ideal_Q)


def recall(hits_QC: Mask, relevant_Q: Positions) -> Float64Array:
    """Share (Q,) of the relevant rows, of at most 10, that are among the first 10 rows."""
    return np.asarray(hits_QC.sum(axis=1) / np.minimum(relevant_Q, RANKED))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelevanceReport:
    """What queries find that were held out, before and after tuning; prints as a few lines."""

    kept: bool
    """Whether the codec was tuned. If not, everything is as it was."""
    labeled: bool
    """Whether relevant rows were given; otherwise they are the 10 exact neighbors of every query."""
    training_queries: int
    held_out_queries: int
    ndcg_before: float
    """nDCG@10 of queries that were held out, without a correction."""
    ndcg_after: float
    ndcg_gain_low: float
    ndcg_gain_high: float
    """Where the gain in nDCG@10 is with a confidence of 95 %, by a bootstrap over the queries held out."""
    recall_before: float
    """Share of the relevant rows, of at most 10, among the first 10 rows, without a correction."""
    recall_after: float

    @classmethod
    def of(
        cls,
        before: tuple[Float64Array, Float64Array],
        after: tuple[Float64Array, Float64Array],
        *,
        labeled: bool,
        training_queries: int,
    ) -> "RelevanceReport":
        """The report of nDCG@10 and recall@10 of every held-out query; it keeps a gain above its standard
        error."""
        gains_Q = after[0] - before[0]
        count = len(gains_Q)
        samples_SQ = np.random.default_rng(0).integers(count, size=(_SAMPLES, count))
        low, high = np.percentile(gains_Q[samples_SQ].mean(axis=1), _BETWEEN)
        spread = float(gains_Q.std(ddof=1)) / np.sqrt(count) if count > 1 else np.inf
        return cls(
            kept=bool(gains_Q.mean() > spread),
            labeled=labeled,
            training_queries=training_queries,
            held_out_queries=count,
            ndcg_before=float(before[0].mean()),
            ndcg_after=float(after[0].mean()),
            ndcg_gain_low=float(low),
            ndcg_gain_high=float(high),
            recall_before=float(before[1].mean()),
            recall_after=float(after[1].mean()),
        )

    def __str__(self) -> str:
        relevant = "rows given" if self.labeled else "10 exact neighbors"
        verdict = "The codec is tuned." if self.kept else "That is no clear gain: the codec stays as it was."
        return (
            f"nDCG@10 {self.ndcg_before:.4f} -> {self.ndcg_after:.4f} (gain {self.ndcg_gain_low:+.4f} to "
            f"{self.ndcg_gain_high:+.4f} with a confidence of 95 %)\n"
            f"recall@10 {self.recall_before:.4f} -> {self.recall_after:.4f}\n"
            f"of {self.held_out_queries:,} queries held out from {self.training_queries:,} to train with; "
            f"relevant are the {relevant}\n{verdict}"
        )


@translates_errors
def tune_codec(
    codec: Codec,
    vectors: Any,
    queries: Any,
    positives: Sequence[int | Sequence[int]] | None = None,
    *,
    held_out: float = HELD_OUT,
    seed: int = 0,
) -> tuple[Codec, RelevanceReport]:
    """Tune a codec for queries like those given: rows that should be found come nearer.

    Codes and decoded vectors stay the same. Searches take a correction off distances, which depends on the
    query and the code. It is trained on pairs of rows that should be found and rows that are found instead.

    Args:
        codec: a codec without refine codes, which leave nothing to gain. It is not changed.
        vectors: vectors (rows, D), all of them in memory; those that will be searched, or a sample.
        queries: at least 100 different queries (Q, D), like those that will be searched for.
        positives: for each query the position of the vector that answers it, or a list of several. None takes
            the 10 exact neighbors of each query.
        held_out: share of the queries that decide whether the result is kept, above 0 and below 1.
        seed: seed of that choice, and of the order of training.

    Returns:
        The tuned codec, under another fingerprint, or `codec` if queries held out gain nothing that is clear
        of chance; and what they find before and after.

    Raises:
        InvalidInputError: the codec has refine codes, or is not of whole vectors; vectors, queries and
            positives do not fit each other, or are unusable; or there are too few of them.
    """
    held_out, seed = open_share("held_out", held_out), whole_number("seed", seed, 0)
    require_tunable(codec)
    require_vectors(codec.encodes, "to tune", "Tables whose rows have many vectors cannot be tuned.")
    vectors_ND = as_vectors(vectors, dim=codec.dim, metric=codec.config.metric)
    queries_QD = as_vectors(queries, dim=codec.dim, metric=codec.config.metric)
    relevant = None if positives is None else positions_in(positives, len(queries_QD), len(vectors_ND))
    return tune_for(codec, KnownQueries.of(vectors_ND, queries_QD, relevant, held_out, seed), seed)


@dataclasses.dataclass(frozen=True, eq=False)
class KnownQueries:
    """Queries to tune a codec for, and the vectors among which they should find some; checked."""

    vectors_ND: Float32Array
    queries_QD: Float32Array
    relevant: list[Positions] | None
    """For each query the positions of the vectors that it should find; None for its exact neighbors."""
    training_Q: Positions
    """Queries to train with."""
    held_Q: Positions
    """Queries that decide whether the result is kept."""

    @classmethod
    def of(
        cls,
        vectors_ND: Float32Array,
        queries_QD: Float32Array,
        relevant: list[Positions] | None,
        held_out: float = HELD_OUT,
        seed: int = 0,
    ) -> "KnownQueries":
        """Hold out a share of checked queries. Raises InvalidInputError for too few queries or vectors."""
        training_Q, held_Q = split_queries(queries_QD, held_out, seed)
        if len(vectors_ND) < 2 * RANKED:
            raise InvalidInputError(f"Got {len(vectors_ND)} vectors; expected at least {2 * RANKED}.")
        return cls(vectors_ND, queries_QD, relevant, training_Q, held_Q)


def tune_for(codec: Codec, known: KnownQueries, seed: int) -> tuple[Codec, RelevanceReport]:
    """As `tune_codec`, for what was checked."""
    found = _find_rows(codec, known)
    correction = train_correction(codec, found.select(known.training_Q), seed)
    held = found.select(known.held_Q)
    report = RelevanceReport.of(
        measures(held, held.distances_QC),
        measures(held, held.distances_QC - (0 if correction is None else held.amounts(correction))),
        labeled=known.relevant is not None,
        training_queries=len(known.training_Q),
    )
    return (codec.with_correction(correction) if report.kept else codec), report


def require_tunable(codec: Codec) -> None:
    """Raise InvalidInputError for what is no codec, and for a codec with refine codes."""
    if not isinstance(codec, Codec):
        raise InvalidInputError(f"Got a codec of type {type(codec).__name__}; expected a Codec.")
    require_no_refine_codes(codec.config)


def require_no_refine_codes(config: CodecConfig) -> None:
    """Raise InvalidInputError for a codec with refine codes, which is not tuned."""
    if config.refine_bytes:
        raise InvalidInputError(
            f"Got a codec of refine_bytes={config.refine_bytes}; expected one without refine codes, which "
            "leave nothing to gain by tuning."
        )


def measures(found: FoundRows, distances_QC: Float32Array) -> tuple[Float64Array, Float64Array]:
    """nDCG@10 and recall@10 (Q,) of rows in the order of distances."""
    order_QC = np.argsort(distances_QC, axis=1, kind="stable")[:, :RANKED]
    hits_QC = np.take_along_axis(found.relevant_QC, order_QC, axis=1)
    relevant_Q = found.relevant_QC.sum(axis=1)
    return ndcg(hits_QC, relevant_Q), recall(hits_QC, relevant_Q)


def _find_rows(codec: Codec, known: KnownQueries) -> FoundRows:
    """The rows that an exhaustive search ranks first, and those that are relevant."""
    vectors_ND, queries_QD, relevant = known.vectors_ND, known.queries_QD, known.relevant
    codes = codec.encode(vectors_ND)
    decoded_ND = codec.decode(codes)
    near_QC = nearest_rows(queries_QD, decoded_ND, min(FOUND_ROWS, len(vectors_ND)), codec.config.metric)
    if relevant is None:
        relevant = list(nearest_rows(queries_QD, vectors_ND, RANKED, codec.config.metric))
    rows_QC = joined_rows(near_QC, relevant)
    distances_QC = np.full(rows_QC.shape, np.inf, np.float32)
    for query, rows_C in enumerate(rows_QC):
        is_row_C = rows_C >= 0
        distances_QC[query, is_row_C] = _distances(
            queries_QD[query : query + 1], decoded_ND[rows_C[is_row_C]], codec.config.metric
        )[0]
    return FoundRows(
        queries_QD,
        distances_QC,
        codes.partitions[rows_QC],
        codes.codes[rows_QC],
        np.stack([np.isin(rows_C, each) for rows_C, each in zip(rows_QC, relevant, strict=True)]),
    )


def joined_rows(near_QC: Positions, relevant: Sequence[Positions]) -> Positions:
    """For each query, the rows found and the relevant ones that are not among them; -1 fills up."""
    missing = [np.setdiff1d(each, near_C) for near_C, each in zip(near_QC, relevant, strict=True)]
    width = near_QC.shape[1] + max(len(each) for each in missing)
    rows_QC = np.full((len(near_QC), width), -1, np.int64)
    rows_QC[:, : near_QC.shape[1]] = near_QC
    for query, each in enumerate(missing):
        rows_QC[query, near_QC.shape[1] : near_QC.shape[1] + len(each)] = each
    return rows_QC


def _distances(queries_BD: Float32Array, vectors_ND: Float32Array, metric: Metric) -> Float32Array:
    """Distances (B, N), up to a constant of each query."""
    products_BN = queries_BD @ vectors_ND.T
    squares_N = np.einsum("nd,nd->n", vectors_ND, vectors_ND)
    if metric == "l2":
        return np.asarray(squares_N - 2 * products_BN)
    if metric == "dot":
        return -products_BN
    lengths_N = np.sqrt(np.maximum(squares_N, np.finfo(np.float32).tiny))
    return np.asarray(-products_BN / lengths_N, dtype=np.float32)
