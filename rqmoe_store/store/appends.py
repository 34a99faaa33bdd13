"""Appending rows in one commit that also says where they came from."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence

import lance
import pyarrow as pa
from lance.dataset import Transaction
from lance.fragment import FragmentMetadata, write_fragments
from lancedb.table import LanceTable

from rqmoe_store.refusals import names_refusals
from rqmoe_store.store.fragments import noting
from rqmoe_store.store.new_table import ROWS_PER_FILE
from rqmoe_store.store.retries import to_newest


@names_refusals
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
