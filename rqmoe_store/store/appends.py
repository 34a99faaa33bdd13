"""Appending rows in one commit that also says where they came from."""

from collections.abc import Mapping

import lance
import pyarrow as pa
from lancedb.table import LanceTable

from rqmoe_store.store import databases
from rqmoe_store.store.new_table import ROWS_PER_FILE
from rqmoe_store.store.refusals import names_refusals


@names_refusals
def append_rows(table: LanceTable, rows: pa.RecordBatchReader, properties: Mapping[str, str]) -> None:
    """Append `rows` to the newest version of `table`: all of them in one commit, or none.

    Columns that `rows` lacks are null and take no space. Afterwards `table` is at the version made.

    Args:
        rows: checked and encoded.
        properties: kept with the commit; `read_transaction` gives them back until the version it made is
            cleaned up.
    """
    lance.write_dataset(
        rows,
        databases.reopened(table).to_lance(),
        mode="append",
        max_rows_per_file=ROWS_PER_FILE,
        transaction_properties=dict(properties),
    )
    table.checkout_latest()  # type: ignore[no-untyped-call]  # LanceDB leaves it unannotated
