"""The store: writing, reading and deleting nodes."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.vector_stores.rqmoe import RQMoEVectorStore
from small_nodes import EMPTY, QUICKLY, SMALL_CODEC, TEXTS, asked, ids, many_nodes, node, where

from rqmoe_store import InvalidInputError


def test_nodes_are_added_and_read(store: RQMoEVectorStore) -> None:
    nodes = [node("b", n=1), node("a", [0.5, 0.25], document="d", text="A")]
    assert store.add(nodes) == ["b", "a"]
    assert store.get_nodes() == nodes
    assert store.get_nodes(node_ids=["a", "nobody"]) == [nodes[1]]
    assert store.get_nodes(node_ids=[]) == []
    assert store.get_nodes(filters=where(("n", "==", 1))) == [nodes[0]]
    assert store.get_nodes(node_ids=["a"], filters=where(("n", "==", 1))) == []


def test_the_same_id_again_replaces_the_node(store: RQMoEVectorStore) -> None:
    store.add([node("a", n=1), node("b", n=1)])
    assert store.add([node("a", [0.0, 1.0], n=2), node("a", [0.5, 1.0], n=3)]) == ["a", "a"]
    read = {one.node_id: (one.metadata["n"], one.embedding) for one in store.get_nodes()}
    assert read == {"a": (3, [0.5, 1.0]), "b": (1, [1.0, 0.0])}


def test_nodes_may_be_a_generator(store: RQMoEVectorStore) -> None:
    assert store.add(node(name) for name in "ab") == ["a", "b"]
    assert asyncio.run(store.async_add(node(name) for name in "cd")) == ["c", "d"]
    assert sorted(ids(store.get_nodes())) == ["a", "b", "c", "d"]


def test_nothing_is_added(store: RQMoEVectorStore) -> None:
    assert store.add([]) == []
    assert store.client.list_tables().tables == []


def test_a_store_without_a_table_is_empty(store: RQMoEVectorStore) -> None:
    assert store.query(asked()) == EMPTY
    assert store.query(asked(mode="hybrid", query_str="x")) == EMPTY
    assert store.get_nodes() == []
    store.delete("d")
    store.delete_nodes(["a"])
    store.clear()
    assert store.client.list_tables().tables == []


@pytest.mark.parametrize("mode", ["default", "mmr", "hybrid", "text_search"])
def test_a_result_may_be_empty(store: RQMoEVectorStore, mode: str) -> None:
    store.add([node("a")])
    assert store.query(asked(mode=mode, query_str="x", filters=where(("n", "==", 1)))) == EMPTY
    store.clear()
    assert store.query(asked(mode=mode, query_str="x")) == EMPTY


def test_documents_are_deleted(store: RQMoEVectorStore) -> None:
    store.add([node("a", document="d"), node("b", document="d"), node("c", document="e"), node("f")])
    store.delete("d")
    assert ids(store.get_nodes()) == ["c", "f"]
    store.delete("nobody")
    store.delete("None")
    assert ids(store.get_nodes()) == ["c", "f"]


def test_nodes_are_deleted(store: RQMoEVectorStore) -> None:
    store.add([node(name, n=n) for n, name in enumerate("abcdef")])
    store.delete_nodes(["a", "nobody"])
    store.delete_nodes(filters=where(("n", "==", 1)))
    store.delete_nodes(["c", "d"], where(("n", ">", 2)))
    store.delete_nodes([])
    assert ids(store.get_nodes()) == ["c", "e", "f"]
    with pytest.raises(InvalidInputError, match=r"clear\(\)"):
        store.delete_nodes()
    assert ids(store.get_nodes()) == ["c", "e", "f"]


def test_everything_is_deleted(store: RQMoEVectorStore) -> None:
    store.add([node("a")])
    store.clear()
    assert store.get_nodes() == []
    store.add([node("b")])
    assert ids(store.get_nodes()) == ["b"]


@settings(max_examples=20, deadline=None)
@given(names=st.lists(TEXTS, min_size=1, max_size=4, unique=True), text=TEXTS, document=TEXTS)
def test_any_ids_and_texts(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], text: str, document: str
) -> None:
    store = RQMoEVectorStore(uri=str(tmp_path_factory.mktemp("db")))
    nodes = [node(name, text=text, document=document, key=text) for name in names]
    store.add([node("kept", document="kept's document"), *nodes])
    read = store.get_nodes(node_ids=names)
    assert sorted(read, key=lambda one: one.node_id) == sorted(nodes, key=lambda one: one.node_id)
    assert len(store.get_nodes(filters=where(("key", "==", text)))) == len(nodes)
    store.delete_nodes(names[:1])
    store.delete(document)
    assert ids(store.get_nodes()) == ([] if "kept" in names else ["kept"])


def test_a_codec_is_trained_when_there_are_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = RQMoEVectorStore(uri=str(tmp_path), config=SMALL_CODEC, training=QUICKLY, train_from=300)
    nodes = many_nodes(310)
    store.add(nodes[:299])
    assert store.table.codecs.newest is None
    store.add(nodes[299:300])
    assert store.table.codec.fingerprint and store.table.stats().raw_rows == 0
    assert capsys.readouterr().err == ""
    store.add(nodes[300:])  # encoded at once
    assert store.table.stats().raw_rows == 0 and len(store.get_nodes()) == 310
    again = RQMoEVectorStore(uri=str(tmp_path))
    assert again.query(asked(nodes[305].embedding, top=3)) == store.query(asked(nodes[305].embedding, top=3))


def test_no_codec_is_trained_where_none_is_wanted(tmp_path: Path) -> None:
    store = RQMoEVectorStore(uri=str(tmp_path), config=SMALL_CODEC, training=QUICKLY, train_from=None)
    store.add(many_nodes(300))
    assert store.table.codecs.newest is None


@pytest.mark.parametrize("shown", [True, False])
def test_progress_is_shown_if_wanted(tmp_path: Path, shown: bool, capsys: pytest.CaptureFixture[str]) -> None:
    store = RQMoEVectorStore(uri=str(tmp_path), config=SMALL_CODEC, train_from=300, show_progress=not shown)
    store.add(many_nodes(300), show_progress=shown)
    output = capsys.readouterr()
    assert ("Encoding" in output.out + output.err) == shown


def test_two_stores_of_one_table(store: RQMoEVectorStore) -> None:
    other = RQMoEVectorStore(uri=store.uri)
    store.add([node("a")])
    assert ids(other.get_nodes()) == ["a"]
    other.add([node("b")])
    assert ids(store.get_nodes()) == ["a", "b"]
