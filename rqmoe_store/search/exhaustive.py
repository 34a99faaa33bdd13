"""What a search would find without any shortcut: every row decoded and measured.

Shape suffixes: Q queries, C rows of a chunk, K nearest rows, M code bytes, D dimension.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt

from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import Metric
from rqmoe_store.search.segments import CodeBatch, RowIds
from rqmoe_store.store.table_codec import TableCodec

_CHUNK_COMPONENTS = 2**22
"""Components decoded at a time: 16 MB, and twice that in float64."""

Float64Array = npt.NDArray[np.float64]


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
