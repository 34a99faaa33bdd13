"""Compressing a LanceDB table: into a new table in two bounded passes, or in place.

Pass 1 encodes the vector column into temporary files; pass 2 takes the other columns in partition
order and writes them beside the codes, so that a partition is one contiguous run of rows. Raw vectors
that shall be kept follow in the same order, into files that a scan of the codes never opens.
Shapes: B rows of one batch.

Shapes: N rows of the table, B rows of one batch, M code bytes, P partitions.
"""

import math
import os
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lancedb.db import DBConnection
from lancedb.index import BTree
from lancedb.table import LanceTable, Table
from rich.progress import Progress

from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.parallel import use_storage
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import KeepVectors
from rqmoe_store.errors import InvalidInputError, StorageError, TableError
from rqmoe_store.progress import progress_bar
from rqmoe_store.storage_errors import translates_errors
from rqmoe_store.store import databases, registry
from rqmoe_store.store.appends import ApartColumn
from rqmoe_store.store.columns import (
    NO_PARTITION,
    CodeColumns,
    KeptVectors,
    require_keep_vectors,
    require_readable,
    user_schema,
)
from rqmoe_store.store.creation import require_place, stored_schema
from rqmoe_store.store.embeddings import moved_embedding
from rqmoe_store.store.handle import Handle
from rqmoe_store.store.lance import take_rows
from rqmoe_store.store.metadata import TableMetadata
from rqmoe_store.store.sql import quoted
from rqmoe_store.store.table_codec import TableCodec, metadata_of
from rqmoe_store.store.vector_arrays import read_vectors, require_vector_column, rows_per_batch

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


Advance = Callable[[int], None]

_TAKE_ROWS = 16_384
_ENCODE_ROWS = 1024  # between two moves of the progress bar; encoding is the slow part


@translates_errors
def compress_into(
    docs: Table,
    codec: Codec,
    into: str,
    *,
    db: DBConnection | None = None,
    vector_column: str = "vector",
    keep_vectors: KeepVectors = "none",
    progress: bool = True,
) -> Handle:
    """Make a new table with the columns of `docs`, its vectors replaced by codes.

    `docs` is read at the version it has now and never changed. Memory is bounded whatever its size;
    temporary files take about M + 20 bytes per row. Rows come out grouped by partition. If anything
    fails, Ctrl-C included, no table `into` is left behind.

    Args:
        docs: a LanceDB table on disk or in an object store.
        codec: trained on vectors like those of `docs`; it is kept in the same database.
        into: name of the new table.
        db: database for the new table; default is the one `docs` lives in.
        vector_column: the column to replace. Rows where it is null keep their other values and are
            never found by a search.
        keep_vectors: "float16" or "float32" also keeps the raw vectors in such numbers, in a column
            of the same name and in data files of its own.
        progress: show a progress bar.

    Returns:
        A handle on the new table.

    Raises:
        TableError: no such vector column, an empty table, columns named like ours, `into` taken.
        InvalidInputError: vectors of another dimension, with NaN or infinite values, or zero under
            cosine (named by row position), or beyond float16, or below it, where they shall be kept in it; an
            `into` that cannot be a table name; an unknown `keep_vectors`.
        StorageError: the disk or bucket, or that of temporary files, refuses to take it.
    """
    require_keep_vectors(keep_vectors)
    _require_bits(codec, keep_vectors)
    columns = CodeColumns(vector_column)
    kept = KeptVectors(column=vector_column, keep=keep_vectors, dim=codec.dim)
    docs = on_disk(docs)
    source = _pinned(docs)
    db = databases.database_of(docs) if db is None else db  # a connection can be falsy: it has a length
    require_compressible(source, codec, columns, ours=columns.names)
    _require_free_name(db, into, docs)
    with tempfile.TemporaryDirectory(prefix="rqmoe_store_") as folder, progress_bar(progress) as bar:
        spill = _encode_all(source, codec, kept, Path(folder), _task(bar, "Encoding", source))
        table = _write(db, into, source, codec, kept, spill, bar)
    return Handle(table, TableCodec.of(TableMetadata.read(table.schema, into), [codec]))


def _require_bits(codec: Codec, keep_vectors: KeepVectors) -> None:
    """Raise InvalidInputError where vectors like those the codec was trained on are nothing in float16."""
    if keep_vectors == "float16" and codec.vectors_are_tiny:
        raise InvalidInputError(
            "Got keep_vectors='float16' and a codec for vectors shorter than 1e-5, of which float16 keeps "
            "few bits or none. Use keep_vectors='float32', or multiply the vectors by a constant."
        )


def on_disk(docs: Table) -> LanceTable:
    """`docs`, if it is a table that can be read here."""
    use_storage()
    if not isinstance(docs, LanceTable):
        raise TableError(
            f"Got {type(docs).__name__} as the table to compress; expected a table opened with "
            "lancedb.connect(<folder or bucket>).open_table(name)."
        )
    return docs


