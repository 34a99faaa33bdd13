"""Appends: data files written first, and the one commit that makes them part of a table, or a new one.

Files are written first and belong to nothing; a reader sees the table whole or not at all, whichever
file a failure or a lost process interrupts.
"""

import dataclasses
import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import lance
import pyarrow as pa
from lance.dataset import Transaction
from lance.file import LanceFileWriter
from lance.fragment import DataFile, FragmentMetadata, write_fragments
from lance.schema import LanceSchema
from lancedb.table import LanceTable

from rqmoe_store.storage_errors import translates_errors
from rqmoe_store.store.lance import noting, to_newest

ROWS_PER_FILE = 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class ApartColumn:
    """A column of numbers or of fixed-size lists of them, kept in data files of its own."""

    field: pa.Field
    """Its name and type."""
    read: Callable[[int, int], pa.Array]
    """Its values in rows start to stop of the new table."""
    batch_rows: int = 1
    """Rows to read at a time."""


def write_table(
    uri: str,
    schema: pa.Schema,
    reader: pa.RecordBatchReader,
    *,
    apart: ApartColumn | None,
    file_format: str,
    storage_options: dict[str, str] | None,
    rows_per_file: int = ROWS_PER_FILE,
) -> None:
    """Write the rows of `reader`, then the column `apart`, and commit all as one table.

    Row ids are stable. Nothing is a table before this returns; after an error the caller removes the
    folder, unless there is a table of someone else in it.

    Args:
        uri: folder or bucket URI of the table.
        schema: of the table. What neither `reader` nor `apart` has is null, which takes no space.
        reader: some of its columns, in its order.
        apart: a column that goes into files of its own; None without.
        file_format: version of the data files.
        storage_options: how to reach `uri`; None for a local folder.
        rows_per_file: rows of one data file.
    """
    fragments = write_fragments(
        reader,
        uri,
        mode="create",
        max_rows_per_file=rows_per_file,
        data_storage_version=file_format,
        storage_options=storage_options,
    )
    ids = _ids_in(schema, reader.schema)
    fragments = [_renumbered(fragment, ids) for fragment in fragments]
    if apart is not None:
        fragments = _with_column(uri, fragments, schema, apart, file_format, storage_options)
    commit_new(uri, schema, fragments, storage_options=storage_options, enable_stable_row_ids=True)


def commit_new(
    uri: str,
    schema: pa.Schema,
    fragments: Sequence[FragmentMetadata],
    *,
    storage_options: dict[str, str] | None,
    enable_stable_row_ids: bool | None = None,
) -> None:
    """Commit fragments as the first version of a table; of several writers that do so at once, one succeeds.

    Raises:
        OSError: there is a table at `uri` already, which stays as it is, or the commit failed.
    """
    lance.LanceDataset.commit(
        uri,
        lance.LanceOperation.Overwrite(LanceSchema.from_pyarrow(schema), fragments),
        storage_options=storage_options,
        enable_stable_row_ids=enable_stable_row_ids,
        max_retries=0,  # with retries a table that is there would get this one as its next version
    )


def _ids_in(schema: pa.Schema, written: pa.Schema) -> dict[int, int]:
    """Ids of the fields of files with some columns of a table, as they are in the whole table."""
    whole = {field.name(): field for field in LanceSchema.from_pyarrow(schema).fields()}
    return {
        old: new
        for field in LanceSchema.from_pyarrow(written).fields()
        for old, new in zip(_ids_of(field), _ids_of(whole[field.name()]), strict=True)
    }


def _ids_of(field: Any) -> list[int]:
    return [int(field.id()), *(each for child in field.children() for each in _ids_of(child))]


def _renumbered(fragment: FragmentMetadata, ids: Mapping[int, int]) -> FragmentMetadata:
    files = [
        DataFile(
            file.path,
            fields=[ids[each] for each in file.fields],
            column_indices=file.column_indices,
            file_major_version=file.file_major_version,
            file_minor_version=file.file_minor_version,
            file_size_bytes=file.file_size_bytes,
        )
        for file in fragment.files
    ]
    return dataclasses.replace(fragment, files=files)


