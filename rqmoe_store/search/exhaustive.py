"""Exhaustive search: decode every row, chunk by chunk, and find the nearest to every query.

On a GPU, vectors stay there: they are decoded, compared and selected from on it, and the nearest rows of a
chunk come back.

Shape legend: Q queries, C rows of a chunk, K nearest rows, M code bytes, D vector dimension.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.frame import Float64Array
from rqmoe_store.codecs.neighbors import all_distances
from rqmoe_store.codecs.parallel import run_chunks
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.search.segments import CodeBatch, Positions, RowIds
from rqmoe_store.store.table_codec import TableCodec

if TYPE_CHECKING:
    from torch import Tensor

_CHUNK_COMPONENTS = 2**22
"""Components decoded at a time on a CPU: 16 MB, and twice that in float64."""

_GPU_BYTES = 2**30
"""Memory for a chunk on a GPU."""

_BYTES_PER_COMPONENT, _BYTES_PER_DISTANCE = 24, 40
"""Of a chunk on a GPU: float32 and float64 numbers of a vector, and what is computed of each distance."""


def exhaustive_search(
    codecs: TableCodec,
    queries_QD: Float32Array,
    batches: Iterable[CodeBatch],
    count: int,
    *,
    excluded_Q: RowIds | None = None,
    advance: Callable[[int], None],
) -> list[CodeBatch]:
    """Decode every row, chunk by chunk, and find the `count` rows nearest to every query.

    When a GPU runs out of memory, chunks are smaller.

    Args:
        codecs: codecs of the table.
        queries_QD: queries, checked by `as_vectors`.
        batches: all rows.
        count: rows per query, at least 1.
        excluded_Q: row id that each query must not find; None for no such rows.
        advance: called with the number of rows of every chunk.

    Returns:
        For every query up to `count` rows, nearest first, ties by row id. Rows whose distance is undefined
        are left out, as in searches.

    Raises:
        InvalidInputError: a GPU has no memory for a single row.
    """
    search = _Search(codecs, queries_QD, count, excluded_Q)
    for batch in batches:

        def search_chunk(start: int, stop: int, _: int, batch: CodeBatch = batch) -> None:
            search.add(batch[start:stop])
            advance(stop - start)

        run_chunks(len(batch), search.chunk_rows, search_chunk)
    return [_rows(best_K[np.isfinite(best_K["distance"])]) for best_K in search.best_QK]


class _Search:
    """The nearest rows of those that were decoded so far."""

    def __init__(
        self, codecs: TableCodec, queries_QD: Float32Array, count: int, excluded_Q: RowIds | None
    ) -> None:
        self._codecs, self._count, self._excluded_Q = codecs, count, excluded_Q
        self._queries_QD = queries_QD.astype(np.float64)
        self.best_QK = np.empty((len(queries_QD), 0), _record(codecs.code_bytes))

    @property
    def chunk_rows(self) -> int:
        """Rows to decode at a time."""
        dim = self._codecs.dim
        if self._codecs.device == "cpu":
            return max(1, _CHUNK_COMPONENTS // dim)
        row_bytes = _BYTES_PER_COMPONENT * dim + _BYTES_PER_DISTANCE * len(self._queries_QD)
        return max(1, _GPU_BYTES // row_bytes)

    def add(self, chunk: CodeBatch) -> None:
        """Decode a chunk of rows and keep the nearest."""
        decoded_CD = self._codecs.decode_on_gpu(chunk.codes)
        if decoded_CD is None:
            distances_QK, places_QK = self._nearest(chunk)
        else:
            distances_QK, places_QK = self._nearest_on_gpu(chunk, decoded_CD)
        found_QK = _records(chunk, distances_QK, places_QK)
        joined_QK = np.concatenate([self.best_QK, found_QK], axis=1)
        order_QK = np.lexsort((joined_QK["row_id"], joined_QK["distance"]), axis=1)[:, : self._count]
        self.best_QK = np.take_along_axis(joined_QK, order_QK, axis=1)

    def _nearest(self, chunk: CodeBatch) -> tuple[Float64Array, Positions]:
        """Distances (Q, K) and places (Q, K) of the nearest rows of a chunk, in any order."""
        decoded_CD = self._codecs.decode(chunk.codes).astype(np.float64)
        distances_QC = all_distances(self._queries_QD, decoded_CD, self._codecs.metric)
        if self._excluded_Q is not None:
            distances_QC[chunk.row_ids_N == self._excluded_Q[:, None]] = np.inf
        places_QK = np.broadcast_to(np.arange(len(chunk)), distances_QC.shape)
        if self._count < len(chunk):
            places_QK = np.argpartition(distances_QC, self._count - 1, axis=1)[:, : self._count]
        return np.take_along_axis(distances_QC, places_QK, axis=1), places_QK

    def _nearest_on_gpu(self, chunk: CodeBatch, decoded_CD: "Tensor") -> tuple[Float64Array, Positions]:
        """`_nearest` of vectors that are on a GPU."""
        from rqmoe_store.codecs.distances import nearest_of_all

        excluded_QC = None
        if self._excluded_Q is not None:
            excluded_QC = chunk.row_ids_N == self._excluded_Q[:, None]
        return nearest_of_all(self._queries_QD, decoded_CD, self._codecs.metric, self._count, excluded_QC)


def _record(code_bytes: int) -> np.dtype[np.void]:
    """NumPy type of a row with its distance."""
    return np.dtype(
        [("distance", "f8"), ("row_id", "u8"), ("partition", "i4"), ("codes", "u1", (code_bytes,))]
    )


def _records(chunk: CodeBatch, distances_QK: Float64Array, places_QK: Positions) -> npt.NDArray[np.void]:
    """Records (Q, K) of rows of a chunk."""
    records_QK = np.empty(places_QK.shape, _record(chunk.codes.codes.shape[1]))
    records_QK["distance"] = distances_QK
    records_QK["row_id"] = chunk.row_ids_N[places_QK]
    records_QK["partition"] = chunk.codes.partitions[places_QK]
    records_QK["codes"] = chunk.codes.codes[places_QK]
    return records_QK


def _rows(records_K: npt.NDArray[np.void]) -> CodeBatch:
    row_ids, codes, partitions = (records_K[name].copy() for name in ("row_id", "codes", "partition"))
    return CodeBatch(row_ids, Codes(codes=codes, partitions=partitions))
