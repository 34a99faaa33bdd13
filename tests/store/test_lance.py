"""Lance itself: writes that are tried again, and rows taken by id."""

import datetime

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from rqmoe_store.errors import TableError
from rqmoe_store.store.lance import on_newest, take_rows


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


def test_no_columns_and_missing_rows(docs):
    assert take_rows(docs, [], np.array([0], dtype=np.uint64)) == []
    with pytest.raises(TableError, match="Took 1 of 2 rows of 'docs'"):
        take_rows(docs, ["id"], np.array([ids_of(docs)[3], 10**6], dtype=np.uint64))
