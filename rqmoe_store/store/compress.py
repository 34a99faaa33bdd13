"""Compress a LanceDB table: into a new table, in two passes of bounded memory, or in place.

Into a new table: pass 1 encodes the vector column into temporary files. Pass 2 takes the other columns in the
order of partitions and writes them together with the codes, so that the rows of a partition are contiguous.
Refine codes, and raw vectors to keep, follow in the same order, in data files that a scan of the codes never
opens.

Shape legend: N rows of the table, B rows of a batch, V of them with a vector, M code bytes, R bytes of a
refine code, P partitions, P1 is P + 1.
"""

import dataclasses
import math
import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
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
from rqmoe_store.config import CodecConfig, KeepVectors, MultiVectorConfig
from rqmoe_store.errors import InvalidInputError, StorageError, TableError
from rqmoe_store.progress import progress_bar
from rqmoe_store.storage_errors import translates_errors
from rqmoe_store.store import databases, registry
from rqmoe_store.store.appends import SeparateColumn
from rqmoe_store.store.columns import (
    NO_PARTITION,
    CodeColumns,
    KeptVectors,
    require_column_names,
    require_keep_vectors,
    user_schema,
)
from rqmoe_store.store.creation import (
    lists_metadata,
    require_codec_of_vectors,
    require_place,
    stored_schema,
    with_codecs,
)
from rqmoe_store.store.embeddings import metadata_with_moved_embedding
from rqmoe_store.store.handle import Handle
from rqmoe_store.store.lance import take_rows
from rqmoe_store.store.metadata import TableMetadata
from rqmoe_store.store.multivector import ENCODINGS_FITTED, encodings_of
from rqmoe_store.store.row_encoder import RowEncoder
from rqmoe_store.store.sql import quoted
from rqmoe_store.store.table_codec import TableCodec, metadata_of
from rqmoe_store.store.vector_arrays import read_vectors, require_vector_column, rows_per_batch

Advance = Callable[[int], object]

_TAKE_ROWS = 16_384
_ENCODE_ROWS = 1024
"""Rows encoded between two updates of the progress bar; encoding is the slow part."""
_SORT_ROWS = 2**18
_SAMPLED_ROWS = 256
"""Vectors that a codec is tried on before a table is converted in place."""


