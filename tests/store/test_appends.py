"""Rows that are written first and become part of a table, or a new table, by one commit."""

import os

import lance
import lancedb
import numpy as np
import pyarrow as pa
import pytest
from interruptions import Interruption
from other_processes import processes

from rqmoe_store.errors import TableError
from rqmoe_store.store import databases
from rqmoe_store.store.appends import (
    SeparateColumn,
    append_rows,
    append_transaction,
    commit_rows,
    fragments_of,
    write_batches,
    write_rows,
    write_table,
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


@pytest.mark.parametrize("opened", [False, True])
def test_a_column_that_goes_while_files_are_written(db, table, opened):
    """Lance would commit the rows, and drop the values of the column."""
    other, seen = db.open_table("rows"), []

    def rows():
        yield pa.record_batch([[1], ["row 1"]], schema=SCHEMA)
        other.drop_columns(["text"])

    def require_text(schema):
        seen.append(schema.names)
        if "text" not in schema.names:
            raise TableError("the column is gone")

    dataset = table.to_lance() if opened else None
    with pytest.raises(TableError, match="the column is gone"):
        append_rows(
            table, pa.RecordBatchReader.from_batches(SCHEMA, rows()), {}, dataset=dataset, check=require_text
        )
    assert seen == [["id", "text"], ["id"]]
    assert db.open_table("rows").count_rows() == 0


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
    version = commit_rows(table, append_transaction(table, [*written[0], *written[1]]), {"note": "all"})
    assert (table.version, properties(table)) == (version, {"note": "all"})
    assert sorted(table.to_arrow()["id"].to_pylist()) == [1, 2, 3, 4]
    commit_rows(table, append_transaction(table, []), {"note": "none"})
    assert (table.count_rows(), properties(table)) == (4, {"note": "none"})


ROWS, DIM = 1000, 6

NEW = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("nested", pa.struct([("a", pa.list_(pa.int32())), ("b", pa.string())])),
        pa.field("label", pa.dictionary(pa.int32(), pa.string())),
        pa.field("code", pa.binary(4)),
    ],
    metadata={"owner": "ann"},
)

ROW_NUMBERS = np.arange(ROWS)


