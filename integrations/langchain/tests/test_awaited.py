"""The awaited twins: the same results, and nothing that keeps the loop waiting."""

import asyncio
import threading
from pathlib import Path

import pytest
from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStore
from langchain_rqmoe import RQMoEVectorStore
from small_stores import BY_L2, DIM, POINTS, AsyncOnlyEmbedding, PointEmbedding, filled, ids_of

from rqmoe_store import CodecConfig, CompressedTable, InvalidInputError, TrainConfig

ZERO = [0.0] * DIM


@pytest.fixture
def awaited(tmp_path: Path) -> RQMoEVectorStore:
    """The documents of `POINTS` in a store whose model can only be awaited."""
    filled(tmp_path)
    return RQMoEVectorStore(AsyncOnlyEmbedding(), uri=tmp_path)


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("similarity_search", {"query": "0 0", "k": 3, "filter": {"place": {"$ne": 1}}}),
        ("similarity_search", {"query": "cherry", "query_type": "fts"}),
        ("similarity_search", {"query": "cherry 0 0", "query_type": "hybrid", "k": 2}),
        ("similarity_search_with_score", {"query": "0 0", "k": 3}),
        ("similarity_search_by_vector", {"embedding": ZERO, "filter": "id > 'a'"}),
        ("similarity_search_with_score_by_vector", {"embedding": ZERO, "k": 2}),
        ("similarity_search_by_vector_with_relevance_scores", {"embedding": ZERO, "k": 2}),
        ("similarity_search_with_relevance_scores", {"query": "0 0", "k": 2, "score_threshold": 0.2}),
        ("max_marginal_relevance_search", {"query": "0 0", "k": 2, "lambda_mult": 0.3}),
        ("max_marginal_relevance_search_by_vector", {"embedding": ZERO, "k": 2, "fetch_k": 3}),
        ("max_marginal_relevance_search", {"query": "0 0", "k": 2, "method": "coverage"}),
        ("search", {"query": "0 0", "search_type": "mmr"}),
    ],
)
async def test_twins_find_the_same(awaited, tmp_path, method, arguments):
    blocking = RQMoEVectorStore(PointEmbedding(), uri=tmp_path)
    found = await getattr(awaited, f"a{method}")(**arguments)
    assert found == getattr(blocking, method)(**arguments)
    assert found


async def test_rows_awaited(tmp_path):
    store = RQMoEVectorStore(AsyncOnlyEmbedding(), uri=tmp_path, config=BY_L2)
    assert await store.aget_by_ids(["a"]) == [] and await store.adelete(["a"]) is True
    assert await store.asimilarity_search("0 0") == []
    ids = await store.aadd_documents([Document(page_content="x 1"), Document(id="b", page_content="x 2")])
    assert await store.aadd_texts(["x 3"], [{"n": 1}], ids=["b"], batch_size=1) == ["b"]
    assert await store.aget_by_ids(["b", ids[0]]) == [
        Document(id="b", page_content="x 3", metadata={"n": 1}),
        Document(id=ids[0], page_content="x 1"),
    ]
    assert await store.aadd_embeddings(["y"], [ZERO], ids=["c"]) == ["c"]
    assert await store.adelete(filter={"n": 1}) is True
    assert ids_of(await store.aget_by_ids(["b", "c"])) == ["c"]
    await store.adelete()
    assert store.table.count_rows() == 0
    assert await store.aadd_texts([]) == []


async def test_stores_made_awaited(tmp_path):
    documents = [Document(id=given, page_content=text) for given, text in POINTS.items()]
    store = await RQMoEVectorStore.afrom_documents(
        documents, AsyncOnlyEmbedding(), uri=tmp_path, config=BY_L2
    )
    assert ids_of(await store.asimilarity_search("3 0", k=1)) == ["c"]
    more = await RQMoEVectorStore.afrom_texts(["7 7"], AsyncOnlyEmbedding(), ids=["e"], uri=tmp_path)
    assert more.table.count_rows() == 5
    with pytest.raises(TypeError, match="color"):
        await RQMoEVectorStore.afrom_texts(["x"], AsyncOnlyEmbedding(), uri=tmp_path, color="red")


async def test_training_awaited(tmp_path):
    config, training = (
        CodecConfig(kind="rq", metric="l2", code_bytes=2, codebook_size=16),
        TrainConfig(progress=False),
    )
    store = RQMoEVectorStore(
        AsyncOnlyEmbedding(), uri=tmp_path, config=config, training=training, train_from=300
    )
    await store.aadd_texts([f"{n % 20} {n // 20}" for n in range(300)])
    assert store.table.codecs.newest is not None


async def test_the_table_is_never_used_by_the_loop_itself(awaited, monkeypatch):
    loop_thread = threading.get_ident()

    def elsewhere(method):
        def checked(self, *arguments, **options):
            assert threading.get_ident() != loop_thread, method.__name__
            return method(self, *arguments, **options)

        return checked

    for name in ("add", "delete", "optimize", "count_rows", "create_fts_index"):
        monkeypatch.setattr(CompressedTable, name, elsewhere(getattr(CompressedTable, name)))
    await awaited.aadd_texts(["e at 5 5"])
    await awaited.asimilarity_search("apple", query_type="fts")
    await awaited.adelete(["a"])
    assert awaited.table is not None


async def test_many_at_once(awaited):
    found = await asyncio.gather(*(awaited.asimilarity_search("3 0", k=1) for _ in range(20)))
    assert [ids_of(documents) for documents in found] == [["c"]] * 20
    await asyncio.gather(*(awaited.aadd_texts([f"{n} {n}"], ids=[str(n)]) for n in range(5)))
    assert awaited.table.count_rows() == 9


async def test_a_new_table_for_many_at_once(tmp_path):
    store = RQMoEVectorStore(AsyncOnlyEmbedding(), uri=tmp_path, config=BY_L2)
    await asyncio.gather(*(store.aadd_texts([f"{n}"], ids=[str(n)]) for n in range(5)))
    assert store.table.count_rows() == 5


def test_every_asynchronous_method_of_langchain_is_our_own_or_uses_ours():
    inherited = {"aadd_documents", "asearch", "asimilarity_search_with_relevance_scores", "afrom_documents"}
    names = {name for name in dir(VectorStore) if name.startswith(("a", "_a")) and not name.startswith("as_")}
    methods = {name for name in names if asyncio.iscoroutinefunction(getattr(VectorStore, name))}
    own = {name for name in methods if getattr(RQMoEVectorStore, name) is not getattr(VectorStore, name)}
    assert methods - {name for name in own if name not in inherited} == inherited


async def test_bad_input_is_refused(awaited, tmp_path):
    with pytest.raises(InvalidInputError, match="Got ids"):
        await awaited.aadd_texts(["x"], ids=["a"], idss=[1])
    with pytest.raises(InvalidInputError, match="Got color='red' for adelete"):
        await awaited.adelete(color="red")
    with pytest.raises(InvalidInputError, match="relevance scores"):
        await awaited.asimilarity_search_with_relevance_scores("x", query_type="hybrid")
    with pytest.raises(InvalidInputError, match="Got color='red' for a search"):
        await awaited.asimilarity_search("x", color="red")
    swapped = RQMoEVectorStore(AsyncOnlyEmbedding(dim=2), uri=tmp_path)
    with pytest.raises(InvalidInputError, match="vectors of 2 numbers"):
        await swapped.asimilarity_search("0 0")
    with pytest.raises(InvalidInputError, match="vectors of 2 numbers"):
        await swapped.aadd_texts(["0 0"])
    assert awaited.table.count_rows() == 4
