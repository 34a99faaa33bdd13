"""Additive approximation: look-up tables that score codes without decoding them, and their least-squares fit.

The tables have one row per partition and per (step, codeword). The rows that a code selects sum to
its reconstruction, approximately:  x_hat ~ A^0[p] + sum_m A^m[i_m].  An extra column approximates
||x_hat||^2 in the same way, so squared distances and cosines need no stored norm.

Shape legend: Q queries, n codes, M steps, K codewords, D dimension, P partitions (1 if the codec has
none), T = P + M * K table rows, W width of the experts' deformations (0 without experts), X columns.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.decoding import decode
from rqmoe_store.codecs.device import as_tensor
from rqmoe_store.codecs.frame import FramedQueries, ScoreUnits, constants_in_units, scaled, to_float32
from rqmoe_store.codecs.parallel import compiled
from rqmoe_store.codecs.quantizer import ResidualQuantizer
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import Metric

SMALLEST_SQUARE = np.float32(1e-12)
"""Lower bound of squared lengths: they are sums of approximations and may come out negative."""

CALIBRATION_ROWS = 32_768
"""Codes kept inside a codec, to which `truncate` fits the tables of the shorter code."""

_ITERATIONS = 24
_RIDGE = 1.0  # pseudo-observations of the initial value per row: rows of rare codewords stay close to it
_WEAKEST_DIRECTION = 1e-4  # relative to the strongest; an inverse would only amplify rounding errors below it


@dataclasses.dataclass(frozen=True)
class LookupTables:
    """The contribution of every table row to a code's score, for a batch of queries. Arrays on the CPU."""

    metric: Metric
    scores_QT: Float32Array
    """Selected entries sum, with the query's constant, to approximate distances in the query's units under
    "l2" and "dot", and to inner products under "cosine"."""
    norms_T: Float32Array
    """Selected entries sum to squared lengths. Under "cosine" only, else empty."""
    constants_Q: Float32Array
    """The constant of every query, part of each of its sums."""
    num_partitions: int
    codebook_size: int
    units: ScoreUnits

    def score(self, codes: Codes) -> Float32Array:
        """Approximate distances (Q, n), float32, in LanceDB's definition of the metric."""
        sums_Qn = self._sums(self.scores_QT, codes) + self.constants_Q[:, None]
        if self.metric != "cosine":
            return to_float32(self.units.distances(sums_Qn))
        squares_1n = self._sums(self.norms_T[None], codes)
        lengths_1n = np.sqrt(np.maximum(squares_1n, SMALLEST_SQUARE))
        return np.asarray(1 - sums_Qn / lengths_1n, dtype=np.float32)

    @property
    def num_steps(self) -> int:
        """Code bytes that the tables score."""
        return int(self.scores_QT.shape[1] - self.num_partitions) // self.codebook_size

    def select(self, queries: Sequence[int] | slice) -> "LookupTables":
        """The tables of some of the queries."""
        return dataclasses.replace(
            self,
            scores_QT=self.scores_QT[queries],
            constants_Q=self.constants_Q[queries],
            units=self.units.select(queries),
        )

    def scores_of(self, query: int) -> tuple[Float32Array, Float32Array]:
        """A query's contributions of partitions (P,), with its constant, and of codewords (M, K)."""
        by_partition, by_step = self._by_step(self.scores_QT[query])
        return by_partition + self.constants_Q[query], by_step

    @property
    def norms(self) -> tuple[Float32Array, Float32Array]:
        """Contributions to squared lengths, (P,) and (M, K). Empty unless under "cosine"."""
        return self._by_step(self.norms_T)

    def _by_step(self, table_T: Float32Array) -> tuple[Float32Array, Float32Array]:
        by_step = table_T[self.num_partitions :].reshape(-1, self.codebook_size)
        return table_T[: self.num_partitions], by_step

    def _sums(self, scores_XT: Float32Array, codes: Codes) -> Float32Array:
        sums_Xn = np.take(scores_XT, codes.partitions, axis=1)
        for step in range(codes.codes.shape[1]):
            start = self.num_partitions + step * self.codebook_size
            sums_Xn += np.take(scores_XT[:, start : start + self.codebook_size], codes.codes[:, step], axis=1)
        return sums_Xn


