"""Diverse results: maximal marginal relevance, and coverage of a shortlist by greedy facility location.

Both choose rows one after the other by their decoded vectors, out of the rows that a stage of a ranking
considers. Coverage is maximized by the lazy greedy algorithm (Minoux, "Accelerated greedy algorithms for
maximizing submodular set functions", 1978).

Shape legend: S rows to choose from, C rows that a stage considers, D vector dimension.
"""

import dataclasses
from abc import ABC, abstractmethod
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from rqmoe_store.codecs.parallel import compiled
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import Metric
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.search.segments import Mask, Positions

Float64Array = npt.NDArray[np.float64]
DiversityMethod = Literal["mmr", "coverage"]

FUSED_PER_ROW = 3
"""A hybrid search fuses this many times the rows to choose, as many as a default shortlist decodes."""
COVERED_PER_ROW = 10
"""Coverage considers this many times the rows that are ranked after a stage."""
MOST_COVERED = 2_000
"""Coverage considers no more rows than this, unless as many are to be ranked: it compares all pairs."""


class DiverseRows(ABC):
    """Rows to choose from, some of them chosen already."""

    @abstractmethod
    def choose(self, open_S: Mask, count: int) -> Positions:
        """Choose up to `count` of the open rows, best first, of equally good rows the first in order."""


@dataclasses.dataclass(frozen=True)
class Diversity:
    """How to choose rows that are near the query and unlike each other."""

    lambda_: float
    """1 for the nearest rows, 0 for those that differ or cover most."""
    method: DiversityMethod

    def __str__(self) -> str:
        name = "maximal marginal relevance" if self.method == "mmr" else "coverage of the shortlist"
        return f"{name}, lambda {self.lambda_:g}"

    def rows_needed(self, end: int) -> int:
        """Number of rows that a stage has to consider if it ends after `end` rows."""
        if self.method == "mmr" or self.lambda_ == 1:  # with lambda 1, no other row is covered
            return end
        return max(end, min(COVERED_PER_ROW * end, MOST_COVERED))

    def rows_to_fuse(self, end: int) -> int:
        """Number of rows of both searches that a hybrid search fuses to choose `end` rows."""
        return end if self.lambda_ == 1 else max(FUSED_PER_ROW * end, self.rows_needed(end))

    def fused_rows_of(self, scores_S: Float64Array, vectors_SD: Float32Array) -> DiverseRows:
        """Prepare to choose from fused rows, by cosines of their vectors.

        Args:
            scores_S: their relevance, larger for better ones, on any scale.
            vectors_SD: their decoded vectors.
        """
        scaled_S = weights_of(-scores_S) if len(scores_S) else scores_S
        no_query_D = np.zeros(vectors_SD.shape[1], np.float32)  # under "cosine", the distances say it all
        return self.rows_of(no_query_D, vectors_SD, 1 - scaled_S, "cosine")

    def rows_of(
        self, query_D: Float32Array, vectors_SD: Float32Array, values_S: Float64Array, metric: Metric
    ) -> DiverseRows:
        """Prepare to choose.

        Args:
            query_D: the query.
            vectors_SD: decoded vectors of the rows to choose from.
            values_S: their distances to the query, ascending, or inner products under "dot", descending.
            metric: metric of the distances.
        """
        if self.method == "coverage":
            return Coverage(vectors_SD, -values_S if metric == "dot" else values_S, metric, self.lambda_)
        return MarginalRelevance(query_D, vectors_SD, values_S, metric, self.lambda_)


def diversity_of(lambda_: float, method: DiversityMethod) -> Diversity:
    """A choice by this method. Raises InvalidInputError for another one."""
    if method not in get_args(DiversityMethod):
        raise InvalidInputError(
            f"Got method={method!r} of diversify; expected one of "
            f"{', '.join(map(repr, get_args(DiversityMethod)))}."
        )
    return Diversity(lambda_, method)


