"""Nearest rows by brute force: distances of all pairs, chunk by chunk, of which the smallest are kept.

Shape legend: Q queries, N vectors, K nearest rows, X some of them, D vector dimension.
"""

import numpy as np
import numpy.typing as npt

from rqmoe_store.codecs.frame import Float64Array, to_float32
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import Metric

Ids = npt.NDArray[np.int64]

_CHUNK_ROWS = 8192
"""Vectors converted to float64 at a time."""

_MAX_DISTANCES = 2**23
"""Distances held at a time."""


class NearestRows:
    """The rows nearest to each of some queries, at least one, out of those added so far.

    Distances are computed in float64 and compared as float32; ties go to the lower id. Memory is that of the
    rows kept, and of at most 2^23 distances.
    """

    def __init__(self, queries_QD: Float32Array, count: int, metric: Metric) -> None:
        self._queries_QD, self._count, self._metric = queries_QD.astype(np.float64), count, metric
        self.ids_QK: Ids = np.empty((len(queries_QD), 0), np.int64)
        """Ids of the nearest rows, nearest first; fewer than `count` until so many rows were added."""
        self.distances_QK: Float32Array = np.empty((len(queries_QD), 0), np.float32)
        """LanceDB's distances of these, saturated at the range of float32 where undefined."""

    def add(self, vectors_ND: Float32Array, ids_N: Ids) -> None:
        """Compare further rows, with ids that no row had, with all queries."""
        for start in range(0, len(vectors_ND), _CHUNK_ROWS):
            chunk = slice(start, start + _CHUNK_ROWS)
            self._add_chunk(vectors_ND[chunk].astype(np.float64), ids_N[chunk])

    def _add_chunk(self, vectors_ND: Float64Array, ids_N: Ids) -> None:
        block = max(1, _MAX_DISTANCES // len(vectors_ND))
        nearest = [
            self._nearest_of(slice(start, start + block), vectors_ND, ids_N)
            for start in range(0, len(self._queries_QD), block)
        ]
        self.ids_QK = np.concatenate([ids_QK for ids_QK, _ in nearest])
        self.distances_QK = np.concatenate([distances_QK for _, distances_QK in nearest])

    def _nearest_of(self, block: slice, vectors_ND: Float64Array, ids_N: Ids) -> tuple[Ids, Float32Array]:
        """Ids and distances of the nearest rows of some queries, with further rows among them."""
        distances_QN = to_float32(all_distances(self._queries_QD[block], vectors_ND, self._metric))
        places_QX = np.stack([_smallest(distances_N, ids_N, self._count) for distances_N in distances_QN])
        ids_QX = np.hstack([self.ids_QK[block], ids_N[places_QX]])
        found_QX = np.take_along_axis(distances_QN, places_QX, axis=1)
        distances_QX = np.hstack([self.distances_QK[block], found_QX])
        order_QK = np.lexsort((ids_QX, distances_QX), axis=1)[:, : self._count]
        ids_QK = np.take_along_axis(ids_QX, order_QK, axis=1)
        return ids_QK, np.take_along_axis(distances_QX, order_QK, axis=1)


def nearest_rows(queries_QD: Float32Array, vectors_ND: Float32Array, count: int, metric: Metric) -> Ids:
    """Positions (Q, K) of the `count` nearest vectors, of all if there are fewer; ties by position."""
    nearest = NearestRows(queries_QD, count, metric)
    nearest.add(vectors_ND, np.arange(len(vectors_ND)))
    return nearest.ids_QK


def _smallest(distances_N: Float32Array, ids_N: Ids, count: int) -> Ids:
    """Places of the `count` smallest distances (of all if there are fewer), in any order; ties by id."""
    if len(distances_N) <= count:
        return np.arange(len(distances_N))
    bound = np.partition(distances_N, count - 1)[count - 1]
    below, ties = np.flatnonzero(distances_N < bound), np.flatnonzero(distances_N == bound)
    wanted = count - len(below)
    if wanted < len(ties):
        ties = ties[np.argpartition(ids_N[ties], wanted - 1)[:wanted]]
    return np.concatenate([below, ties])


def all_distances(queries_QD: Float64Array, vectors_ND: Float64Array, metric: Metric) -> Float64Array:
    """Distances (Q, N) of all pairs, infinite where undefined; by the expanded square, in float64."""
    if metric == "l2":  # centering keeps the precision of differences between vectors far from the origin
        middle_D = queries_QD.mean(axis=0)
        queries_QD, vectors_ND = queries_QD - middle_D, vectors_ND - middle_D
    products_QN: Float64Array = queries_QD @ vectors_ND.T
    if metric == "dot":
        return 1 - products_QN
    squares_N = np.einsum("nd,nd->n", vectors_ND, vectors_ND)
    if metric == "l2":
        squares_Q1 = np.einsum("qd,qd->q", queries_QD, queries_QD)[:, None]
        return np.asarray(np.maximum(squares_Q1 + squares_N - 2 * products_QN, 0), dtype=np.float64)
    lengths_QN = np.sqrt(squares_N) * np.linalg.norm(queries_QD, axis=1, keepdims=True)
    lengths_QN[lengths_QN == 0] = np.nan
    return np.asarray(np.nan_to_num(1 - products_QN / lengths_QN, nan=np.inf), dtype=np.float64)
