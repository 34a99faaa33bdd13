"""Codes of a whole table in temporary files, and the order of its rows by partition.

Shapes: N rows of the table, B rows of one batch, M code bytes, P partitions.
"""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rqmoe_store.codecs.codes import Codes
from rqmoe_store.errors import StorageError
from rqmoe_store.store.columns import NO_PARTITION

_SORT_ROWS = 2**18


class CodeSpill:
    """Row ids, codes and partitions of N rows, kept in files so that memory stays bounded."""

    def __init__(self, folder: Path, *, rows: int, code_bytes: int, num_partitions: int) -> None:
        self.rows = rows
        """Rows announced; `filled` of them have been appended."""
        self.filled = 0
        self._folder = folder
        self._codes_NM = self._file("codes", np.uint8, (rows, code_bytes))
        self._partitions_N = self._file("partitions", np.int32, (rows,))
        self._row_ids_N = self._file("row_ids", np.uint64, (rows,))
        # The last count is that of rows without a vector, which come after all partitions.
        self._counts_P1 = np.zeros(num_partitions + 1, dtype=np.int64)

    def append(self, row_ids_B: npt.NDArray[np.uint64], codes: Codes, valid_B: npt.NDArray[np.bool_]) -> None:
        """Keep a batch; `codes` belong to the rows where `valid_B` is True."""
        batch = slice(self.filled, self.filled + len(row_ids_B))
        rows_with_vector = self.filled + np.flatnonzero(valid_B)
        self._row_ids_N[batch] = row_ids_B
        self._partitions_N[batch] = NO_PARTITION
        self._partitions_N[rows_with_vector] = codes.partitions
        self._codes_NM[rows_with_vector] = codes.codes
        self._counts_P1 += np.bincount(self._groups(batch), minlength=len(self._counts_P1))
        self.filled = batch.stop

    def order_by_partition(self) -> npt.NDArray[np.int64]:
        """Positions (N,) of the rows by partition, in table order within one; a file-backed array.

        A counting sort: one sequential pass, and memory for one chunk and P counters.
        """
        order_N = self._file("order", np.int64, (self.rows,))
        next_free_P1 = np.cumsum(self._counts_P1) - self._counts_P1
        for start in range(0, self.rows, _SORT_ROWS):
            groups_B = self._groups(slice(start, min(start + _SORT_ROWS, self.rows)))
            by_group_B = np.argsort(groups_B, kind="stable")
            sorted_B = groups_B[by_group_B]
            counts_P1 = np.bincount(groups_B, minlength=len(next_free_P1))
            first_P1 = np.cumsum(counts_P1) - counts_P1
            order_N[next_free_P1[sorted_B] + np.arange(len(sorted_B)) - first_P1[sorted_B]] = (
                start + by_group_B
            )
            next_free_P1 += counts_P1
        return order_N

    def row_ids(self, rows_B: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
        """LanceDB row ids of the rows at these positions."""
        return np.asarray(self._row_ids_N[rows_B])

    def codes(self, rows_B: npt.NDArray[np.int64]) -> tuple[Codes, npt.NDArray[np.bool_]]:
        """Codes of those of the rows that have a vector, and which do."""
        partitions_B = np.asarray(self._partitions_N[rows_B])
        valid_B = partitions_B != NO_PARTITION
        codes_VM = np.asarray(self._codes_NM[rows_B[valid_B]])
        return Codes(codes=codes_VM, partitions=partitions_B[valid_B]), valid_B

    def _groups(self, rows: slice) -> npt.NDArray[np.int64]:
        partitions_B = self._partitions_N[rows].astype(np.int64)
        return np.where(partitions_B == NO_PARTITION, len(self._counts_P1) - 1, partitions_B)

    def _file(self, name: str, dtype: Any, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        path, size = self._folder / name, math.prod(shape) * np.dtype(dtype).itemsize
        try:
            with path.open("wb") as file:
                _reserve(file.fileno(), size)
        except OSError as error:
            raise StorageError(
                f"Temporary files in {self._folder.parent} need {size:,} more bytes ({error}). Nothing was "
                "written; make room there, or set the environment variable TMPDIR to a folder with room."
            ) from error
        return np.memmap(path, dtype=dtype, mode="r+", shape=shape)


def _reserve(file: int, size: int) -> None:
    """Give an empty file its size, and on disk, where the system can: writing to a mapped file on a full disk
    is no error but the end of the process."""
    os.truncate(file, size)
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
