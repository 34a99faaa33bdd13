"""Training vectors that lie so far from all others that a codec fitted to them would fit nothing else.

Codebooks minimise squared errors, and float32 has 24 bits: one vector a million times as far away as the
others decides the scale, and the others become one point. A codec is fitted to the others.

Shape legend: n vectors, D dimension.
"""

import warnings

import numpy as np
import numpy.typing as npt

from rqmoe_store.codecs.frame import Float64Array
from rqmoe_store.codecs.vectors import Float32Array

_FAR = 1024.0
_SHARE = 0.95
_CHUNK = 65_536
_CENTRE_ROWS = 4_096


def without_outliers(
    training_nD: Float32Array, validation_nD: Float32Array, *, warn: bool, stacklevel: int
) -> tuple[Float32Array, Float32Array]:
    """The vectors less those that lie `_FAR` times as far from the middle as nearly all training vectors.

    Args:
        training_nD: in random order; at least one.
        validation_nD: where nothing is left of them, training vectors take their place.
        warn: whether to warn of training vectors left out.
        stacklevel: that of a warning issued where this is called.
    """
    centre_D = np.median(training_nD[:_CENTRE_ROWS].astype(np.float64), axis=0)
    lengths_n = _lengths(training_nD, centre_D)
    limit = _FAR * _usual(lengths_n)
    near_n = lengths_n <= limit
    far = len(near_n) - int(near_n.sum())
    if far and warn:
        warnings.warn(
            f"{far:,} of {len(near_n):,} training vectors lie more than {_FAR:,.0f} times as far from the "
            f"middle as {_SHARE:.0%} of them do. The codec is fitted to the others; the codes of such "
            "vectors will tell little but their direction. Look for missing values, or ones in another unit.",
            UserWarning,
            stacklevel=stacklevel + 1,
        )
    training_nD = _kept(training_nD, near_n)
    validation_nD = _kept(validation_nD, _lengths(validation_nD, centre_D) <= limit)
    return training_nD, validation_nD if len(validation_nD) else training_nD


def _kept(vectors_nD: Float32Array, near_n: npt.NDArray[np.bool_]) -> Float32Array:
    return vectors_nD if near_n.all() else vectors_nD[near_n]


def _usual(lengths_n: Float64Array) -> float:
    """A length that nearly all of those that are not zero do not exceed; 0 where all are."""
    positive_n = lengths_n[lengths_n > 0]
    return float(np.quantile(positive_n, _SHARE, method="lower")) if len(positive_n) else 0.0


def _lengths(vectors_nD: Float32Array, centre_D: Float64Array) -> Float64Array:
    """How far the vectors lie from the centre."""
    parts = [
        np.linalg.norm(vectors_nD[start : start + _CHUNK] - centre_D, axis=1)
        for start in range(0, len(vectors_nD), _CHUNK)
    ]
    return np.concatenate([np.empty(0), *parts])