def _with_column(
    uri: str,
    fragments: list[FragmentMetadata],
    schema: pa.Schema,
    apart: ApartColumn,
    file_format: str,
    storage_options: dict[str, str] | None,
) -> list[FragmentMetadata]:
    """The fragments with one more data file each, which holds the column `apart` of `schema`."""
    place = schema.get_field_index(apart.field.name)
    field_id: Any = LanceSchema.from_pyarrow(schema).fields()[place].id()
    extended, first = [], 0
    for fragment in fragments:
        stop, path = first + fragment.physical_rows, f"{uuid.uuid4().hex}.lance"
        with LanceFileWriter(
            f"{uri}/data/{path}",
            pa.schema([apart.field]),
            version=file_format,
            storage_options=storage_options,
        ) as writer:
            for start in range(first, stop, apart.batch_rows):
                array = apart.read(start, min(start + apart.batch_rows, stop))
                writer.write_batch(pa.record_batch([array], schema=pa.schema([apart.field])))
        written = fragment.files[0]
        file = DataFile(
            path,
            fields=[field_id],
            column_indices=[0],  # lists of a fixed size are one column of the file
            file_major_version=written.file_major_version,
            file_minor_version=written.file_minor_version,
            file_size_bytes=writer.size_bytes,
        )
        extended.append(dataclasses.replace(fragment, files=[*fragment.files, file]))
        first = stop
    return extended


@translates_errors
def append_rows(
    table: LanceTable,
    rows: pa.RecordBatchReader,
    properties: Mapping[str, str],
    *,
    check: Callable[[], object] = lambda: None,
) -> int:
    """Append `rows` to the newest version of `table`: all of them in one commit, or none.

    Columns that `rows` lacks are null and take no space. Afterwards `table` is at the version made.

    Args:
        rows: checked and encoded.
        properties: kept with the commit; `read_transaction` gives them back until the version it made is
            cleaned up.
        check: called before the commit, with `table` at the version that is appended to; raises if the rows
            must not be.

    Returns:
        The version.
    """
    written = write_rows(table, rows)
    check()
    return commit_rows(table, written, properties)


def write_rows(table: LanceTable, rows: pa.RecordBatchReader) -> Transaction:
    """Write `rows` as data files of `table` that belong to no version yet.

    They stay behind if they are never committed, until old versions of the table are cleaned up.

    Returns:
        What `commit_rows` takes to make them part of the table.
    """
    to_newest(table)
    return write_fragments(
        rows,
        table.to_lance(),
        mode="append",
        max_rows_per_file=ROWS_PER_FILE,
        return_transaction=True,
    )


def write_batches(table: LanceTable, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> Transaction:
    """As `write_rows`, raising what `batches` raises."""
    failures: list[Exception] = []
    try:
        return write_rows(table, pa.RecordBatchReader.from_batches(schema, noting(batches, failures)))
    except Exception as error:
        if failures:
            raise failures[0] from error
        raise


def written_elsewhere(table: LanceTable, fragments: Sequence[str]) -> Transaction:
    """What `commit_rows` takes to make rows part of the table that other processes have written.

    Args:
        table: any handle on it.
        fragments: those of their `write_rows`, by `fragments_of`.
    """
    parsed = [FragmentMetadata.from_json(text) for text in fragments]
    return Transaction(read_version=table.version, operation=lance.LanceOperation.Append(parsed))


def fragments_of(written: Transaction) -> list[str]:
    """The files that `write_rows` has written, as JSON for another process."""
    operation = written.operation
    assert isinstance(operation, lance.LanceOperation.Append), "rows were written to be appended"
    return [json.dumps(fragment.to_json()) for fragment in operation.fragments]


def commit_rows(table: LanceTable, transaction: Transaction, properties: Mapping[str, str]) -> int:
    """Make rows that `write_rows` has written part of `table`, as `append_rows` does; returns the version."""
    transaction.transaction_properties = dict(properties)
    dataset = lance.LanceDataset.commit(table.to_lance(), transaction)
    to_newest(table)
    return int(dataset.version)
