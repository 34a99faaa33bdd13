"""Frame: the offset and unit in which a codec computes, and the units in which queries score codes.

A codec computes in float32 on (x - offset) / 2^exponent, for two reasons. Float32 reaches from 1e-45 to
3e38, and the fourth powers of lengths must fit too. Float32 has 24 bits, and vectors that are far from zero
but near each other would spend them on what all of them have in common. Vectors of ordinary length that are
not much closer to each other than to zero have offset 0 and exponent 0. Dividing by a power of two changes
no bit of a number that stays within float32's range.

Shape legend: n vectors, D dimension, C vectors of a sample, Q queries, G codecs.
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

Exponents = npt.NDArray[np.int64]

LARGEST = float(np.finfo(np.float32).max)

_SAMPLE_ROWS = 4_096
_CHUNK = 65_536
_ORDINARY_EXPONENT = 16
"""Lengths from 2^-16 to 2^16 need no other unit: their fourth powers, and sums of those, fit float32."""

_ORDINARY_LENGTH = 2.0**_ORDINARY_EXPONENT
_COMMON = 32.0
"""Vectors this many times closer to each other than to zero get an offset, their median."""

_MOST_EXPONENT = 256
_FARTHEST = 2.0**12
"""Largest distance of a vector from the mean, in units of the scale. Beyond it, float32 would give the same
distance to all codewords."""

_LARGEST_ENTRY = 2.0**100
"""Bound of table entries, so that sums of any number of them fit float32."""


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
    """An offset, and a unit that is a power of two."""

    offset_D: Float32Array
    exponent: int = 0

    @classmethod
    def plain(cls, dim: int) -> "Frame":
        """The frame that leaves vectors as they are."""
        return cls(np.zeros(dim, dtype=np.float32))

    @classmethod
    def checked(cls, offset_D: Float32Array, exponent: object, dim: int) -> "Frame":
        """A frame read from storage; raises InvalidInputError unless it is valid."""
        is_offset = offset_D.shape == (dim,) and offset_D.dtype == np.float32 and np.isfinite(offset_D).all()
        if type(exponent) is not int or abs(exponent) > _MOST_EXPONENT or not is_offset:
            raise InvalidInputError(f"a frame of exponent {exponent!r} and offset {offset_D}")
        return cls(offset_D, exponent)

    @property
    def is_plain(self) -> bool:
        """Whether the frame leaves vectors as they are."""
        return self.exponent == 0 and not self.offset_D.any()

    @property
    def square_unit(self) -> float:
        """A squared distance of 1 in the frame, in the units of the input."""
        return math.ldexp(1.0, 2 * self.exponent)

    def transform(self, vectors_nD: Float32Array) -> Float32Array:
        """Vectors in the frame; the same array if the frame is plain."""
        if self.is_plain:
            return vectors_nD
        entered_nD = np.empty_like(vectors_nD)
        for start in range(0, len(vectors_nD), _CHUNK):
            rows = slice(start, start + _CHUNK)
            entered_nD[rows] = to_float32(self.transform_exactly(vectors_nD[rows]))
        return entered_nD

    def transform_exactly(self, vectors_nD: Float32Array) -> Float64Array:
        """Vectors in the frame, in float64, whose range holds all of them."""
        moved_nD = vectors_nD.astype(np.float64) - self.offset_D
        return np.asarray(np.ldexp(moved_nD, -self.exponent), dtype=np.float64)

    def inverse_transform(self, vectors_nD: Float32Array) -> Float32Array:
        """Inverse of `transform`, saturated at the range of float32."""
        if self.is_plain:
            return vectors_nD
        return to_float32(np.ldexp(vectors_nD.astype(np.float64), self.exponent) + self.offset_D)


def clamp_vectors(vectors_nD: Float32Array, frame: Frame, mean_D: Float32Array, scale: float) -> Float32Array:
    """Checked vectors in a codec's frame, clamped to a maximum distance from its mean.

    Clamping keeps a vector's direction from the mean, so that what is nearest to it stays nearest.
    """
    entered_nD = frame.transform(vectors_nD)
    limit = float(np.abs(mean_D).max()) + _FARTHEST * scale
    far_n = np.maximum(entered_nD.max(axis=1), -entered_nD.min(axis=1)) > limit
    if not far_n.any():
        return entered_nD
    away_XD = frame.transform_exactly(vectors_nD[far_n]) - mean_D
    away_XD *= _FARTHEST * scale / np.linalg.norm(away_XD, axis=1, keepdims=True)
    drawn_nD = entered_nD.copy()
    drawn_nD[far_n] = mean_D + away_XD
    return drawn_nD


def frame_for(vectors_nD: Float32Array) -> Frame:
    """The frame for vectors in random order; a few outliers have no influence on it."""
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
    return Frame(offset_D, 0 if abs(exponent) <= _ORDINARY_EXPONENT else exponent)


def typical_length(lengths_n: Float64Array) -> float:
    """The 90 % quantile of the lengths that are not zero; 0 if all are zero."""
    positive_n = lengths_n[lengths_n > 0]
    return float(np.quantile(positive_n, 0.9)) if len(positive_n) else 0.0


def to_float32(values: Float64Array) -> Float32Array:
    """The values as float32, saturated at its range."""
    return np.maximum(np.minimum(values, LARGEST), -LARGEST).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class FramedQueries:
    """Queries in the frame of one codec, each divided by a further power of two if float32 needs it."""

    queries_QD: Float32Array
    exponents_Q: Exponents
    """Exponents of those powers, 0 for ordinary queries."""
    constants_Q: Float64Array
    """The part that all distances of a query have in common."""
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
            exact_QD = frame.transform_exactly(queries_QD)
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
        """Size of the differences between scores of this codec, as exponents of two."""
        times = 2 if self.metric == "l2" else 1
        return times * self.frame.exponent + self.exponents_Q

    @property
    def nearness_Q(self) -> Exponents:
        """Smaller if the rows of this codec are more likely to be the nearest ones."""
        if self.metric == "l2":
            return 2 * (self.frame.exponent + self.exponents_Q)
        return -self.magnitudes_Q


@dataclasses.dataclass(frozen=True)
class ScoreUnits:
    """The shift and exponent of every query: its scores are (distance - shift) / 2^exponent.

    Scores are sums of float32 table entries, in the frames of several codecs. Distances may be far beyond
    float32's range, or too small to be told from zero. All distances of a far-away query share its length,
    which would leave no bits for their differences. Shift and exponent solve both, and are the same for all
    codecs of a table. For codecs in plain frames and ordinary queries the exponent is 0. So is the shift,
    except under "dot", where it is the 1 of LanceDB's definition.
    """

    shifts_Q: Float64Array
    exponents_Q: Exponents

    @classmethod
    def plain(cls, queries: int) -> "ScoreUnits":
        """Units in which scores are distances."""
        return cls(np.zeros(queries), np.zeros(queries, dtype=np.int64))

    def select(self, queries: Sequence[int] | slice) -> "ScoreUnits":
        """The units of some of the queries."""
        if are_all(queries, len(self.shifts_Q)):
            return self
        return ScoreUnits(self.shifts_Q[queries], self.exponents_Q[queries])

    def scores_of(self, distance: np.float32) -> Float32Array:
        """The scores (Q,) of all queries for a distance, which may be infinite."""
        if not math.isfinite(distance):
            return np.float32(distance).repeat(len(self.shifts_Q))
        with np.errstate(over="ignore"):
            return np.ldexp(float(distance) - self.shifts_Q, -self.exponents_Q).astype(np.float32)

    def distances(self, scores_Qn: Float32Array) -> Float64Array:
        """Distances for scores (Q, n)."""
        return np.asarray(
            np.ldexp(scores_Qn.astype(np.float64), self.exponents_Q[:, None]) + self.shifts_Q[:, None]
        )

    def distances_of(self, queries_n: npt.NDArray[np.int64], scores_n: Float32Array) -> Float64Array:
        """Distances (n,) for scores, each of a query of its own."""
        exponents_n, shifts_n = self.exponents_Q[queries_n], self.shifts_Q[queries_n]
        return np.asarray(np.ldexp(scores_n.astype(np.float64), exponents_n) + shifts_n)


def are_all(queries: Sequence[int] | slice, count: int) -> bool:
    """Whether a slice selects all of so many queries."""
    return isinstance(queries, slice) and queries.indices(count) == (0, count, 1)


def shared_score_units(queries: Sequence[FramedQueries]) -> ScoreUnits:
    """Units for queries in the frames of several codecs: those of the codec with the nearest rows."""
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
    """Table entries times powers of two, clamped so that their sums fit float32."""
    if not exponents_Q1.any():
        return values
    with np.errstate(over="ignore"):
        multiplied = np.ldexp(values, exponents_Q1)
    return np.asarray(np.clip(multiplied, -_LARGEST_ENTRY, _LARGEST_ENTRY), dtype=np.float32)


def constants_in_units(units: ScoreUnits, queries: FramedQueries) -> Float32Array:
    """The constant of every query's scores, in the units that all codecs share."""
    constants_Q = np.ldexp(queries.constants_Q - units.shifts_Q, -units.exponents_Q)
    return np.maximum(np.minimum(constants_Q, _LARGEST_ENTRY), -_LARGEST_ENTRY).astype(np.float32)
