"""Lance itself: writes that are tried again, changes of the schema, and rows taken by id."""

import datetime

import lance
import lancedb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from rqmoe_store.errors import TableError
from rqmoe_store.store.lance import commit_schema, on_newest, take_rows, take_rows_of_version


@pytest.fixture
def table(db):
    return db.create_table("docs", [{"id": 1}])


def another(table):
    """Another handle on the same table."""
    return lancedb.connect(table.uri.rpartition("/")[0]).open_table(table.name)


def test_every_attempt_sees_the_newest_version(table) -> None:
    seen = []

    def write() -> str:
        seen.append(table.count_rows())
        another(table).add([{"id": 2}])
        if len(seen) < 3:
            raise RuntimeError("lance error: Retryable commit conflict for version 7")
        return "done"

    assert on_newest(table, write) == "done"
    assert seen == [1, 2, 3]


@pytest.mark.parametrize(
    "error", [ValueError("no such column"), OSError("disk full"), RuntimeError("No field named conflict")]
)
def test_other_failures_are_not_tried_again(table, error) -> None:
    calls = []

    def write() -> None:
        calls.append(1)
        raise error

    with pytest.raises(type(error)):
        on_newest(table, write)
    assert len(calls) == 1


def test_there_is_an_end_to_it(table) -> None:
    def write() -> None:
        raise OSError("Too many concurrent writers. Attempted 0 retries.")

    with pytest.raises(
        TableError, match=r"Others changed the same rows during each of 1 attempts.*fewer"
    ) as caught:
        on_newest(table, write, patience=datetime.timedelta(0))
    assert isinstance(caught.value.__cause__, OSError)


def test_a_real_conflict(table) -> None:
    """Compaction and deletion of the same rows, one after the other's reading."""
    for row in range(2, 6):
        table.add([{"id": row}])
    versions = []

    def write() -> None:
        dataset = table.to_lance()
        versions.append(dataset.version)
        if len(versions) == 1:
            another(table).delete("id = 2")
        dataset.optimize.compact_files()

    on_newest(table, write)
    assert len(versions) == 2
    assert table.count_rows() == 4
    assert len(table.to_lance().get_fragments()) == 1


ROWS = 60


@pytest.fixture(scope="module")
def docs(tmp_path_factory):
    import lancedb

    options = {"new_table_enable_stable_row_ids": "true"}
    db = lancedb.connect(tmp_path_factory.mktemp("takes"))
    rows = pa.table({"id": range(ROWS), "text": [f"row {row}" for row in range(ROWS)]})
    docs = db.create_table("docs", rows.slice(0, 40), storage_options=options)
    docs.add(rows.slice(40))
    docs.delete("id = 7")
    return docs


def ids_of(docs):
    rows = docs.search().with_row_id(True).to_arrow()
    return dict(zip(rows["id"].to_pylist(), rows["_rowid"].to_pylist(), strict=True))


@settings(deadline=None, max_examples=20)
@given(wanted=some.lists(some.integers(0, ROWS - 1).filter(lambda row: row != 7), unique=True, min_size=1))
def test_rows_come_in_the_order_asked_for(docs, wanted):
    row_ids = ids_of(docs)
    asked = np.array([row_ids[row] for row in wanted], dtype=np.uint64)
    texts, ids = take_rows(docs, ["text", "id"], asked)
    assert ids.to_pylist() == wanted
    assert texts.to_pylist() == [f"row {row}" for row in wanted]


@settings(deadline=None, max_examples=20)
@given(wanted=some.lists(some.integers(0, ROWS - 1).filter(lambda row: row != 7), unique=True))
def test_rows_of_a_version_come_in_the_order_asked_for(docs, wanted):
    row_ids, dataset = ids_of(docs), docs.to_lance()
    asked = np.array([row_ids[row] for row in wanted], dtype=np.uint64)
    taken = take_rows_of_version(dataset, ["text", "id"], asked)
    assert taken.to_pydict() == {"text": [f"row {row}" for row in wanted], "id": wanted}


def test_rows_of_an_earlier_version(docs):
    row_ids, before = ids_of(docs), docs.to_lance()
    docs.delete("id = 3")
    docs.update("id = 4", {"text": "new"})
    asked = np.array([row_ids[4], row_ids[3]], dtype=np.uint64)
    taken = take_rows_of_version(before, ["id", "text"], asked)
    assert taken.to_pydict() == {"id": [4, 3], "text": ["row 4", "row 3"]}
    with pytest.raises(TableError, match=r"Took 1 of 2 rows of version \d+ in .*docs"):
        take_rows_of_version(docs.to_lance(), ["id"], asked)
    now = take_rows_of_version(docs.to_lance(), ["id", "text"], asked[:1])
    assert now.to_pydict() == {"id": [4], "text": ["new"]}
    docs.restore(before.version)


