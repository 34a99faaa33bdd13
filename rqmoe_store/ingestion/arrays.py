"""Vectors in a .npy file, with their other columns in a file beside it: one piece.

Shapes: N rows of the file, D components.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.fs as pafs

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.ingestion.files import dataset_at, open_files
from rqmoe_store.ingestion.filesystems import absolute, filesystem_of
from rqmoe_store.ingestion.pieces import Chunk, Piece, Source, even_cuts, stamp_of

ENDING = ".npy"

_NUMBERS = "fiu"
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class ArrayPiece(Piece):
    """The rows of an (N, D) array, read a batch at a time, and those of its metadata file."""

    def __init__(
        self, filesystem: pafs.FileSystem, path: str, vector_column: str, metadata: Piece | None
    ) -> None:
        """Read the header of the file.

        Raises:
            OSError, ValueError: no such file, or not an array (N, D) of numbers.
        """
        self._filesystem, self._vector_column, self._metadata = filesystem, vector_column, metadata
        with filesystem.open_input_file(path) as file:
            self.rows, self._dim, self._numbers, self._by_column = _header(file)
            self._data_start = file.tell()
        (info,) = filesystem.get_file_info([path])
        beside = [] if metadata is None else [metadata.name, metadata.stamp]
        super().__init__(path, stamp_of(info.size, info.mtime_ns, *beside), info.size)

    @property
    def field(self) -> pa.Field:
        """The column of vectors."""
        return pa.field(self._vector_column, pa.list_(pa.from_numpy_dtype(self._numbers), self._dim))

    def cuts(self, size: int) -> list[int]:
        # Of the file beside it, all that comes before a row may have to be read.
        return even_cuts(self.rows, self.source_bytes, size) if self._metadata is None else []

    def read(self, start: int, columns: Sequence[str], batch_rows: int) -> Iterator[Chunk]:
        names = [name for name in columns if self._metadata is not None and name != self._vector_column]
        for rows, others in self._others(start, names, batch_rows):
            batch = pa.RecordBatch.from_arrays(
                [*others, self._vectors(start, rows)], [*names, self.field.name]
            )
            yield Chunk(batch, rows * self._row_bytes)
            start += rows

    def _others(self, start: int, names: list[str], batch_rows: int) -> Iterator[tuple[int, list[pa.Array]]]:
        """The other columns, with the number of rows of each batch."""
        if self._metadata is None or not names:  # nothing else to read
            for first in range(start, self.rows, batch_rows):
                yield min(batch_rows, self.rows - first), []
            return
        for chunk in self._metadata.read(start, names, batch_rows):
            yield chunk.rows.num_rows, [chunk.rows[name] for name in names]

    @property
    def _row_bytes(self) -> int:
        return int(self._dim * self._numbers.itemsize)

    def _vectors(self, start: int, rows: int) -> pa.FixedSizeListArray:
        with self._filesystem.open_input_file(self.name) as file:
            if self._by_column:
                columns = [
                    self._numbers_at(file, column * self.rows + start, rows) for column in range(self._dim)
                ]
                values = np.stack(columns, axis=1).ravel()
            else:
                values = self._numbers_at(file, start * self._dim, rows * self._dim)
        native = values.astype(self._numbers.newbyteorder("="), copy=False)
        return pa.FixedSizeListArray.from_arrays(pa.array(native), self._dim)

    def _numbers_at(self, file: pa.NativeFile, place: int, count: int) -> npt.NDArray[Any]:
        """Numbers that follow each other in the file."""
        file.seek(self._data_start + place * self._numbers.itemsize)
        return np.frombuffer(file.read(count * self._numbers.itemsize), dtype=self._numbers)


def open_array(
    location: str,
    metadata: str | None,
    vector_column: str,
    storage_options: Mapping[str, str] | None,
    *,
    texts: Collection[str] = (),
) -> Source:
    """The .npy file at a path or URI.

    Args:
        location: of an array (N, D) of floats or integers.
        metadata: path or URI of a file with the other columns of the same rows in the same order, as
            Parquet, Arrow, CSV, JSON or ORC; None where there are none.
        vector_column: what to call the column of vectors.
        storage_options: for object stores.
        texts: columns of the metadata that are text, even if all of it reads like numbers.

    Raises:
        InvalidInputError: no such file, another kind of array, or metadata that is not one file, has
            another number of rows, or has a column called like the vectors.
    """
    filesystem, path = filesystem_of(location, storage_options)
    dataset = None if metadata is None else dataset_at(metadata, storage_options, texts=texts)[0]
    beside = None if dataset is None else open_files(dataset)
    if beside is not None and len(beside.pieces) != 1:
        raise InvalidInputError(
            f"Got {metadata!r}, {len(beside.pieces)} files, as metadata; expected one file."
        )
    try:
        piece = ArrayPiece(filesystem, path, vector_column, beside.pieces[0] if beside else None)
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            f"{location!r} cannot be read ({error}); expected a .npy file of vectors (rows, dim)."
        ) from error
    if dataset is not None:
        _require_fit(dataset, piece, str(metadata))
    fields = [*(beside.schema if beside else ()), piece.field]
    return Source(schema=pa.schema(fields), pieces=[piece], location=f"array {absolute(location)}")


def _require_fit(dataset: pads.FileSystemDataset, piece: ArrayPiece, metadata: str) -> None:
    if piece.field.name in dataset.schema.names:
        raise InvalidInputError(
            f"The metadata {metadata!r} has a column {piece.field.name!r}, which is what the vectors are "
            "called; give them another name with vector_column=."
        )
    if (rows := dataset.count_rows()) != piece.rows:
        raise InvalidInputError(
            f"The metadata {metadata!r} has {rows} rows for the {piece.rows} vectors of {piece.name!r}; "
            "expected one for each."
        )


def _header(file: Any) -> tuple[int, int, np.dtype[Any], bool]:
    """Rows, dimension and type of numbers of a .npy file, and whether they are stored column by column; what
    follows in `file` are the numbers."""
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"version {version} of the format is for records")
    shape, is_fortran, numbers = _HEADERS[version](file)
    if len(shape) != 2 or shape[1] == 0 or numbers.kind not in _NUMBERS:
        raise ValueError(f"it is an array of {numbers} with shape {shape}")
    return shape[0], shape[1], numbers, is_fortran