def _pinned(docs: LanceTable) -> Table:
    """A second handle on `docs` that stays at its present version."""
    home = databases.database_of(docs)
    return home.open_table(docs.name, branch=docs.current_branch(), version=docs.version)


def require_compressible(source: Table, codec: Codec, columns: CodeColumns, ours: Collection[str]) -> None:
    """Raise TableError or InvalidInputError unless `codec` can encode `source`.

    Args:
        source: the table.
        codec: for vectors like those of `source`.
        columns: names the column of vectors.
        ours: columns that `source` must not have.
    """
    require_readable(source.schema)
    require_vector_column(source.schema, columns.vector_column, codec.dim)
    columns.require_absent_from(source.schema, ours)
    moved_embedding(source.schema.metadata, columns.vector_column, source.name)  # raises if unreadable
    if blobs := source.blob_columns():
        raise TableError(
            f"Table {source.name!r} has blob columns {blobs}, which cannot be copied with their content. "
            "Compress a copy of the table without them."
        )
    if source.count_rows() == 0:
        raise TableError(f"Table {source.name!r} has no rows; add some before compressing it.")


def _require_free_name(db: DBConnection, into: str, docs: LanceTable) -> None:
    require_place(db, into)
    if databases.open_if_exists(db, into) is not None:
        source = " (the table being compressed, which is never overwritten)" if into == docs.name else ""
        raise TableError(
            f"A table {into!r} exists already{source}. Choose another name for into=, or drop it first."
        )


def _encode_all(source: Table, codec: Codec, kept: KeptVectors, folder: Path, advance: Advance) -> CodeSpill:
    """Pass 1: every vector of `source` checked and encoded; nothing is written to the database."""
    spill = CodeSpill(
        folder,
        rows=source.count_rows(),
        code_bytes=codec.config.code_bytes,
        num_partitions=codec.num_partitions,
    )
    metric = codec.config.metric
    scan = source.search().select([kept.column]).with_row_id(True)
    for read in scan.to_batches(rows_per_batch(codec.dim)):
        for start in range(0, read.num_rows, _ENCODE_ROWS):
            batch = read.slice(start, _ENCODE_ROWS)
            vectors, valid_B = read_vectors(
                batch[kept.column], dim=codec.dim, metric=metric, first_row=spill.filled
            )
            kept.require_storable(vectors, valid_B, metric=metric, first_row=spill.filled)
            spill.append(batch["_rowid"].to_numpy(), codec.encode(vectors), valid_B)
            advance(batch.num_rows)
    if spill.filled != spill.rows:
        raise TableError(f"Read {spill.filled} rows of {source.name!r}; expected {spill.rows}. Try again.")
    return spill


def _write(
    db: DBConnection,
    into: str,
    source: Table,
    codec: Codec,
    kept: KeptVectors,
    spill: CodeSpill,
    bar: Progress,
) -> LanceTable:
    """Pass 2: the new table, whole and indexed, or none."""
    columns, order = CodeColumns(kept.column), spill.order_by_partition()
    schema = stored_schema(source.name, source.schema, metadata_of(codec, kept.column, kept.keep))
    others = user_schema(source.schema, without=(kept.column,)).names
    written = pa.schema([schema.field(name) for name in (*others, *columns.names)])
    advance = _task(bar, "Writing", source)
    batches = _grouped_batches(source, others, written, columns, spill, order, advance)
    vectors = _raw_vectors(source, kept, spill, order, codec.config.metric, bar)
    neighbor = cast(LanceTable, registry.save(db, codec))  # before the table that needs it appears
    table = databases.create_whole(db, into, schema, written.names, batches, neighbor=neighbor, apart=vectors)
    try:
        databases.require_stable_row_ids(table)
        if codec.num_partitions > 1:
            table.create_index(columns.partition, config=BTree())
    except BaseException:
        databases.drop(db, into)
        raise
    return table


def _grouped_batches(
    source: Table,
    names: list[str],
    schema: pa.Schema,
    columns: CodeColumns,
    spill: CodeSpill,
    order: npt.NDArray[np.int64],
    advance: Advance,
) -> Iterator[pa.RecordBatch]:
    for start in range(0, spill.rows, _TAKE_ROWS):
        rows_B = np.asarray(order[start : start + _TAKE_ROWS])
        taken = take_rows(source, names, spill.row_ids(rows_B))
        arrays = [*taken, *columns.to_arrow(*spill.codes(rows_B))]
        yield from pa.Table.from_arrays(arrays, schema=schema).to_batches()
        advance(len(rows_B))


def _raw_vectors(
    source: Table,
    kept: KeptVectors,
    spill: CodeSpill,
    order: npt.NDArray[np.int64],
    metric: str,
    bar: Progress,
) -> ApartColumn | None:
    """The column of raw vectors in the order of the new table; None where none are kept."""
    if not kept.kept:
        return None
    advance = _task(bar, "Keeping vectors", source)

    def read(start: int, stop: int) -> pa.Array:
        (column,) = take_rows(source, [kept.column], spill.row_ids(np.asarray(order[start:stop])))
        vectors, valid_B = read_vectors(column, dim=kept.dim, metric=metric, first_row=start)
        advance(stop - start)
        return kept.raw_array(vectors, valid_B)

    return ApartColumn(field=kept.field, read=read, batch_rows=rows_per_batch(kept.dim))


