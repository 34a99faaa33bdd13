"""The store: writing, reading and deleting nodes, blocking and awaited."""

import asyncio
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core.vector_stores.types import BasePydanticVectorStore, VectorStoreQueryResult
from llama_index.vector_stores.rqmoe import RQMoEVectorStore
from small_nodes import QUICKLY, SMALL_CODEC, TEXTS, asked, ids, many_nodes, node, where

from rqmoe_store import CodecConfig, InvalidInputError

EMPTY = VectorStoreQueryResult(nodes=[], similarities=[], ids=[])


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


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "no embedding": (lambda: node("bad").model_copy(update={"embedding": None}), "'bad' has no embedding"),
    "other dimension": (lambda: node("bad", [1.0, 2.0, 3.0]), "dimension 3"),
    "nan": (lambda: node("bad", [math.nan, 1.0]), "'bad' has NaN"),
    "beyond float32": (lambda: node("bad", [1e300, 1.0]), "'bad' has NaN or infinite"),
    "zero": (lambda: node("bad", [0.0, 0.0]), "'bad'.*zero"),
    "metadata": (lambda: node("bad", n=2**64), "'bad' has.*64 bits"),
    "half a character": (lambda: node("bad", text="\udc00"), "half a character"),
    "no node": (lambda: "text", "Got str"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_added(store: RQMoEVectorStore, name: str) -> None:
    make, expected = BAD[name]
    with pytest.raises(InvalidInputError, match=expected):
        store.add([node("good"), make()])
    assert store.client.list_tables().tables == []
    store.add([node("first")])
    with pytest.raises(InvalidInputError, match=expected):
        store.add([node("good"), make()])
    with pytest.raises(ValueError, match=expected):
        asyncio.run(store.async_add([node("good"), make()]))
    assert ids(store.get_nodes()) == ["first"]


def test_another_embedding_model(store: RQMoEVectorStore) -> None:
    store.add([node("a")])
    with pytest.raises(InvalidInputError, match="dimension 3, but those of table 'vectors' have 2"):
        store.add([node("b", [1.0, 2.0, 3.0])])
    with pytest.raises(InvalidInputError, match="dimension"):
        store.query(asked([1.0, 2.0, 3.0]))
    assert ids(store.get_nodes()) == ["a"]


def test_zero_vectors_where_they_mean_something(tmp_path: Path) -> None:
    store = RQMoEVectorStore(uri=str(tmp_path), config=CodecConfig(metric="l2"))
    store.add([node("zero", [0.0, 0.0])])
    assert store.query(asked([0.0, 0.0])).similarities == [1.0]


def test_unknown_options(store: RQMoEVectorStore) -> None:
    with pytest.raises(InvalidInputError, match="option 'mode' for add; expected show_progress"):
        store.add([node("a")], mode="overwrite")
    with pytest.raises(InvalidInputError, match="option 'force' for delete; it takes none"):
        store.delete("d", force=True)
    with pytest.raises(InvalidInputError, match="option 'force' for delete"):
        store.delete_nodes(["a"], force=True)


AWAITED = ["async_add", "adelete", "adelete_nodes", "aclear", "aget_nodes", "aquery"]


@pytest.mark.parametrize("name", AWAITED)
def test_awaited_methods_are_our_own(name: str) -> None:
    assert getattr(RQMoEVectorStore, name) is not getattr(BasePydanticVectorStore, name)


def test_everything_can_be_awaited(store: RQMoEVectorStore) -> None:
    async def use() -> None:
        assert await store.aquery(asked()) == EMPTY
        assert await store.aget_nodes() == []
        await store.adelete("d")
        assert await store.async_add([]) == []
        nodes = [
            node(name, document=f"d{name}", text=f"text of {name}", n=n) for n, name in enumerate("abcdef")
        ]
        assert await store.async_add(nodes) == list("abcdef")
        await store.adelete("da")
        await store.adelete_nodes(["b"])
        await store.adelete_nodes(filters=where(("n", "==", 2)))
        assert await store.aget_nodes() == nodes[3:] == store.get_nodes()
        assert await store.aget_nodes(["d"], where(("n", "==", 3))) == [nodes[3]]
        for mode in ("default", "mmr", "hybrid", "text_search"):
            query = asked(mode=mode, query_str="text", top=2)
            assert await store.aquery(query) == store.query(query)
        with pytest.raises(InvalidInputError, match="expected one of"):
            await store.aquery(asked(mode="svm"))
        with pytest.raises(InvalidInputError, match=r"clear\(\)"):
            await store.adelete_nodes()
        await store.aclear()
        assert await store.aget_nodes() == []

    asyncio.run(use())


def test_the_event_loop_is_free_meanwhile(tmp_path: Path) -> None:
    store = RQMoEVectorStore(uri=str(tmp_path), config=SMALL_CODEC, training=QUICKLY, train_from=300)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def use() -> None:
        counting = asyncio.create_task(count())
        for work in (store.async_add(many_nodes(300)), store.aget_nodes(), store.aquery(asked([1.0] * 8))):
            before = turns
            await work
            assert turns > before + 20  # each would have a few turns between its steps otherwise
        counting.cancel()

    asyncio.run(use())
    assert store.table.codecs.newest is not None


def test_many_calls_at_once(store: RQMoEVectorStore) -> None:
    nodes = many_nodes(60)

    async def use() -> None:
        await asyncio.gather(*(store.async_add(nodes[start : start + 10]) for start in range(0, 60, 10)))
        found = await asyncio.gather(*(store.aquery(asked(one.embedding, top=1)) for one in nodes[:10]))
        assert [result.ids for result in found] == [[one.node_id] for one in nodes[:10]]

    asyncio.run(use())
    assert sorted(ids(store.get_nodes())) == sorted(ids(nodes))


def test_two_stores_of_one_table(store: RQMoEVectorStore) -> None:
    other = RQMoEVectorStore(uri=store.uri)
    store.add([node("a")])
    assert ids(other.get_nodes()) == ["a"]
    other.add([node("b")])
    assert ids(store.get_nodes()) == ["a", "b"]
