"""Sample for advice: queries, their exact neighbors among all rows, and the rows that candidates encode.

The source is read once from start to end, in bounded memory, for the exact neighbors of every query at full
density. A sample alone would not do: its rows lie farther apart, so that neighbors are easier to tell.

Shape legend: N rows with a vector, Q queries, K nearest rows of a query, E encoded rows, S rows of the
random sample, n training vectors, D vector dimension.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from rqmoe_store.advice.vectors import Offsets, Vectors
from rqmoe_store.codecs.neighbors import NearestRows
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import Metric
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.evaluation.recall import Indices
from rqmoe_store.search.request import as_queries

Progress = Callable[[int], None]
"""Called with the number of rows that have been read."""

OWN_SHARE = 0.1
"""Most rows that stand in for queries, as a share of all."""
_UNIT_LENGTH = 0.01
_NEAR_SHARE = 0.6
"""Share of the encoded rows that may be neighbors of queries; the others are a random sample."""
_LEAST_NEAR = 4
"""Neighbors of a query that are encoded, at least so many times k."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleSizes:
    """Most rows of each part of a sample."""

    queries: int
    training: int
    encoded: int
    k: int
    seed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """What candidates are trained on and measured with."""

    all_rows: int
    """Rows of the source with a vector."""
    rows: int
    """The same without those that stand in for queries."""
    metric: Metric
    k: int
    queries_QD: Float32Array
    own_queries: bool
    """Whether the queries were given."""
    training_nD: Float32Array
    encoded_ED: Float32Array
    """Vectors that every candidate encodes: near rows of all queries, and a random sample of all rows."""
    near_QK: Indices
    """Places in `encoded_ED` of the nearest rows of every query, nearest first."""
    near_distances_QK: Float32Array
    """Exact distances of these."""
    random_rows: int
    """Rows of the random sample of all rows, which come first in `encoded_ED`; some may be near rows."""

    @property
    def is_complete(self) -> bool:
        """Whether all rows are encoded, so that nothing is estimated."""
        return self.random_rows == self.rows

    @functools.cached_property
    def is_near_QS(self) -> npt.NDArray[np.bool_]:
        """Which rows of the random sample are near rows of a query."""
        is_near_QE = np.zeros((len(self.queries_QD), len(self.encoded_ED)), dtype=bool)
        np.put_along_axis(is_near_QE, self.near_QK, True, axis=1)
        return is_near_QE[:, : self.random_rows]

    @property
    def relevant_QK(self) -> npt.NDArray[np.bool_]:
        """Which near rows are among the k nearest, by distance: rows at the distance of the last one are."""
        last_Q1 = self.near_distances_QK[:, self.k - 1 : self.k]
        slack_Q1 = 1e-6 * np.maximum(np.abs(last_Q1), np.finfo(np.float32).tiny)
        return np.asarray(self.near_distances_QK <= last_Q1 + slack_Q1)


def metric_of(vectors: Vectors, metric: Metric | None, seed: int) -> Metric:
    """The metric to advise for: the one asked for, that of the source, or one that suits some of its vectors.

    Raises:
        InvalidInputError: the source is searched by another metric than the one asked for.
        TableError: the source has no vectors.
    """
    if metric is not None and vectors.metric is not None and metric != vectors.metric:
        raise InvalidInputError(
            f"Got metric={metric!r}; table {vectors.name!r} is searched by {vectors.metric!r}. Leave the "
            "metric out, or advise on the vectors that the table was made from."
        )
    chosen = metric or vectors.metric
    if chosen is not None:
        return chosen
    _, some_nD = _take(vectors, np.random.default_rng(seed), 1_000, "l2", np.empty(0, np.int64))
    lengths_n = np.linalg.norm(some_nD, axis=1)
    return "cosine" if np.abs(lengths_n - 1).max() < _UNIT_LENGTH else "l2"