def test_no_columns_and_missing_rows(docs):
    assert take_rows(docs, [], np.array([0], dtype=np.uint64)) == []
    with pytest.raises(TableError, match="Took 1 of 2 rows of 'docs'"):
        take_rows(docs, ["id"], np.array([ids_of(docs)[3], 10**6], dtype=np.uint64))


@pytest.fixture
def nested(db):
    """A dataset of two fragments, with nested columns, and numbers of columns that were dropped."""
    rows = {"a": [1, 2], "s": [{"u": 1, "w": [1.0]}, None], "b": ["x", "y"], "code": [b"ab", None]}
    docs = db.create_table("nested", pa.table(rows))
    docs.drop_columns(["a"])
    docs.add([{"s": {"u": 3, "w": []}, "b": "z", "code": b"cd"}])
    docs.to_lance().update_schema_metadata({"owner": "Ann Ü.", "k": "1"})
    return lance.dataset(docs.uri)


FIELD = pa.field("added", pa.binary(3))


def as_rows(uri):
    return lance.dataset(uri).to_table().to_pylist()


def test_a_column_and_metadata_come_in_one_commit(nested):
    before, version = as_rows(nested.uri), nested.version
    commit_schema(nested, {"k": "2", "new": "é"}, added=FIELD)
    after = lance.dataset(nested.uri)
    assert after.version == version + 1
    assert after.schema.metadata == {b"owner": "Ann Ü.".encode(), b"k": b"2", b"new": "é".encode()}
    assert after.schema.names == [*nested.schema.names, "added"] and after.schema.field("added") == FIELD
    assert as_rows(nested.uri) == [{**row, "added": None} for row in before]
    after.insert(pa.Table.from_pylist([{"b": "n", "added": b"xyz"}], schema=after.schema))
    assert as_rows(nested.uri)[-1] == {"s": None, "b": "n", "code": None, "added": b"xyz"}


@pytest.mark.parametrize("dropped", ["s", "b", "code"])
def test_a_column_goes_and_metadata_come_in_one_commit(nested, dropped):
    before, version = as_rows(nested.uri), nested.version
    commit_schema(nested, {"k": "2"}, dropped=dropped)
    after = lance.dataset(nested.uri)
    assert after.version == version + 1 and after.schema.metadata[b"k"] == b"2"
    without = [{name: value for name, value in row.items() if name != dropped} for row in before]
    assert as_rows(nested.uri) == without
    after.optimize.compact_files()
    assert as_rows(nested.uri) == without
    commit_schema(lance.dataset(nested.uri), {}, added=pa.field(dropped, pa.int32()))
    assert as_rows(nested.uri) == [{**row, dropped: None} for row in without]


def test_files_of_a_column_that_goes_are_no_part_of_the_table(nested):
    nested.add_columns({"added": "b"})  # which writes it into files of its own
    with_file = lance.dataset(nested.uri)
    commit_schema(with_file, {}, dropped="added")
    files = [len(each.data_files()) for each in with_file.get_fragments()]
    assert [len(each.data_files()) for each in lance.dataset(nested.uri).get_fragments()] == [1, 1]
    assert files == [2, 2]


WRITES = {
    "rows are added": lambda dataset: dataset.insert(dataset.to_table().slice(0, 1)),
    "rows are deleted": lambda dataset: dataset.delete("b = 'x'"),
    "metadata change": lambda dataset: dataset.update_schema_metadata({"k": "3"}),
    "a column comes": lambda dataset: dataset.add_columns(pa.schema([pa.field("other", pa.int32())])),
    "a column goes": lambda dataset: dataset.drop_columns(["code"]),
}


@pytest.mark.parametrize("change", [{"added": FIELD}, {"dropped": "b"}])
@pytest.mark.parametrize("write", WRITES)
def test_what_others_write_meanwhile_is_a_conflict(nested, write, change):
    WRITES[write](lance.dataset(nested.uri))
    written = as_rows(nested.uri), lance.dataset(nested.uri).schema.metadata
    with pytest.raises(OSError, match=r"(?i)conflict|concurrent"):
        commit_schema(nested, {"k": "2"}, **change)
    assert (as_rows(nested.uri), lance.dataset(nested.uri).schema.metadata) == written
