"""Exact distances, in LanceDB's definition of the metric, and the order of rows that they do not tell.

Squared distances and inner products of float32 vectors may be beyond float32, or too close to zero for it,
and 1 minus a tiny inner product is 1. Such a distance is given as the nearest float32 number, and never as an
infinite one; the order of rows is that of the distances themselves.

Shape suffixes: S rows, D vector dimension.
"""

import numpy as np
import numpy.typing as npt

from rqmoe_store.codecs.frame import LARGEST, to_float32
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import Metric

Float64Array = npt.NDArray[np.float64]

_MAX_COMPONENTS = 2**22
"""Float64 components worked on at a time."""

_SMALLEST = float(np.finfo(np.float32).tiny)
_TINY_PRODUCT = 2.0**-12
"""Of an inner product below this, half of its bits are lost in 1 minus it."""


def exact_distances(query_D: Float32Array, vectors_SD: Float32Array, metric: Metric) -> Float32Array:
    """LanceDB's distance of one query to every vector: float32 (S,), smaller is nearer.

    "l2" is the squared euclidean distance, "cosine" 1 - cos, "dot" 1 - inner product. A zero vector
    has no direction: its cosine distance is NaN. What is beyond float32 is its largest number.
    """
    return exact_and_finer(query_D, vectors_SD, metric)[0]


def exact_and_finer(
    query_D: Float32Array, vectors_SD: Float32Array, metric: Metric
) -> tuple[Float32Array, Float64Array | None]:
    """Exact distances, and what orders rows of equal ones, (S,); None where float32 can tell all of them."""
    step = max(1, _MAX_COMPONENTS // len(query_D))
    # Float64 and differences instead of the expanded square: near ties must order as brute force does.
    query = query_D.astype(np.float64)
    parts = [
        _values(query, vectors_SD[start : start + step].astype(np.float64), metric)
        for start in range(0, len(vectors_SD), step)
    ]
    values_S = np.concatenate([np.empty(0), *parts])
    return to_float32(1 - values_S if metric == "dot" else values_S), _finer(values_S, metric)


def exact_values(distances_S: Float32Array, finer_S: Float64Array | None, metric: Metric) -> Float64Array:
    """Distances, or inner products under "dot", given what `exact_and_finer` returned."""
    told_S = distances_S.astype(np.float64)
    if metric == "dot":
        told_S = 1 - told_S
    if finer_S is None:
        return told_S
    return np.where(np.isnan(finer_S), told_S, finer_S if metric == "l2" else -finer_S)


def _values(query_D: Float64Array, vectors_SD: Float64Array, metric: Metric) -> Float64Array:
    """Distances, but for inner products under "dot"."""
    if metric == "l2":
        differences_SD = vectors_SD - query_D
        squares_S: Float64Array = np.einsum("sd,sd->s", differences_SD, differences_SD)
        return squares_S
    products_S: Float64Array = np.einsum("sd,d->s", vectors_SD, query_D)
    if metric == "dot":
        return products_S
    norms_S = np.linalg.norm(vectors_SD, axis=1) * np.linalg.norm(query_D)
    norms_S[norms_S == 0] = np.nan
    return np.asarray(1 - products_S / norms_S, dtype=np.float64)


def _finer(values_S: Float64Array, metric: Metric) -> Float64Array | None:
    """Smaller for nearer rows where float32 cannot tell distances, NaN elsewhere."""
    if metric == "cosine":
        return None
    lengths_S = np.abs(values_S)
    untold_S = (lengths_S > LARGEST) | (lengths_S < (_SMALLEST if metric == "l2" else _TINY_PRODUCT))
    if not (untold_S & (lengths_S > 0)).any():
        return None
    # As many bits as float32 has, so that rounding does not order rows that have the same vector.
    mantissas_S, exponents_S = np.frexp(values_S if metric == "l2" else -values_S)
    rounded_S = np.ldexp(mantissas_S.astype(np.float32).astype(np.float64), exponents_S)
    return np.where(untold_S, rounded_S, np.nan)