def draw_sample(
    vectors: Vectors, queries: Any, metric: Metric, sizes: SampleSizes, progress: Progress
) -> Sample:
    """Read the source once, and draw the sample.

    Raises:
        TableError: the source has no vectors.
        InvalidInputError: unusable vectors or queries, or too few rows for k neighbors.
    """
    generator = np.random.default_rng(sizes.seed)
    excluded = np.empty(0, np.int64)
    if queries is None:
        most = min(sizes.queries, max(1, int(vectors.offsets * OWN_SHARE)))
        excluded, queries_QD = _take(vectors, generator, most, metric, excluded)
    else:
        _, one_1D = _take(vectors, generator, 1, metric, excluded)
        queries_QD = _given_queries(queries, one_1D.shape[1], metric, sizes, generator)
    near = max(_LEAST_NEAR * sizes.k, int(sizes.encoded * _NEAR_SHARE) // len(queries_QD))
    rows, offsets_QK, distances_QK = _exact_neighbors(vectors, queries_QD, near, metric, excluded, progress)
    if rows < sizes.k + 1:
        raise InvalidInputError(
            f"The source has {rows} rows with a vector for k={sizes.k}; expected more rows than neighbors. "
            "Add rows, or ask for fewer neighbors."
        )
    _, training_nD = _take(vectors, generator, sizes.training, metric, excluded)
    near_offsets = np.unique(offsets_QK)
    most = max(sizes.encoded - len(near_offsets), sizes.encoded // 4)
    most = rows if rows <= sizes.encoded else most
    random_offsets, random_SD = _take(vectors, generator, most, metric, excluded)
    missing = np.setdiff1d(near_offsets, random_offsets)
    _, missing_ED = vectors.take(missing, metric) if len(missing) else (missing, random_SD[:0])
    order_S, order_E = np.argsort(random_offsets), np.concatenate([np.sort(random_offsets), missing])
    by_offset_E = np.argsort(order_E)
    near_QK = by_offset_E[np.searchsorted(order_E, offsets_QK, sorter=by_offset_E)]
    return Sample(
        all_rows=rows + len(excluded),
        rows=rows,
        metric=metric,
        k=sizes.k,
        queries_QD=queries_QD,
        own_queries=queries is not None,
        training_nD=training_nD,
        encoded_ED=np.concatenate([random_SD[order_S], missing_ED]),
        near_QK=near_QK,
        near_distances_QK=distances_QK,
        random_rows=len(random_offsets),
    )


def _given_queries(
    queries: Any, dim: int, metric: Metric, sizes: SampleSizes, generator: np.random.Generator
) -> Float32Array:
    queries_QD = as_queries(queries, dim=dim, metric=metric)
    if len(queries_QD) <= sizes.queries:
        return queries_QD
    return queries_QD[np.sort(generator.choice(len(queries_QD), sizes.queries, replace=False))]


def _take(
    vectors: Vectors, generator: np.random.Generator, most: int, metric: Metric, excluded: Offsets
) -> tuple[Offsets, Float32Array]:
    """Take at most so many random rows, in random order, without some and without rows that have no vector.

    Raises:
        TableError: no row has a vector.
    """
    if vectors.offsets - len(excluded) < 1:
        raise TableError(f"The source {vectors.name!r} has no vectors; add rows first.")
    drawn = generator.choice(vectors.offsets, min(vectors.offsets, most + len(excluded)), replace=False)
    drawn = np.sort(drawn[~np.isin(drawn, excluded)][:most])
    offsets, vectors_nD = vectors.take(drawn, metric)
    if len(offsets) == 0:
        raise TableError(f"The source {vectors.name!r} has rows without vectors only; add vectors first.")
    order_n = generator.permutation(len(offsets))
    return offsets[order_n], vectors_nD[order_n]


def _exact_neighbors(
    vectors: Vectors,
    queries_QD: Float32Array,
    count: int,
    metric: Metric,
    excluded: Offsets,
    progress: Progress,
) -> tuple[int, Offsets, Float32Array]:
    """Rows read, and offsets and distances (Q, K) of the nearest ones, nearest first, ties by offset."""
    rows, nearest = 0, NearestRows(queries_QD, count, metric)
    for offsets_N, chunk_ND in vectors.chunks(metric):
        kept_N = ~np.isin(offsets_N, excluded)
        offsets_N, chunk_ND = offsets_N[kept_N], chunk_ND[kept_N]
        if len(offsets_N) == 0:
            continue
        rows += len(offsets_N)
        nearest.add(chunk_ND, offsets_N)
        progress(int(offsets_N[-1]) + 1)
    return rows, nearest.ids_QK, nearest.distances_QK
