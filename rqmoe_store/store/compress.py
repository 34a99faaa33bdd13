"""A LanceDB table with vectors into a new table with codes, in two bounded passes.

Pass 1 encodes the vector column into temporary files; pass 2 takes the other columns in partition
order and writes them beside the codes, so that a partition is one contiguous run of rows. Raw vectors
that shall be kept follow in the same order, into files that a scan of the codes never opens.
Shapes: B rows of one batch.
"""

import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lancedb.db import DBConnection
from lancedb.index import BTree
from lancedb.table import LanceTable, Table
from rich.progress import Progress

from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.forks import use_storage
from rqmoe_store.config import KeepVectors
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.refusals import names_refusals
from rqmoe_store.store import databases, registry
from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.creation import require_place, stored_schema
from rqmoe_store.store.embeddings import moved_embedding
from rqmoe_store.store.kept_vectors import KeptVectors, require_keep_vectors
from rqmoe_store.store.metadata import TableMarks
from rqmoe_store.store.new_table import ApartColumn
from rqmoe_store.store.progress import progress_bar
from rqmoe_store.store.schemas import require_readable, user_schema
from rqmoe_store.store.spill import CodeSpill
from rqmoe_store.store.table import StoredTable
from rqmoe_store.store.table_codec import TableCodec, marks_of
from rqmoe_store.store.takes import take_rows
from rqmoe_store.store.vector_arrays import read_vectors, require_vector_column, rows_per_batch

StoredTableType = TypeVar("StoredTableType", bound=StoredTable)
Advance = Callable[[int], None]

_TAKE_ROWS = 16_384
_ENCODE_ROWS = 1024  # between two moves of the progress bar; encoding is the slow part


@names_refusals
def compress(
    docs: Table,
    codec: Codec,
    into: str,
    *,
    db: DBConnection | None = None,
    vector_column: str = "vector",
    keep_vectors: KeepVectors = "none",
    progress: bool = True,
    cls: type[StoredTableType] = StoredTable,  # type: ignore[assignment]  # the default is the bound
) -> StoredTableType:
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
        cls: class of the returned table.

    Returns:
        The new table, open.

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
    return cls(table, TableCodec.of(TableMarks.read(table.schema, into), [codec]))


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
    schema = stored_schema(source.name, source.schema, marks_of(codec, kept.column, kept.keep))
    others = user_schema(source.schema, without=(kept.column,)).names
    written = pa.schema([schema.field(name) for name in (*others, *columns.names)])
    advance = _task(bar, "Writing", source)
    batches = _grouped_batches(source, others, written, columns, spill, order, advance)
    vectors = _raw_vectors(source, kept, spill, order, codec.config.metric, bar)
    neighbour = cast(LanceTable, registry.save(db, codec))  # before the table that needs it appears
    table = databases.create_whole(
        db, into, schema, written.names, batches, neighbour=neighbour, apart=vectors
    )
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
