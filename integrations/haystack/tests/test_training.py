"""When a codec is trained, and what becomes of embeddings then."""

import asyncio
import contextlib
import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from comparisons import assert_same_documents, same_direction
from haystack.dataclasses import Document
from haystack.document_stores.errors import DocumentStoreError
from haystack.document_stores.types import DuplicatePolicy
from small_stores import SMALL_CODEC, new_store

import rqmoe_store as rqs

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


def test_refine_codes(database: str) -> None:
    config = dataclasses.replace(SMALL_CODEC, refine_bytes=6)
    store = new_store(database, config=config, train_from=40)
    store.write_documents(_documents(0, 40))
    store.write_documents(_documents(40, 50))
    assert store.table is not None and store.table.columns.refine_bytes == 6
    assert store.table.table.count_rows(f"{store.table.columns.refine} IS NOT NULL") == 50
    assert [found.id for found in store.embedding_retrieval(VECTORS[3].tolist(), top_k=1)] == ["3"]
    again = type(store).from_dict(store.to_dict())
    assert again.table is not None and again.table.columns.refine_bytes == 6


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


def test_others_write_while_one_trains(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store, begun, go_on = new_store(database, train_from=40), threading.Event(), threading.Event()
    optimize = rqs.CompressedTable.optimize

    def wait_and_optimize(*args: Any, **options: Any) -> Any:
        begun.set()
        assert go_on.wait(600)
        return optimize(*args, **options)

    monkeypatch.setattr(rqs.CompressedTable, "optimize", wait_and_optimize)
    with ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as at_the_end:
        at_the_end.callback(go_on.set)
        training = pool.submit(store.write_documents, _documents(0, 40))
        assert begun.wait(600)
        assert store.write_documents(_documents(40, 50)) == 10
        assert store.table is not None and store.table.codecs.newest is None
        go_on.set()
        assert training.result() == 40
    assert store.table.codecs.newest is not None and len(store.table.codecs.metadata.generations) == 1
    assert_same_documents(store.filter_documents(), _documents(0, 50), same_direction)


def test_training_that_fails_loses_no_documents(database: str) -> None:
    store = new_store(database, train_from=40, training=rqs.TrainConfig(device="cuda:99"))
    with pytest.raises(DocumentStoreError, match="cuda:99") as caught:
        store.write_documents(_documents(0, 40))
    assert any("No row was lost" in note for note in caught.value.__notes__)
    assert store.count_documents() == 40


def test_the_first_documents_create_the_table_in_one_commit(database: str) -> None:
    store = new_store(database, train_from=None)
    store.write_documents(_documents(0, 40))
    assert store.table is not None
    assert [version["version"] for version in store.table.list_versions()] == [1]


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
