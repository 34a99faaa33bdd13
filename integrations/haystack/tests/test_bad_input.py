"""What cannot be used is refused, in Haystack's errors, and nothing of it is written."""

import asyncio
from typing import Any

import lancedb
import numpy as np
import pytest
from haystack.dataclasses import ByteStream, Document
from haystack.document_stores.errors import DocumentStoreError
from haystack.errors import FilterError
from haystack_integrations.document_stores.rqmoe import RQMoEDocumentStore
from small_stores import SMALL_CODEC, new_store

import rqmoe_store as rqs

GOOD = Document(id="good", embedding=[1.0] * 8)


def _odd(**fields: Any) -> Document:
    """A document with fields that its type does not allow."""
    document = Document(id="odd", embedding=[2.0] * 8)
    vars(document).update(fields)
    return document


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (Document(id="odd", embedding=[1.0] * 7), "7 components for document 'odd'; expected 8"),
        (Document(id="odd", embedding=[]), "0 components"),
        (Document(id="odd", embedding=[float("nan")] * 8), "NaN"),
        (Document(id="odd", embedding=[1e300] * 8), "document 'odd'.*infinite"),
        (Document(id="odd", embedding=[0.0] * 8), "no direction"),
        (_odd(embedding=["x"] * 8), "no lists of numbers"),
        (_odd(embedding=[[1.0]] * 8), "no lists of numbers"),
        (_odd(embedding=5), "a list of numbers"),
        (_odd(id=5), "as the id"),
        (_odd(id=[5]), "as the id"),
        (_odd(id=""), "as the id"),
        (_odd(id="\ud800"), "Unicode"),
        (_odd(content="\ud800"), "Unicode"),
        (_odd(content=5), "content"),
        (_odd(meta=None), "as the metadata"),
        (_odd(meta={"x": object()}), r"as meta\.x of document 'odd'"),
        (_odd(meta={"x": 2**64}), "64 bits"),
        (_odd(blob=ByteStream(b"", meta={"x": b""})), "as blob.meta.x of document"),
        (_odd(blob=ByteStream("text")), "expected bytes"),  # type: ignore[arg-type]
        (_odd(score="high"), "type that Haystack does not have"),
    ],
)
def test_refuses_documents(database: str, document: Document, reason: str) -> None:
    for store in (new_store(database), new_store(database, embedding_dims=8)):
        with pytest.raises(DocumentStoreError, match=reason):
            store.write_documents([GOOD, document])
        assert store.table is None, "no table was made for them"
    store.write_documents([GOOD])
    with pytest.raises(DocumentStoreError, match=reason):
        store.write_documents([Document(id="other", embedding=[1.0] * 8), document])
    assert [found.id for found in store.filter_documents()] == ["good"]


@pytest.mark.parametrize("documents", ["text", [GOOD, "text"], None, GOOD, {GOOD.id: GOOD}])
def test_refuses_what_is_no_list_of_documents(small_store: RQMoEDocumentStore, documents: Any) -> None:
    with pytest.raises(ValueError, match="list of Haystack Documents"):
        small_store.write_documents(documents)
    assert small_store.table is None


def test_refuses_an_unknown_policy(small_store: RQMoEDocumentStore) -> None:
    with pytest.raises(ValueError, match="DuplicatePolicy"):
        small_store.write_documents([GOOD], "overwrite")  # type: ignore[arg-type]


def test_nothing_to_write_makes_no_table(small_store: RQMoEDocumentStore) -> None:
    assert small_store.write_documents([]) == 0
    assert small_store.table is None


def test_needs_to_know_the_dimension(database: str) -> None:
    with pytest.raises(DocumentStoreError, match="embedding_dims="):
        new_store(database).write_documents([Document(id="a")])


