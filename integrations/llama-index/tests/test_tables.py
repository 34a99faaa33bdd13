"""Tables of nodes: found among many, and made once."""

import asyncio
import threading
from pathlib import Path

import lancedb
import pytest
from llama_index.vector_stores.rqmoe.columns import NodeColumns
from llama_index.vector_stores.rqmoe.rows import rows_of
from llama_index.vector_stores.rqmoe.tables import NodeTable
from small_nodes import SMALL_CODEC, node

import rqmoe_store as rqs
from rqmoe_store import InvalidInputError, TableError

COLUMNS = NodeColumns()
ROWS = rows_of([node("a"), node("b")], COLUMNS)


def new(path: Path, name: str = "vectors") -> NodeTable:
    return NodeTable(lancedb.connect(path), name, COLUMNS, None)


def test_a_table_is_found_among_many(tmp_path: Path) -> None:
    db = lancedb.connect(tmp_path)
    for place in range(25):
        db.create_table(f"t{place}", [{"id": place}])
    assert new(tmp_path, "zebra").opened() is None
    new(tmp_path, "zebra").made_for(ROWS)
    found = new(tmp_path, "zebra").opened()
    assert found is not None and found.name == "zebra" and found.key == "id"


def test_a_table_made_by_others_meanwhile_is_found(tmp_path: Path) -> None:
    early = new(tmp_path)
    assert early.opened() is None and asyncio.run(early.aopened()) is None
    new(tmp_path).made_for(ROWS)
    assert early.opened() is early.made_for(ROWS)
    awaited = asyncio.run(early.aopened())
    assert awaited is not None and awaited.blocking is early.opened()


def test_several_may_make_it_at_once(tmp_path: Path) -> None:
    tables = [new(tmp_path) for _ in range(4)]
    together = threading.Barrier(4)
    failures: list[BaseException] = []

    def make(table: NodeTable) -> None:
        together.wait()
        try:
            merge = table.made_for(ROWS).merge_insert("id")
            merge.when_matched_update_all().when_not_matched_insert_all().execute(ROWS)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=make, args=(table,)) for table in tables]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [table.made_for(ROWS).count_rows() for table in tables] == [2] * 4


def test_no_table_is_made_for_rows_that_it_could_not_take(tmp_path: Path) -> None:
    table = new(tmp_path)
    with pytest.raises(InvalidInputError, match=r"node 'z' .*zero"):
        table.made_for(rows_of([node("a"), node("z", [0.0, 0.0])], COLUMNS))
    assert table.opened() is None


def test_a_table_without_a_key(tmp_path: Path) -> None:
    db = lancedb.connect(tmp_path)
    rqs.create_table(db, "vectors", schema=COLUMNS.schema(2))
    with pytest.raises(TableError, match="no key 'id'"):
        new(tmp_path)


def test_it_is_made_as_config_says(tmp_path: Path) -> None:
    table = NodeTable(lancedb.connect(tmp_path), "vectors", COLUMNS, SMALL_CODEC)
    assert table.made_for(ROWS).codecs.metadata.config == SMALL_CODEC
