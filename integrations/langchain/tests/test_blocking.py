"""Adding, reading, deleting and searching."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_rqmoe import RQMoEVectorStore
from small_stores import BY_L2, DIM, POINTS, PointEmbedding, ids_of

from rqmoe_store import CodecConfig, InvalidInputError, TrainConfig


def test_documents_come_back_as_they_were(store):
    found = store.get_by_ids(["b", "a"])
    assert found == [
        Document(id="b", page_content=POINTS["b"], metadata={"place": 1, "fruit": "banana"}),
        Document(id="a", page_content=POINTS["a"], metadata={"place": 0, "fruit": "apple"}),
    ]


def test_ids_are_made_where_they_are_missing(empty):
    ids = empty.add_documents(
        [Document(page_content="x 1"), Document(id="mine", page_content="x 2"), Document(page_content="x 3")]
    )
    assert ids[1] == "mine" and len(set(ids)) == 3
    assert ids_of(empty.get_by_ids(ids)) == ids
    more = empty.add_texts(["x 1"])
    assert more[0] not in ids


def test_the_same_id_overwrites(store):
    store.add_texts(["new at 9 9", "again at 8 8"], [{"n": 1}, {}], ids=["b", "e"])
    assert store.table.count_rows() == 5
    assert store.get_by_ids(["b"]) == [Document(id="b", page_content="new at 9 9", metadata={"n": 1})]
    assert ids_of(store.similarity_search("9 9", k=1)) == ["b"]


def test_the_last_of_the_same_id_counts(empty):
    assert empty.add_texts(["x 1", "x 2", "x 3"], ids=["a", "b", "a"]) == ["a", "b", "a"]
    assert empty.table.count_rows() == 2
    assert empty.get_by_ids(["a"])[0].page_content == "x 3"


def test_texts_are_embedded_in_batches(empty):
    empty.add_texts((f"x {n}" for n in range(5)), batch_size=2)
    assert empty.embeddings.batches == [2, 2, 1]
    assert empty.table.count_rows() == 5


def test_texts_metadata_and_ids_may_be_generators(empty):
    metadatas, ids = ({"n": n} for n in range(3)), (f"id {n}" for n in range(3))
    assert empty.add_texts((f"x {n}" for n in range(3)), metadatas, ids=ids) == ["id 0", "id 1", "id 2"]
    assert empty.get_by_ids(["id 2"])[0].metadata == {"n": 2}


def test_nothing_to_add_makes_no_table(empty):
    assert empty.add_texts([]) == [] and empty.add_documents([]) == []
    assert empty.table is None


def test_embeddings_that_are_known(empty):
    vectors = np.eye(DIM, dtype=np.float32)[:3]
    empty.add_embeddings(["x", "y", "z"], vectors, [{"n": n} for n in range(3)], ids=["x", "y", "z"])
    assert empty.embeddings.batches == []
    assert ids_of(empty.similarity_search_by_vector([0, 1, 0, 0], k=1)) == ["y"]


def test_a_store_without_a_table_is_empty(empty):
    assert empty.similarity_search("x 1") == []
    assert empty.similarity_search("x", query_type="hybrid") == []
    assert empty.max_marginal_relevance_search("x 1") == []
    assert empty.get_by_ids(["a"]) == []
    assert empty.delete(["a"]) is True


def test_delete(store):
    assert store.delete(["a", "nobody"]) is True
    assert ids_of(store.get_by_ids(list(POINTS))) == ["b", "c", "d"]
    store.delete([])
    assert store.table.count_rows() == 3
    store.delete(filter={"place": {"$gte": 3}})
    assert ids_of(store.get_by_ids(list(POINTS))) == ["b", "c"]
    store.delete(filter="id = 'b' -- or so")
    assert ids_of(store.get_by_ids(list(POINTS))) == ["c"]
    store.delete()
    assert store.table.count_rows() == 0
    assert store.similarity_search("1 1") == []


def test_get_by_ids_of_many_and_of_none(store):
    assert store.get_by_ids([]) == []
    many = [f"id {n}" for n in range(3000)]
    store.add_texts([f"{n} {n}" for n in range(3000)], ids=many)
    assert ids_of(store.get_by_ids([*many, "b", "b", "nobody"])) == [*many, "b"]


def test_nearest_first_with_distances(store):
    found = store.similarity_search_with_score("0 0", k=3)
    assert ids_of(found) == ["a", "b", "c"]
    assert [score for _, score in found] == pytest.approx([0, 1, 9])
    assert ids_of(store.similarity_search("3 0", k=1)) == ["c"]
    assert store.similarity_search_with_score_by_vector([0.0] * DIM, k=3) == found
    assert store.similarity_search_by_vector([0.0] * DIM, k=3) == [document for document, _ in found]


def test_relevance(store):
    found = store.similarity_search_with_relevance_scores("0 0", k=2)
    assert [score for _, score in found] == pytest.approx([1, 1 - 1 / np.sqrt(2)])
    by_vector = store.similarity_search_by_vector_with_relevance_scores([0.0] * DIM, k=2)
    assert by_vector == found
    above = store.similarity_search_with_relevance_scores("0 0", k=4, score_threshold=0.5, filter="id < 'c'")
    assert ids_of(above) == ["a"]
    with pytest.raises(InvalidInputError, match="Got query_type='fts' for relevance scores"):
        store.similarity_search_with_relevance_scores("apple", query_type="fts")


def test_diverse_results(empty):
    texts = {"a": "0.1 0", "b": "0.11 0", "c": "0.12 0", "d": "0 1", "e": "9 9"}
    empty.add_texts(texts.values(), ids=list(texts))
    assert ids_of(empty.max_marginal_relevance_search("0 0", k=2, lambda_mult=1)) == ["a", "b"]
    assert ids_of(empty.max_marginal_relevance_search("0 0", k=2, fetch_k=4, lambda_mult=0)) == ["a", "d"]
    assert ids_of(empty.max_marginal_relevance_search("0 0", k=2, fetch_k=5, lambda_mult=0)) == ["a", "e"]
    by_vector = empty.max_marginal_relevance_search_by_vector([0.0] * DIM, k=9, fetch_k=1, filter="id != 'e'")
    assert sorted(ids_of(by_vector)) == ["a", "b", "c", "d"]


def test_results_that_cover_the_others(empty):
    # Of three groups, the larger ones are worth more than the outlier, which is the most different.
    texts = {"a": "1 0", "b": "1.1 0", "c": "1.2 0", "d": "0 2", "e": "0.1 2", "f": "9 9"}
    empty.add_texts(texts.values(), ids=list(texts))
    options = {"k": 2, "fetch_k": 6, "lambda_mult": 0}
    assert "f" in ids_of(empty.max_marginal_relevance_search("0 0", **options))
    covering = ids_of(empty.max_marginal_relevance_search("0 0", method="coverage", **options))
    assert len(set(covering) & {"a", "b", "c"}) == len(set(covering) & {"d", "e"}) == 1
    by_vector = empty.max_marginal_relevance_search_by_vector([0.0] * DIM, method="coverage", **options)
    assert ids_of(by_vector) == covering
    nearest = empty.max_marginal_relevance_search("0 0", k=3, method="coverage", lambda_mult=1)
    assert ids_of(nearest) == ["a", "b", "c"]


def test_search_by_text_and_by_both(store):
    assert ids_of(store.similarity_search("cherry", query_type="fts")) == ["c"]
    scored = store.similarity_search_with_score("banana 0 4", k=3, query_type="hybrid")
    assert set(ids_of(scored)) == {"a", "b", "d"}, "c is the last by vector and by text"
    assert scored[0][1] >= scored[1][1] >= scored[2][1] > 0
    store.add_texts(["elderberry at 5 5"], ids=["e"])
    assert ids_of(store.similarity_search("elderberry", query_type="fts")) == ["e"]
    found = store.similarity_search("elderberry 0", k=4, query_type="hybrid", filter={"place": {"$lt": 2}})
    assert sorted(ids_of(found)) == ["a", "b"]
    indexes = [index for index in store.table.table.list_indices() if index.index_type == "FTS"]
    assert len(indexes) == 1


def test_search_by_text_in_an_empty_table(store):
    store.delete()
    assert store.similarity_search("cherry", query_type="fts") == []
    assert store.similarity_search("cherry", query_type="hybrid") == []
    store.add_texts(["a cherry"], ids=["c"])
    assert ids_of(store.similarity_search("cherry", query_type="fts")) == ["c"]


def test_filters(store):
    assert ids_of(store.similarity_search("0 0", filter={"fruit": "cherry"})) == ["c"]
    assert ids_of(store.similarity_search("0 0", filter="text LIKE '%date%'")) == ["d"]
    found = store.similarity_search("0 0", k=1, filter={"place": {"$gt": 1}}, prefilter=False)
    assert found == []
    assert ids_of(store.similarity_search("0 0", k=1, filter={"place": {"$gt": 1}})) == ["c"]


def test_a_table_that_has_grown_is_trained(tmp_path):
    config, training = (
        CodecConfig(kind="rq", metric="l2", code_bytes=4, codebook_size=16),
        TrainConfig(progress=False),
    )
    settings = {"config": config, "training": training, "train_from": 300}
    store = RQMoEVectorStore(PointEmbedding(), uri=tmp_path, **settings)
    texts = [f"{n % 20} {n // 20}" for n in range(299)]
    store.add_texts(texts, ids=texts)
    assert store.table.codecs.newest is None
    store.add_texts(["14 19"], ids=["14 19"])
    assert store.table.codecs.newest is not None
    assert store.table.table.count_rows("vector IS NOT NULL") == 0, "raw vectors, in LanceDB's table"
    store.add_texts(["3 3", "new at 4 4"], ids=["3 3", "new"])
    again = RQMoEVectorStore(PointEmbedding(), uri=tmp_path)
    assert again.table.table.count_rows("vector IS NOT NULL") == 0
    assert again.table.count_rows() == 301
    assert "new" in ids_of(again.similarity_search("4 4", k=10, nprobes=1, shortlist=300))
    assert len(again.max_marginal_relevance_search("5 5", k=5)) == 5


def test_refine_codes(tmp_path):
    config = CodecConfig(kind="rq", metric="l2", code_bytes=2, codebook_size=16, refine_bytes=6)
    settings = {"config": config, "training": TrainConfig(epochs=0, progress=False), "train_from": 100}
    store = RQMoEVectorStore(PointEmbedding(), uri=tmp_path, **settings)
    texts = [f"{n % 10} {n // 10}" for n in range(110)]
    store.add_texts(texts[:100], ids=texts[:100])
    store.add_texts(texts[100:], ids=texts[100:])
    assert store.table.columns.refine_bytes == 6
    assert store.table.table.count_rows("vector_refine IS NOT NULL") == 110
    assert ids_of(store.similarity_search("3 4", k=1)) == ["3 4"]


def test_many_threads_train_once(tmp_path):
    config, training = (
        CodecConfig(kind="rq", metric="l2", code_bytes=2, codebook_size=16),
        TrainConfig(progress=False),
    )
    store = RQMoEVectorStore(PointEmbedding(), uri=tmp_path, config=config, training=training, train_from=300)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: store.add_texts([f"{n} {place}" for place in range(100)]), range(8)))
    assert len(store.table.codecs.metadata.generations) == 1
    assert store.table.count_rows() == 800


def test_training_waits_for_as_many_documents_as_codewords(tmp_path):
    config, training = (
        CodecConfig(kind="rq", metric="l2", code_bytes=2, codebook_size=16),
        TrainConfig(progress=False),
    )
    store = RQMoEVectorStore(PointEmbedding(), uri=tmp_path, config=config, training=training, train_from=1)
    store.add_texts([f"{n}" for n in range(15)])
    assert store.table.codecs.newest is None
    store.add_texts(["15"])
    assert store.table.codecs.newest is not None


def test_train_from_none_never_trains(tmp_path):
    store = RQMoEVectorStore(PointEmbedding(), uri=tmp_path, config=BY_L2, train_from=None)
    store.add_texts([f"{n}" for n in range(50)])
    assert store.table.codecs.newest is None
