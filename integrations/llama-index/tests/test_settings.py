"""How stores are made, and written down."""

import json
from pathlib import Path
from typing import Any

import lancedb
import pytest
from lancedb.rerankers import RRFReranker
from llama_index.core.vector_stores.types import BasePydanticVectorStore, VectorStore
from llama_index.vector_stores.rqmoe import RQMoEVectorStore
from small_nodes import QUICKLY, SMALL_CODEC, asked, ids, node

import rqmoe_store as rqs
from rqmoe_store import CodecConfig, TableError, TrainConfig


def test_it_is_what_the_framework_takes_for_a_store(store: RQMoEVectorStore) -> None:
    assert isinstance(store, BasePydanticVectorStore) and isinstance(store, VectorStore)
    assert store.stores_text and store.is_embedding_query and not store.flat_metadata
    assert RQMoEVectorStore.class_name() == "RQMoEVectorStore"


def test_all_ways_to_name_a_table(tmp_path: Path) -> None:
    uri = str(tmp_path)
    db = lancedb.connect(uri)
    RQMoEVectorStore(uri, "notes").add([node("a")])
    stores = [
        RQMoEVectorStore(uri=uri, table_name="notes"),
        RQMoEVectorStore.from_params(uri=uri, table_name="notes"),
        RQMoEVectorStore.from_params(connection=db, table_name="notes"),
        RQMoEVectorStore(connection=db, table_name="notes"),
        RQMoEVectorStore(uri="elsewhere", connection=db, table_name="notes"),
        RQMoEVectorStore(table=rqs.open_table(db, "notes")),
        RQMoEVectorStore.from_table(rqs.open_table(db, "notes"), nprobes=3),
    ]
    for made in stores:
        assert made.uri == uri and made.table_name == "notes" and made.table.name == "notes"
        assert ids(made.get_nodes()) == ["a"]
        assert made.client.open_table("notes").count_rows() == 1
        assert ids(RQMoEVectorStore.from_dict(made.to_dict()).get_nodes()) == ["a"]
    assert stores[3].client is db
    assert stores[-1].nprobes == 3


def test_a_store_is_written_down_and_made_again(tmp_path: Path) -> None:
    store = RQMoEVectorStore(
        uri=str(tmp_path),
        table_name="notes",
        storage_options={"secret_access_key": "secret"},
        text_key="words",
        doc_id_key="source",
        vector_column_name="embedding",
        config=SMALL_CODEC,
        training=QUICKLY,
        train_from=500,
        nprobes=3,
        shortlist=50,
        show_progress=True,
    )
    store.add([node("a", document="d", n=1)])
    written = store.to_json()
    assert "secret" not in written and json.loads(written)["class_name"] == "RQMoEVectorStore"
    for again in (RQMoEVectorStore.from_json(written), RQMoEVectorStore.from_dict(store.to_dict())):
        assert again.to_dict() == store.to_dict()
        assert again.config == SMALL_CODEC and again.training == QUICKLY
        assert again.get_nodes() == store.get_nodes() == [node("a", document="d", n=1)]


def test_options_that_from_dict_is_given(tmp_path: Path) -> None:
    written = RQMoEVectorStore(uri=str(tmp_path)).to_dict()
    again = RQMoEVectorStore.from_dict(written, storage_options={"timeout": "10s"}, shortlist=40)
    assert again.storage_options == {"timeout": "10s"} and again.shortlist == 40


def test_columns_are_called_what_they_shall_be(tmp_path: Path) -> None:
    names: dict[str, Any] = {"text_key": "it's", "doc_id_key": "doc id", "vector_column_name": "the vector"}
    store = RQMoEVectorStore(uri=str(tmp_path), **names)
    store.add([node("a", document="d", text="words"), node("b", document="e")])
    assert store.table.schema.names == ["id", "doc id", "it's", "metadata", "node"]
    assert store.query(asked(None, mode="text_search", query_str="words")).ids == ["a"]
    assert store.query(asked(doc_ids=["e"])).ids == ["b"]
    store.delete("d")
    assert ids(store.get_nodes()) == ["b"]
    assert store.get_nodes()[0].embedding == [1.0, 0.0]


def test_the_table_before_there_is_one(store: RQMoEVectorStore) -> None:
    with pytest.raises(TableError, match="no table 'vectors' yet"):
        _ = store.table
    RQMoEVectorStore(uri=store.uri).add([node("a")])
    assert store.table.count_rows() == 1


def test_the_default_metric_is_the_frameworks(store: RQMoEVectorStore) -> None:
    store.add([node("a")])
    assert store.table.metric == "cosine"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, "neither uri, connection nor table"),
        ({"connection": "./data"}, r"expected one in a folder or bucket"),
        ({"table": "vectors"}, "Got str as the table; expected a CompressedTable"),
        ({"uri": ".", "reranker": "rrf"}, "Got 'rrf' as reranker"),
        ({"uri": ".", "mode": "overwrite"}, "mode"),
        ({"uri": ".", "train_from": 0}, "train_from"),
        ({"uri": ".", "nprobes": 0}, "nprobes"),
        ({"uri": ".", "shortlist": -1}, "shortlist"),
        ({"uri": ".", "config": {"metric": "hamming"}}, "hamming"),
        ({"uri": ".", "table_name": 5}, "table_name"),
    ],
)
def test_arguments_that_cannot_be_used(arguments: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        RQMoEVectorStore(**arguments)


def test_databases_in_memory(tmp_path: Path) -> None:
    store = RQMoEVectorStore(connection=lancedb.connect("memory://"))
    with pytest.raises(TableError, match="folder or bucket"):
        store.add([node("a")])


def test_a_table_that_is_no_compressed_one(tmp_path: Path) -> None:
    lancedb.connect(tmp_path).create_table("vectors", [{"id": "a", "vector": [1.0, 2.0]}])
    with pytest.raises(TableError, match="vectors"):
        RQMoEVectorStore(uri=str(tmp_path))


def test_a_table_that_was_not_made_for_nodes(tmp_path: Path) -> None:
    db = lancedb.connect(tmp_path)
    table = rqs.create_table(db, "vectors", [{"id": "a", "vector": [1.0, 2.0]}], key="id")
    for make in (lambda: RQMoEVectorStore(connection=db), lambda: RQMoEVectorStore(table=table)):
        with pytest.raises(TableError, match=r"no column 'doc_id'.*text_key"):
            make()


def test_columns_called_otherwise_than_when_it_was_made(tmp_path: Path) -> None:
    RQMoEVectorStore(uri=str(tmp_path)).add([node("a")])
    for name in ("text_key", "doc_id_key", "vector_column_name"):
        with pytest.raises(TableError, match="no column 'other'"):
            RQMoEVectorStore(uri=str(tmp_path), **{name: "other"})


@pytest.mark.parametrize("config", [CodecConfig(metric="l2"), CodecConfig(metric="cosine", code_bytes=8)])
def test_another_codec_than_the_tables(tmp_path: Path, config: CodecConfig) -> None:
    RQMoEVectorStore(uri=str(tmp_path)).add([node("a")])
    with pytest.raises(TableError, match="Leave config out"):
        RQMoEVectorStore(uri=str(tmp_path), config=config)
    same = RQMoEVectorStore(uri=str(tmp_path), config=CodecConfig(metric="cosine"))
    assert ids(same.get_nodes()) == ["a"]


def test_rerankers_and_training_are_kept(tmp_path: Path) -> None:
    store = RQMoEVectorStore(uri=str(tmp_path), reranker=RRFReranker(), training=TrainConfig(epochs=2))
    assert store.training == TrainConfig(epochs=2)
