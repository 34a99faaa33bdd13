"""File sources: Parquet, Arrow, CSV, JSON and ORC files, and .npy arrays; a piece is a file.

Shape legend: N rows of a file, D components.
"""

import itertools
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.ingestion.filesystems import Place, absolute, common_folder, files_at, filesystem_of
from rqmoe_store.ingestion.pieces import Chunk, Piece, Source, even_cuts, skip, stamp_of
from rqmoe_store.store.casts import unknown_fields

FORMATS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "ipc",
    ".feather": "ipc",
    ".ipc": "ipc",
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".orc": "orc",
}
"""Ending of a file name -> pyarrow's name of the format."""
_COMPRESSED = (".gz", ".bz2", ".zst", ".lz4")

NPY_ENDING = ".npy"

_BUFFER_BYTES = 4 * 2**20
"""Bytes of a Parquet column read at a time; without this limit pyarrow reads whole row groups of any size."""


class FilePiece(Piece):
    """One file of a pyarrow dataset, in any format."""

    def __init__(self, fragment: Any, schema: pa.Schema, info: pafs.FileInfo, takes_all: bool) -> None:
        super().__init__(fragment.path, stamp_of(info.size, info.mtime_ns), info.size)
        self._fragment = fragment
        self._schema, self._takes_all = schema, takes_all

    def read(self, start: int, columns: Sequence[str], batch_rows: int) -> Iterator[Chunk]:
        if self._takes_all:
            _require_known(self._fragment.physical_schema, self._schema, self.name)
        batches = self._fragment.to_batches(
            schema=self._schema,
            columns=list(columns),
            batch_size=batch_rows,
            batch_readahead=1,
            fragment_readahead=1,
        )
        for batch in skip(batches, start, self.name):
            yield Chunk(batch, 0)


class ParquetPiece(Piece):
    """One Parquet file; reading skips the row groups before the first row that is needed."""

    def __init__(self, fragment: Any, schema: pa.Schema, info: pafs.FileInfo, takes_all: bool) -> None:
        super().__init__(fragment.path, stamp_of(info.size, info.mtime_ns), info.size)
        # The fragment itself would keep the file's footer in memory for as long as the piece exists.
        self._filesystem = fragment.filesystem
        self._partition = pads.get_partition_keys(fragment.partition_expression)
        self._schema, self._takes_all = schema, takes_all

    def read(self, start: int, columns: Sequence[str], batch_rows: int) -> Iterator[Chunk]:
        with self._filesystem.open_input_file(self.name) as file:
            parquet = pq.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False)
            if self._takes_all:
                _require_known(parquet.schema_arrow, self._schema, self.name)
            metadata = parquet.metadata
            ends = itertools.accumulate(
                metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)
            )
            skipped = [end for end in ends if end <= start]
            groups = range(len(skipped), metadata.num_row_groups)
            names = [name for name in columns if name in parquet.schema_arrow.names]
            batches = parquet.iter_batches(batch_rows, row_groups=groups, columns=names)
            row_bytes = (self.source_bytes or 0) / max(1, metadata.num_rows)
            inside = min(start, metadata.num_rows) - max(skipped, default=0)
            for batch in skip(batches, inside, self.name):
                yield Chunk(self._with_partition(batch, columns), round(row_bytes * batch.num_rows))

    def cuts(self, size: int) -> list[int]:
        if (self.source_bytes or 0) <= size:
            return []  # avoids opening the file
        with self._filesystem.open_input_file(self.name) as file:
            metadata = pq.read_metadata(file)
        cuts = even_cuts(metadata.num_rows, self.source_bytes, size)
        groups = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        ends = list(itertools.accumulate(groups))[:-1]
        # A cut within a row group would have all rows before it in that group read, too.
        return sorted({min(ends, key=lambda end: abs(end - cut)) for cut in cuts} if ends else set())

    def _with_partition(self, batch: pa.RecordBatch, columns: Sequence[str]) -> pa.RecordBatch:
        """`batch` with those of the columns whose values are in the file's path."""
        for name, value in self._partition.items():
            if name in columns and name not in batch.schema.names:
                field = self._schema.field(name)
                batch = batch.append_column(field, pa.repeat(pa.scalar(value, field.type), batch.num_rows))
        return batch


