"""The data files of a new table and its one commit: everything or nothing, in every file format."""

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
from rqmoe_store.store.appends import ApartColumn, write_table

ROWS, DIM = 1000, 6
SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("nested", pa.struct([("a", pa.list_(pa.int32())), ("b", pa.string())])),
        pa.field("label", pa.dictionary(pa.int32(), pa.string())),
        pa.field("code", pa.binary(4)),
    ],
    metadata={"owner": "ann"},
)
ROW_NUMBERS = np.arange(ROWS)


def rows_of(schema=SCHEMA):
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

    return ApartColumn(field=pa.field("vector", lists(0, 1, number).type), read=read, batch_rows=batch_rows)


@pytest.mark.parametrize("rows_per_file", [300, 2**20])
@pytest.mark.parametrize("number", [np.float16, np.float32])
@pytest.mark.parametrize("file_format", ["2.0", "2.1", "2.2"])
def test_both_parts_become_one_table(db, file_format, number, rows_per_file):
    rows, apart = rows_of(), apart_column(number)
    write_table(
        f"{db.uri}/new.lance",
        SCHEMA.append(apart.field),
        rows.to_reader(90),
        apart=apart,
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
@pytest.mark.parametrize("columns", [("id",), ("nested", "code", "id"), ("label", "id"), SCHEMA.names])
def test_columns_that_no_row_has_are_null_and_take_no_space(db, columns, file_format):
    vectors = apart_column().field
    schema = pa.schema([vectors, *SCHEMA, pa.field("late", pa.struct([("a", pa.string())]))])
    rows = rows_of().select(columns)
    write_table(
        f"{db.uri}/new.lance",
        schema.with_metadata(SCHEMA.metadata),
        rows.to_reader(90),
        apart=None,
        file_format=file_format,
        storage_options=None,
        rows_per_file=300,
    )
    table = db.open_table("new")
    assert (table.schema, table.schema.metadata) == (schema, SCHEMA.metadata)
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
    schema, batches = SCHEMA.append(apart.field), iter(rows_of().to_batches())
    return databases.create_whole(db, "new", schema, SCHEMA.names, batches, neighbor=neighbor, apart=apart)


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
