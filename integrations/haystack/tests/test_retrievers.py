"""Retrievers, alone and in pipelines that were written down."""

import asyncio
import math
from typing import Any

import pytest
from haystack import Document, Pipeline
from haystack.components.joiners import DocumentJoiner
from haystack.components.writers import DocumentWriter
from haystack.core.errors import DeserializationError
from haystack.document_stores.errors import DocumentStoreError
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.document_stores.types import DuplicatePolicy, FilterPolicy
from haystack.errors import FilterError
from haystack.utils import Secret
from haystack_integrations.components.retrievers.rqmoe import RQMoEEmbeddingRetriever, RQMoEHybridRetriever
from haystack_integrations.document_stores.rqmoe import RQMoEDocumentStore
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_stores import new_store

import rqmoe_store as rqs

EAST, NORTH, NORTHEAST = [2.0, 0.0], [0.0, 1.0], [1.0, 1.0]
DOCUMENTS = [
    Document(id="east", content="where the sun rises", embedding=EAST, meta={"n": 1}),
    Document(id="north", content="where it's cold", embedding=NORTH, meta={"n": 2}),
    Document(id="northeast", content="in between", embedding=NORTHEAST, meta={"n": 3}),
    Document(id="words", content="the cold sun", meta={"n": 4}),
]


@pytest.fixture
def store(database: str) -> RQMoEDocumentStore:
    store = new_store(database)
    store.write_documents(DOCUMENTS)
    return store


def _ids(result: dict[str, list[Document]]) -> list[str]:
    return [document.id for document in result["documents"]]


@pytest.mark.parametrize(
    ("metric", "scores"),
    [
        ("cosine", {"east": 1.0, "northeast": math.sqrt(0.5), "north": 0.0}),
        ("dot", {"east": 2.0, "northeast": 1.0, "north": 0.0}),
        ("l2", {"northeast": -1.0, "east": -1.0, "north": -2.0}),
    ],
)
def test_the_most_similar_come_first(database: str, metric: Any, scores: dict[str, float]) -> None:
    store = new_store(database, config=rqs.CodecConfig(metric=metric))
    store.write_documents(DOCUMENTS)
    found = RQMoEEmbeddingRetriever(store).run(query_embedding=[1.0, 0.0])["documents"]
    assert {document.id: document.score for document in found} == pytest.approx(scores, abs=1e-6)
    assert [document.score for document in found] == sorted((one.score for one in found), reverse=True)
    assert all(document.embedding is None for document in found)
    assert found[0].meta and found[0].content


def test_both_searches_count_in_hybrid_retrieval(store: RQMoEDocumentStore) -> None:
    retriever = RQMoEHybridRetriever(store)
    found = retriever.run(query="cold", query_embedding=NORTH)["documents"]
    assert found[0].id == "north", "by both"
    assert {document.id for document in found} == {"north", "northeast", "east", "words"}
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    late = Document(id="late", content="a cold evening")
    store.write_documents([late])
    assert "late" in _ids(retriever.run(query="evening", query_embedding=NORTH)), "not yet in the index"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> RQMoEDocumentStore:
    store = new_store(tmp_path_factory.mktemp("shared"))
    store.write_documents(DOCUMENTS)
    return store


@settings(max_examples=15)
@given(
    text=st.text(st.characters(), max_size=9)
    | st.sampled_from(["", "it's", '"', 'a" "b', "(cold AND", "*~^:\\", "the", "+a -b"])
)
@example(text="cold " * 2000)
@example(text="x" * 100_000)
def test_any_text_can_be_asked_for(shared: RQMoEDocumentStore, text: str) -> None:
    retriever = RQMoEHybridRetriever(shared, top_k=4)
    for query in (text, f'"{text}"', f'"{text}', f"{text}\ud800"):
        assert len(_ids(retriever.run(query=query, query_embedding=NORTH))) >= 3


def test_quotes_are_no_words(shared: RQMoEDocumentStore) -> None:
    retriever = RQMoEHybridRetriever(shared)
    for query in ('"cold"', '"cold" "sun"', '"the cold sun'):
        asked = {"query": query, "query_embedding": NORTH}
        assert "words" in _ids(retriever.run(**asked)), "has no embedding"
        assert _ids(asyncio.run(retriever.run_async(**asked))) == _ids(retriever.run(**asked))


