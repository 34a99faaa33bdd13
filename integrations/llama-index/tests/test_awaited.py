"""The methods that are awaited: what the blocking ones do, without keeping the event loop waiting."""

import asyncio
from pathlib import Path

import pytest
from llama_index.core.vector_stores.types import BasePydanticVectorStore
from llama_index.vector_stores.rqmoe import RQMoEVectorStore
from small_nodes import EMPTY, QUICKLY, SMALL_CODEC, asked, ids, many_nodes, node, where

from rqmoe_store import InvalidInputError

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


def test_only_one_of_many_calls_trains(tmp_path: Path) -> None:
    store = RQMoEVectorStore(uri=str(tmp_path), config=SMALL_CODEC, training=QUICKLY, train_from=300)
    nodes = many_nodes(900)

    async def use() -> None:
        await asyncio.gather(*(store.async_add(nodes[start : start + 300]) for start in (0, 300, 600)))

    asyncio.run(use())
    assert len(store.table.codecs.metadata.generations) == 1
    assert sorted(ids(store.get_nodes())) == sorted(ids(nodes))
