"""Append rows to a table, or write a new table: data files first, then one commit.

Data files belong to no version of a table until they are committed. A reader therefore sees all rows of a
write or none, whatever a failure or a lost process interrupts.
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
from rqmoe_store.store.lance import field_ids, record_failures, to_newest

ROWS_PER_FILE = 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeparateColumn:
    """A column that is stored in data files of its own: numbers, fixed-size binary, or fixed-size lists of
    numbers."""

    field: pa.Field
    """Name and type."""
    read: Callable[[int, int], pa.Array]
    """Function from rows start and stop of the new table to their values."""
    batch_rows: int = 1
    """Rows to read at a time."""


def write_table(
    uri: str,
    schema: pa.Schema,
    reader: pa.RecordBatchReader,
    *,
    separate: Sequence[SeparateColumn],
    file_format: str,
    storage_options: dict[str, str] | None,
    rows_per_file: int = ROWS_PER_FILE,
) -> None:
    """Write the rows of `reader`, then the separate columns, and commit all of them as a new table.

    The table has stable row ids. It exists once this returns. After an error the caller must remove the
    folder, unless another writer's table is in it.

    Args:
        uri: folder or bucket URI of the table.
        schema: schema of the table. Columns that are neither in `reader` nor separate are null, which takes
            no space.
        reader: rows with some of the columns, in the order of the schema.
        separate: columns to store in files of their own.
        file_format: version of the data files.
        storage_options: options to reach `uri` with; None for a local folder.
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
    for column in separate:
        fragments = _write_column(uri, fragments, schema, column, file_format, storage_options)
    commit_new(uri, schema, fragments, storage_options=storage_options, enable_stable_row_ids=True)


def commit_new(
    uri: str,
    schema: pa.Schema,
    fragments: Sequence[FragmentMetadata],
    *,
    storage_options: dict[str, str] | None,
    enable_stable_row_ids: bool | None = None,
) -> None:
    """Commit fragments as the first version of a table; if several writers do so at once, one succeeds.

    Raises:
        OSError: `uri` has a table already, which stays as it is, or the commit failed.
    """
    lance.LanceDataset.commit(
        uri,
        lance.LanceOperation.Overwrite(LanceSchema.from_pyarrow(schema), fragments),
        storage_options=storage_options,
        enable_stable_row_ids=enable_stable_row_ids,
        max_retries=0,  # a retry would commit this as the next version of a table that exists by then
    )


def _ids_in(schema: pa.Schema, written: pa.Schema) -> dict[int, int]:
    """Field id in files with some columns of a table -> field id in the table."""
    whole = {field.name(): field for field in LanceSchema.from_pyarrow(schema).fields()}
    return {
        old: new
        for field in LanceSchema.from_pyarrow(written).fields()
        for old, new in zip(field_ids(field), field_ids(whole[field.name()]), strict=True)
    }


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


def _write_column(
    uri: str,
    fragments: list[FragmentMetadata],
    schema: pa.Schema,
    column: SeparateColumn,
    file_format: str,
    storage_options: dict[str, str] | None,
) -> list[FragmentMetadata]:
    """Write a data file with the column for every fragment; return the fragments with these files."""
    place = schema.get_field_index(column.field.name)
    field_id: Any = LanceSchema.from_pyarrow(schema).fields()[place].id()
    extended, first = [], 0
    for fragment in fragments:
        stop, path = first + fragment.physical_rows, f"{uuid.uuid4().hex}.lance"
        with LanceFileWriter(
            f"{uri}/data/{path}",
            pa.schema([column.field]),
            version=file_format,
            storage_options=storage_options,
        ) as writer:
            for start in range(first, stop, column.batch_rows):
                array = column.read(start, min(start + column.batch_rows, stop))
                writer.write_batch(pa.record_batch([array], schema=pa.schema([column.field])))
        written = fragment.files[0]
        file = DataFile(
            path,
            fields=[field_id],
            column_indices=[0],  # a fixed-size list is one column of a file
            file_major_version=written.file_major_version,
            file_minor_version=written.file_minor_version,
            file_size_bytes=writer.size_bytes,
        )
        extended.append(dataclasses.replace(fragment, files=[*fragment.files, file]))
        first = stop
    return extended