@dataclasses.dataclass(frozen=True)
class AdditiveTables:
    """Least-squares codebooks of one codec: the rows, and the squared lengths.

    Centroids and undeformed codewords already sum to the reconstruction without the experts' deformations,
    so only the deformations are fitted. Summed over the steps they are Y_nW Q_WD, where Q is the experts'
    output projection. Least squares is linear in its targets: corrections (T, W) fitted to Y and multiplied
    by Q are the rows that a fit to Y Q would give, at W / D of the work. An artifact keeps these narrow
    corrections. Without a projection W = D; without experts there is nothing to fit.
    """

    rows_TD: Tensor
    corrections_TW: Tensor
    """The fitted part of `rows_TD`. The rest follows from the codec's weights."""
    norms_T1: Tensor
    num_partitions: int
    codebook_size: int

    def to(self, device: torch.device) -> "AdditiveTables":
        """The tables on another device."""
        return dataclasses.replace(
            self,
            rows_TD=self.rows_TD.to(device),
            corrections_TW=self.corrections_TW.to(device),
            norms_T1=self.norms_T1.to(device),
        )

    def for_queries(self, queries: FramedQueries, units: ScoreUnits) -> LookupTables:
        """Look-up tables for queries in the codec's frame, with scores in `units`."""
        products_QT = (as_tensor(queries.queries_QD).to(self.rows_TD.device) @ self.rows_TD.T).cpu().numpy()
        return tables_of_products(
            products_QT,
            self.norms_T1[:, 0].cpu().numpy(),
            queries,
            units,
            num_partitions=self.num_partitions,
            codebook_size=self.codebook_size,
        )

    def approximate(self, codes: Codes) -> Float32Array:
        """The vectors (n, D) that the selected rows sum to, each computed alone."""
        return self._summed(codes, self.rows_TD.cpu().numpy())

    def estimate_squares(self, codes: Codes) -> Float32Array:
        """The squared lengths (n,) that the selected entries sum to."""
        return self._summed(codes, self.norms_T1.cpu().numpy())[:, 0]

    def _summed(self, codes: Codes, rows_TX: Float32Array) -> Float32Array:
        summed_nX = np.empty((len(codes), rows_TX.shape[1]), np.float32)
        _sum_rows(rows_TX, codes.partitions, codes.codes, self.num_partitions, self.codebook_size, summed_nX)
        return summed_nX


@compiled
def _sum_rows(
    rows_TX: Any, partitions_n: Any, codes_nM: Any, num_partitions: int, codebook_size: int, summed_nX: Any
) -> None:
    """Fill in the sums of the table rows that codes select, in the order of steps."""
    for row in range(codes_nM.shape[0]):
        summed_nX[row] = rows_TX[partitions_n[row]]
        for step in range(codes_nM.shape[1]):
            selected = num_partitions + codebook_size * step + codes_nM[row, step]
            for column in range(rows_TX.shape[1]):
                summed_nX[row, column] += rows_TX[selected, column]


def tables_of_products(
    products_QT: Float32Array,
    norms_T: Float32Array,
    queries: FramedQueries,
    units: ScoreUnits,
    *,
    num_partitions: int,
    codebook_size: int,
) -> LookupTables:
    """Look-up tables, given the inner products of queries with all table rows.

    Args:
        products_QT: float32 (Q, T); the entries that a code selects sum to the product with its vector.
        norms_T: float32 (T,); the entries that a code selects sum to the squared length of its vector.
        queries: the queries.
        units: units of the scores.
        num_partitions: partition ids, at least 1; their rows come first.
        codebook_size: rows of every step.
    """
    scores_QT, powers_Q1 = products_QT, (queries.magnitudes_Q - units.exponents_Q)[:, None]
    if queries.metric == "l2":  # ||q||^2 + ||x_hat||^2 - 2 <q, x_hat>
        squares_QT = scaled(norms_T[None], powers_Q1 - queries.exponents_Q[:, None])
        scores_QT = squares_QT - scaled(2 * products_QT, powers_Q1)
    elif queries.metric == "dot":
        scores_QT = scaled(-products_QT, powers_Q1)
    return LookupTables(
        queries.metric,
        scores_QT,
        norms_T if queries.metric == "cosine" else norms_T[:0],
        constants_in_units(units, queries),
        num_partitions,
        codebook_size,
        units,
    )


@torch.inference_mode()
def fit_tables(quantizer: ResidualQuantizer, calibration: Codes) -> AdditiveTables:
    """Fit tables whose selected rows sum to the reconstructions of the calibration codes."""
    reconstructions_nD = decode(quantizer, quantizer.fold(), calibration)
    norms_n1 = reconstructions_nD.square().sum(dim=1, keepdim=True)
    num_partitions = max(1, quantizer.num_partitions)
    rows_nM = table_rows(calibration, num_partitions, quantizer.codebook_size, norms_n1.device)
    undeformed_TD = _undeformed_rows(quantizer)
    undeformed_nD = functional.embedding_bag(rows_nM, undeformed_TD, mode="sum")
    deformations_nW = _in_network_width(quantizer, reconstructions_nD - undeformed_nD)
    initial_TX = undeformed_TD.new_zeros(len(undeformed_TD), quantizer.deformation_dim + 1)
    initial_TX[:num_partitions, -1] = norms_n1.mean()
    fitted_TX = fit_additive(rows_nM, torch.cat([deformations_nW, norms_n1], dim=1), initial_TX)
    # Round here, not only in the artifact, so that saved and loaded codecs are equal.
    corrections_TW = fitted_TX[:, :-1].bfloat16().float()
    return complete_tables(quantizer, corrections_TW, fitted_TX[:, -1:].contiguous())


