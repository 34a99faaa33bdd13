"""Sources of an ingestion: files, Lance tables, rows in memory and iterators."""

import itertools
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import lance
import pyarrow as pa
import pyarrow.dataset as pads
from lance.fragment import LanceFragment
from lancedb.table import LanceTable

from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.ingestion.files import NPY_ENDING, dataset_at, open_array, open_files
from rqmoe_store.ingestion.filesystems import absolute, common_folder, files_at, is_uri
from rqmoe_store.ingestion.pieces import Chunk, Piece, Source, even_cuts, skip, stamp_of
from rqmoe_store.store.columns import user_schema
from rqmoe_store.store.rows import arrow_tables

LANCE_ENDING = ".lance"

_EXPECTED_SOURCES = (
    "the path or URI of a Parquet, Arrow, CSV, JSON, ORC, .npy or .lance file or folder, a pyarrow dataset, "
    "several paths, a pattern such as 'rows/*.parquet', a Lance dataset, a LanceDB table, or rows of any form"
)

_READ_AHEAD_BYTES = 128 * 2**20
"""Most bytes that a scan of a Lance fragment reads ahead."""
_PEEKED_ROWS = 2_048
"""Rows of a stream that are looked at, and held in memory, before it is read."""
_BLOB, _EXTENSION = b"lance-encoding:blob", b"ARROW:extension:name"
"""Metadata keys of Arrow fields."""
_PANDAS_KEY = b"pandas"
"""Metadata key under which pandas describes the index of a frame."""


def open_source(
    source: Any,
    *,
    vector_column: str,
    metadata: str | os.PathLike[str] | None = None,
    storage_options: Mapping[str, str] | None = None,
    job: str | None = None,
    takes_all: bool = True,
    texts: Collection[str] = (),
) -> Source:
    """Open whatever `ingest` takes as a source.

    Args:
        source: path, URI or pattern of files, or several of these; dataset, table, reader, frame or iterator.
        vector_column: name to give to the vectors of a .npy file, and name of the vectors in dicts.
        metadata: path or URI of a file with the other columns of a .npy file.
        storage_options: options for paths that are URIs.
        job: name of a stream, which has none of its own.
        takes_all: whether all columns are taken, also those that only some files or batches have.
        texts: columns of the table that are text; in CSV files they are text even if they look like numbers.

    Raises:
        InvalidInputError, TableError: there is nothing, or nothing that can be read.
    """
    locations, source = _locations(source)
    if locations:
        if not any(map(is_uri, locations)):
            _require_none("storage_options", storage_options, "URIs")
        if any(_has_ending(location, NPY_ENDING) for location in locations):
            return _open_arrays(locations, metadata, vector_column, storage_options, texts)
        _require_none("metadata", metadata, "files in .npy")
        if any(_has_ending(location, LANCE_ENDING) for location in locations):
            return open_lance_uri(_only_one(locations, LANCE_ENDING), storage_options)
        dataset, location = dataset_at(
            locations if len(locations) > 1 else locations[0], storage_options, texts=texts
        )
        return open_files(dataset, location, takes_all=takes_all)
    _require_none("metadata", metadata, "files in .npy")
    _require_none("storage_options", storage_options, "URIs")
    if isinstance(source, LanceTable):
        return open_lance_dataset(source.to_lance())
    if isinstance(source, lance.LanceDataset):
        return open_lance_dataset(source)
    if isinstance(source, pads.Dataset):
        return open_files(source)
    return open_stream(source, job, vector_column, takes_all=takes_all)


def _locations(source: Any) -> tuple[list[str], Any]:
    """The paths and URIs in a source, and the source, to be used instead of the argument.

    To tell an iterator of paths from one of rows, this consumes its first element.
    """
    if isinstance(source, (str, os.PathLike)):
        return [os.fspath(source)], source
    is_collection = isinstance(source, (list, tuple, set, frozenset))
    if not is_collection and not isinstance(source, Iterator):
        return [], source
    elements = iter(source)
    first = list(itertools.islice(elements, 1))
    if not first or not isinstance(first[0], (str, os.PathLike)):
        return [], source if is_collection else itertools.chain(first, elements)
    together = [*first, *elements]
    if odd := [each for each in together if not isinstance(each, (str, os.PathLike))]:
        raise InvalidInputError(f"Got {type(odd[0]).__name__} among paths; expected paths or URIs alone.")
    return [os.fspath(each) for each in together], source


