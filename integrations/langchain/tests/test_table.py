"""Which tables are opened, and which are refused."""

from concurrent.futures import ThreadPoolExecutor

import lancedb
import pyarrow as pa
import pytest
from langchain_rqmoe import RQMoEVectorStore
from small_stores import BY_L2, DIM, PointEmbedding, filled, ids_of

import rqmoe_store as rqs
from rqmoe_store import CodecConfig, InvalidInputError, TableError


def test_a_table_of_lancedb_is_refused(tmp_path):
    lancedb.connect(tmp_path).create_table("vectorstore", [{"id": "a", "text": "x", "vector": [0.0] * DIM}])
    with pytest.raises(TableError, match="not a compressed table"):
        RQMoEVectorStore(PointEmbedding(), uri=tmp_path)


@pytest.mark.parametrize(
    ("columns", "key"),
    [
        ({"id": pa.string(), "text": pa.string()}, "id"),
        ({"id": pa.string(), "text": pa.string(), "metadata": pa.string()}, "id"),
        ({"id": pa.int64(), "text": pa.string(), "metadata": pa.json_(pa.string())}, "id"),
        ({"id": pa.string(), "text": pa.string(), "metadata": pa.json_(pa.string())}, None),
    ],
)
def test_a_table_of_other_columns_is_refused(tmp_path, columns, key):
    fields = [pa.field(name, data_type, nullable=name != "id") for name, data_type in columns.items()]
    schema = pa.schema([*fields, pa.field("vector", pa.list_(pa.float32(), DIM))])
    rqs.create_table(lancedb.connect(tmp_path), "vectorstore", schema=schema, key=key)
    with pytest.raises(TableError, match="holds no documents as this store keeps them"):
        RQMoEVectorStore(PointEmbedding(), uri=tmp_path)


def test_a_table_of_another_metric_is_refused(tmp_path):
    made = CodecConfig(metric="cosine", code_bytes=8)
    settings = {"uri": tmp_path, "table_name": "fruit"}
    RQMoEVectorStore(PointEmbedding(), config=made, **settings).add_texts(["1 1"])
    same = CodecConfig(metric="cosine", code_bytes=8, num_experts=2)
    assert RQMoEVectorStore(PointEmbedding(), config=same, **settings).table
    with pytest.raises(TableError, match="Got a config with metric 'l2', but table 'fruit' was made for"):
        RQMoEVectorStore(PointEmbedding(), config=CodecConfig(code_bytes=8), **settings)
    with pytest.raises(TableError, match=r"code_bytes 16, but .* made for CodecConfig\(code_bytes=8\)"):
        RQMoEVectorStore(PointEmbedding(), config=CodecConfig(metric="cosine"), **settings)


def test_columns_of_the_users_own_stay(tmp_path):
    store = filled(tmp_path)
    store.table.add_columns({"year": "cast(2000 as int)"})
    again = RQMoEVectorStore(PointEmbedding(), uri=tmp_path)
    assert ids_of(again.similarity_search("0 0", k=1, filter="year = 2000")) == ["a"]
    again.add_texts(["5 5"], ids=["e"])
    again.add_texts(["6 6"], ids=["a"])
    assert again.table.count_rows("year = 2000") == 4
    assert ids_of(again.similarity_search("0 0", filter="year IS NULL")) == ["e"]


def test_a_vector_of_cosine_without_direction_is_refused(tmp_path):
    store = RQMoEVectorStore(PointEmbedding(), uri=tmp_path, config=CodecConfig(metric="cosine"))
    with pytest.raises(InvalidInputError, match="zero"):
        store.add_texts(["no numbers"])
    assert store.table is None
    store.add_embeddings(["of another model"], [[1.0] * 9])
    assert store.table.dim == 9


def test_stores_that_begin_the_same_table_at_once(tmp_path):
    stores = [RQMoEVectorStore(PointEmbedding(), uri=tmp_path, config=BY_L2) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: stores[n].add_texts([f"{n}", "9"], ids=[str(n), "same"]), range(4)))
    assert sorted(ids_of(stores[0].similarity_search("0", k=9))) == ["0", "1", "2", "3", "same"]


def test_only_the_text_is_searched_in(tmp_path):
    store = filled(tmp_path)
    store.table.add_columns({"remark": "'cherry'"})
    store.table.create_fts_index("remark")
    assert ids_of(store.similarity_search("cherry", query_type="fts")) == ["c"]