def rows_of(schema=NEW):
    columns = [
        ROW_NUMBERS,
        [{"a": [row] * (row % 3), "b": None if row % 2 else "b"} for row in range(ROWS)],
        pa.array(["x", None, "y", "z"] * (ROWS // 4)).dictionary_encode(),
        [None if row % 5 == 0 else b"abcd" for row in range(ROWS)],
    ]
    return pa.table(columns[: len(schema)], schema=schema)


def lists(start, stop, number):
    """Row r is [r, r + .5, ...] in float16 or float32; every fifth is null."""
    rows = np.arange(start, stop)
    values = (rows[:, None] + np.arange(DIM) / 2).astype(number)
    kind = pa.list_(pa.from_numpy_dtype(number), DIM)
    return pa.FixedSizeListArray.from_arrays(
        pa.array(values.ravel()), type=kind, mask=pa.array(rows % 5 == 0)
    )


def apart_column(number=np.float32, before=lambda start: None, batch_rows=70):
    def read(start, stop):
        before(start)
        return lists(start, stop, number)

    return SeparateColumn(
        field=pa.field("vector", lists(0, 1, number).type), read=read, batch_rows=batch_rows
    )


@pytest.mark.parametrize("rows_per_file", [300, 2**20])
@pytest.mark.parametrize("number", [np.float16, np.float32])
@pytest.mark.parametrize("file_format", ["2.0", "2.1", "2.2"])
def test_both_parts_become_one_table(db, file_format, number, rows_per_file):
    rows, apart = rows_of(), apart_column(number)
    write_table(
        f"{db.uri}/new.lance",
        NEW.append(apart.field),
        rows.to_reader(90),
        separate=[apart],
        file_format=file_format,
        storage_options=None,
        rows_per_file=rows_per_file,
    )
    table = db.open_table("new")
    whole = rows.append_column(apart.field, lists(0, ROWS, number))
    assert table.to_arrow().to_pylist() == whole.to_pylist()
    assert (table.schema, table.schema.metadata) == (whole.schema, whole.schema.metadata)
    dataset = table.to_lance()
    dataset.validate()
    assert (dataset.version, dataset.has_stable_row_ids) == (1, True)
    assert dataset.data_storage_version == file_format
    files = [fragment.metadata.files for fragment in dataset.get_fragments()]
    assert len(files) == -(-ROWS // rows_per_file)
    (column,) = [field.id() for field in dataset.lance_schema.fields() if field.name() == "vector"]
    assert all(column not in first.fields and second.fields == [column] for first, second in files)
    ids = table.search().where("id IN (3, 700)").with_row_id(True).to_arrow()["_rowid"].to_pylist()
    table.delete("id < 400 AND id != 3")
    table.add(whole.slice(0, 50))
    table.optimize()
    left = whole.take([3, *range(400, ROWS), *range(50)])
    assert table.to_arrow().sort_by("id").to_pylist() == left.sort_by("id").to_pylist()
    assert db.open_table("new").take_row_ids(ids).to_arrow()["id"].to_pylist() == [3, 700]
    assert table.to_lance().has_stable_row_ids


@pytest.mark.parametrize("file_format", ["2.0", "2.1", "2.2"])
@pytest.mark.parametrize("columns", [("id",), ("nested", "code", "id"), ("label", "id"), NEW.names])
def test_columns_that_no_row_has_are_null_and_take_no_space(db, columns, file_format):
    vectors = apart_column().field
    schema = pa.schema([vectors, *NEW, pa.field("late", pa.struct([("a", pa.string())]))])
    rows = rows_of().select(columns)
    write_table(
        f"{db.uri}/new.lance",
        schema.with_metadata(NEW.metadata),
        rows.to_reader(90),
        separate=[],
        file_format=file_format,
        storage_options=None,
        rows_per_file=300,
    )
    table = db.open_table("new")
    assert (table.schema, table.schema.metadata) == (schema, NEW.metadata)
    assert table.to_arrow().select(columns).to_pylist() == rows.to_pylist()
    others = set(schema.names) - set(columns)
    assert all(table.to_arrow()[name].null_count == ROWS for name in others)
    dataset = table.to_lance()
    dataset.validate()
    assert dataset.has_stable_row_ids
    ids = {field.name(): ids_of(field) for field in dataset.lance_schema.fields()}
    for fragment in dataset.get_fragments():
        (file,) = fragment.metadata.files
        assert {name for name in ids if ids[name] & set(file.fields)} == set(columns)


def ids_of(field):
    return {field.id()}.union(*map(ids_of, field.children()))


# Whole or not at all, wherever the column apart fails.


def create(db, apart):
    neighbor = db.create_table("neighbor", [{"id": 1}], exist_ok=True)
    schema, batches = NEW.append(apart.field), iter(rows_of().to_batches())
    return databases.create_atomically(
        db, "new", schema, NEW.names, batches, neighbor=neighbor, separate=[apart]
    )


def at(row, act):
    """Calls `act` before row `row` is read."""
    return apart_column(before=lambda start: act() if start == row else None)


@pytest.mark.parametrize("row", [0, 490, 980])
def test_a_failing_column_leaves_nothing_and_raises_its_own_error(db, table_names, row):
    def fail():
        raise TableError("the source is gone")

    with pytest.raises(TableError, match="the source is gone"):
        create(db, at(row, fail))
    assert table_names() == {"neighbor"}
    assert create(db, apart_column()).count_rows("vector IS NOT NULL") == 800


@pytest.mark.parametrize("row", [0, 490, 980])
def test_ctrl_c_in_the_column_leaves_nothing(db, table_names, row):
    with pytest.raises(KeyboardInterrupt), Interruption() as interruption:
        create(db, at(row, interruption.wait))
    assert table_names() == {"neighbor"}


def test_a_failing_commit_leaves_nothing(db, table_names, monkeypatch):
    def fail(*arguments, **settings):
        raise OSError("disk full")

    monkeypatch.setattr(lance.LanceDataset, "commit", fail)
    with pytest.raises(OSError, match="disk full"):
        create(db, apart_column())
    assert table_names() == {"neighbor"}


def test_a_rival_made_while_the_column_is_written_stays(db):
    def rival():
        lancedb.connect(db.uri).create_table("new", [{"other": 1}])

    with pytest.raises(TableError, match="Another process made table 'new' meanwhile"):
        create(db, at(490, rival))
    assert db.open_table("new").to_arrow().to_pylist() == [{"other": 1}]


def die_while_creating(folder):
    create(lancedb.connect(folder), at(490, lambda: os._exit(7)))


def test_a_process_that_dies_leaves_no_table(db, table_names):
    process = processes.Process(target=die_while_creating, args=(db.uri,))
    process.start()
    process.join()
    assert process.exitcode == 7
    assert "new" in table_names()  # files of no table
    assert databases.open_if_exists(db, "new") is None
    table = create(db, apart_column())
    assert table.to_arrow()["vector"].to_pylist() == lists(0, ROWS, np.float32).to_pylist()
