"""LanceDB's own queries on the table behind a compressed one, reranked by decoded codes."""

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from lancedb.query import MatchQuery
from small_tables import tiny_codec
from word_embedding import NAME, embed

import rqmoe_store
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.search.rerank import exact_distances
from rqmoe_store.search.reranker import DecodedReranker
from rqmoe_store.tables import compress, create_table

METRICS = ["l2", "cosine", "dot"]


def vector_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=16).astype(np.float32)


@pytest.fixture(scope="module", params=METRICS)
def two_vectors(request, tmp_path_factory):
    """A compressed table that still has another, small vector column."""
    generator = np.random.default_rng(2)
    vectors = generator.normal(size=(200, 16)).astype(np.float32)
    rows = pa.table(
        {
            "id": range(200),
            "text": [f"every word{row % 20}" for row in range(200)],
            "small": pa.array(generator.normal(size=(200, 3)).tolist(), pa.list_(pa.float32(), 3)),
            "vector": pa.array(vectors.tolist(), pa.list_(pa.float32(), 16)),
        }
    )
    db = lancedb.connect(tmp_path_factory.mktemp(request.param))
    codec = tiny_codec(vectors, request.param, 4)
    store = compress(db.create_table("docs", rows), codec, "store", progress=False)
    store.create_fts_index("text")
    store.table.add([{"id": 900, "text": "every word3", "small": [0.0, 0.0, 0.0]}])  # without a code
    return store


def distances(store, query: np.ndarray) -> dict[int, float]:
    """Distance to every decoded vector by id, without any search."""
    rows = store.table.search().to_arrow()
    codes, valid = store.columns.from_arrow(rows)
    ids = rows["id"].to_numpy()[valid].tolist()
    if store.codec.config.metric == "cosine":
        query = query / np.linalg.norm(query)
    found = exact_distances(query, store.codec.decode(codes), store.codec.config.metric)
    return dict(zip(ids, found.tolist(), strict=True))


