"""What cannot be added, searched for or deleted; nothing is written then."""

import asyncio
from types import MappingProxyType

import pytest
from langchain_rqmoe import RQMoEVectorStore
from small_stores import DIM, PointEmbedding

from rqmoe_store import InvalidInputError


class Wrong(PointEmbedding):
    """A model that returns what it was told to."""

    def __init__(self, vectors) -> None:
        super().__init__()
        self.vectors = vectors

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self.vectors


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([[1.0] * DIM], "Got 1 vectors for 2 texts"),
        ([[1.0] * DIM, [1.0] * 3], "4 numbers for document 0 and of 3 for document 1"),
        ([[], []], r"vector of shape \(0,\)"),
        ([None, None], r"vector of shape \(\)"),
        ([1.0, 2.0], r"vector of shape \(\)"),
        ([[1.0] * DIM, [1.0, 2.0, 3.0, "x"]], "cannot be read as numbers"),
        ([[1.0] * DIM, [float("nan")] * DIM], "NaN"),
        ([[1.0] * 7, [1.0] * 7], "vectors of 7 numbers, but table 'vectorstore' holds vectors of 4"),
    ],
)
def test_bad_vectors_are_refused(store, tmp_path, vectors, message):
    broken = RQMoEVectorStore(Wrong(vectors), uri=tmp_path)
    version = store.table.version
    with pytest.raises(InvalidInputError, match=message):
        broken.add_texts(["x", "y"], ids=["a", "x"])
    assert store.table.version == version


@pytest.mark.parametrize(
    ("texts", "given", "message"),
    [
        (["x", 3], {}, "text of document 1 is int"),
        (["x", "\ud800"], {}, "text of document 1 has lone surrogates"),
        (["x"], {"ids": [3]}, "id of document 0 is int"),
        (["x"], {"ids": [""]}, "id of document 0 is an empty text"),
        (["x"], {"ids": ["a", "b"]}, "Got 2 ids for 1 texts"),
        (["x"], {"ids": []}, "Got 0 ids for 1 texts"),
        (["x"], {"metadatas": [{}, {}]}, "Got 2 metadatas for 1 texts"),
        (["x"], {"metadatas": [{"n": float("nan")}]}, r"metadata\['n'\] = nan"),
        (["x"], {"batch_size": 0}, "Got batch_size=0"),
        (["x"], {"mode": "overwrite"}, "Got mode='overwrite' for adding documents"),
    ],
)
def test_bad_documents_are_refused(empty, texts, given, message):
    with pytest.raises(InvalidInputError, match=message):
        empty.add_texts(texts, **given)
    assert empty.table is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"filter": "author = 'x'"}, "Got where=.*author"),
        ({"filter": {"n": {"$regex": "x"}}}, "'\\$regex'"),
        ({"k": 0}, "limit"),
        ({"nprobes": 0}, "nprobes"),
        ({"query_type": "exact"}, "Got query_type='exact'; expected one of vector, fts, hybrid"),
        ({"fetch_k": 3}, "Got fetch_k=3 for a search"),
    ],
)
def test_bad_searches_are_refused(store, given, message):
    with pytest.raises(InvalidInputError, match=message):
        store.similarity_search("0 0", **given)


def test_options_that_a_method_has_words_for(store):
    with pytest.raises(InvalidInputError, match="Got query_type='fts' for a search"):
        store.similarity_search_by_vector([0.0] * DIM, query_type="fts")
    with pytest.raises(InvalidInputError, match="Got shortlist=30 for a search"):
        store.max_marginal_relevance_search("0 0", shortlist=30)
    with pytest.raises(InvalidInputError, match="lambda_"):
        store.max_marginal_relevance_search("0 0", lambda_mult=2)
    with pytest.raises(InvalidInputError, match="Got method='medoids' of diversify"):
        store.max_marginal_relevance_search("0 0", method="medoids")
    with pytest.raises(InvalidInputError, match="Got method='mmr' for a search"):
        store.similarity_search("0 0", method="mmr")
    with pytest.raises(InvalidInputError, match="Got delete_all=True for delete"):
        store.delete(delete_all=True)
    assert store.table.count_rows() == 4


def test_a_model_of_another_dimension_is_told_when_searching(store, tmp_path):
    swapped = RQMoEVectorStore(PointEmbedding(dim=9), uri=tmp_path)
    with pytest.raises(InvalidInputError, match="vectors of 9 numbers, but table 'vectorstore' holds"):
        swapped.similarity_search("0 0")


@pytest.mark.parametrize("vector", [None, 3.0, [[0.0] * DIM], ["x"] * DIM, [], "text"])
def test_queries_that_are_no_vectors(store, vector):
    with pytest.raises(InvalidInputError, match="Got a vector"):
        store.similarity_search_by_vector(vector)


@pytest.mark.parametrize(
    "given",
    [
        {"filter": ""},
        {"filter": {}},
        {"filter": None},
        {"ids": None, "filter": None},
        {"filter": MappingProxyType({})},
        {"filter": {"place": {"$nin": []}}},
        {"filter": {"$not": {"place": {"$in": []}}}},
        {"filter": {"$or": [{"place": 1}, {"fruit": {"$nin": []}}]}},
        {"filter": {"$and": [{"a": {"$nin": []}, "b": {"$nin": []}}]}},
    ],
)
def test_deletions_that_could_be_mistakes(store, given):
    with pytest.raises(InvalidInputError, match="says nothing about documents; expected ids, or a filter"):
        store.delete(**given)
    with pytest.raises(InvalidInputError, match="says nothing about documents"):
        asyncio.run(store.adelete(**given))
    with pytest.raises(InvalidInputError, match="unbalanced"):
        store.delete(filter="id = 'b') OR (true")
    assert store.table.count_rows() == 4


@pytest.mark.parametrize(
    "given",
    [
        {"filter": {"$and": []}},
        {"filter": {"$or": [{}]}},
        {"filter": {"$not": {}}},
        {"filter": {"place": {}}},
        {"filter": []},
        {"filter": "  "},
        {"filter": "-- nothing"},
        {"ids": ["a"], "filter": {}},
        {"ids": [], "filter": {"place": 1}},
    ],
)
def test_deletions_that_are_not_understood(store, given):
    with pytest.raises(InvalidInputError):
        store.delete(**given)
    with pytest.raises(InvalidInputError):
        asyncio.run(store.adelete(**given))
    assert store.table.count_rows() == 4


def test_a_filter_of_none_beside_ids(store):
    store.delete(["a"], filter=None)
    store.delete([], filter=None)
    store.delete(filter={"place": {"$in": []}})
    assert store.table.count_rows() == 3


def test_ids_that_are_no_texts(store):
    with pytest.raises(InvalidInputError):
        store.get_by_ids([3])
    with pytest.raises(InvalidInputError):
        store.delete([None])
    with pytest.raises(InvalidInputError):
        store.delete("abc")
    assert store.table.count_rows() == 4
