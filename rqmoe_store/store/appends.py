"""Appending rows in one commit that also says where they came from."""

from collections.abc import Callable, Mapping

import lance
import pyarrow as pa
from lance.dataset import Transaction
from lance.fragment import write_fragments
from lancedb.table import LanceTable

from rqmoe_store.store.new_table import ROWS_PER_FILE
from rqmoe_store.store.refusals import names_refusals
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


def commit_rows(table: LanceTable, transaction: Transaction, properties: Mapping[str, str]) -> int:
    """Make rows that `write_rows` has written part of `table`, as `append_rows` does; returns the version."""
    transaction.transaction_properties = dict(properties)
    dataset = lance.LanceDataset.commit(table.to_lance(), transaction)
    to_newest(table)
    return int(dataset.version)
