"""The units that a codec computes in.

Float32 numbers reach from 1e-45 to 3e38, but their squares, and the squares of those, must fit as well.
And float32 has 24 bits: where vectors are far from zero but near each other, these go to what all of them
have in common. So a codec computes with (x - offset) / 2^exponent. For vectors of ordinary lengths that are
not much closer to each other than to zero, offset and exponent are zero. A power of two changes no bit of
a number, but for those that float32 has too few bits for.

Shape legend: n vectors, D dimension, C centre's sample.
"""

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from rqmoe_store.codecs.vectors import Float32Array
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
    centre_D = np.median(sample_CD, axis=0)
    spread = typical_length(np.linalg.norm(sample_CD - centre_D, axis=1))
    from_zero = float(np.linalg.norm(centre_D))
    if spread == 0:
        return Frame.plain(dim)
    offset_D = np.zeros(dim, dtype=np.float32)
    if from_zero > _COMMON * spread:
        offset_D = to_float32(centre_D)
        from_zero = 0.0
    exponent = math.frexp(max(spread, from_zero))[1]
    return Frame(offset_D, 0 if abs(exponent) <= _ORDINARY else exponent)


def typical_length(lengths_n: Float64Array) -> float:
    """A length that nine of ten, of those that are not zero, do not exceed; 0 where all are."""
    positive_n = lengths_n[lengths_n > 0]
    return float(np.quantile(positive_n, 0.9)) if len(positive_n) else 0.0
