"""Awaited methods do what the others do, and keep no event loop waiting."""

import asyncio
import inspect
import threading

import numpy as np
import pytest
from comparisons import assert_same_documents
from haystack.dataclasses import Document
from haystack.document_stores.errors import DocumentStoreError, DuplicateDocumentError
from haystack.document_stores.types import DuplicatePolicy
from haystack.errors import FilterError
from haystack_integrations.document_stores.rqmoe import RQMoEDocumentStore

NAMES = sorted(
    name
    for name, method in inspect.getmembers(RQMoEDocumentStore, inspect.isfunction)
    if not name.startswith("_") and not name.endswith("_async") and name != "to_dict"
)


@pytest.mark.parametrize("name", NAMES)
def test_every_method_has_a_twin(name: str) -> None:
    method, twin = getattr(RQMoEDocumentStore, name), getattr(RQMoEDocumentStore, f"{name}_async")
    assert inspect.iscoroutinefunction(twin) and not inspect.iscoroutinefunction(method)
    assert inspect.signature(method) == inspect.signature(twin)


@pytest.mark.asyncio
async def test_writes_and_searches_go_on_side_by_side(small_store: RQMoEDocumentStore) -> None:
    vectors = np.random.default_rng(0).normal(size=(40, 8))
    documents = [Document(id=str(row), embedding=vectors[row].tolist()) for row in range(40)]
    parts = [documents[start : start + 5] for start in range(0, 40, 5)]
    assert await asyncio.gather(*map(small_store.write_documents_async, parts)) == [5] * 8
    assert_same_documents(await small_store.filter_documents_async(), documents)
    found = await asyncio.gather(
        *(small_store.embedding_retrieval_async(vector.tolist(), top_k=1) for vector in vectors)
    )
    assert [one.id for (one,) in found] == [str(row) for row in range(40)]


@pytest.mark.asyncio
async def test_of_two_that_write_the_same_id_one_fails(small_store: RQMoEDocumentStore) -> None:
    document = Document(id="same", embedding=[1.0] * 8)
    done = await asyncio.gather(
        *(small_store.write_documents_async([document]) for _ in range(4)), return_exceptions=True
    )
    assert sorted(map(str, map(type, done))) == sorted(map(str, [int, *[DuplicateDocumentError] * 3]))
    assert small_store.count_documents() == 1


@pytest.mark.asyncio
async def test_the_loop_does_not_wait(
    small_store: RQMoEDocumentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_store.write_documents([Document(id="a", content="x", embedding=[1.0] * 8)])
    assert small_store.table is not None
    beside: list[int] = []
    for kind in ("merge_insert", "delete", "count_rows", "search"):
        original = getattr(type(small_store.table), kind)

        def noted(*args: object, original: object = original, **kwargs: object) -> object:
            beside.append(threading.get_ident())
            return original(*args, **kwargs)  # type: ignore[operator]

        monkeypatch.setattr(type(small_store.table), kind, noted)
    await small_store.count_documents_async()
    await small_store.delete_documents_async(["b"])
    await small_store.filter_documents_async()
    assert await small_store.hybrid_retrieval_async("x", [1.0] * 8)
    assert len(beside) == 4 and threading.get_ident() not in beside


@pytest.mark.asyncio
async def test_raises_what_the_others_raise(small_store: RQMoEDocumentStore) -> None:
    with pytest.raises(DocumentStoreError, match="7 components"):
        await small_store.write_documents_async([Document(id="a", embedding=[1.0] * 7)])
    assert small_store.table is None
    await small_store.write_documents_async([Document(id="a", embedding=[1.0] * 8)], DuplicatePolicy.SKIP)
    with pytest.raises(DuplicateDocumentError, match="'a'"):
        await small_store.write_documents_async([Document(id="b"), Document(id="a")])
    for call in (small_store.delete_by_filter_async({}), small_store.update_by_filter_async({}, {})):
        with pytest.raises(FilterError):
            await call
    with pytest.raises(DocumentStoreError, match="dimension"):
        await small_store.embedding_retrieval_async([1.0])
    with pytest.raises(ValueError):
        await small_store.delete_documents_async("a")  # type: ignore[arg-type]
    assert await small_store.count_documents_async() == 1
    await small_store.delete_all_documents_async(recreate_index=True)
    assert small_store.table is None