def dataset_at(
    location: str | Sequence[str],
    storage_options: Mapping[str, str] | None,
    *,
    texts: Collection[str] = (),
) -> tuple[pads.FileSystemDataset, str]:
    """Open the files at one or several paths, URIs or patterns as a pyarrow dataset.

    Folder names such as `lang=en` in `lang=en/part-0.parquet` become columns. Folders and patterns leave out
    files and folders whose names begin with a period or an underscore.

    Args:
        location: location of files of one format; several must be in one file system.
        storage_options: options for object stores.
        texts: columns of CSV files that are text, even if all values look like numbers.

    Returns:
        The dataset, and the location of its file, or of the innermost folder that has all of the files.

    Raises:
        InvalidInputError: there is nothing, the files cannot be read or have several formats or file systems,
            or the columns of the first file cannot be inferred.
    """
    locations = [location] if isinstance(location, str) else list(location)
    try:
        places = [files_at(each, storage_options) for each in locations]
        (place, *others), files = places, sorted(file for each in places for file in each.files)
        if any(each.filesystem != place.filesystem for each in others):
            raise InvalidInputError(f"Got files of several file systems, {locations!r}; expected one.")
        kind: Any = _one_format(files, repr(location))
        if kind == "csv" and texts:
            types = pacsv.ConvertOptions(column_types=dict.fromkeys(texts, pa.string()))
            kind = pads.CsvFileFormat(convert_options=types)
        dataset = pads.dataset(
            files,
            filesystem=place.filesystem,
            format=kind,
            partitioning="hive",
            partition_base_dir=common_folder([each.path for each in places]),
        )
        return dataset, common_folder([_folder_of(each) if others else each.location for each in places])
    except (pa.ArrowException, OSError) as error:
        raise InvalidInputError(f"{location!r} cannot be read ({error}).") from error


def _folder_of(place: Place) -> str:
    is_file = list(place.files) == [place.path]
    return place.location.rpartition("/")[0] if is_file else place.location


def open_files(dataset: pads.Dataset, location: str | None = None, *, takes_all: bool = False) -> Source:
    """The files of a pyarrow dataset, or of all datasets in a union, in the order of their paths.

    All rows of Parquet files are read, even if the dataset selects some row groups only.

    Args:
        dataset: a dataset of files.
        location: identifies the source; None for the innermost folder that has all files.
        takes_all: whether reading fails for a file with a column, or a field of one, that the dataset lacks.

    Raises:
        InvalidInputError: the dataset is not made of files, is filtered, or has a file twice.
    """
    datasets = _file_datasets(dataset)
    pieces = sorted(
        (piece for each in datasets for piece in _pieces(each, takes_all)), key=lambda piece: piece.name
    )
    for before, piece in itertools.pairwise(pieces):
        if before.name == piece.name:
            raise InvalidInputError(f"The source has {piece.name!r} twice; expected each file once.")
    if location is None:
        location = os.path.commonpath([os.path.dirname(piece.name) for piece in pieces] or [""])
    schema = _without_parquet_metadata(dataset.schema)
    return Source(schema=schema, pieces=pieces, location=f"files {location}")


def _file_datasets(dataset: pads.Dataset) -> list[pads.FileSystemDataset]:
    if isinstance(dataset, pads.UnionDataset):
        return [each for child in dataset.children for each in _file_datasets(child)]
    if not isinstance(dataset, pads.FileSystemDataset):
        raise InvalidInputError(
            f"Got a pyarrow {type(dataset).__name__}; expected one of files. Pass its rows as a stream: "
            "dataset.scanner().to_reader()."
        )
    return [dataset]


def _one_format(paths: list[str], location: str) -> str:
    formats = {_format_of(path) for path in paths}
    found = formats.pop() if len(formats) == 1 else None
    if found is None:
        kinds = ", ".join(sorted({os.path.splitext(path)[1] or "no ending" for path in paths})) or "none"
        raise InvalidInputError(
            f"{location} has {len(paths)} files with these endings: {kinds}; expected files of one format, "
            f"with one of {', '.join(FORMATS)}. Pass those that you mean, as a list or a pattern."
        )
    return found


def _format_of(path: str) -> str | None:
    stem, ending = os.path.splitext(path.lower())
    if ending in _COMPRESSED:
        ending = os.path.splitext(stem)[1]
    return FORMATS.get(ending)


def _pieces(dataset: pads.FileSystemDataset, takes_all: bool) -> Iterator[Piece]:
    try:
        fragments = list(dataset.get_fragments())
    except ValueError as error:
        raise InvalidInputError(
            f"The pyarrow dataset cannot be read file by file ({error}) Pass the rows it selects as a "
            "stream: dataset.scanner().to_reader()."
        ) from error
    infos = dataset.filesystem.get_file_info([fragment.path for fragment in fragments])
    for fragment, info in zip(fragments, infos, strict=True):
        kind = ParquetPiece if isinstance(fragment, pads.ParquetFileFragment) else FilePiece
        yield kind(fragment, dataset.schema, info, takes_all)