class MarginalRelevance(DiverseRows):
    """Maximal marginal relevance (Carbonell & Goldstein, 1998): rows near the query and unlike each other.

    The next row is always the one with the largest

        lambda * relevance - (1 - lambda) * similarity to the most similar row chosen before

    where relevance and similarity depend on the metric:

        l2      minus the squared distance to the query; minus the squared distance between two rows
        cosine  the cosine of the angle to the query; the cosine of the angle between two rows
        dot     the inner product with the query, relative to the largest one that a row as long as the
                longest could have; the cosine between two rows (by inner products, a long vector would be
                similar to all others)

    For vectors of unit length all three choose the same rows.
    """

    def __init__(
        self,
        query_D: Float32Array,
        vectors_SD: Float32Array,
        values_S: Float64Array,
        metric: Metric,
        lambda_: float,
    ) -> None:
        """Prepare to choose; arguments are those of `Diversity.rows_of`."""
        self._metric, self._lambda, self._values_S = metric, lambda_, values_S
        self._rows_SD = vectors_SD.astype(np.float64)
        self._lengths_S = np.linalg.norm(self._rows_SD, axis=1)
        self._query_length = float(np.linalg.norm(query_D.astype(np.float64)))
        if metric != "l2":
            self._rows_SD = _of_unit_length(self._rows_SD)
        self._chosen_S = np.zeros(len(values_S), dtype=bool)
        self._similarity_S = np.full(len(values_S), -np.inf)

    def choose(self, open_S: Mask, count: int) -> Positions:
        """Choose up to `count` of the open rows, best first, of equally good rows the nearest first."""
        open_S = open_S.copy()
        relevances_S = self._lambda * self._relevances(open_S | self._chosen_S)
        chosen = np.empty(min(count, int(open_S.sum())), np.int64)
        for place in range(len(chosen)):
            scores_S = relevances_S
            if self._chosen_S.any():
                scores_S = relevances_S - (1 - self._lambda) * self._similarity_S
            row = chosen[place] = np.argmax(np.where(open_S, scores_S, -np.inf))
            open_S[row], self._chosen_S[row] = False, True
            np.maximum(self._similarity_S, self._similarities(row), out=self._similarity_S)
        return chosen

    def _similarities(self, row: np.int64) -> Float64Array:
        """Similarity of every row to one of them, (S,)."""
        rows_SD = self._rows_SD
        # einsum gives bitwise equal results for equal rows.
        similarities_S: Float64Array = np.einsum("sd,d->s", rows_SD, rows_SD[row])
        if self._metric == "l2":
            squares_S = self._lengths_S**2
            similarities_S = np.minimum(2 * similarities_S - squares_S - squares_S[row], 0)
        return similarities_S

    def _relevances(self, considered_S: Mask) -> Float64Array:
        """Relevance of every row, (S,)."""
        if self._metric == "l2":
            return -self._values_S
        if self._metric == "cosine":
            return 1 - self._values_S
        largest = self._query_length * float(self._lengths_S[considered_S].max(initial=0))
        return self._values_S / (largest or 1.0)


class Coverage(DiverseRows):
    """Coverage of the rows that a stage considers, by greedy facility location.

    A set of chosen rows is worth

        F(chosen) = sum over all rows c of  weight(c) * covered(c, chosen)

        covered(c, chosen) = 1 if c is chosen, otherwise
                             (1 - lambda) * similarity of c to the most similar chosen row; 0 if none is

    where, over the rows that the stage considers,

        weight(c)         (largest distance to the query - that of c) / (largest - smallest distance), which
                          is 1 for the nearest row and 0 for the farthest one; 1 if all are as far
        similarity(c, s)  1 - distance of c and s / largest distance of two rows; 1 if all are equal

    Distances of two rows are squared Euclidean ones; under "cosine" and "dot", of rows scaled to unit length,
    where they are twice 1 - cos. All weights and similarities are from 0 to 1. F is thus monotone and
    submodular, and the greedy choice of n rows, each the one that adds most to F, is worth at least
    1 - 1/e (63 %) of the best n rows (Nemhauser, Wolsey and Fisher, "An analysis of approximations for
    maximizing submodular set functions", 1978). This holds for the first stage of a ranking. Later stages
    consider more rows, and choose greedily what adds most to the rows that earlier stages have chosen.

    With lambda 1, F is the sum of the weights of chosen rows, which the nearest rows make largest. For
    vectors of unit length all metrics choose the same rows.
    """

    def __init__(
        self, vectors_SD: Float32Array, distances_S: Float64Array, metric: Metric, lambda_: float
    ) -> None:
        """Prepare to choose.

        Args:
            vectors_SD: decoded vectors of the rows to choose from.
            distances_S: their distances to the query, up to a constant.
            metric: metric of the distances.
            lambda_: from 0 to 1.
        """
        rows_SD = vectors_SD.astype(np.float64)
        self._rows_SD = rows_SD if metric == "l2" else _of_unit_length(rows_SD)
        self._distances_S, self._lambda = distances_S, lambda_
        self._chosen_S = np.zeros(len(distances_S), dtype=bool)

    def choose(self, open_S: Mask, count: int) -> Positions:
        """Choose up to `count` of the open rows, best first, of equally good rows the nearest first."""
        rows_C = np.flatnonzero(open_S | self._chosen_S)
        if len(rows_C) == 0:
            return rows_C
        covers_CC = covers_of(self._rows_SD[rows_C], self._lambda)
        covered_C = covers_CC[self._chosen_S[rows_C]].max(axis=0, initial=0)
        weights_C = weights_of(self._distances_S[rows_C])
        chosen = rows_C[choose_greedily(covers_CC, weights_C, covered_C, open_S[rows_C], count)]
        self._chosen_S[chosen] = True
        return chosen