def _has_ending(location: str, ending: str) -> bool:
    return location.rstrip("/").endswith(ending)


def _only_one(locations: Sequence[str], ending: str) -> str:
    if len(locations) > 1:
        raise InvalidInputError(
            f"Got {len(locations)} paths, with folders in {ending} among them; expected one of those alone. "
            "Ingest one after the other."
        )
    return locations[0]


def _open_arrays(
    locations: Sequence[str],
    metadata: str | os.PathLike[str] | None,
    vector_column: str,
    storage_options: Mapping[str, str] | None,
    texts: Collection[str],
) -> Source:
    """One or several .npy files of vectors of one type."""
    places = [files_at(location, storage_options) for location in locations]
    found = [file for place in places for file in place.locations]
    others = None if metadata is None else os.fspath(metadata)
    if others is not None:
        _require_none("metadata", others if len(found) > 1 else None, "one file in .npy")
    opened = [open_array(file, others, vector_column, storage_options, texts=texts) for file in found]
    if len(opened) == 1:
        return opened[0]
    pieces = sorted((each.pieces[0] for each in opened), key=lambda piece: piece.name)
    for before, piece in itertools.pairwise(pieces):
        if before.name == piece.name:
            raise InvalidInputError(f"The source has {piece.name!r} twice; expected each file once.")
    for file, each in zip(found, opened, strict=True):
        if each.schema != opened[0].schema:
            raise InvalidInputError(
                f"Got vectors as {opened[0].schema.field(0).type} in {found[0]!r} and as "
                f"{each.schema.field(0).type} in {file!r}; expected files of one type."
            )
    location = common_folder([file.rpartition("/")[0] for file in found])
    return Source(schema=opened[0].schema, pieces=pieces, location=f"arrays {location}")


def _require_none(argument: str, value: object, what: str) -> None:
    if value is not None:
        raise InvalidInputError(f"Got {argument}={value!r}; expected it with {what} only.")


class FragmentPiece(Piece):
    """The rows of a Lance fragment that are not deleted."""

    def __init__(self, dataset: lance.LanceDataset, fragment: LanceFragment) -> None:
        files = [file.path for file in fragment.metadata.files]
        sizes = [file.file_size_bytes or 0 for file in fragment.metadata.files]
        super().__init__(
            f"{dataset.uri} fragment {fragment.fragment_id}",
            stamp_of(files, repr(fragment.metadata.deletion_file)),
            sum(sizes) or None,
        )
        self._dataset, self._fragment = dataset, fragment

    def cuts(self, size: int) -> list[int]:
        return even_cuts(self._fragment.count_rows(), self.source_bytes, size)

    def read(self, start: int, columns: Sequence[str], batch_rows: int) -> Iterator[Chunk]:
        rows = self._fragment.count_rows()
        if start >= rows:
            return
        row_bytes = (self.source_bytes or 0) / rows
        scanner = self._dataset.scanner(
            columns=list(columns),
            fragments=[self._fragment],
            offset=start,
            batch_size=batch_rows,
            batch_readahead=1,
            io_buffer_size=_READ_AHEAD_BYTES,
            scan_in_order=True,
        )
        for batch in scanner.to_batches():
            yield Chunk(batch, round(row_bytes * batch.num_rows))


def open_lance_uri(location: str, storage_options: Mapping[str, str] | None) -> Source:
    """The newest version of the Lance dataset at a path or URI.

    Raises:
        TableError: there is none.
        InvalidInputError: as `open_lance_dataset`.
    """
    options = None if storage_options is None else dict(storage_options)
    try:
        dataset = lance.dataset(absolute(location), storage_options=options)
    except (ValueError, OSError) as error:
        raise TableError(
            f"There is no table at {location!r} ({error}); expected the folder of a Lance dataset or LanceDB "
            "table, such as ./data/docs.lance."
        ) from error
    return open_lance_dataset(dataset)


def open_lance_dataset(dataset: lance.LanceDataset) -> Source:
    """A Lance dataset, at the version that it has checked out.

    Raises:
        InvalidInputError: it has blob columns.
    """
    if blobs := [field.name for field in dataset.schema if _is_blob(field)]:
        raise InvalidInputError(
            f"The dataset {dataset.uri!r} has blob columns {blobs}, which cannot be read with their content. "
            "Ingest a copy of it without them."
        )
    return Source(
        schema=user_schema(dataset.schema, without=()),
        pieces=[FragmentPiece(dataset, fragment) for fragment in dataset.get_fragments()],
        location=f"lance {dataset.uri}",
        version_note=f"version {dataset.version}",
        replaces_pieces=True,
    )