def test_a_query_that_is_no_text_is_refused(shared: RQMoEDocumentStore) -> None:
    with pytest.raises(DocumentStoreError, match="expected a string"):
        shared.hybrid_retrieval(5, NORTH)  # type: ignore[arg-type]


@pytest.mark.parametrize("hybrid", [False, True])
@pytest.mark.asyncio
async def test_settings_of_a_call_come_first(store: RQMoEDocumentStore, hybrid: bool) -> None:
    first_two = {"field": "meta.n", "operator": "<=", "value": 2}
    last = {"field": "meta.n", "operator": ">=", "value": 2}
    settings: dict[str, Any] = {"filters": first_two, "top_k": 1, "return_embedding": True}
    query: dict[str, Any] = {"query_embedding": EAST}
    for policy, expected in (("replace", ["northeast", "north"]), (FilterPolicy.MERGE, ["north"])):
        retriever: Any = RQMoEEmbeddingRetriever(store, filter_policy=policy, **settings)
        if hybrid:
            retriever, query["query"] = (
                RQMoEHybridRetriever(store, filter_policy=policy, **settings),
                "nothing",
            )
        (found,) = retriever.run(**query)["documents"]
        assert (found.id, found.embedding) == ("east", EAST)
        both = {"operator": "AND", "conditions": [first_two, last]}
        filters = both if policy is FilterPolicy.MERGE else last
        assert _ids(retriever.run(**query, filters=filters, top_k=5)) == expected
        assert _ids(await retriever.run_async(**query, filters=filters, top_k=5)) == expected
        assert _ids(await retriever.run_async(**query)) == ["east"]
        assert retriever.run(**query, top_k=0) == {"documents": []}
        with pytest.raises(FilterError):
            retriever.run(**query, filters={"field": "meta.n", "operator": "~", "value": 1})


def test_filters_come_before_the_search(coded_document_store: RQMoEDocumentStore) -> None:
    store = coded_document_store
    store.write_documents(
        [Document(id=str(n), embedding=[1.0] * 767 + [n / 10], meta={"late": n > 90}) for n in range(100)]
    )
    settings = {
        "nprobes": 1,
        "shortlist": 20,
        "filters": {"field": "meta.late", "operator": "==", "value": True},
    }
    found = RQMoEEmbeddingRetriever(store, top_k=9, **settings).run(query_embedding=[1.0] * 768)
    assert sorted(_ids(found), key=int) == [str(n) for n in range(91, 100)]


def test_results_that_differ_and_that_cover(database: str) -> None:
    # Two groups, and an outlier that is the most different from the nearest document.
    vectors = {"a": (1, 0.1), "b": (1, 0.12), "c": (1, -0.9), "d": (1, -0.92), "e": (1, -0.94), "f": (-1, 0)}
    store = new_store(database)
    store.write_documents(
        [
            Document(id=name, content="word", embedding=[float(x), float(y)])
            for name, (x, y) in vectors.items()
        ]
    )

    def found(kind: type[Any], method: str, diversity: float | None, **query: Any) -> list[str]:
        retriever = kind(store, top_k=2, diversity=diversity, diversity_method=method)
        again = kind.from_dict(retriever.to_dict()).run(query_embedding=[1.0, 0.0], **query)
        assert again == retriever.run(query_embedding=[1.0, 0.0], **query)
        return _ids(again)

    assert found(RQMoEEmbeddingRetriever, "coverage", None) == ["a", "b"]
    assert found(RQMoEEmbeddingRetriever, "coverage", 1) == ["a", "b"]
    assert found(RQMoEEmbeddingRetriever, "mmr", 0) == ["a", "f"]
    covering = found(RQMoEEmbeddingRetriever, "coverage", 0)
    assert len({"a", "b"} & set(covering)) == len({"c", "d", "e"} & set(covering)) == 1
    assert "f" in found(RQMoEHybridRetriever, "mmr", 0, query="word")
    assert len(found(RQMoEHybridRetriever, "coverage", 0, query="word")) == 2