def weights_of(distances_C: Float64Array) -> Float64Array:
    """Weights of rows by their distances to the query: from 1 for the nearest to 0 for the farthest."""
    farther_C = distances_C.max() - distances_C
    largest = farther_C.max()
    return farther_C / largest if largest > 0 else np.ones(len(distances_C))


def covers_of(rows_CD: Float64Array, lambda_: float) -> Float64Array:
    """How much choosing one row (first axis) covers another one, (C, C)."""
    covers_CC = np.empty((len(rows_CD), len(rows_CD)))
    _square_distances(np.ascontiguousarray(rows_CD.T), covers_CC)
    largest = covers_CC.max()
    if largest > 0:
        covers_CC /= -largest
    covers_CC += 1
    covers_CC *= 1 - lambda_
    np.fill_diagonal(covers_CC, 1)
    return covers_CC


@compiled
def _square_distances(columns_DC: Any, squares_CC: Any) -> None:
    """Squared distances of all pairs of rows, bitwise equal for pairs of equal rows."""
    dim, rows = columns_DC.shape
    for row in range(rows):
        squares_C = squares_CC[row]
        squares_C[:] = 0
        for component in range(dim):
            column_C = columns_DC[component]
            value = column_C[row]
            for other in range(rows):
                difference = column_C[other] - value
                squares_C[other] += difference * difference


def choose_greedily(
    covers_CC: Float64Array, weights_C: Float64Array, covered_C: Float64Array, open_C: Mask, count: int
) -> Positions:
    """The open rows that add most to the coverage, one after the other, by the lazy greedy algorithm.

    The result is that of the plain greedy algorithm, to the last bit: a gain never grows, since rounded
    subtractions, products and sums of a fixed order are monotone.

    Args:
        covers_CC: how much choosing a row (first axis) covers another one, symmetric.
        weights_C: weights of the rows to cover.
        covered_C: how much each row is covered by rows chosen before.
        open_C: whether the row may be chosen.
        count: most rows to choose.

    Returns:
        Positions of rows, in the order of choice; of rows that add the same, the first.
    """
    chosen = np.empty(min(count, int(open_C.sum())), np.int64)
    _choose_greedily(covers_CC, weights_C, covered_C.copy(), open_C.copy(), chosen)
    return chosen


@compiled
def _choose_greedily(covers_CC: Any, weights_C: Any, covered_C: Any, open_C: Any, chosen: Any) -> None:
    rows = len(weights_C)
    bounds_C = np.full(rows, np.inf)
    measured_C = np.full(rows, -1, np.int64)  # the place for which the bound is the gain itself
    for place in range(len(chosen)):
        while True:
            best = -1
            for row in range(rows):
                if open_C[row] and (best < 0 or bounds_C[row] > bounds_C[best]):
                    best = row
            if measured_C[best] == place:
                break
            gain, covers_C = 0.0, covers_CC[best]
            for row in range(rows):
                gain += weights_C[row] * max(covers_C[row] - covered_C[row], 0.0)
            bounds_C[best], measured_C[best] = gain, place
        chosen[place], open_C[best] = best, False
        for row in range(rows):
            covered_C[row] = max(covered_C[row], covers_CC[best, row])


def _of_unit_length(rows_SD: Float64Array) -> Float64Array:
    """The rows scaled to unit length; rows of zeros as they are."""
    lengths_S1 = np.linalg.norm(rows_SD, axis=1, keepdims=True)
    return np.asarray(rows_SD / np.where(lengths_S1 > 0, lengths_S1, 1))
