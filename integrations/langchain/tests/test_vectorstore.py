"""Opening and making stores, and what LangChain builds on them."""

import lancedb
import pyarrow as pa
import pytest
from lancedb.rerankers import Reranker
from langchain_core.documents import Document
from langchain_core.indexing import InMemoryRecordManager, aindex, index
from langchain_rqmoe import RQMoEVectorStore
from small_stores import BY_L2, POINTS, PointEmbedding, filled, ids_of

from rqmoe_store import CodecConfig, InvalidInputError, TableError


def test_made_from_documents_and_opened_again(tmp_path):
    documents = [Document(id=given, page_content=text) for given, text in POINTS.items()]
    made = RQMoEVectorStore.from_documents(
        documents, PointEmbedding(), uri=tmp_path, table_name="fruit", config=BY_L2
    )
    assert isinstance(made, RQMoEVectorStore)
    opened = RQMoEVectorStore(PointEmbedding(), connection=lancedb.connect(tmp_path), table_name="fruit")
    assert opened.get_by_ids(list(POINTS)) == documents
    assert opened.table.key == "id"
    more = RQMoEVectorStore.from_texts(["5 5"], PointEmbedding(), [{"n": 1}], ids=["e"], uri=tmp_path)
    assert more.table.name == "vectorstore" and more.get_by_ids(["e"])[0].metadata == {"n": 1}


def test_two_stores_that_began_without_a_table_share_it(tmp_path):
    one, other = (RQMoEVectorStore(PointEmbedding(), uri=str(tmp_path)) for _ in range(2))
    one.add_texts(["1 1"], ids=["a"])
    assert ids_of(other.similarity_search("1")) == ["a"]
    third = RQMoEVectorStore(PointEmbedding(), uri=tmp_path)
    other.add_texts(["2 2"], ids=["a"])
    assert third.get_by_ids(["a"])[0].page_content == "2 2"
    assert one.get_by_ids(["a"])[0].page_content == "2 2"


def test_the_metric_is_cosine_unless_said_otherwise(tmp_path):
    store = RQMoEVectorStore(PointEmbedding(), uri=tmp_path)
    store.add_texts(["1 0", "3 4"], ids=["a", "b"])
    assert store.table.metric == "cosine"
    found = {document.id: distance for document, distance in store.similarity_search_with_score("2 0")}
    assert found == pytest.approx({"a": 0, "b": 0.4}, abs=1e-6)
    with pytest.raises(TableError, match="metric 'l2'"):
        RQMoEVectorStore(PointEmbedding(), uri=tmp_path, config=BY_L2)


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
def test_relevance_by_metric(tmp_path, metric):
    store = RQMoEVectorStore(PointEmbedding(), uri=tmp_path, config=CodecConfig(metric=metric))
    store.add_texts(["1 0", "0 1"], ids=["same", "right angle"])
    found = {document.id: score for document, score in store.similarity_search_with_relevance_scores("1 0")}
    assert found == pytest.approx({"same": 1, "right angle": 0}, abs=1e-6)
    again = RQMoEVectorStore(PointEmbedding(), uri=tmp_path)
    scores = dict(again.similarity_search_with_relevance_scores("1 0")[0][0].metadata)
    assert scores == {} and again.table.metric == metric


def test_relevance_of_ones_own(tmp_path):
    store = filled(tmp_path, relevance_score_fn=lambda distance: 1 / (1 + distance))
    found = store.similarity_search_with_relevance_scores("0 0", k=2)
    assert [score for _, score in found] == pytest.approx([1, 0.5])


def test_settings_for_all_searches(tmp_path):
    store = filled(tmp_path, nprobes=1, shortlist=1)
    assert len(store.similarity_search("0 0", k=3)) == 3
    with pytest.raises(InvalidInputError, match="shortlist"):
        store.similarity_search("0 0", k=3, shortlist=2)


class TextOnly(Reranker):
    """Takes what was found by its text."""

    def rerank_hybrid(self, query: str, vector_results: pa.Table, fts_results: pa.Table) -> pa.Table:
        scores = pa.array([7.0] * len(fts_results), pa.float32())
        return self._keep_relevance_score(fts_results.append_column("_relevance_score", scores))


def test_reranker(tmp_path):
    store = filled(tmp_path, reranker=TextOnly())
    found = store.similarity_search_with_score("cherry 0 4", k=1, query_type="hybrid")
    assert (ids_of(found), [score for _, score in found]) == (["c"], [7])


def test_retrievers(store):
    assert ids_of(store.as_retriever(search_kwargs={"k": 1}).invoke("3 0")) == ["c"]
    mmr = store.as_retriever(search_type="mmr", search_kwargs={"k": 2, "lambda_mult": 0.0})
    assert ids_of(mmr.invoke("0 0")) == ["a", "d"] or ids_of(mmr.invoke("0 0")) == ["a", "c"]
    by_score = store.as_retriever(
        search_type="similarity_score_threshold",
        search_kwargs={"score_threshold": 0.9, "filter": {"fruit": {"$in": ["apple", "banana"]}}},
    )
    assert ids_of(by_score.invoke("0 0")) == ["a"]
    hybrid = store.as_retriever(search_kwargs={"query_type": "hybrid", "k": 1})
    assert ids_of(hybrid.invoke("date 0 4")) == ["d"]


async def test_awaited_retriever(store):
    assert ids_of(await store.as_retriever(search_kwargs={"k": 1}).ainvoke("3 0")) == ["c"]


def test_langchains_indexing(empty):
    records = InMemoryRecordManager("test")
    records.create_schema()
    documents = [Document(page_content=f"{n} 0", metadata={"source": f"s{n % 2}"}) for n in range(5)]
    how = {"cleanup": "full", "source_id_key": "source", "key_encoder": "sha256"}
    result = index(documents, records, empty, batch_size=2, **how)
    assert result["num_added"] == 5
    result = index(documents[1:], records, empty, **how)
    assert (result["num_skipped"], result["num_deleted"]) == (4, 1)
    assert empty.table.count_rows() == 4


async def test_langchains_indexing_awaited(empty):
    records = InMemoryRecordManager("test")
    await records.acreate_schema()
    documents = [Document(page_content=f"{n} 0") for n in range(3)]
    how = {"cleanup": "full", "key_encoder": "sha256"}
    assert (await aindex(documents, records, empty, **how))["num_added"] == 3
    assert (await aindex([], records, empty, **how))["num_deleted"] == 3
    assert empty.table.count_rows() == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "Got connection=None and uri=None"),
        ({"uri": "x", "connection": "y"}, "expected either what lancedb.connect"),
        ({"connection": "path"}, "Pass a path as uri"),
        ({"uri": "x", "train_from": 0}, "Got train_from=0"),
        ({"uri": "x", "train_from": True}, "Got train_from=True"),
        ({"uri": "x", "id_key": "text"}, "expected four different names"),
        ({"uri": "x", "id_key": ""}, "expected four different names"),
        ({"uri": "x", "table_name": "../x"}, "cannot be a table name"),
    ],
)
def test_settings_that_are_refused(tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInputError, match=message):
        RQMoEVectorStore(PointEmbedding(), **given)


def test_what_else_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="Got None as the embedding"):
        RQMoEVectorStore(None, uri=tmp_path)
    with pytest.raises(TypeError, match="mode"):
        RQMoEVectorStore(PointEmbedding(), uri=tmp_path, mode="overwrite")
    with pytest.raises(TypeError, match="collection"):
        RQMoEVectorStore.from_texts(["x"], PointEmbedding(), uri=tmp_path, collection="x")
