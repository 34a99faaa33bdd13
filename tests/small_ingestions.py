"""Rows committed with notes of ingestions, and what a process that comes next finds."""

import lance
import pyarrow as pa

from rqmoe_store.store.appends import append_rows
from rqmoe_store.store.ingest_log import PieceProgress, claim, folded_notes

ROWS = pa.table({"id": [1]})
OPTIONS = {"new_table_enable_stable_row_ids": "true"}


def commit(table, held, **pieces):
    """One row of the pieces, as the holder of the claim commits it."""
    append_rows(
        table,
        ROWS.to_reader(),
        held.properties({key: PieceProgress("s", rows) for key, rows in pieces.items()}),
    )
    held.record_commit(table.version)


def finished(table, job="job"):
    """What a process that comes next finds."""
    return {key: done.rows for key, done in claim(table, job).state.pieces.items()}


def fold(table):
    """As the upkeep of a table does."""
    dataset = lance.dataset(table.uri)
    if notes := folded_notes(dataset, table.name):
        dataset.update_metadata(notes)