@pytest.mark.parametrize("embedding_dims", [None, 8])
def test_refuses_embeddings_of_another_model(database: str, embedding_dims: int | None) -> None:
    new_store(database, embedding_dims=embedding_dims).write_documents([GOOD])
    with pytest.raises(DocumentStoreError, match="holds vectors of 8"):
        new_store(database, embedding_dims=16).write_documents([Document(id="a", embedding=[1.0] * 16)])
    later = new_store(database)
    with pytest.raises(DocumentStoreError, match="expected 8"):
        later.write_documents([Document(id="a", embedding=[1.0] * 16)])
    with pytest.raises(DocumentStoreError, match="expected 8"):
        later.embedding_retrieval([1.0] * 16)
    assert later.count_documents() == 1


def test_refuses_another_metric(database: str) -> None:
    new_store(database).write_documents([GOOD])
    with pytest.raises(DocumentStoreError, match="metric='cosine'"):
        new_store(database, config=rqs.CodecConfig(metric="dot"), train_from=None).count_documents()


@pytest.mark.parametrize("made_by", ["lancedb", "rqmoe_store"])
def test_refuses_tables_of_others(database: str, made_by: str) -> None:
    rows = [{"id": "1", "embedding": np.ones(8, dtype=np.float32)}]
    if made_by == "lancedb":
        lancedb.connect(database).create_table("documents", rows)
    else:
        rqs.create_table(lancedb.connect(database), "documents", rows, vector_column="embedding")
    with pytest.raises(DocumentStoreError, match="documents"):
        new_store(database).count_documents()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"embedding_dims": 0}, "embedding_dims=0"),
        ({"embedding_dims": "8"}, "embedding_dims='8'"),
        ({"train_from": 15}, "train_from=15; expected 16"),
        ({"train_from": True}, "train_from=True"),
        ({"config": {"metric": "l2"}}, "CodecConfig"),
        ({"training": 5}, "TrainConfig"),
    ],
)
def test_refuses_settings(database: str, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(DocumentStoreError, match=reason):
        new_store(database, **settings)


def test_refuses_a_table_name(database: str) -> None:
    with pytest.raises(DocumentStoreError, match="table name"):
        new_store(database, table_name="no/name").write_documents([GOOD])


@pytest.mark.parametrize("ids", ["good", [5], None, [None]])
def test_refuses_to_delete_what_are_no_ids(small_store: RQMoEDocumentStore, ids: Any) -> None:
    small_store.write_documents([GOOD])
    with pytest.raises(ValueError, match="list of texts"):
        small_store.delete_documents(ids)
    small_store.delete_documents([])
    assert small_store.count_documents() == 1


EMPTY: dict[str, Any] = {"operator": "AND", "conditions": []}
ONE = {"field": "id", "operator": "==", "value": "good"}


@pytest.mark.parametrize(
    "filters",
    [
        {},
        None,
        EMPTY,
        EMPTY | {"operator": "OR"},
        EMPTY | {"operator": "NOT"},
        {"operator": "NOT", "conditions": [EMPTY]},
        {"operator": "OR", "conditions": [ONE, EMPTY]},
        {"operator": "AND", "conditions": [ONE, {"operator": "OR", "conditions": [EMPTY]}]},
        {"field": "meta.x", "operator": "not in", "value": []},
        {"field": "content", "operator": "not in", "value": []},
        {"field": "id", "operator": "!=", "value": 5},
        {"operator": "NOT", "conditions": [{"field": "meta.x", "operator": "in", "value": []}]},
        {"operator": "NOT", "conditions": [{"field": "meta.x", "operator": ">", "value": None}]},
        {"operator": "OR", "conditions": [ONE, {"field": "meta.x", "operator": "not in", "value": []}]},
    ],
)
def test_changes_nothing_by_a_filter_that_says_nothing(small_store: RQMoEDocumentStore, filters: Any) -> None:
    small_store.write_documents([GOOD])
    with pytest.raises(FilterError, match="delete_all_documents"):
        small_store.delete_by_filter(filters)
    with pytest.raises(FilterError, match="expected a filter"):
        small_store.update_by_filter(filters, {"x": 1})
    with pytest.raises(FilterError, match="says nothing"):
        asyncio.run(small_store.delete_by_filter_async(filters))
    with pytest.raises(FilterError, match="says nothing"):
        asyncio.run(small_store.update_by_filter_async(filters, {"x": 1}))
    assert small_store.filter_documents()[0].meta == GOOD.meta


@pytest.mark.parametrize("filters", [[], "", [{}], {"conditions": []}, {"operator": "AND"}])
def test_changes_nothing_by_what_is_no_filter(small_store: RQMoEDocumentStore, filters: Any) -> None:
    small_store.write_documents([GOOD])
    with pytest.raises(FilterError):
        small_store.delete_by_filter(filters)
    assert small_store.count_documents() == 1


@pytest.mark.parametrize("identifier", ["good", "other"])
def test_refuses_updates(small_store: RQMoEDocumentStore, identifier: str) -> None:
    small_store.write_documents([GOOD])
    with pytest.raises(DocumentStoreError, match="finite"):
        small_store.update_by_filter(
            {"field": "id", "operator": "==", "value": identifier}, {"x": float("inf")}
        )
    assert small_store.filter_documents()[0].meta == {}


@pytest.mark.parametrize(
    ("embedding", "reason"),
    [
        ([1.0] * 7, "dimension 7; expected 8"),
        ([float("nan")] * 8, "NaN"),
        ([0.0] * 8, "no direction"),
        ([[1.0] * 8, [1.0] * 8], "a list of numbers"),
        ("eight ch", "a list of numbers"),
        (None, "a list of numbers"),
        ([], "expected"),
        (["a"] * 8, "numbers"),
    ],
)
def test_refuses_queries(small_store: RQMoEDocumentStore, embedding: Any, reason: str) -> None:
    small_store.write_documents([GOOD])
    with pytest.raises(DocumentStoreError, match=reason):
        small_store.embedding_retrieval(embedding)
    with pytest.raises(DocumentStoreError, match=reason):
        small_store.hybrid_retrieval("text", embedding)


@pytest.mark.parametrize("top_k", [-1, 2.5, True, "3"])
def test_refuses_numbers_of_documents(small_store: RQMoEDocumentStore, top_k: Any) -> None:
    with pytest.raises(ValueError, match="top_k"):
        small_store.embedding_retrieval([1.0] * 8, top_k=top_k)
    with pytest.raises(ValueError, match="top_k"):
        small_store.hybrid_retrieval("text", [1.0] * 8, top_k=top_k)


def test_refuses_search_settings(small_store: RQMoEDocumentStore) -> None:
    small_store.write_documents([GOOD])
    with pytest.raises(DocumentStoreError, match="nprobes"):
        small_store.embedding_retrieval([1.0] * 8, nprobes=0)
    with pytest.raises(DocumentStoreError, match="shortlist"):
        small_store.embedding_retrieval([1.0] * 8, shortlist=5, top_k=10)
    with pytest.raises(DocumentStoreError, match="lambda_=2"):
        small_store.embedding_retrieval([1.0] * 8, diversity=2)
    with pytest.raises(DocumentStoreError, match="method='medoids'"):
        small_store.embedding_retrieval([1.0] * 8, diversity=0.5, diversity_method="medoids")  # type: ignore[arg-type]
    with pytest.raises(DocumentStoreError, match="text"):
        small_store.hybrid_retrieval(5, [1.0] * 8)  # type: ignore[arg-type]


def test_settings_of_codecs_are_checked_when_read(database: str) -> None:
    data = new_store(database, config=SMALL_CODEC).to_dict()
    data["init_parameters"]["config"]["metric"] = "manhattan"
    with pytest.raises(rqs.InvalidInputError, match="manhattan"):
        RQMoEDocumentStore.from_dict(data)
