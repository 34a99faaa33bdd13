"""Tables of nodes: found among many, and created once."""

import asyncio
import threading
from pathlib import Path

import lancedb
import pytest
from llama_index.vector_stores.rqmoe import RQMoEVectorStore
from llama_index.vector_stores.rqmoe.columns import NodeColumns
from small_nodes import SMALL_CODEC, ids, node

import rqmoe_store as rqs
from rqmoe_store import InvalidInputError, TableError

NODES = [node("a"), node("b")]


def new(path: Path, name: str = "vectors") -> RQMoEVectorStore:
    return RQMoEVectorStore(uri=str(path), table_name=name)


def test_a_table_is_found_among_many(tmp_path: Path) -> None:
    db = lancedb.connect(tmp_path)
    for place in range(25):
        db.create_table(f"t{place}", [{"id": place}])
    store = new(tmp_path, "zebra")
    assert store.get_nodes() == []
    store.add(NODES)
    found = new(tmp_path, "zebra").table
    assert found.name == "zebra" and found.key == "id"


def test_the_first_nodes_create_it_in_one_commit(tmp_path: Path) -> None:
    store = new(tmp_path)
    store.add(NODES)
    assert [version["version"] for version in store.table.list_versions()] == [1]
    assert store.table.count_rows() == 2


def test_a_table_made_by_others_meanwhile_is_found(tmp_path: Path) -> None:
    early = new(tmp_path)
    assert early.get_nodes() == [] and asyncio.run(early.aget_nodes()) == []
    new(tmp_path).add(NODES)
    assert ids(asyncio.run(early.aget_nodes())) == ["a", "b"]
    early.add([node("b"), node("c")])
    assert sorted(ids(early.get_nodes())) == ["a", "b", "c"]
    assert early.table is early.table


@pytest.mark.parametrize("handles", [1, 4])
def test_several_may_create_it_at_once(tmp_path: Path, handles: int) -> None:
    stores = [new(tmp_path) for _ in range(handles)]
    together = threading.Barrier(4)
    failures: list[BaseException] = []

    def create(store: RQMoEVectorStore) -> None:
        together.wait()
        try:
            store.add(NODES)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=create, args=(stores[place % handles],)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [store.table.count_rows() for store in stores] == [2] * handles


def test_no_table_is_made_for_rows_that_it_could_not_take(tmp_path: Path) -> None:
    store = new(tmp_path)
    with pytest.raises(InvalidInputError, match=r"node 'z' .*zero"):
        store.add([node("a"), node("z", [0.0, 0.0])])
    assert store.client.list_tables().tables == []


def test_a_table_without_a_key(tmp_path: Path) -> None:
    db = lancedb.connect(tmp_path)
    rqs.create_table(db, "vectors", schema=NodeColumns().schema(2))
    with pytest.raises(TableError, match="no key 'id'"):
        new(tmp_path)


def test_it_is_made_as_config_says(tmp_path: Path) -> None:
    store = RQMoEVectorStore(uri=str(tmp_path), config=SMALL_CODEC)
    store.add(NODES)
    assert store.table.codecs.metadata.config == SMALL_CODEC
