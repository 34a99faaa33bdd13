"""When a codec is trained, and what becomes of embeddings then."""

import asyncio

import numpy as np
import pytest
from comparisons import assert_same_documents, same_direction
from haystack.dataclasses import Document
from haystack.document_stores.types import DuplicatePolicy
from small_stores import new_store

VECTORS = np.random.default_rng(0).uniform(0.5, 1.5, size=(60, 8))


def _documents(first: int, end: int) -> list[Document]:
    return [
        Document(id=str(row), meta={"row": row}, embedding=VECTORS[row].tolist()) for row in range(first, end)
    ]


def test_trains_when_there_are_enough_embeddings(database: str) -> None:
    store = new_store(database, train_from=40)
    store.write_documents(_documents(0, 39))
    store.write_documents([Document(id=f"bare {row}") for row in range(20)])
    assert store.table is not None and store.table.codecs.newest is None
    assert [found.id for found in store.embedding_retrieval(VECTORS[3].tolist(), top_k=1)] == ["3"]
    store.write_documents(_documents(39, 40))
    assert store.table.codecs.newest is not None
    assert store.table.table.count_rows(store.table.columns.raw_filter) == 0
    store.write_documents(_documents(40, 50))
    assert store.table.table.count_rows(store.table.columns.decoded_filter) == 50
    found = store.filter_documents({"field": "embedding", "operator": "!=", "value": None})
    assert_same_documents(found, _documents(0, 50), same_direction)
    assert store.count_documents() == 70


@pytest.mark.asyncio
async def test_trains_when_awaited(database: str) -> None:
    store = new_store(database, train_from=40)
    await store.write_documents_async(_documents(0, 39))
    assert store.table is not None and store.table.codecs.newest is None
    await store.write_documents_async(_documents(39, 50))
    assert store.table.codecs.newest is not None
    found = await store.embedding_retrieval_async(VECTORS[3].tolist(), top_k=50, return_embedding=True)
    assert len(found) == 50
    assert all(document.embedding is not None for document in found)


@pytest.mark.asyncio
async def test_trains_once_for_all_that_write(database: str) -> None:
    store = new_store(database, train_from=20)
    parts = [_documents(start, start + 10) for start in range(0, 60, 10)]
    await asyncio.gather(*map(store.write_documents_async, parts))
    assert store.table is not None and len(store.table.codecs.metadata.generations) == 1
    assert_same_documents(store.filter_documents(), _documents(0, 60), same_direction)


def test_training_can_be_left_to_the_table(database: str) -> None:
    store = new_store(database, train_from=None)
    store.write_documents(_documents(0, 60))
    assert store.table is not None and store.table.codecs.newest is None
    store.table.optimize(training=store.training, train_from=60, progress=False)
    assert_same_documents(store.filter_documents(), _documents(0, 60), same_direction)


def test_encoded_documents_are_replaced(database: str) -> None:
    store = new_store(database, train_from=50)
    store.write_documents(_documents(0, 60))
    changed = Document(id="5", content="new", embedding=VECTORS[6].tolist())
    assert store.write_documents([changed, Document(id="7")], DuplicatePolicy.OVERWRITE) == 2
    found = store.filter_documents({"field": "id", "operator": "in", "value": ["5", "7"]})
    assert_same_documents(found, [changed, Document(id="7")], same_direction)


def test_bars_are_shown_when_asked(database: str, capfd: pytest.CaptureFixture[str]) -> None:
    new_store(database, train_from=50).write_documents(_documents(0, 60))
    assert capfd.readouterr().out == ""
    loud = new_store(database, table_name="loud", training=None, train_from=50, progress_bar=True)
    loud.write_documents(_documents(0, 60))
    assert "Encoding" in capfd.readouterr().out