def _without_parquet_metadata(schema: pa.Schema) -> pa.Schema:
    fields = []
    for field in schema:
        own = {key: value for key, value in (field.metadata or {}).items() if not key.startswith(b"PARQUET:")}
        fields.append(field.with_metadata(own) if own else field.remove_metadata())
    return pa.schema(fields)


def _require_known(schema: pa.Schema, known: pa.Schema, name: str) -> None:
    """Raise InvalidInputError if a file has columns, or fields of them, that the source lacks."""
    unknown = [
        path
        for field in schema
        for path in (
            unknown_fields(field.type, known.field(field.name).type, field.name)
            if field.name in known.names
            else [field.name]
        )
    ]
    if unknown:
        raise InvalidInputError(
            f"{name} has columns that the source's first file has not ({', '.join(unknown)}), and they would "
            "be left out. What is committed stays; pass columns= with those to take, or a pyarrow dataset "
            "whose schema has all of them."
        )


_NUMBERS = "fiu"
"""Kinds of NumPy types that vectors may have: float, int, uint."""
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
"""Version of the .npy format -> reader of its header."""


class ArrayPiece(Piece):
    """The rows of an (N, D) array, read batch by batch, with the rows of its metadata file if it has one."""

    def __init__(
        self, filesystem: pafs.FileSystem, path: str, vector_column: str, metadata: Piece | None
    ) -> None:
        """Read the header of the file.

        Raises:
            OSError, ValueError: there is no such file, or it is not an (N, D) array of numbers.
        """
        self._filesystem, self._vector_column, self._metadata = filesystem, vector_column, metadata
        with filesystem.open_input_file(path) as file:
            self.rows, self._dim, self._numbers, self._by_column = _header(file)
            self._data_start = file.tell()
        (info,) = filesystem.get_file_info([path])
        others = [] if metadata is None else [metadata.name, metadata.stamp]
        super().__init__(path, stamp_of(info.size, info.mtime_ns, *others), info.size)

    @property
    def field(self) -> pa.Field:
        """The column of vectors."""
        return pa.field(self._vector_column, pa.list_(pa.from_numpy_dtype(self._numbers), self._dim))

    def cuts(self, size: int) -> list[int]:
        # Reading the metadata file from a row on may have to read all rows before it.
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
        """`count` consecutive numbers of the array, from the one at `place` on."""
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
        location: path or URI of an (N, D) array of floats or integers.
        metadata: path or URI of a Parquet, Arrow, CSV, JSON or ORC file with the other columns of the same
            rows in the same order; None if there are none.
        vector_column: name to give to the column of vectors.
        storage_options: options for object stores.
        texts: columns of the metadata that are text, even if all values look like numbers.

    Raises:
        InvalidInputError: there is no such file, it is another kind of array, or the metadata is not one
            file, has another number of rows, or has a column with the name of the vectors.
    """
    filesystem, path = filesystem_of(location, storage_options)
    dataset = None if metadata is None else dataset_at(metadata, storage_options, texts=texts)[0]
    others = None if dataset is None else open_files(dataset)
    if others is not None and len(others.pieces) != 1:
        raise InvalidInputError(
            f"Got {metadata!r}, {len(others.pieces)} files, as metadata; expected one file."
        )
    try:
        piece = ArrayPiece(filesystem, path, vector_column, others.pieces[0] if others else None)
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            f"{location!r} cannot be read ({error}); expected a .npy file of vectors (rows, dim)."
        ) from error
    if dataset is not None:
        _require_matching_metadata(dataset, piece, str(metadata))
    fields = [*(others.schema if others else ()), piece.field]
    return Source(schema=pa.schema(fields), pieces=[piece], location=f"array {absolute(location)}")


def _require_matching_metadata(dataset: pads.FileSystemDataset, piece: ArrayPiece, metadata: str) -> None:
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
    """Rows, dimension and number type of a .npy file, and whether it is stored column by column.

    Leaves `file` at the first number.
    """
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"version {version} of the format is for records")
    shape, is_fortran, numbers = _HEADERS[version](file)
    if len(shape) != 2 or shape[1] == 0 or numbers.kind not in _NUMBERS:
        raise ValueError(f"it is an array of {numbers} with shape {shape}")
    return shape[0], shape[1], numbers, is_fortran
