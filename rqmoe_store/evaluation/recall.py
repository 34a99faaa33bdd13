"""Recall: the share of true neighbors that a search finds; and exact neighbors by brute force.

Shape suffixes: Q queries, K neighbors, N vectors, D vector dimension.
"""

from typing import Any

import numpy as np

from rqmoe_store.codecs.neighbors import Ids, NearestRows
from rqmoe_store.codecs.vectors import Float32Array, as_vectors
from rqmoe_store.config import METRICS, Metric
from rqmoe_store.errors import InvalidInputError

Indices = Ids
"""Positions of vectors, or of other rows."""


def exact_neighbors(
    queries: Any, vectors: Any, k: int = 10, *, metric: Metric = "l2", chunk_rows: int = 8192
) -> tuple[Indices, Float32Array]:
    """Find the `k` nearest vectors of every query by brute force.

    Args:
        queries: array-like (Q, D).
        vectors: array-like (N, D) with N >= k. It is read in chunks, so it may be memory-mapped.
        k: neighbors per query.
        metric: "l2", "cosine" or "dot". Distances follow LanceDB's definitions.
        chunk_rows: vectors read at a time.

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
    if len(queries_QD) == 0:
        return np.empty((0, k), np.int64), np.empty((0, k), np.float32)
    nearest = NearestRows(queries_QD, k, metric)
    for start in range(0, len(vectors), chunk_rows):
        chunk_ND = as_vectors(vectors[start : start + chunk_rows], dim=queries_QD.shape[1], metric=metric)
        nearest.add(chunk_ND, np.arange(start, start + len(chunk_ND)))
    return nearest.ids_QK, nearest.distances_QK


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
