"""Additive approximation: look-up tables that score codes without decoding them.

The tables have one row per partition and per (step, codeword). The rows that a code selects sum to
its reconstruction, approximately:  x_hat ~ A^0[p] + sum_m A^m[i_m].  An extra column approximates
||x_hat||^2 in the same way, so squared distances and cosines need no stored norm.

Shape legend: Q queries, n codes, M steps, K codewords, D dimension, P partitions (1 if the codec has
none), T = P + M * K table rows, W width of the experts' deformations (0 without experts), X columns,
except for panels_XDW, which have W columns each.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.frame import (
    FramedQueries,
    ScoreUnits,
    are_all,
    constants_in_units,
    scaled,
    to_float32,
)
from rqmoe_store.codecs.panels import columns_of, in_panels, product_with_panels
from rqmoe_store.codecs.parallel import compiled
from rqmoe_store.codecs.products import product
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.codecs.weights import QuantizerWeights
from rqmoe_store.config import MAX_CODEBOOK_SIZE, Metric

SMALLEST_SQUARE = np.float32(1e-12)
"""Lower bound of squared lengths: they are sums of approximations and may come out negative."""


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
        lengths_n = np.sqrt(np.maximum(self.squares(codes), SMALLEST_SQUARE))
        return np.asarray(1 - sums_Qn / lengths_n, dtype=np.float32)

    def squares(self, codes: Codes) -> Float32Array:
        """Approximate squared lengths (n,) of codes; under "cosine" only."""
        first_n = np.zeros(len(codes), np.int64)
        return self._sums_of(self.norms_T[None], np.zeros(1, np.float32), first_n, codes)

    def score_each(self, queries_n: npt.NDArray[np.int64], codes: Codes) -> Float32Array:
        """Approximate distances (n,), in the queries' units, of codes each to a query of its own."""
        sums_n = self.sum_each(queries_n, codes)
        if self.metric != "cosine":
            return sums_n
        return np.asarray(1 - sums_n / np.sqrt(np.maximum(self.squares(codes), SMALLEST_SQUARE)))

    def sum_each(self, queries_n: npt.NDArray[np.int64], codes: Codes) -> Float32Array:
        """Sums (n,) of the table entries that codes select, each in the table of a query of its own, with the
        constants of the queries."""
        return self._sums_of(self.scores_QT, self.constants_Q, queries_n, codes)

    def _sums_of(
        self,
        entries_XT: Float32Array,
        constants_X: Float32Array,
        tables_n: npt.NDArray[np.int64],
        codes: Codes,
    ) -> Float32Array:
        sums_n = np.empty(len(codes), np.float32)
        _sum_entries(
            entries_XT,
            constants_X,
            self.num_partitions,
            self.codebook_size,
            tables_n,
            codes.partitions,
            codes.codes,
            sums_n,
        )
        return sums_n

    @property
    def num_steps(self) -> int:
        """Code bytes that the tables score."""
        return int(self.scores_QT.shape[1] - self.num_partitions) // self.codebook_size

    def select(self, queries: Sequence[int] | slice) -> "LookupTables":
        """The tables of some of the queries."""
        if are_all(queries, len(self.scores_QT)):
            return self
        return dataclasses.replace(
            self,
            scores_QT=self.scores_QT[queries],
            constants_Q=self.constants_Q[queries],
            units=self.units.select(queries),
        )

    @property
    def by_partition(self) -> Float32Array:
        """The contributions of partitions (Q, P), with the constants of the queries."""
        return np.asarray(self.scores_QT[:, : self.num_partitions] + self.constants_Q[:, None])

    @property
    def by_codeword(self) -> Float32Array:
        """The contributions of codewords (Q, 256 M), those of each step at 256 places, whether or not it has
        as many codewords, in contiguous rows."""
        entries_QX, first = self.entries
        return np.ascontiguousarray(entries_QX[:, first:])

    @property
    def entries(self) -> tuple[Float32Array, int]:
        """Contiguous rows (Q, X) that end with what `by_codeword` has, and where that begins: the tables
        themselves, unless steps have fewer than 256 codewords."""
        if self.codebook_size == MAX_CODEBOOK_SIZE:
            return np.ascontiguousarray(self.scores_QT), self.num_partitions
        padded_QMK = np.zeros((len(self.scores_QT), self.num_steps, MAX_CODEBOOK_SIZE), np.float32)
        by_step_QT = self.scores_QT[:, self.num_partitions :]
        padded_QMK[:, :, : self.codebook_size] = by_step_QT.reshape(len(by_step_QT), -1, self.codebook_size)
        return padded_QMK.reshape(len(by_step_QT), -1), 0

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


