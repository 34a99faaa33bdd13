"""Writes that are tried again."""

import datetime

import lancedb
import pytest

from rqmoe_store.errors import TableError
from rqmoe_store.store.lance import on_newest


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
