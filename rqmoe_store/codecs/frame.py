"""Frame: the units that a codec computes in, and those that approximate distances are counted in.

Float32 numbers reach from 1e-45 to 3e38, but their squares, and the squares of those, must fit as well.
And float32 has 24 bits: where vectors are far from zero but near each other, these go to what all of them
have in common. So a codec computes with (x - offset) / 2^exponent. For vectors of ordinary lengths that are
not much closer to each other than to zero, offset and exponent are zero. A power of two changes no bit of
a number, but for those that float32 has too few bits for.

Shape legend: n vectors, D dimension, C center's sample.

Scores are sums of float32 table entries, in the frames of the codecs that entries belong to. Distances may be
far beyond float32, or far below what it can tell from zero; and the length of a far-away query, which all
distances from it have in common, would leave no bits for their differences. So a query's scores are

    (distance - shift) / 2^exponent

with the same shift and exponent for all codecs of a table. For codecs in plain frames and ordinary queries
the exponent is 0, and so is the shift, but under "dot", where it is the 1 of LanceDB's definition.

Shape legend: Q queries, D dimension, T table rows.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import Metric
from rqmoe_store.errors import InvalidInputError

Float64Array = npt.NDArray[np.float64]

LARGEST = float(np.finfo(np.float32).max)

_SAMPLE_ROWS = 4_096
_CHUNK = 65_536
_ORDINARY = 16
"""Lengths from 2^-16 to 2^16 need no other unit: their fourth powers, and sums of these, fit float32."""
_COMMON = 32.0
"""Vectors this much closer to each other than to zero are counted from their middle."""
_MOST_EXPONENT = 256


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
    """An offset, and a unit that is a power of two."""

    offset_D: Float32Array
    exponent: int = 0

    @classmethod
    def plain(cls, dim: int) -> "Frame":
        """The frame that changes nothing."""
        return cls(np.zeros(dim, dtype=np.float32))

    @classmethod
    def checked(cls, offset_D: Float32Array, exponent: object, dim: int) -> "Frame":
        """A frame as it was stored; raises InvalidInputError where that is none."""
        is_offset = offset_D.shape == (dim,) and offset_D.dtype == np.float32 and np.isfinite(offset_D).all()
        if type(exponent) is not int or abs(exponent) > _MOST_EXPONENT or not is_offset:
            raise InvalidInputError(f"a frame of exponent {exponent!r} and offset {offset_D}")
        return cls(offset_D, exponent)

    @property
    def is_plain(self) -> bool:
        """Whether vectors are the same inside."""
        return self.exponent == 0 and not self.offset_D.any()

    @property
    def square_unit(self) -> float:
        """What a squared distance of 1 inside is outside."""
        return math.ldexp(1.0, 2 * self.exponent)

    def enter(self, vectors_nD: Float32Array) -> Float32Array:
        """Vectors inside; the same array where nothing changes."""
        if self.is_plain:
            return vectors_nD
        entered_nD = np.empty_like(vectors_nD)
        for start in range(0, len(vectors_nD), _CHUNK):
            rows = slice(start, start + _CHUNK)
            entered_nD[rows] = to_float32(self.enter_exactly(vectors_nD[rows]))
        return entered_nD

    def enter_exactly(self, vectors_nD: Float32Array) -> Float64Array:
        """Vectors inside, in numbers that have all of them."""
        moved_nD = vectors_nD.astype(np.float64) - self.offset_D
        return np.asarray(np.ldexp(moved_nD, -self.exponent), dtype=np.float64)

    def leave(self, vectors_nD: Float32Array) -> Float32Array:
        """Inverse of `enter`. What is beyond float32 becomes its largest number."""
        if self.is_plain:
            return vectors_nD
        return to_float32(np.ldexp(vectors_nD.astype(np.float64), self.exponent) + self.offset_D)


def to_float32(values: Float64Array) -> Float32Array:
    """The values as float32, those beyond its range as the largest number of their sign."""
    return np.asarray(np.clip(values, -LARGEST, LARGEST), dtype=np.float32)


def frame_for(vectors_nD: Float32Array) -> Frame:
    """The frame for vectors in random order; a few of them that lie far away do not count."""
    dim = vectors_nD.shape[1]
    sample_CD = vectors_nD[:_SAMPLE_ROWS].astype(np.float64)
    center_D = np.median(sample_CD, axis=0)
    spread = typical_length(np.linalg.norm(sample_CD - center_D, axis=1))
    from_zero = float(np.linalg.norm(center_D))
    if spread == 0:
        return Frame.plain(dim)
    offset_D = np.zeros(dim, dtype=np.float32)
    if from_zero > _COMMON * spread:
        offset_D = to_float32(center_D)
        from_zero = 0.0
    exponent = math.frexp(max(spread, from_zero))[1]
    return Frame(offset_D, 0 if abs(exponent) <= _ORDINARY else exponent)


def typical_length(lengths_n: Float64Array) -> float:
    """A length that nine of ten, of those that are not zero, do not exceed; 0 where all are."""
    positive_n = lengths_n[lengths_n > 0]
    return float(np.quantile(positive_n, 0.9)) if len(positive_n) else 0.0


Exponents = npt.NDArray[np.int64]

_ORDINARY_LENGTH = 2.0**16
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
        ordinary_Q = (lengths_Q <= _ORDINARY_LENGTH) & (
            (metric == "l2") | (lengths_Q >= 1 / _ORDINARY_LENGTH)
        )
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