class CodeSpill:
    """Row ids, codes and partitions of N rows, in temporary files so that memory is bounded."""

    def __init__(
        self, folder: Path, *, rows: int, code_bytes: int, num_partitions: int, refine_bytes: int = 0
    ) -> None:
        self.rows = rows
        """Rows that there is room for."""
        self.filled = 0
        """Rows that have been appended."""
        self._folder = folder
        self._codes_NM = self._file("codes", np.uint8, (rows, code_bytes))
        self._refine_NR = self._file("refine", np.uint8, (rows, refine_bytes)) if refine_bytes else None
        self._partitions_N = self._file("partitions", np.int32, (rows,))
        self._row_ids_N = self._file("row_ids", np.uint64, (rows,))
        # The last count is of rows without a vector, which follow after all partitions.
        self._counts_P1 = np.zeros(num_partitions + 1, dtype=np.int64)

    def append(self, row_ids_B: npt.NDArray[np.uint64], codes: Codes, valid_B: npt.NDArray[np.bool_]) -> None:
        """Append a batch; `codes` are those of the rows where `valid_B` is True."""
        batch = slice(self.filled, self.filled + len(row_ids_B))
        rows_with_vector = self.filled + np.flatnonzero(valid_B)
        self._row_ids_N[batch] = row_ids_B
        self._partitions_N[batch] = NO_PARTITION
        self._partitions_N[rows_with_vector] = codes.partitions
        self._codes_NM[rows_with_vector] = codes.codes
        if self._refine_NR is not None:
            self._refine_NR[rows_with_vector] = codes.refine
        self._counts_P1 += np.bincount(self._groups(batch), minlength=len(self._counts_P1))
        self.filled = batch.stop

    def order_by_partition(self) -> npt.NDArray[np.int64]:
        """Positions (N,) of the rows sorted by partition, stably, as an array in a file.

        Counting sort: one sequential pass, with memory for one chunk and P counters.
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
        """Codes of the rows at these positions that have a vector, and which of them do."""
        partitions_B = np.asarray(self._partitions_N[rows_B])
        valid_B = partitions_B != NO_PARTITION
        codes_VM = np.asarray(self._codes_NM[rows_B[valid_B]])
        refine_VR = None if self._refine_NR is None else np.asarray(self._refine_NR[rows_B[valid_B]])
        return Codes(codes_VM, partitions_B[valid_B], refine_VR), valid_B

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
    """Give an empty file its size, and reserve the space where the system can.

    Without it, writing to a memory-mapped file on a full disk kills the process.
    """
    os.truncate(file, size)
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)


EncodingFit = Callable[[Float32Array, CodecConfig], Codec]
"""Function that fits the codec of fixed dimensional encodings (n, F) of this configuration."""


@dataclasses.dataclass(frozen=True)
class ListEncoding:
    """How rows are encoded that have many vectors each."""

    fit: EncodingFit
    """Fits the codec of encodings to those of a sample of rows."""
    config: MultiVectorConfig | None = None
    """How rows become encodings; None for the defaults."""


@dataclasses.dataclass(frozen=True)
class _NewRows:
    """The rows of a new table, encoded or as they are being encoded."""

    schema: pa.Schema
    """Of the table, with its metadata."""
    names: list[str]
    """Columns of the batches."""
    batches: Iterator[pa.RecordBatch]
    separate: Sequence[SeparateColumn] = ()
    codecs: TableCodec | None = None
    """Those of the table; None for the one codec alone."""


@translates_errors
def compress_into(
    docs: Table,
    codec: Codec,
    into: str,
    *,
    db: DBConnection | None = None,
    vector_column: str = "vector",
    keep_vectors: KeepVectors = "none",
    lists: ListEncoding | None = None,
    progress: bool = True,
) -> Handle:
    """Create a table with the columns of `docs` and codes in place of its vectors.

    `docs` is read at its present version and never changed. Memory is bounded for tables of any size;
    temporary files take about M + R + 20 bytes per row, for codes of M and refine codes of R bytes. The new
    table is grouped by partition; rows that have many vectors each keep their order. After any failure,
    including Ctrl-C, there is no table `into`.

    Args:
        docs: a LanceDB table on disk or in an object store.
        codec: a codec trained on vectors like those of `docs`; it is stored in the same database.
        into: name of the new table.
        db: database for the new table; default is the database of `docs`.
        vector_column: the column to compress. Rows where it is null keep their other values, and no search
            finds them.
        keep_vectors: "float16" or "float32" to keep the raw vectors, too, as such numbers, in a column of the
            same name and in data files of its own.
        lists: how rows are encoded that have many vectors each; None where they have one.
        progress: show a progress bar.

    Returns:
        A handle on the new table.

    Raises:
        TableError: there is no such vector column, the table is empty, a column has a reserved name, or the
            name `into` is taken.
        InvalidInputError: vectors have another dimension, NaN or infinite values, or are zero under cosine
            (named by row position), or float16 cannot hold vectors to keep; `into` is not a valid table name;
            `keep_vectors` is unknown.
        StorageError: the disk or bucket, or that of temporary files, is full or cannot be written to.
    """
    require_keep_vectors(keep_vectors)
    docs = require_local_table(docs)
    source = _pinned(docs)
    db = databases.database_of(docs) if db is None else db  # a connection can be falsy: it has a length
    if lists is None:
        _require_precision(codec, keep_vectors)
        columns = CodeColumns(vector_column, codec.config.refine_bytes)
        require_compressible(source, codec, columns, ours=columns.names)
    else:
        require_column_names(source.schema)
        metadata = lists_metadata(
            source.name, source.schema, codec, vector_column, keep_vectors, lists.config
        )
        require_copyable(source)
    _require_free_name(db, into, docs)
    with tempfile.TemporaryDirectory(prefix="rqmoe_store_") as folder, progress_bar(progress) as bar:
        if lists is None:
            new = _encode_vectors(source, codec, vector_column, keep_vectors, Path(folder), bar)
        else:
            new = _encode_lists(db, source, codec, metadata, lists.fit, bar)
        table = _write(db, into, codec, new)
    if new.codecs is not None:
        return Handle(table, new.codecs)
    return Handle(table, TableCodec.of(TableMetadata.read(table.schema, into), [codec]))


def _require_precision(codec: Codec, keep_vectors: KeepVectors) -> None:
    """Raise InvalidInputError if float16 would round vectors like those of the training to about zero."""
    if keep_vectors == "float16" and codec.vectors_are_tiny:
        raise InvalidInputError(
            "Got keep_vectors='float16' and a codec for vectors shorter than 1e-5, of which float16 keeps "
            "few bits or none. Use keep_vectors='float32', or multiply the vectors by a constant."
        )


def require_local_table(docs: Table) -> LanceTable:
    """Return `docs`; raise TableError unless this process reads its files itself."""
    use_storage()
    if not isinstance(docs, LanceTable):
        raise TableError(
            f"Got {type(docs).__name__} as the table to compress; expected a table opened with "
            "lancedb.connect(<folder or bucket>).open_table(name)."
        )
    return docs


def _pinned(docs: LanceTable) -> Table:
    """Another handle on `docs`, pinned to its present version."""
    home = databases.database_of(docs)
    return home.open_table(docs.name, branch=docs.current_branch(), version=docs.version)


def require_compressible(source: Table, codec: Codec, columns: CodeColumns, ours: Collection[str]) -> None:
    """Raise TableError or InvalidInputError unless `codec` can encode `source`.

    Args:
        source: the table to compress.
        codec: the codec.
        columns: columns of the compressed table.
        ours: names of columns that `source` must not have.
    """
    require_column_names(source.schema)
    require_vector_column(source.schema, columns.vector_column, codec.dim)
    require_codec_of_vectors(codec, columns.vector_column)
    columns.require_absent_from(source.schema, ours)
    metadata_with_moved_embedding(
        source.schema.metadata, columns.vector_column, source.name
    )  # raises if unreadable
    require_copyable(source)


def require_copyable(source: Table) -> None:
    """Raise TableError unless the other columns of `source` can be copied, and there are rows."""
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
    """Pass 1: check and encode every vector of `source`; nothing is written to the database."""
    spill = CodeSpill(
        folder,
        rows=source.count_rows(),
        code_bytes=codec.config.code_bytes,
        num_partitions=codec.num_partitions,
        refine_bytes=codec.config.refine_bytes,
    )
    scan = source.search().select([kept.column]).with_row_id(True)
    for read in scan.to_batches(rows_per_batch(codec.dim)):
        for start in range(0, read.num_rows, _ENCODE_ROWS):
            batch = read.slice(start, _ENCODE_ROWS)
            vectors, valid_B = kept.read(batch[kept.column], spill.filled)
            spill.append(batch["_rowid"].to_numpy(), codec.encode(vectors), valid_B)
            advance(batch.num_rows)
    if spill.filled != spill.rows:
        raise TableError(f"Read {spill.filled} rows of {source.name!r}; expected {spill.rows}. Try again.")
    return spill


def _encode_vectors(
    source: Table, codec: Codec, vector_column: str, keep_vectors: KeepVectors, folder: Path, bar: Progress
) -> _NewRows:
    """The rows of a table with one vector a row, in the order of partitions."""
    kept = KeptVectors(column=vector_column, keep=keep_vectors, dim=codec.dim, metric=codec.config.metric)
    spill = _encode_all(source, codec, kept, folder, _task(bar, "Encoding", source))
    metadata, order = metadata_of(codec, kept.column, kept.keep), spill.order_by_partition()
    schema, columns = stored_schema(source.name, source.schema, metadata), CodeColumns(kept.column)
    others = user_schema(source.schema, without=(kept.column,)).names
    written = pa.schema([schema.field(name) for name in (*others, *columns.names)])
    advance = _task(bar, "Writing", source)
    batches = _grouped_batches(source, others, written, columns, spill, order, advance)
    vectors = _raw_vectors(source, kept, spill, order, codec.config.metric, bar)
    return _NewRows(
        schema, written.names, batches, [*_refine_codes(metadata.columns, spill, order), *vectors]
    )


def _write(db: DBConnection, into: str, codec: Codec, new: _NewRows) -> LanceTable:
    """Create the new table with all rows and the index on partitions, or nothing."""
    neighbor = cast(LanceTable, registry.save(db, codec))  # before there is a table that needs it
    table = databases.create_atomically(
        db, into, new.schema, new.names, new.batches, neighbor=neighbor, separate=list(new.separate)
    )
    try:
        databases.require_stable_row_ids(table)
        if codec.num_partitions > 1:
            partition = TableMetadata.read(new.schema, into).columns.partition
            table.create_index(partition, config=BTree())
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
        codes, valid_B = spill.codes(rows_B)
        arrays = [*taken, *columns.to_arrow(codes.unrefined, valid_B)]
        yield from pa.Table.from_arrays(arrays, schema=schema).to_batches()
        advance(len(rows_B))


def _refine_codes(
    columns: CodeColumns, spill: CodeSpill, order: npt.NDArray[np.int64]
) -> list[SeparateColumn]:
    """The column of refine codes in the order of the new table, if there is one."""
    if not columns.refine_bytes:
        return []

    def read(start: int, stop: int) -> pa.Array:
        return columns.to_arrow(*spill.codes(np.asarray(order[start:stop])))[-1]

    return [SeparateColumn(field=columns.refine_field, read=read, batch_rows=_TAKE_ROWS)]


def _raw_vectors(
    source: Table,
    kept: KeptVectors,
    spill: CodeSpill,
    order: npt.NDArray[np.int64],
    metric: str,
    bar: Progress,
) -> list[SeparateColumn]:
    """The column of raw vectors in the order of the new table, if they are kept."""
    if not kept.kept:
        return []
    advance = _task(bar, "Keeping vectors", source)

    def read(start: int, stop: int) -> pa.Array:
        (column,) = take_rows(source, [kept.column], spill.row_ids(np.asarray(order[start:stop])))
        vectors, valid_B = read_vectors(column, dim=kept.dim, metric=metric, first_row=start)
        advance(stop - start)
        return kept.raw_array(vectors, valid_B)

    return [SeparateColumn(field=kept.field, read=read, batch_rows=rows_per_batch(kept.dim))]


def _task(bar: Progress, description: str, source: Table) -> Advance:
    task = bar.add_task(description, total=source.count_rows())
    return lambda rows: bar.advance(task, rows)


def _encode_lists(
    db: DBConnection, source: Table, codec: Codec, metadata: TableMetadata, fit: EncodingFit, bar: Progress
) -> _NewRows:
    """The rows of a table whose rows have many vectors each, in their order."""
    encoding_codec = fit(_sample_encodings(source, metadata), metadata.config)
    metadata = with_codecs(metadata, encoding_codec, codec)
    for each in (codec, encoding_codec):
        registry.save(db, each)
    codecs, schema = TableCodec.load(db, metadata), stored_schema(source.name, source.schema, metadata)
    encoder = RowEncoder(schema, codecs, table_name=source.name, encode=True)
    batches = _encoded_batches(source, encoder, _task(bar, "Encoding", source))
    return _NewRows(schema, encoder.schema.names, batches, codecs=codecs)


def _encoded_batches(source: Table, encoder: RowEncoder, advance: Advance) -> Iterator[pa.RecordBatch]:
    first_row, column = 0, encoder.columns.vector_column
    names = [*encoder.others.names, column]
    for batch in source.search().select(names).to_batches(encoder.codecs.metadata.rows_per_batch):
        rows = pa.Table.from_batches([batch]).select(names)
        yield from encoder.encoded_part(rows, first_row).combine_chunks().to_batches()
        first_row += batch.num_rows
        advance(batch.num_rows)


def _sample_encodings(source: Table, metadata: TableMetadata) -> Float32Array:
    """Fixed dimensional encodings (n, F) of rows chosen at random."""
    many, rows = metadata.multi_vector, source.count_rows()
    assert many is not None, "rows have many vectors"
    chosen = np.random.default_rng(0).permutation(rows)[:ENCODINGS_FITTED]
    parts = [np.empty((0, metadata.dim), np.float32)]
    for start in range(0, len(chosen), metadata.rows_per_batch):
        offsets = np.sort(chosen[start : start + metadata.rows_per_batch])
        taken = cast(LanceTable, source).take_offsets(offsets.tolist()).select([metadata.vector_column])
        vectors, _ = metadata.kept.read(taken.to_arrow()[metadata.vector_column], int(offsets[0]))
        parts.append(encodings_of(vectors, many))
    return np.concatenate(parts)


@translates_errors
def convert_in_place(
    docs: LanceTable, codec: Codec, vector_column: str, keep_vectors: str, advance: Advance
) -> TableCodec:
    """Make `docs` a compressed table, all of whose rows are still raw.

    Every vector is checked before anything is written. The metadata is written last: a process that is lost
    before that leaves the table as it was, except for two columns without values, which the next call uses.

    Args:
        docs: a table on disk or in an object store.
        codec: a codec for its vectors; it is stored in the same database.
        vector_column: the column to compress.
        keep_vectors: "none", or the number type that the column has.
        advance: called with the number of rows checked since its last call.

    Returns:
        The codecs of the table.

    Raises:
        TableError: as `compress`, or the vector column has another type than the table needs.
        InvalidInputError: vectors cannot be encoded; named by row position.
    """
    table, columns = databases.reopen(docs), CodeColumns(vector_column, codec.config.refine_bytes)
    new = _missing_columns(table, columns, codec.config.code_bytes)
    require_compressible(table, codec, columns, ours=[field.name for field in new])
    kept = KeptVectors(column=vector_column, keep=keep_vectors, dim=codec.dim, metric=codec.config.metric)
    _require_type(table, kept)
    sample = _check_vectors(table, codec, kept, advance)
    codec = _store_codec(table, codec, sample)
    for index in table.list_indices():
        if index.columns == [vector_column]:  # LanceDB cannot keep it without the vectors
            table.drop_index(index.name)
    if not table.schema.field(vector_column).nullable:
        nullable: Any = {"path": vector_column, "nullable": True}  # LanceDB annotates other values
        table.alter_columns(nullable)
    if new:
        databases.reopen(table).to_lance().add_columns(pa.schema(new))
    metadata = metadata_of(codec, vector_column, keep_vectors)
    stored = metadata.write(metadata_with_moved_embedding(table.schema.metadata, vector_column, table.name))
    written: dict[str, str | None] = {key.decode(): value.decode() for key, value in stored.items()}
    databases.reopen(table).to_lance().update_schema_metadata(written, replace=True)
    return TableCodec.of(metadata, [codec])


def _missing_columns(table: LanceTable, columns: CodeColumns, code_bytes: int) -> list[pa.Field]:
    """Code columns that the table lacks; one that an unfinished call left without values is not missing."""
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


def _check_vectors(table: LanceTable, codec: Codec, kept: KeptVectors, advance: Advance) -> Float32Array:
    """Raise InvalidInputError if any vector cannot be encoded; return a sample of the vectors."""
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


def _store_codec(table: LanceTable, codec: Codec, sample_VD: Float32Array) -> Codec:
    """Save the codec in the database of the table, load it from there, and try it on a sample of vectors.

    Raises:
        InvalidInputError: the codec decodes the sample to NaN or infinite values.
    """
    database = databases.database_of(table)
    registry.save(database, codec)
    stored = registry.load(database, codec.fingerprint).to(codec.device_name)
    if not np.isfinite(stored.decode(stored.encode(sample_VD))).all():
        raise InvalidInputError(
            f"The codec decodes vectors of {table.name!r} to NaN or infinite values. Nothing was changed; "
            "train another codec on them."
        )
    return stored
