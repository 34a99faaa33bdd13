"""Refine: the best hits ordered again, by exact distance to the raw vectors that the table keeps.

Shape suffixes: Q queries, H hits of all queries, U distinct rows of them, S hits of one query,
K stages of a ranking, D vector dimension.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from lancedb.table import Table

from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import Metric
from rqmoe_store.search.distances import exact_and_finer
from rqmoe_store.search.rerank import Hits, ordered
from rqmoe_store.store.takes import take_rows
from rqmoe_store.store.vector_arrays import rows_per_batch


def candidates(hits: Hits, counts_K: Sequence[int], lower: float | None) -> Hits:
    """The hits to refine: of those that a stage considers the nearest, so many as it refines.

    With a lower distance bound that many rows on either side of it: which side a row belongs to is
    decided by its exact distance.

    Args:
        hits: of one query, nearest first, with their stages.
        counts_K: for every stage the rows that are ranked after it, times the refine factor.
        lower: the lower bound of `distance_range`; None for none.

    Returns:
        Them, with the stage that refines each first.
    """
    assert hits.stages_S is not None, "not ranked yet"
    first_S = np.full(len(hits), len(counts_K))
    for stage, count in reversed(list(enumerate(counts_K))):
        considered = np.flatnonzero(hits.stages_S <= stage)
        distances = hits.distances_S[considered]
        middle = 0 if lower is None else int(np.searchsorted(distances, np.float32(lower)))
        first_S[considered[max(0, middle - count) : middle + count]] = stage
    return dataclasses.replace(hits, stages_S=first_S)[first_S < len(counts_K)]


def refine(
    snapshot: Table,
    column: str,
    queries_QD: Float32Array,
    hits_of_queries: Sequence[Hits],
    metric: Metric,
) -> list[Hits]:
    """Every query's hits ordered by (distance to the raw vector, row id).

    A row is taken once for all queries, and a batch of rows at a time is in memory. Rows whose
    distance is undefined are left out: a null vector, a zero vector under cosine.

    Args:
        snapshot: the version of the table that the hits come from.
        column: name of its column of raw vectors.
        queries_QD: float32 (Q, D), checked by `as_vectors`.
        hits_of_queries: one per query; their distances are not used.
        metric: which distance.
    """
    row_ids_H = np.concatenate([hits.row_ids_S for hits in hits_of_queries])
    queries_H = np.repeat(np.arange(len(hits_of_queries)), [len(hits) for hits in hits_of_queries])
    row_ids_U, places_H = np.unique(row_ids_H, return_inverse=True)
    distances_H = np.full(len(row_ids_H), np.nan, dtype=np.float32)
    finer_H = np.full(len(row_ids_H), np.nan)
    step = rows_per_batch(queries_QD.shape[1])
    for start in range(0, len(row_ids_U), step):
        vectors_UD = _take_vectors(snapshot, column, row_ids_U[start : start + step], queries_QD.shape[1])
        here_H = np.flatnonzero((places_H >= start) & (places_H < start + step))
        for hits_S in np.split(here_H, np.flatnonzero(np.diff(queries_H[here_H])) + 1):
            vectors_SD = vectors_UD[places_H[hits_S] - start]
            distances_S, finer_S = exact_and_finer(queries_QD[queries_H[hits_S[0]]], vectors_SD, metric)
            distances_H[hits_S] = distances_S
            if finer_S is not None:
                finer_H[hits_S] = finer_S
    ends = np.cumsum([len(hits) for hits in hits_of_queries])[:-1]
    exact = zip(np.split(distances_H, ends), np.split(finer_H, ends), strict=True)
    return [
        ordered(
            dataclasses.replace(
                hits,
                distances_S=distances_S,
                finer_S=finer_S,
                estimates_S=hits.distances_S.astype(np.float64),
            )
        )
        for hits, (distances_S, finer_S) in zip(hits_of_queries, exact, strict=True)
    ]


def _take_vectors(snapshot: Table, column: str, row_ids_U: npt.NDArray[np.uint64], dim: int) -> Float32Array:
    """Raw vectors (U, D) of these rows, NaN where there is none."""
    (taken,) = take_rows(snapshot, [column], row_ids_U)
    values_VD = taken.drop_null().combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
    vectors_UD = np.full((len(row_ids_U), dim), np.nan, dtype=np.float32)
    vectors_UD[taken.is_valid().to_numpy()] = values_VD
    return vectors_UD
