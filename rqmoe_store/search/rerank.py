"""Rerank: shortlists decoded in parallel and ordered by exact distance; exhaustive search.

Shape suffixes: Q queries, S shortlisted rows of one query, U distinct rows, D vector dimension.

Squared distances and inner products of float32 vectors may be beyond float32, or too close to zero for it,
and 1 minus a tiny inner product is 1. Such a distance is given as the nearest float32 number, and never as an
infinite one; the order of rows is that of the distances themselves.

Shape suffixes: S rows, D vector dimension.

Shape suffixes: Q queries, C rows of a chunk, K nearest rows, M code bytes, D dimension.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.frame import LARGEST, to_float32
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import Metric
from rqmoe_store.search.segments import CodeBatch, Positions, RowIds, concatenated
from rqmoe_store.search.shortlist import Candidates
from rqmoe_store.store.table_codec import TableCodec

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


MAX_DECODED = 2**16
"""Shortlisted rows decoded together; queries whose shortlists exceed it are reranked in turns."""


@dataclasses.dataclass(frozen=True)
class Hits:
    """Rows of one query in result order."""

    row_ids_S: npt.NDArray[np.uint64]
    distances_S: Float32Array
    vectors_SD: Float32Array | None = None
    """Decoded vectors; only where somebody needs them."""
    finer_S: npt.NDArray[np.float64] | None = None
    """What orders rows of equal distance, NaN where float32 tells the distance; None where it tells all."""
    stages_S: Positions | None = None
    """By which stage of the ranking every row is considered first; None for rows that are ranked."""
    estimates_S: npt.NDArray[np.float64] | None = None
    """Distances by which rows were chosen before these were known, minus infinity where none was needed; None
    for rows that are ranked."""

    def __len__(self) -> int:
        return len(self.row_ids_S)

    def __getitem__(self, rows: slice | npt.NDArray[np.bool_ | np.integer]) -> "Hits":
        columns: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            column = getattr(self, field.name)
            columns[field.name] = None if column is None else column[rows]
        return Hits(**columns)

    def joined(self, other: "Hits") -> "Hits":
        """These and then the others; with vectors, stages and estimates if these have them, which the others
        then must have."""
        columns: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            own, others = getattr(self, field.name), getattr(other, field.name)
            if field.name != "finer_S" and own is not None:
                assert others is not None, f"joined with hits that have {field.name}"
                columns[field.name] = np.concatenate([own, others])
        return Hits(**columns, finer_S=_joined_finer(self, other))

    def ranked(self, places: Positions) -> "Hits":
        """The rows of a ranking, without what was needed to make it."""
        return Hits(self.row_ids_S[places], self.distances_S[places])


def rerank(
    codecs: TableCodec,
    queries_QD: Float32Array,
    candidates: Sequence[Candidates],
    *,
    with_vectors: bool = False,
) -> list[Hits]:
    """Every query's candidates ordered by (exact distance, row id).

    Rows whose distance is undefined (NaN) are left out, as LanceDB does.

    Args:
        codecs: decode the union of the candidates, each row once.
        queries_QD: float32 (Q, D), checked by `as_vectors`.
        candidates: of every query.
        with_vectors: keep the decoded vectors, of `decoded_together` queries at most.
    """
    hits: list[Hits] = []
    for turn in decoded_together(candidates):
        filled = [each for each in candidates[turn] if len(each)]
        if filled:
            row_ids_U, vectors_UD = _decode_union(codecs, filled)
        for query_D, each in zip(queries_QD[turn], candidates[turn], strict=True):
            row_ids_S = each.rows.row_ids_N
            if len(each) == 0:
                none_SD = np.empty((0, codecs.dim), np.float32) if with_vectors else None
                hits.append(
                    Hits(row_ids_S, np.empty(0, np.float32), none_SD, None, each.stages_S, each.estimates_S)
                )
                continue
            vectors_SD = vectors_UD[np.searchsorted(row_ids_U, row_ids_S)]
            distances_S, finer_S = exact_and_finer(query_D, vectors_SD, codecs.metric)
            kept_SD = vectors_SD if with_vectors else None
            found = Hits(row_ids_S, distances_S, kept_SD, finer_S, each.stages_S, each.estimates_S)
            hits.append(ordered(found))
    return hits


def within(hits: Hits, lower: float | None, upper: float | None) -> Hits:
    """The hits with lower <= distance < upper; None leaves a side open."""
    # Python floats are compared in float32 precision with float32 arrays, as LanceDB compares them.
    if lower is not None:
        hits = hits[hits.distances_S >= np.float32(lower)]
    if upper is not None:
        hits = hits[hits.distances_S < np.float32(upper)]
    return hits


def decoded_together(candidates: Sequence[Candidates]) -> Iterator[slice]:
    """The queries in turns of up to MAX_DECODED candidates, or of one query."""
    start, rows = 0, 0
    for position, each in enumerate(candidates):
        size = len(each)
        if position > start and rows + size > MAX_DECODED:
            yield slice(start, position)
            start, rows = position, 0
        rows += size
    yield slice(start, len(candidates))


def _decode_union(
    codecs: TableCodec, candidates: Sequence[Candidates]
) -> tuple[npt.NDArray[np.uint64], Float32Array]:
    rows = concatenated([each.rows for each in candidates])
    row_ids_U, first_U = np.unique(rows.row_ids_N, return_index=True)
    return row_ids_U, codecs.decode(rows.codes[first_U])


def ordered(hits: Hits) -> Hits:
    """By (distance, row id), less those whose distance is undefined."""
    hits = hits[~np.isnan(hits.distances_S)]
    if hits.finer_S is None:
        return hits[np.lexsort((hits.row_ids_S, hits.distances_S))]
    return hits[np.lexsort((hits.row_ids_S, hits.finer_S, hits.distances_S))]


def _joined_finer(first: Hits, second: Hits) -> npt.NDArray[np.float64] | None:
    if first.finer_S is None and second.finer_S is None:
        return None
    return np.concatenate(
        [np.full(len(hits), np.nan) if hits.finer_S is None else hits.finer_S for hits in (first, second)]
    )


_CHUNK_COMPONENTS = 2**22
"""Components decoded at a time: 16 MB, and twice that in float64."""


def nearest_of_all(
    codecs: TableCodec,
    queries_QD: Float32Array,
    batches: Iterable[CodeBatch],
    count: int,
    *,
    excluded_Q: RowIds | None = None,
    advance: Callable[[int], None],
) -> list[CodeBatch]:
    """The `count` rows nearest to every query, by distance to the decoded vectors.

    Args:
        codecs: decode every row once, a chunk at a time.
        queries_QD: checked by `as_vectors`.
        batches: all rows.
        count: rows per query, at least 1.
        excluded_Q: of every query a row that does not count; None for no such rows.
        advance: told of every chunk how many rows it had.

    Returns:
        For every query up to `count` rows, nearest first, ties by row id. Rows whose distance is
        undefined are left out, as in searches.
    """
    queries = queries_QD.astype(np.float64)
    best_QK = np.empty((len(queries), 0), _record(codecs.code_bytes))
    for chunk in _chunks(batches, max(1, _CHUNK_COMPONENTS // codecs.dim)):
        decoded_CD = codecs.decode(chunk.codes).astype(np.float64)
        distances_QC = all_distances(queries, decoded_CD, codecs.metric)
        if excluded_Q is not None:
            distances_QC[chunk.row_ids_N == excluded_Q[:, None]] = np.inf
        joined_QK = np.concatenate([best_QK, _nearest(distances_QC, chunk, count)], axis=1)
        order_QK = np.lexsort((joined_QK["row_id"], joined_QK["distance"]), axis=1)[:, :count]
        best_QK = np.take_along_axis(joined_QK, order_QK, axis=1)
        advance(len(chunk))
    return [_rows(best_K[np.isfinite(best_K["distance"])]) for best_K in best_QK]


def _record(code_bytes: int) -> np.dtype[np.void]:
    """A row with its distance."""
    return np.dtype(
        [("distance", "f8"), ("row_id", "u8"), ("partition", "i4"), ("codes", "u1", (code_bytes,))]
    )


def _chunks(batches: Iterable[CodeBatch], rows: int) -> Iterator[CodeBatch]:
    for batch in batches:
        for start in range(0, len(batch), rows):
            yield batch[start : start + rows]


def _nearest(distances_QC: Float64Array, chunk: CodeBatch, count: int) -> npt.NDArray[np.void]:
    """Records (Q, K) of the nearest rows of a chunk, in any order."""
    places_QK = np.broadcast_to(np.arange(len(chunk)), distances_QC.shape)
    if count < len(chunk):
        places_QK = np.argpartition(distances_QC, count - 1, axis=1)[:, :count]
    records_QK = np.empty(places_QK.shape, _record(chunk.codes.codes.shape[1]))
    records_QK["distance"] = np.take_along_axis(distances_QC, places_QK, axis=1)
    records_QK["row_id"] = chunk.row_ids_N[places_QK]
    records_QK["partition"] = chunk.codes.partitions[places_QK]
    records_QK["codes"] = chunk.codes.codes[places_QK]
    return records_QK


def _rows(records_K: npt.NDArray[np.void]) -> CodeBatch:
    row_ids, codes, partitions = (records_K[name].copy() for name in ("row_id", "codes", "partition"))
    return CodeBatch(row_ids, Codes(codes=codes, partitions=partitions))


def all_distances(queries_QD: Float64Array, vectors_CD: Float64Array, metric: Metric) -> Float64Array:
    """All distances (Q, C), infinite where undefined. In float64 the expanded square is exact enough."""
    if metric == "l2":  # what all of them have in common would take the bits of their differences
        middle_D = queries_QD.mean(axis=0)
        queries_QD, vectors_CD = queries_QD - middle_D, vectors_CD - middle_D
    products_QC: Float64Array = queries_QD @ vectors_CD.T
    if metric == "dot":
        return 1 - products_QC
    squares_C = np.einsum("cd,cd->c", vectors_CD, vectors_CD)
    if metric == "l2":
        squares_Q1 = np.einsum("qd,qd->q", queries_QD, queries_QD)[:, None]
        return np.asarray(np.maximum(squares_Q1 + squares_C - 2 * products_QC, 0), dtype=np.float64)
    lengths_QC = np.sqrt(squares_C) * np.linalg.norm(queries_QD, axis=1, keepdims=True)
    lengths_QC[lengths_QC == 0] = np.nan
    return np.asarray(np.nan_to_num(1 - products_QC / lengths_QC, nan=np.inf), dtype=np.float64)