def _task(bar: Progress, description: str, source: Table) -> Advance:
    task = bar.add_task(description, total=source.count_rows())
    return lambda rows: bar.advance(task, rows)


_SAMPLED_ROWS = 256
"""Vectors that the codec is tried on."""


@translates_errors
def convert_in_place(
    docs: LanceTable, codec: Codec, vector_column: str, keep_vectors: str, advance: Callable[[int], object]
) -> TableCodec:
    """Give `docs` the columns and metadata of a compressed table; all of its rows are raw then.

    Every vector is checked before anything is written. The metadata comes last: a process that is lost before
    leaves a table as it was but for two columns without values, which a second call takes up.

    Args:
        docs: a table on disk or in an object store.
        codec: fits its vectors; it is kept in the same database.
        vector_column: the column that codes will replace.
        keep_vectors: "none", or that type of number which the column has.
        advance: told how many rows have been checked since it was called last.

    Returns:
        The codecs of the table.

    Raises:
        TableError: as `compress`, and for a vector column of another type than the table needs.
        InvalidInputError: vectors that cannot be encoded, named by row position.
    """
    table, columns = databases.reopen(docs), CodeColumns(vector_column)
    new = _missing_columns(table, columns, codec.config.code_bytes)
    require_compressible(table, codec, columns, ours=[field.name for field in new])
    kept = KeptVectors(column=vector_column, keep=keep_vectors, dim=codec.dim)
    _require_type(table, kept)
    sample = _check_vectors(table, codec, kept, advance)
    codec = _stored_codec(table, codec, sample)
    for index in table.list_indices():
        if index.columns == [vector_column]:  # LanceDB cannot keep it without the vectors
            table.drop_index(index.name)
    if not table.schema.field(vector_column).nullable:
        nullable: Any = {"path": vector_column, "nullable": True}  # LanceDB annotates other values
        table.alter_columns(nullable)
    if new:
        databases.reopen(table).to_lance().add_columns(pa.schema(new))
    metadata = metadata_of(codec, vector_column, keep_vectors)
    stored = metadata.write(moved_embedding(table.schema.metadata, vector_column, table.name))
    written: dict[str, str | None] = {key.decode(): value.decode() for key, value in stored.items()}
    databases.reopen(table).to_lance().update_schema_metadata(written, replace=True)
    return TableCodec.of(metadata, [codec])


def _missing_columns(table: LanceTable, columns: CodeColumns, code_bytes: int) -> list[pa.Field]:
    """Our columns that the table lacks; those an unfinished call left, without a value, it has."""
    missing = []
    for field in columns.fields(code_bytes):
        left = field.name in table.schema.names and table.schema.field(field.name).type == field.type
        if not left or table.count_rows(f"{quoted(field.name)} IS NOT NULL"):
            missing.append(field)
    return missing


def _require_type(table: LanceTable, kept: KeptVectors) -> None:
    found = table.schema.field(kept.column).type
    if found != kept.field.type:
        raise TableError(
            f"Column {kept.column!r} is {found}; compressing in place, keep_vectors={kept.keep!r}, expects "
            f"{kept.field.type}, as vectors are not written again. Compress into a new table (into=)."
        )


def _check_vectors(
    table: LanceTable, codec: Codec, kept: KeptVectors, advance: Callable[[int], object]
) -> Float32Array:
    """Some of the vectors; raises InvalidInputError where any could not be encoded later."""
    first_row = 0
    sample_VD = np.empty((0, codec.dim), dtype=np.float32)
    for batch in table.search().select([kept.column]).to_batches(rows_per_batch(codec.dim)):
        metric = codec.config.metric
        vectors_VD, _ = read_vectors(batch[kept.column], dim=codec.dim, metric=metric, first_row=first_row)
        if len(sample_VD) == 0:
            sample_VD = vectors_VD[:_SAMPLED_ROWS].copy()
        first_row += batch.num_rows
        advance(batch.num_rows)
    return sample_VD


def _stored_codec(table: LanceTable, codec: Codec, sample_VD: Float32Array) -> Codec:
    """The codec as the database of the table has it from now on.

    Raises InvalidInputError where it does not decode what it makes of vectors of the table.
    """
    database = databases.database_of(table)
    registry.save(database, codec)
    stored = registry.load(database, codec.fingerprint).to(str(codec.device))
    if not np.isfinite(stored.decode(stored.encode(sample_VD))).all():
        raise InvalidInputError(
            f"The codec decodes vectors of {table.name!r} to NaN or infinite values. Nothing was changed; "
            "train another codec on them."
        )
    return stored