SchemaCheck = Callable[[pa.Schema], object]
"""Called with the schema of the newest version of a table; raises if rows do not fit it."""


@translates_errors
def append_rows(
    table: LanceTable,
    rows: pa.RecordBatchReader,
    properties: Mapping[str, str],
    *,
    dataset: lance.LanceDataset | None = None,
    check: SchemaCheck = lambda schema: None,
) -> int:
    """Append `rows` to the newest version of a table in one commit, which `table` is at afterwards.

    Columns that `rows` lacks are null and take no space.

    Args:
        table: the table.
        rows: checked and encoded rows.
        properties: transaction properties of the commit; `read_transaction` returns them until the committed
            version is cleaned up.
        dataset: the table at any version, which is brought to the newest; None to open it, which takes about
            as long as to append a row.
        check: called before rows are written and before the commit.

    Returns:
        The committed version.
    """
    dataset = table.to_lance() if dataset is None else dataset
    _to_newest(dataset)
    check(dataset.schema)
    written = _write_files(dataset, rows)
    _to_newest(dataset)  # Lance appends rows to a schema that lacks their columns, and drops the values
    check(dataset.schema)
    return _commit(table, dataset, written, properties)


def _to_newest(dataset: lance.LanceDataset) -> None:
    dataset.checkout_latest()  # type: ignore[no-untyped-call]  # pylance leaves it unannotated


def write_rows(
    table: LanceTable, rows: pa.RecordBatchReader, *, check: SchemaCheck = lambda schema: None
) -> Transaction:
    """Write `rows` as data files of `table` that belong to no version yet.

    Files that are never committed remain until old versions of the table are cleaned up.

    Args:
        table: the table.
        rows: checked and encoded rows.
        check: called before rows are written.

    Returns:
        The transaction for `commit_rows`.
    """
    to_newest(table)
    check(table.schema)
    return _write_files(table.to_lance(), rows)


def _write_files(dataset: lance.LanceDataset, rows: pa.RecordBatchReader) -> Transaction:
    return write_fragments(
        rows, dataset, mode="append", max_rows_per_file=ROWS_PER_FILE, return_transaction=True
    )


def write_batches(
    table: LanceTable,
    schema: pa.Schema,
    batches: Iterator[pa.RecordBatch],
    *,
    check: SchemaCheck = lambda schema: None,
) -> Transaction:
    """Write `batches` as `write_rows` does; raises exceptions of `batches` as they are."""
    failures: list[Exception] = []
    try:
        reader = pa.RecordBatchReader.from_batches(schema, record_failures(batches, failures))
        return write_rows(table, reader, check=check)
    except Exception as error:
        if failures:
            raise failures[0] from error
        raise


def append_transaction(table: LanceTable, fragments: Sequence[str]) -> Transaction:
    """The transaction for `commit_rows` that appends fragments which other processes have written.

    Args:
        table: any handle on the table.
        fragments: fragments from `fragments_of` in these processes.
    """
    parsed = [FragmentMetadata.from_json(text) for text in fragments]
    return Transaction(read_version=table.version, operation=lance.LanceOperation.Append(parsed))


def fragments_of(written: Transaction) -> list[str]:
    """The fragments that `write_rows` has written, as JSON for another process."""
    operation = written.operation
    assert isinstance(operation, lance.LanceOperation.Append), "write_rows prepares appends"
    return [json.dumps(fragment.to_json()) for fragment in operation.fragments]


def commit_rows(table: LanceTable, transaction: Transaction, properties: Mapping[str, str]) -> int:
    """Commit rows that `write_rows` has written, as `append_rows` does, and return the committed version."""
    return _commit(table, table.to_lance(), transaction, properties)


def _commit(
    table: LanceTable, dataset: lance.LanceDataset, transaction: Transaction, properties: Mapping[str, str]
) -> int:
    transaction.transaction_properties = dict(properties)
    committed = lance.LanceDataset.commit(dataset, transaction)
    to_newest(table)
    return int(committed.version)
