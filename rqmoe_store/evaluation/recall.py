"""Recall: the share of true neighbors that a search finds; and exact neighbors by brute force.

Shape suffixes: Q queries, K neighbors, X some neighbors, N vectors, D vector
dimension.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from rqmoe_store.codecs.frame import to_float32
from rqmoe_store.codecs.vectors import Float32Array, as_vectors
from rqmoe_store.config import METRICS, Metric
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.search.exhaustive import all_distances

Indices = npt.NDArray[np.int64]

_MAX_DISTANCES = 2**23
"""Distances held at a time."""


def exact_neighbors(
    queries: Any, vectors: Any, k: int = 10, *, metric: Metric = "l2", chunk_rows: int = 8192
) -> tuple[Indices, Float32Array]:
    """Find the `k` nearest vectors of every query by brute force.

    Args:
        queries: array-like (Q, D).
        vectors: array-like (N, D) with N >= k. It is read in chunks, so it may be memory-mapped.
        k: neighbors per query.
        metric: "l2", "cosine" or "dot". Distances follow LanceDB's definitions.
        chunk_rows: vectors processed at a time.

    Returns:
        Positions int64 (Q, k) and distances float32 (Q, k), nearest first, ties by position.

    Raises:
        InvalidInputError: the metric is unknown, k or chunk_rows is below 1, there are fewer than k vectors,
            or `as_vectors` refuses the vectors.
    """
    if metric not in METRICS:
        raise InvalidInputError(f"metric={metric!r} is unknown; choose one of {', '.join(METRICS)}.")
    if k < 1 or chunk_rows < 1:
        raise InvalidInputError(f"Got k={k}, chunk_rows={chunk_rows}; expected whole numbers from 1.")
    queries_QD = as_vectors(queries, metric=metric)
    if len(vectors) < k:
        raise InvalidInputError(f"Got {len(vectors)} vectors for k={k}; expected at least k vectors.")
    # Distances of all queries may not fit in memory, so each block of queries reads all vectors.
    block = max(1, _MAX_DISTANCES // chunk_rows)
    found = [
        _block_neighbors(queries_QD[start : start + block], vectors, k, metric, chunk_rows)
        for start in range(0, len(queries_QD), block)
    ]
    if not found:
        return np.empty((0, k), np.int64), np.empty((0, k), np.float32)
    return np.concatenate([indices for indices, _ in found]), np.concatenate([dist for _, dist in found])


def one_recall_at(found: Any, truth: Any, at: int) -> float:
    """1-recall@at: share of queries whose true nearest neighbor is among the first `at` found.

    Args:
        found: integers (Q, >= at), best first; negative entries mean "nothing found".
        truth: integers (Q, >= 1), nearest first.
        at: results that count.

    Raises:
        InvalidInputError: the shapes do not fit each other or `at`, or there is no query.
    """
    found_QK, truth_QK = _checked(found, truth, at, 1)
    return float((found_QK[:, :at] == truth_QK[:, :1]).any(axis=1).mean())


def k_recall_at_k(found: Any, truth: Any, k: int) -> float:
    """k-recall@k: mean share of the k true nearest neighbors that are among the first k found.

    Args:
        found: integers (Q, >= k), best first; negative entries mean "nothing found".
        truth: integers (Q, >= k), nearest first, distinct within a query.
        k: neighbors and results that count.

    Raises:
        InvalidInputError: the shapes do not fit each other or `k`, or there is no query.
    """
    found_QK, truth_QK = _checked(found, truth, k, k)
    shares = [
        np.isin(truth_K, found_K).mean()
        for truth_K, found_K in zip(truth_QK[:, :k], found_QK[:, :k], strict=True)
    ]
    return float(np.mean(shares))


def _block_neighbors(
    queries_QD: Float32Array, vectors: Any, k: int, metric: Metric, chunk_rows: int
) -> tuple[Indices, Float32Array]:
    indices_QK: Indices = np.empty((len(queries_QD), 0), np.int64)
    distances_QK: Float32Array = np.empty((len(queries_QD), 0), np.float32)
    for start in range(0, len(vectors), chunk_rows):
        chunk_ND = as_vectors(vectors[start : start + chunk_rows], dim=queries_QD.shape[1], metric=metric)
        chunk_QN = _all_distances(queries_QD, chunk_ND, metric)
        positions_N = np.arange(start, start + len(chunk_ND), dtype=np.int64)
        best_QK = np.stack([_smallest(chunk_N, positions_N, k) for chunk_N in chunk_QN])
        found = positions_N[best_QK], np.take_along_axis(chunk_QN, best_QK, axis=1)
        indices_QK, distances_QK = nearest_of_both((indices_QK, distances_QK), found, k)
    return indices_QK, distances_QK


def nearest_of_both(
    first: tuple[Indices, Float32Array], second: tuple[Indices, Float32Array], k: int
) -> tuple[Indices, Float32Array]:
    """The `k` nearest of two sets of neighbors, each as `exact_neighbors` returns them; ties by position."""
    indices_QX, distances_QX = np.hstack([first[0], second[0]]), np.hstack([first[1], second[1]])
    order_QK = np.lexsort((indices_QX, distances_QX), axis=1)[:, :k]
    indices_QK = np.take_along_axis(indices_QX, order_QK, axis=1)
    return indices_QK, np.take_along_axis(distances_QX, order_QK, axis=1)


def _smallest(scores_N: Float32Array, positions_N: Indices, count: int) -> Indices:
    """Places of the `count` smallest scores (of all if there are fewer), ties broken by position."""
    if len(scores_N) <= count:
        return np.arange(len(scores_N))
    bound = np.partition(scores_N, count - 1)[count - 1]
    below, ties = np.flatnonzero(scores_N < bound), np.flatnonzero(scores_N == bound)
    wanted = count - len(below)
    if wanted < len(ties):
        ties = ties[np.argpartition(positions_N[ties], wanted - 1)[:wanted]]
    return np.concatenate([below, ties])


def _all_distances(queries_QD: Float32Array, vectors_ND: Float32Array, metric: Metric) -> Float32Array:
    # Under "cosine" both already have unit length, so their inner product is their cosine.
    metric = "dot" if metric == "cosine" else metric
    distances_QN = all_distances(queries_QD.astype(np.float64), vectors_ND.astype(np.float64), metric)
    return to_float32(distances_QN)


def _checked(found: Any, truth: Any, found_width: int, truth_width: int) -> tuple[Indices, Indices]:
    found_QK, truth_QK = np.asarray(found), np.asarray(truth)
    for name, array, width in (("found", found_QK, found_width), ("truth", truth_QK, truth_width)):
        if array.ndim != 2 or array.dtype.kind not in "iu" or array.shape[1] < width or width < 1:
            raise InvalidInputError(
                f"Got {name} of shape {array.shape} and type {array.dtype}; expected whole numbers of "
                f"shape (queries, {max(width, 1)} or more)."
            )
    if len(found_QK) != len(truth_QK) or len(found_QK) == 0:
        raise InvalidInputError(
            f"Got {len(found_QK)} queries in found and {len(truth_QK)} in truth; expected the same, "
            "and at least one."
        )
    return found_QK.astype(np.int64), truth_QK.astype(np.int64)