def test_without_documents_nothing_is_found(database: str) -> None:
    store = new_store(database)
    assert RQMoEEmbeddingRetriever(store).run(query_embedding=EAST) == {"documents": []}
    assert RQMoEHybridRetriever(store).run(query="x", query_embedding=EAST) == {"documents": []}
    store.write_documents(DOCUMENTS)
    store.delete_all_documents()
    assert RQMoEEmbeddingRetriever(store).run(query_embedding=EAST) == {"documents": []}
    assert RQMoEHybridRetriever(store).run(query="x", query_embedding=EAST) == {"documents": []}


@pytest.mark.parametrize("settings", [{"top_k": 0}, {"top_k": "5"}, {"filter_policy": "join"}])
def test_refuses_settings(store: RQMoEDocumentStore, settings: dict[str, Any]) -> None:
    for kind in (RQMoEEmbeddingRetriever, RQMoEHybridRetriever):
        with pytest.raises(ValueError):
            kind(store, **settings)
        with pytest.raises(ValueError, match="RQMoEDocumentStore"):
            kind(InMemoryDocumentStore())


def _pipeline(store: RQMoEDocumentStore) -> Pipeline:
    pipeline = Pipeline()
    filters = {"field": "meta.n", "operator": "<", "value": 4}
    pipeline.add_component(
        "by_embedding", RQMoEEmbeddingRetriever(store, filters=filters, top_k=2, nprobes=5)
    )
    pipeline.add_component(
        "hybrid", RQMoEHybridRetriever(store, filter_policy=FilterPolicy.MERGE, shortlist=50)
    )
    pipeline.add_component("joined", DocumentJoiner())
    pipeline.connect("by_embedding", "joined")
    pipeline.connect("hybrid", "joined")
    return pipeline


def test_pipelines_are_written_down_and_read_again(database: str) -> None:
    config = rqs.CodecConfig(metric="dot", code_bytes=8, codebook_size=32)
    store = new_store(
        database,
        table_name="mine",
        embedding_dims=2,
        config=config,
        training=rqs.TrainConfig(epochs=2, progress=False),
        train_from=None,
        return_embedding=False,
        storage_options={
            "aws_region": "eu",
            "aws_secret_access_key": Secret.from_env_var("KEY", strict=False),
        },
    )
    pipeline = _pipeline(store)
    again = Pipeline.loads(pipeline.dumps())
    assert again.to_dict() == pipeline.to_dict()
    read = again.get_component("hybrid").document_store
    for name in ("config", "training", "train_from", "embedding_dims", "return_embedding", "storage_options"):
        assert getattr(read, name) == getattr(store, name)


def test_written_pipelines_find_the_same(store: RQMoEDocumentStore) -> None:
    store.delete_all_documents()
    indexing = Pipeline()
    indexing.add_component("writer", DocumentWriter(store, policy=DuplicatePolicy.OVERWRITE))
    again = Pipeline.loads(indexing.dumps())
    assert again.run({"writer": {"documents": DOCUMENTS}}) == {"writer": {"documents_written": 4}}
    asked = {"by_embedding": {"query_embedding": EAST}, "hybrid": {"query_embedding": EAST, "query": "sun"}}
    pipeline = _pipeline(store)
    found = pipeline.run(asked)["joined"]
    assert _ids(found)[0] == "east"
    assert Pipeline.loads(pipeline.dumps()).run(asked)["joined"] == found


@pytest.mark.asyncio
async def test_runs_in_async_pipelines(store: RQMoEDocumentStore) -> None:
    pipeline = Pipeline()
    pipeline.add_component("retriever", RQMoEEmbeddingRetriever(store, top_k=1))
    found = await pipeline.run_async({"retriever": {"query_embedding": NORTH}})
    assert _ids(found["retriever"]) == ["north"]


def test_reads_only_its_own_settings(store: RQMoEDocumentStore) -> None:
    data = RQMoEEmbeddingRetriever(store).to_dict()
    with pytest.raises(DeserializationError):
        RQMoEHybridRetriever.from_dict(data)
    assert RQMoEEmbeddingRetriever.from_dict(data).to_dict() == data