def _is_blob(field: pa.Field) -> bool:
    metadata = field.metadata or {}
    extension = getattr(field.type, "extension_name", metadata.get(_EXTENSION, b"").decode())
    return metadata.get(_BLOB) == b"true" or extension.startswith("lance.blob")


class StreamPiece(Piece):
    """The batches of an iterator, in its order."""

    may_grow = True
    can_be_shared = False

    def __init__(
        self,
        batches: Iterator[pa.RecordBatch],
        name: str,
        source_bytes: int | None,
        known: Collection[str] | None = None,
    ) -> None:
        """Prepare to read the batches.

        Args:
            batches: an iterator that nothing else uses.
            name: name of the piece.
            source_bytes: size of the piece; None if unknown.
            known: columns of the source; a batch with others raises. None to leave out other columns.
        """
        super().__init__(name, "", source_bytes)
        self._batches, self._known = batches, known

    def peek(self, rows: int, columns: Sequence[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
        """As `Piece.peek`, of 2,048 rows or a batch more at most, which are in memory until they are read."""
        peeked: list[pa.RecordBatch] = []
        while sum(batch.num_rows for batch in peeked) < min(rows, _PEEKED_ROWS):
            if (batch := next(self._batches, None)) is None:
                break
            peeked.append(batch)
        self._batches = itertools.chain(peeked, self._batches)
        for batch in peeked:
            yield batch.select([name for name in columns if name in batch.schema.names])

    def read(self, start: int, columns: Sequence[str], batch_rows: int) -> Iterator[Chunk]:
        for batch in skip(self._batches, start, self.name):
            unknown = (
                []
                if self._known is None
                else [each for each in batch.schema.names if each not in self._known]
            )
            if unknown:
                raise InvalidInputError(
                    f"{self.name} has columns that its first rows have not ({', '.join(unknown)}), and they "
                    "would be left out. What is committed stays; pass columns= with those to take."
                )
            chosen = batch.select([name for name in columns if name in batch.schema.names])
            for first in range(0, batch.num_rows, batch_rows):
                part = chosen.slice(first, batch_rows)
                yield Chunk(part, part.nbytes)


def open_stream(rows: Any, job: str | None, vector_column: str, *, takes_all: bool = True) -> Source:
    """Rows in any form that `add` takes, or an iterator of them.

    Args:
        rows: the rows; the first batch is read now.
        job: identifies the stream across calls; None if nothing does.
        vector_column: name of the vectors in dicts.
        takes_all: whether reading fails for later rows with columns that the first ones lack.

    Raises:
        InvalidInputError: these are not rows, or the iterator is empty.
    """
    size = getattr(rows, "nbytes", None)
    try:
        tables = arrow_tables(rows, vector_column)
        first = next(tables, None)
    except InvalidInputError as error:
        raise InvalidInputError(f"{error} As a source, expected {_EXPECTED_SOURCES}.") from error
    if first is None:
        raise InvalidInputError("The iterator yields nothing; expected record batches.")
    name = f"stream {job}" if job else type(rows).__name__
    batches = (batch for table in itertools.chain([first], tables) for batch in table.to_batches())
    known = first.column_names if takes_all else None
    piece = StreamPiece(batches, name, size if isinstance(size, int) else None, known)
    schema = _without_pandas_metadata(first.schema)
    return Source(schema=schema, pieces=[piece], location=f"stream {job}" if job else None)


def rows_source(schema: pa.Schema, job: str | None) -> Source:
    """Rows that other processes hold and that belong to no piece.

    Args:
        schema: columns of the rows.
        job: identifies these rows across calls; None if nothing does.
    """
    schema = _without_pandas_metadata(schema)
    return Source(schema=schema, pieces=[], location=f"rows {job}" if job else None)


def _without_pandas_metadata(schema: pa.Schema) -> pa.Schema:
    metadata = {key: value for key, value in (schema.metadata or {}).items() if key != _PANDAS_KEY}
    return schema.with_metadata(metadata or None)
