"""What approximate distances are counted in, query by query.

Scores are sums of float32 table entries, in the frames of the codecs that entries belong to. Distances may be
far beyond float32, or far below what it can tell from zero; and the length of a far-away query, which all
distances from it have in common, would leave no bits for their differences. So a query's scores are

    (distance - shift) / 2^exponent

with the same shift and exponent for all codecs of a table. For codecs in plain frames and ordinary queries
the exponent is 0, and so is the shift, but under "dot", where it is the 1 of LanceDB's definition.

Shape legend: Q queries, D dimension, T table rows.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rqmoe_store.codecs.frame import Float64Array, Frame
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import Metric

Exponents = npt.NDArray[np.int64]

_ORDINARY = 2.0**16
_LARGEST_ENTRY = 2.0**100
"""Table entries beyond this count as this: sums of any number of them fit float32."""


@dataclasses.dataclass(frozen=True)
class ScoreUnits:
    """The shift and exponent of every query."""

    shifts_Q: Float64Array
    exponents_Q: Exponents

    @classmethod
    def plain(cls, queries: int) -> "ScoreUnits":
        """Scores that are distances."""
        return cls(np.zeros(queries), np.zeros(queries, dtype=np.int64))

    def of(self, queries: Sequence[int]) -> "ScoreUnits":
        """Those of some of the queries."""
        return ScoreUnits(self.shifts_Q[queries], self.exponents_Q[queries])

    def score_of(self, query: int, distance: np.float32) -> np.float32:
        """A distance, which may be infinite, as a score of a query."""
        with np.errstate(over="ignore"):
            shifted = float(distance) - self.shifts_Q[query]
            return np.float32(np.ldexp(shifted, -self.exponents_Q[query]))

    def distances(self, scores_Qn: Float32Array) -> Float64Array:
        """Scores as distances."""
        return np.asarray(
            np.ldexp(scores_Qn.astype(np.float64), self.exponents_Q[:, None]) + self.shifts_Q[:, None]
        )


@dataclasses.dataclass(frozen=True)
class FramedQueries:
    """Queries as the tables of one codec see them: (q - offset) / 2^exponent, which may need another power
    of two to fit float32."""

    queries_QD: Float32Array
    exponents_Q: Exponents
    """That power, 0 for ordinary queries."""
    constants_Q: Float64Array
    """What distances of a query have in common."""
    frame: Frame
    metric: Metric

    @classmethod
    def of(cls, queries_QD: Float32Array, frame: Frame, metric: Metric) -> "FramedQueries":
        """Checked queries in the frame of a codec."""
        count = len(queries_QD)
        if metric == "cosine":  # of unit length, in a plain frame
            return cls(queries_QD, np.zeros(count, dtype=np.int64), np.zeros(count), frame, metric)
        exact_QD = queries_QD.astype(np.float64)
        if metric == "dot":
            constants_Q = 1 - exact_QD @ frame.offset_D.astype(np.float64)
        else:
            exact_QD = frame.enter_exactly(queries_QD)
            constants_Q = np.einsum("qd,qd->q", exact_QD, exact_QD) * frame.square_unit
        lengths_Q = np.linalg.norm(exact_QD, axis=1)
        ordinary_Q = (lengths_Q <= _ORDINARY) & ((metric == "l2") | (lengths_Q >= 1 / _ORDINARY))
        exponents_Q = np.where(ordinary_Q, 0, np.frexp(lengths_Q)[1]).astype(np.int64)
        if not exponents_Q.any() and (metric == "dot" or frame.is_plain):
            return cls(queries_QD, exponents_Q, constants_Q, frame, metric)
        scaled_QD = np.ldexp(exact_QD, -exponents_Q[:, None]).astype(np.float32)
        return cls(scaled_QD, exponents_Q, constants_Q, frame, metric)

    @property
    def magnitudes_Q(self) -> Exponents:
        """How large differences between scores of this codec are, as powers of two."""
        times = 2 if self.metric == "l2" else 1
        return times * self.frame.exponent + self.exponents_Q

    @property
    def nearness_Q(self) -> Exponents:
        """Smaller where the rows of this codec are more likely to be the nearest ones."""
        if self.metric == "l2":
            return 2 * (self.frame.exponent + self.exponents_Q)
        return -self.magnitudes_Q


def score_units(queries: Sequence[FramedQueries]) -> ScoreUnits:
    """Units for the same queries as several codecs see them: those of the codec whose rows are nearest."""
    first = queries[0]
    if first.metric == "cosine":
        return ScoreUnits.plain(len(first.queries_QD))
    magnitudes_GQ = np.stack([each.magnitudes_Q for each in queries])
    constants_GQ = np.stack([each.constants_Q for each in queries])
    nearest_Q = np.lexsort((-magnitudes_GQ, np.stack([each.nearness_Q for each in queries])), axis=0)[:1]
    exponents_Q = np.take_along_axis(magnitudes_GQ, nearest_Q, axis=0)[0]
    shifts_Q = np.take_along_axis(constants_GQ, nearest_Q, axis=0)[0]
    if first.metric == "l2" and all(each.frame.is_plain for each in queries):
        shifts_Q = np.where(exponents_Q == 0, 0.0, shifts_Q)
    return ScoreUnits(shifts_Q, exponents_Q)


def scaled(values: Float32Array, exponents_Q1: Exponents) -> Float32Array:
    """Table entries times powers of two, kept within what sums of them can be."""
    if not exponents_Q1.any():
        return values
    with np.errstate(over="ignore"):
        multiplied = np.ldexp(values, exponents_Q1)
    return np.asarray(np.clip(multiplied, -_LARGEST_ENTRY, _LARGEST_ENTRY), dtype=np.float32)


def constants_in(units: ScoreUnits, queries: FramedQueries) -> Float32Array:
    """What scores of a query begin with, in the units of all codecs."""
    constants_Q = np.ldexp(queries.constants_Q - units.shifts_Q, -units.exponents_Q)
    return np.clip(constants_Q, -_LARGEST_ENTRY, _LARGEST_ENTRY).astype(np.float32)