def assert_reranked(store, query: np.ndarray, found: pa.Table, ids: set[int]) -> None:
    """`found` holds rows `ids` by rising distance, those without a vector last."""
    wanted = distances(store, query)
    assert set(found["id"].to_pylist()) == ids
    assert found["_relevance_score"].null_count == len(ids - set(wanted))
    relevance = found["_relevance_score"].to_numpy()  # null as NaN
    expected = [-wanted.get(row, np.nan) for row in found["id"].to_pylist()]
    np.testing.assert_allclose(relevance, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(relevance, -np.sort(-relevance))  # NaN is sorted to the end


def text_search(store, word: str, **more):
    return store.table.search(word, query_type="fts", **more).limit(50)


def test_full_text_queries(two_vectors) -> None:
    store, query = two_vectors, vector_of(0)
    reranker = rqmoe_store.DecodedReranker(store, query=query)
    wanted = {row for row in range(200) if row % 20 == 3} | {900}
    found = text_search(store, "word3").rerank(reranker).to_arrow()
    assert_reranked(store, query, found, wanted)
    assert "_score" not in found.schema.names
    by_row_id = text_search(store, "word3").select(["id"]).with_row_id(True).rerank(reranker).to_arrow()
    assert by_row_id["id"].equals(found["id"])
    assert by_row_id["_relevance_score"].equals(found["_relevance_score"])


def test_vector_queries_over_another_column(two_vectors) -> None:
    store, query = two_vectors, vector_of(1)
    search = store.table.search([0.1, 0.2, 0.3], vector_column_name="small").limit(30)
    near = set(search.to_arrow()["id"].to_pylist())
    found = search.rerank(DecodedReranker(store, query=query), query_string="unused").to_arrow()
    assert_reranked(store, query, found, near)
    assert "_distance" not in found.schema.names
    everything = DecodedReranker(store, query=query, return_score="all")
    found = search.rerank(everything, query_string="unused").to_arrow()
    assert {"_distance", "_relevance_score"} <= set(found.schema.names)


@pytest.mark.parametrize("columns", [None, ["id", "text"]])
@pytest.mark.parametrize("word", ["word3", "absent"])
def test_hybrid_queries(two_vectors, word, columns) -> None:
    store, query = two_vectors, vector_of(2)
    few, point = "id % 5 = 3 OR id = 900", [0.1, 0.2, 0.3]
    search = store.table.search(query_type="hybrid", vector_column_name="small").where(few).limit(60)
    search = search.vector(point).text(word)
    search = search if columns is None else search.select(columns)
    near = store.table.search(point, vector_column_name="small").where(few).limit(60).to_arrow()
    texts = text_search(store, word).where(few).to_arrow()
    found = search.rerank(DecodedReranker(store, query=query)).to_arrow()
    assert not {"_score", "_distance", "_rowid"} & set(found.schema.names)
    assert_reranked(store, query, found, set(near["id"].to_pylist()) | set(texts["id"].to_pylist()))
    everything = search.rerank(DecodedReranker(store, query=query, return_score="all")).to_arrow()
    assert everything["id"].equals(found["id"])
    for name, results in (("_distance", near), ("_score", texts)):
        original = dict(zip(results["id"].to_pylist(), results[name].to_pylist(), strict=True))
        pairs = zip(everything["id"].to_pylist(), everything[name].to_pylist(), strict=True)
        assert all(score == original.get(row) for row, score in pairs)


def test_in_queries_of_ours(text_world) -> None:
    store, query = text_world.store, vector_of(3)
    found = store.search("copper", "fts").limit(20).rerank(DecodedReranker(store, query=query)).to_arrow()
    wanted = store.search("copper", "fts").limit(20).to_arrow()
    assert found.schema.names == ["id", "lang", "title", "text", "_relevance_score"]
    assert_reranked(store, query, found, set(wanted["id"].to_pylist()))
    search = store.search(query_type="hybrid").vector(query).text("absent")
    hybrid = search.rerank(DecodedReranker(store, query=query)).to_arrow()
    assert hybrid["id"].equals(store.search(query).to_arrow()["id"])


def test_the_text_of_the_query_is_embedded(text_world) -> None:
    store = text_world.store
    words = "copper bridge"
    found = text_search(store, words).rerank(DecodedReranker(store)).to_arrow()
    by_vector = DecodedReranker(store, query=embed(words))
    assert found.equals(text_search(store, words).rerank(by_vector).to_arrow())
    by_text = DecodedReranker(store, query=words)
    assert found.equals(text_search(store, MatchQuery(words, "text")).rerank(by_text).to_arrow())


def test_nothing_to_rerank(two_vectors) -> None:
    reranker = DecodedReranker(two_vectors, query=vector_of(4))
    for search in (text_search(two_vectors, "absent"), text_search(two_vectors, "word3").where("id = 900")):
        for select in (None, ["id"]):
            chosen = search if select is None else search.select(select).with_row_id(True)
            found = chosen.rerank(reranker).to_arrow()
            assert found["_relevance_score"].to_pylist() == [None] * found.num_rows
            assert found.schema.field("_relevance_score").type == pa.float32()


def test_rows_deleted_meanwhile_come_last(own_text_world) -> None:
    store = own_text_world.store
    results = text_search(store, "copper").select(["id"]).with_row_id(True).to_arrow()
    gone = results["id"][0].as_py()
    store.delete(f"id = {gone}")
    found = DecodedReranker(store, query=vector_of(5)).rerank_fts("copper", results)
    assert found["id"].to_pylist()[-1] == gone
    assert found["_relevance_score"].null_count == 1


def test_what_cannot_be_used(text_world, world) -> None:
    store = text_world.store
    for query, reason in (
        (np.ones(3), "dimension 3; expected 16"),
        (np.ones((2, 16)), "Got a batch of vectors to rerank by"),
        ("NONE", f"'{NAME}'.* gives no vector"),
    ):
        with pytest.raises(InvalidInputError, match=reason):
            DecodedReranker(store, query=query)
    with pytest.raises(InvalidInputError, match="return_score='some'"):
        DecodedReranker(store, query=np.ones(16), return_score="some")
    with pytest.raises(InvalidInputError, match="no embedding function"):
        DecodedReranker(world.store, query="words")
    results = text_search(store, "copper").select(["id"]).to_arrow()
    with pytest.raises(InvalidInputError, match=r"Add .with_row_id\(True\) to the query"):
        DecodedReranker(store, query=np.ones(16)).rerank_fts("copper", results)
    for passed, table in ((MatchQuery("a", "text"), store), (None, store), ("words", world.store)):
        with pytest.raises(InvalidInputError, match=r"DecodedReranker\(store, query=vector\)"):
            DecodedReranker(table).rerank_fts(passed, results)
    assert str(DecodedReranker(store)) == "DecodedReranker('texts')"


@pytest.mark.parametrize("metric", METRICS)
def test_rows_without_a_code_are_ranked_by_their_raw_vectors(tmp_path, metric) -> None:
    vectors = np.random.default_rng(8).normal(size=(40, 16)).astype(np.float32)
    rows = [{"id": row, "text": "word", "vector": vector} for row, vector in enumerate(vectors)]
    config = rqmoe_store.CodecConfig(kind="rq", metric=metric, code_bytes=4, codebook_size=16)
    store = create_table(lancedb.connect(tmp_path), "raw", rows[:30], config=config)
    store.train(rqmoe_store.TrainConfig(epochs=0, progress=False), progress=False)
    store.add(rows[30:], encode=False)
    store.create_fts_index("text")
    query = vectors[35] + 0.01
    search = store.table.search("word", query_type="fts").with_row_id(True).limit(40)
    found = search.rerank(DecodedReranker(store, query=query)).to_arrow()
    wanted = store.search(query).limit(40).select(["id"]).to_arrow()
    assert found["id"].to_pylist() == wanted["id"].to_pylist()
    np.testing.assert_allclose(
        found["_relevance_score"], -np.array(wanted["_distance"]), rtol=1e-4, atol=1e-4
    )
