"""Rows that are written first and become part of a table by one commit, which can carry notes."""

import lance
import lancedb
import pyarrow as pa
import pytest

from rqmoe_store.errors import TableError
from rqmoe_store.store.appends import (
    append_rows,
    commit_rows,
    fragments_of,
    write_batches,
    write_rows,
    written_elsewhere,
)

SCHEMA = pa.schema([pa.field("id", pa.int64(), nullable=False), pa.field("text", pa.string())])


def reader(*ids):
    batches = [pa.record_batch([[row], [f"row {row}"]], schema=SCHEMA) for row in ids]
    return pa.RecordBatchReader.from_batches(SCHEMA, batches)


@pytest.fixture
def table(db):
    options = {"new_table_enable_stable_row_ids": "true"}
    return db.create_table("rows", schema=SCHEMA, storage_options=options)


def properties(table):
    return table.to_lance().read_transaction(table.version).transaction_properties


def test_rows_and_note_come_together(table):
    written = write_rows(table, reader(1, 2))
    assert table.count_rows() == 0
    version = commit_rows(table, written, {"note": "first"})
    assert (table.version, table.count_rows()) == (version, 2)
    assert properties(table) == {"note": "first"}
    append_rows(table, reader(3), {})
    assert sorted(table.to_arrow()["id"].to_pylist()) == [1, 2, 3]
    assert table.to_lance().has_stable_row_ids
    ids = table.search().with_row_id(True).to_arrow()["_rowid"].to_pylist()
    assert len(set(ids)) == 3


def test_a_note_without_rows(table):
    version = table.version
    commit_rows(table, write_rows(table, reader()), {"note": "none"})
    assert (table.version, table.count_rows()) == (version + 1, 0)
    assert properties(table) == {"note": "none"}


def test_rows_written_before_others_were_added(db, table):
    written = write_rows(table, reader(1))
    db.open_table("rows").add([{"id": 2, "text": "other"}])
    commit_rows(table, written, {})
    assert sorted(table.to_arrow()["id"].to_pylist()) == [1, 2]


def test_columns_that_rows_lack_are_null(table):
    schema = SCHEMA.remove(1)
    append_rows(table, pa.table([[7]], schema=schema).to_reader(), {})
    assert table.to_arrow().to_pylist() == [{"id": 7, "text": None}]


def test_nothing_is_added_when_rows_fail(table):
    def failing():
        yield pa.record_batch([[1], ["row 1"]], schema=SCHEMA)
        raise ValueError("no more")

    with pytest.raises(TableError, match="no more"):
        append_rows(table, pa.RecordBatchReader.from_batches(SCHEMA, failing()), {})
    assert lancedb.connect(table.uri.rpartition("/")[0]).open_table("rows").count_rows() == 0
    assert lance.dataset(table.uri).version == 1


def test_what_batches_raise_is_raised(table):
    def failing():
        yield pa.record_batch([[1], ["row 1"]], schema=SCHEMA)
        raise KeyError("no more")

    with pytest.raises(KeyError, match="no more"):
        write_batches(table, SCHEMA, failing())
    assert table.count_rows() == 0


def test_rows_of_several_processes_in_one_commit(db, table):
    written = [fragments_of(write_rows(db.open_table("rows"), reader(first, first + 1))) for first in (1, 3)]
    assert table.count_rows() == 0
    version = commit_rows(table, written_elsewhere(table, [*written[0], *written[1]]), {"note": "all"})
    assert (table.version, properties(table)) == (version, {"note": "all"})
    assert sorted(table.to_arrow()["id"].to_pylist()) == [1, 2, 3, 4]
    commit_rows(table, written_elsewhere(table, []), {"note": "none"})
    assert (table.count_rows(), properties(table)) == (4, {"note": "none"})