@torch.inference_mode()
def complete_tables(quantizer: ResidualQuantizer, corrections_TW: Tensor, norms_T1: Tensor) -> AdditiveTables:
    """The tables with the given fitted parts: `corrections_TW`, in the units of the input, and `norms_T1`."""
    rows_TD = _undeformed_rows(quantizer)
    if quantizer.mixture is not None:
        projection_WD = quantizer.mixture.output_projection_WD
        rows_TD += corrections_TW if projection_WD is None else corrections_TW @ projection_WD
    return AdditiveTables(
        rows_TD=rows_TD,
        corrections_TW=corrections_TW,
        norms_T1=norms_T1,
        num_partitions=max(1, quantizer.num_partitions),
        codebook_size=quantizer.codebook_size,
    )


def _undeformed_rows(quantizer: ResidualQuantizer) -> Tensor:
    """Tables (T, D) of the codec without its experts: centroids with the mean, then scaled codewords."""
    codewords_XD = quantizer.codebooks_MKD.flatten(0, 1) * quantizer.scale
    if quantizer.num_partitions:
        return torch.cat([quantizer.denormalize(quantizer.centroids_PD), codewords_XD])
    return torch.cat([quantizer.mean_D[None], codewords_XD])


def _in_network_width(quantizer: ResidualQuantizer, deformations_nD: Tensor) -> Tensor:
    """What the output projection maps to the deformations (n, W); the shortest one if several fit."""
    if quantizer.mixture is None:
        return deformations_nD[:, :0]
    projection_WD = quantizer.mixture.output_projection_WD
    if projection_WD is None:
        return deformations_nD
    # The projection is zero in an untrained codec, so it may have no inverse.
    inverse_DW: Tensor = torch.linalg.pinv(projection_WD, rtol=_WEAKEST_DIRECTION)
    return deformations_nD @ inverse_DW


def table_rows(codes: Codes, num_partitions: int, codebook_size: int, device: torch.device) -> Tensor:
    """Numbers (n, 1 + M), int32, of the table rows that each code selects."""
    rows_nM = torch.empty(len(codes), 1 + codes.codes.shape[1], dtype=torch.int32, device=device)
    rows_nM[:, 0] = as_tensor(codes.partitions)
    rows_nM[:, 1:] = as_tensor(codes.codes)
    steps_M = torch.arange(codes.codes.shape[1], dtype=torch.int32, device=device)
    rows_nM[:, 1:] += num_partitions + codebook_size * steps_M
    return rows_nM


def fit_additive(rows_nM: Tensor, targets_nX: Tensor, initial_TX: Tensor) -> Tensor:
    """Fit a table (T, X) whose selected rows sum to the targets in the least-squares sense.

    This runs conjugate gradients on the normal equations, from `initial_TX` and with a ridge towards it.
    Memory is that of the table, and rows without observations keep their initial value. Every column has a
    unit of its own, a power of two, so that squares of sums of the targets fit float32.
    """
    largest_X = torch.maximum(targets_nX.abs().amax(dim=0), initial_TX.abs().amax(dim=0))
    unit_X = torch.exp2(torch.frexp(largest_X).exponent.clamp(-126, 126))
    targets_nX, initial_TX = targets_nX / unit_X, initial_TX / unit_X
    correction_TX = torch.zeros_like(initial_TX)
    residual_nX = targets_nX - functional.embedding_bag(rows_nM, initial_TX, mode="sum")
    gradient_TX = _scatter(rows_nM, residual_nX, initial_TX)
    direction_TX = gradient_TX.clone()
    energy_X = gradient_TX.square().sum(dim=0)
    floor_X = energy_X * 1e-8 + torch.finfo(energy_X.dtype).tiny
    for _ in range(_ITERATIONS):
        selected_nX = functional.embedding_bag(rows_nM, direction_TX, mode="sum")
        product_TX = _scatter(rows_nM, selected_nX, initial_TX) + _RIDGE * direction_TX
        curvature_X = (direction_TX * product_TX).sum(dim=0)
        # A column that has converged has no energy left; dividing by it would give NaN.
        step_X = torch.where(energy_X > floor_X, energy_X / curvature_X, 0.0)
        correction_TX += step_X * direction_TX
        gradient_TX -= step_X * product_TX
        next_energy_X = gradient_TX.square().sum(dim=0)
        ratio_X = torch.where(energy_X > floor_X, next_energy_X / energy_X, 0.0)
        direction_TX = gradient_TX + ratio_X * direction_TX
        energy_X = next_energy_X
    return (initial_TX + correction_TX) * unit_X


def _scatter(rows_nM: Tensor, values_nX: Tensor, like_TX: Tensor) -> Tensor:
    """Sum of the values over every table row that selects them (T, X)."""
    total_TX = torch.zeros_like(like_TX)
    for column_n in rows_nM.unbind(dim=1):
        total_TX.index_add_(0, column_n, values_nX)
    return total_TX