@compiled
def _sum_entries(
    entries_XT: Any,
    constants_X: Any,
    num_partitions: int,
    codebook_size: int,
    tables_n: Any,
    partitions_n: Any,
    codes_nM: Any,
    sums_n: Any,
) -> None:
    """Fill in the sums of the entries that codes select, each in a table of its own."""
    for row in range(len(codes_nM)):
        entries_T, partition = entries_XT[tables_n[row]], partitions_n[row]
        total = entries_T[partition] + constants_X[tables_n[row]]
        sums_n[row] = add_entries(total, entries_T, num_partitions, codebook_size, codes_nM[row])


@compiled
def add_entries(total: Any, entries_T: Any, num_partitions: int, codebook_size: int, codes_M: Any) -> Any:
    """A sum with the entries that the bytes of a code select."""
    for step in range(len(codes_M)):
        total += entries_T[num_partitions + codebook_size * step + codes_M[step]]
    return total


@dataclasses.dataclass(frozen=True)
class AdditiveTables:
    """Least-squares codebooks of one codec: the rows, and the squared lengths.

    Centroids and undeformed codewords already sum to the reconstruction without the experts' deformations,
    so only the deformations are fitted. Summed over the steps they are Y_nW Q_WD, where Q is the experts'
    output projection. Least squares is linear in its targets: corrections (T, W) fitted to Y and multiplied
    by Q are the rows that a fit to Y Q would give, at W / D of the work. An artifact keeps these narrow
    corrections. Without a projection W = D; without experts there is nothing to fit.
    """

    panels_XDW: Float32Array
    """The rows, as columns of a matrix in panels: queries are multiplied with all of them."""
    corrections_TW: Float32Array
    """The fitted part of the rows. The rest follows from the codec's weights."""
    norms_T1: Float32Array
    num_partitions: int
    codebook_size: int

    def for_queries(self, queries: FramedQueries, units: ScoreUnits) -> LookupTables:
        """Look-up tables for queries in the codec's frame, with scores in `units`.

        The table of a query does not depend on the other queries.
        """
        return tables_of_products(
            product_with_panels(
                np.ascontiguousarray(queries.queries_QD), self.panels_XDW, len(self.norms_T1)
            ),
            self.norms_T1[:, 0],
            queries,
            units,
            num_partitions=self.num_partitions,
            codebook_size=self.codebook_size,
        )

    @functools.cached_property
    def rows_TD(self) -> Float32Array:
        """The rows, each of contiguous numbers."""
        return columns_of(self.panels_XDW, len(self.norms_T1))

    def approximate(self, codes: Codes) -> Float32Array:
        """The vectors (n, D) that the selected rows sum to, each computed alone."""
        return self._summed(codes, self.rows_TD)

    def estimate_squares(self, codes: Codes) -> Float32Array:
        """The squared lengths (n,) that the selected entries sum to."""
        return self._summed(codes, self.norms_T1)[:, 0]

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
        for column in range(rows_TX.shape[1]):  # assigning whole rows takes numba 2 s longer to compile
            summed_nX[row, column] = rows_TX[partitions_n[row], column]
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


def complete_tables(
    weights: QuantizerWeights, corrections_TW: Float32Array, norms_T1: Float32Array
) -> AdditiveTables:
    """The tables with the given fitted parts: `corrections_TW`, in the units of the input, and `norms_T1`."""
    rows_DT = np.ascontiguousarray(undeformed_rows(weights).T)
    if corrections_TW.shape[1]:
        corrections_WT = np.ascontiguousarray(corrections_TW.T)
        projection_WD = weights.output_projection_WD
        rows_DT += (
            corrections_WT
            if projection_WD is None
            else product(np.ascontiguousarray(projection_WD.T), corrections_WT)
        )
    return AdditiveTables(
        in_panels(rows_DT),
        corrections_TW,
        norms_T1,
        max(1, weights.num_partitions),
        weights.config.codebook_size,
    )


def undeformed_rows(weights: QuantizerWeights) -> Float32Array:
    """Rows (T, D) of the codec without its experts: centroids with the mean, then scaled codewords."""
    first = weights.centroids_PD if weights.num_partitions else weights.mean_D[None]
    return np.concatenate([first, weights.codewords_XD])
