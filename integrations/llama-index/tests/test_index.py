"""An index over the store, from documents to answers."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import (
    Document,
    Settings,
    StorageContext,
    VectorStoreIndex,
    load_index_from_storage,
)
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.retrievers import VectorIndexRetriever
from llama_index.core.schema import ImageNode, IndexNode, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.vector_stores.rqmoe import RQMoEVectorStore
from small_nodes import QUICKLY, SMALL_CODEC, LetterEmbedding, ids, where

MODEL = LetterEmbedding()
TEXTS = {
    "bees": "bees bring honey home to the hive",
    "cars": "cars carry people across a crowded city",
    "dunes": "dunes drift and sand covers the road",
}


def documents() -> list[Document]:
    return [
        Document(id_=name, text=text, metadata={"name": name, "size": len(text)})
        for name, text in TEXTS.items()
    ]


@pytest.fixture
def index(store: RQMoEVectorStore) -> VectorStoreIndex:
    context = StorageContext.from_defaults(vector_store=store)
    return VectorStoreIndex.from_documents(documents(), storage_context=context, embed_model=MODEL)


def retrieved(index: VectorStoreIndex, question: str, **options: Any) -> list[str]:
    found = index.as_retriever(**options).retrieve(question)
    scores = [one.score or 0.0 for one in found]
    assert scores == sorted(scores, reverse=True)
    return [one.node.ref_doc_id or "" for one in found]


def test_documents_are_retrieved(index: VectorStoreIndex) -> None:
    assert retrieved(index, TEXTS["cars"], similarity_top_k=1) == ["cars"]
    assert len(retrieved(index, TEXTS["cars"], similarity_top_k=10)) == 3
    found = index.as_retriever(similarity_top_k=1).retrieve(TEXTS["bees"])[0]
    assert found.score == pytest.approx(1.0, abs=0.05) and found.text == TEXTS["bees"]
    assert found.node.metadata == {"name": "bees", "size": len(TEXTS["bees"])}


@pytest.mark.parametrize("mode", ["default", "mmr", "hybrid", "text_search"])
def test_retrievers_with_filters_in_every_mode(index: VectorStoreIndex, mode: str) -> None:
    filters = where(("name", "in", ["bees", "dunes"]), ("size", ">", 0))
    found = index.as_retriever(
        vector_store_query_mode=mode, filters=filters, similarity_top_k=3, alpha=0.5
    ).retrieve("sand covers the honey")
    assert {one.node.ref_doc_id for one in found} == {"bees", "dunes"}


def test_retrievers_pass_options_on(index: VectorStoreIndex) -> None:
    found = retrieved(
        index,
        TEXTS["cars"],
        vector_store_query_mode="mmr",
        similarity_top_k=1,
        vector_store_kwargs={"mmr_threshold": 1.0, "shortlist": 20},
    )
    assert found == ["cars"]
    assert retrieved(index, "x", doc_ids=["dunes"], similarity_top_k=5) == ["dunes"]


def test_retrieving_in_an_event_loop(index: VectorStoreIndex) -> None:
    found = asyncio.run(index.as_retriever(similarity_top_k=1).aretrieve(TEXTS["dunes"]))
    assert [one.node.ref_doc_id for one in found] == ["dunes"]


def test_nothing_to_retrieve(store: RQMoEVectorStore) -> None:
    index = VectorStoreIndex.from_vector_store(store, embed_model=MODEL)
    assert index.as_retriever().retrieve("anything") == []


def test_documents_are_inserted_and_deleted(index: VectorStoreIndex, store: RQMoEVectorStore) -> None:
    index.insert(Document(id_="elks", text="elks eat leaves"))
    assert retrieved(index, "elks eat leaves", similarity_top_k=1) == ["elks"]
    index.delete_ref_doc("elks", delete_from_docstore=True)
    assert sorted(one.ref_doc_id or "" for one in store.get_nodes()) == ["bees", "cars", "dunes"]
    index.delete_nodes([ids(store.get_nodes(filters=where(("name", "==", "cars"))))[0]])
    assert sorted(one.ref_doc_id or "" for one in store.get_nodes()) == ["bees", "dunes"]


def test_documents_are_refreshed(index: VectorStoreIndex, store: RQMoEVectorStore) -> None:
    changed = documents()
    changed[0] = Document(id_="bees", text="bees sting", metadata={"name": "bees"})
    added = Document(id_="elks", text="elks eat leaves")
    assert index.refresh_ref_docs([*changed, added]) == [True, False, False, True]
    texts = {one.ref_doc_id: one.get_content() for one in store.get_nodes()}
    assert texts == {**TEXTS, "bees": "bees sting", "elks": "elks eat leaves"}
    assert index.refresh_ref_docs([*changed, added]) == [False] * 4


def test_an_index_is_persisted_and_loaded(
    index: VectorStoreIndex, store: RQMoEVectorStore, tmp_path: Path
) -> None:
    index.storage_context.persist(str(tmp_path / "storage"))
    again = RQMoEVectorStore.from_dict(store.to_dict())
    context = StorageContext.from_defaults(persist_dir=str(tmp_path / "storage"), vector_store=again)
    loaded = load_index_from_storage(context, embed_model=MODEL)
    assert isinstance(loaded, VectorStoreIndex)
    assert retrieved(loaded, TEXTS["cars"], similarity_top_k=1) == ["cars"]
    assert loaded.refresh_ref_docs(documents()) == [False] * 3
    fresh = VectorStoreIndex.from_vector_store(again, embed_model=MODEL)
    assert retrieved(fresh, TEXTS["bees"], similarity_top_k=1) == ["bees"]


def test_an_index_built_asynchronously(store: RQMoEVectorStore) -> None:
    context = StorageContext.from_defaults(vector_store=store)
    index = VectorStoreIndex.from_documents(
        documents(), storage_context=context, embed_model=MODEL, use_async=True, show_progress=True
    )
    assert retrieved(index, TEXTS["cars"], similarity_top_k=1) == ["cars"]


def test_an_index_whose_vectors_become_codes(tmp_path: Path) -> None:
    store = RQMoEVectorStore(uri=str(tmp_path), config=SMALL_CODEC, training=QUICKLY, train_from=100)
    context = StorageContext.from_defaults(vector_store=store)
    letters = "abcdefghijklmnopqrstuvwxyz"
    nodes = [
        TextNode(id_=f"{first}{second}", text=f"{first * 20} {second * 10}")
        for first in letters
        for second in letters[:5]
    ]
    index = VectorStoreIndex(nodes, storage_context=context, embed_model=MODEL)
    assert store.table.codecs.newest is not None
    found = index.as_retriever(similarity_top_k=5).retrieve("q" * 20 + " " + "b" * 10)
    assert "qb" in [one.node.node_id for one in found]


def test_nodes_of_other_classes_are_retrieved(store: RQMoEVectorStore) -> None:
    nodes = [
        TextNode(id_="text", text="bees"),
        IndexNode(id_="index", text="cars", index_id="other"),
        ImageNode(id_="image", text="dunes", image="aGk="),
    ]
    context = StorageContext.from_defaults(vector_store=store)
    index = VectorStoreIndex(nodes, storage_context=context, embed_model=MODEL, store_nodes_override=True)
    found = index.as_retriever(similarity_top_k=3).retrieve("bees")
    assert {one.node.node_id: type(one.node) for one in found} == {
        "text": TextNode,
        "index": IndexNode,
        "image": ImageNode,
    }


def test_retrievers_of_an_index_with_some_nodes_of_its_own(store: RQMoEVectorStore) -> None:
    """An index asks for the nodes that it keeps itself, which are those of other classes than text."""
    nodes = [TextNode(id_="text", text="bees"), IndexNode(id_="index", text="cars", index_id="other")]
    context = StorageContext.from_defaults(vector_store=store)
    index = VectorStoreIndex(nodes, storage_context=context, embed_model=MODEL)
    assert [one.node.node_id for one in index.as_retriever(similarity_top_k=3).retrieve("bees")] == ["index"]
    everything = VectorIndexRetriever(index, similarity_top_k=3)
    assert {one.node.node_id for one in everything.retrieve("bees")} == {"text", "index"}


def test_an_ingestion_pipeline(store: RQMoEVectorStore) -> None:
    pipeline = IngestionPipeline(
        transformations=[SentenceSplitter(chunk_size=64, chunk_overlap=0), MODEL],
        vector_store=store,
        docstore=SimpleDocumentStore(),
        docstore_strategy=DocstoreStrategy.UPSERTS,
    )
    pipeline.run(documents=documents())
    changed = [Document(id_="bees", text="bees sting")]
    pipeline.run(documents=changed)
    asyncio.run(pipeline.arun(documents=[Document(id_="cars", text="cars honk")]))
    texts = {one.ref_doc_id: one.get_content() for one in store.get_nodes()}
    assert texts == {"bees": "bees sting", "cars": "cars honk", "dunes": TEXTS["dunes"]}


@pytest.fixture(autouse=True)
def no_language_model() -> None:
    Settings.llm = None
