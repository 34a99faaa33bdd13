"""Columns, keys and indexes, changed after a table was made."""

import lancedb
import pyarrow as pa
import pytest
from word_embedding import sentences, text_table

from rqmoe_store import tables
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.ingestion.job import ingest
from rqmoe_store.search.columns import DISTANCE, QUERY_INDEX, RELEVANCE, ROW_ID, SCORE
from rqmoe_store.store.databases import open_if_exists
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import compress

DIM = 16


def values(store, *names, where="id IN (3, 1000)"):
    found = store.table.search().where(where).select(["id", *names]).to_arrow().sort_by("id")
    return [tuple(row[name] for name in names) for row in found.to_pylist()]


def code_of(store, where="true"):
    return store.table.search().where(where).select(["id", "vector_code"]).to_arrow().sort_by("id")


# Columns.


def test_columns_of_expressions(store, vectors) -> None:
    before = code_of(store)
    store.add_columns({"double": "2 * id", "kind": "'x' -- the same for all", "one": "1"})
    assert store.schema.names == ["id", "text", "double", "kind", "one"]
    assert values(store, "double", "kind", "one") == [(6, "x", 1)]
    assert code_of(store).equals(before)
    store.add([{"id": 1000, "vector": vectors[0], "one": 5}])
    assert values(store, "double", "kind", "one") == [(6, "x", 1), (None, None, 5)]
    store.update("id = 1000", values_sql={"double": "id * one"})
    store.merge_insert("id").when_matched_update_all().execute([{"id": 3, "kind": "y"}])
    assert values(store, "double", "kind") == [(6, "y"), (5000, None)]
    assert CompressedTable.open(lancedb.connect(store.table.uri.rpartition("/")[0]), "store").add(
        [{"id": 1001, "vector": vectors[0], "kind": "z"}]
    )


@pytest.mark.parametrize(
    "fields",
    [
        pa.field("price", pa.float32()),
        [pa.field("price", pa.float32())],
        pa.schema([pa.field("price", pa.float32())]),
    ],
)
def test_columns_of_nulls(store, vectors, fields) -> None:
    store.add_columns(fields)
    store.add([{"id": 1000, "vector": vectors[0], "price": 1.5}])
    assert values(store, "price") == [(None,), (1.5,)]


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        ({"id": "1"}, "Got 'id' as the name of a column; expected one that is free"),
        ({"vector": "1"}, "'vector' as the name"),
        ({"vector_code": "1"}, "'vector_code' as the name"),
        ({5: "1"}, "Got 5 as the name"),
        ({"n": "nope + 1"}, "LanceDB refuses.*nope"),
        ({"n": "id +"}, "LanceDB refuses.*sql parser error"),
        ({"n": "1; 2"}, "';'"),
        ({"n": 5}, "Got 'n'=5"),
        (pa.field("n", pa.int64(), nullable=False), "LanceDB refuses.*nullable"),
        (pa.field("vector", pa.int64()), "'vector' as the name"),
    ],
)
def test_columns_that_cannot_be_added(store, transforms, message) -> None:
    version = store.version
    with pytest.raises(InvalidInputError, match=f"(?s){message}"):
        store.add_columns(transforms)
    assert store.version == version


def test_names_that_are_not_found_again(store) -> None:
    version = store.version
    for change in (
        lambda: store.add_columns({"a.b": "id"}),
        lambda: store.add_columns(pa.field("", pa.int64())),
        lambda: store.alter_columns({"path": "text", "rename": "a`b"}),
    ):
        with pytest.raises(TableError, match="cannot be read from a LanceDB table"):
            change()
    assert store.version == version


@pytest.mark.parametrize("name", [DISTANCE, SCORE, RELEVANCE, ROW_ID, QUERY_INDEX])
def test_names_that_searches_give_their_results(db, docs, store, codec, name) -> None:
    version, schema = store.version, docs.schema.append(pa.field(name, pa.int64()))
    makes = [
        lambda: store.add_columns({name: "id"}),
        lambda: store.add_columns(pa.field(name, pa.int64())),
        lambda: store.alter_columns({"path": "text", "rename": name}),
        lambda: tables.create_table(db, "more", schema=schema),
        lambda: ingest(schema.empty_table(), (db, "more"), codec=codec, progress=False),
    ]
    if name != ROW_ID:  # which LanceDB refuses
        docs.add_columns({name: "id"})
        makes.append(lambda: tables.compress(docs, codec, "more", progress=False))
        makes.append(lambda: tables.compress(docs, codec, in_place=True, progress=False))
    for make in makes:
        with pytest.raises(TableError, match=f"'{name}' would be mistaken for what searches add"):
            make()
    assert store.version == version
    assert docs.schema.names[:3] == ["id", "text", "vector"] and open_if_exists(db, "more") is None


def test_altered_columns(store, vectors) -> None:
    before = code_of(store)["vector_code"]
    store.alter_columns({"path": "text", "rename": "words", "data_type": pa.large_string()})
    store.alter_columns({"path": "id", "nullable": True})
    assert store.schema.field("words").type == pa.large_string() and store.schema.field("id").nullable
    assert code_of(store)["vector_code"].equals(before)
    assert store.add([{"id": None, "words": "new", "vector": vectors[0]}]) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "nope", "rename": "x"}, "Got column 'nope'; expected some of id, text"),
        ({"path": "vector_code", "rename": "x"}, "Got column 'vector_code'"),
        ({"path": "vector_partition", "nullable": False}, "Got column 'vector_partition'"),
        ({"path": "vector", "rename": "x"}, "Got column 'vector'"),
        ({"path": "text", "rename": "id"}, "Got 'id' as the name"),
        ({"path": "text", "rename": "vector"}, "Got 'vector' as the name"),
        ({"path": "text", "renamed": "x"}, "expected path and some of"),
        ({"rename": "x"}, "expected path and some of"),
        ({"path": "text", "data_type": pa.list_(pa.int8())}, "LanceDB refuses.*[Cc]annot cast"),
    ],
)
def test_alterations_that_cannot_be(store, change, message) -> None:
    version = store.version
    with pytest.raises(InvalidInputError, match=f"(?s){message}"):
        store.alter_columns(change)
    assert store.version == version


def test_dropped_columns(store, vectors) -> None:
    store.create_scalar_index("text")
    store.drop_columns(["text"])
    assert store.schema.names == ["id"]
    assert store.add([{"id": 1000, "vector": vectors[0]}]) == 1
    assert [index.columns for index in store.table.list_indices()] == [["vector_partition"]]


@pytest.mark.parametrize("columns", ["vector", "vector_code", ["text", "vector_partition"], "nope", [], 5])
def test_columns_that_cannot_be_dropped(store, columns) -> None:
    version = store.version
    with pytest.raises(InvalidInputError, match="Got column"):
        store.drop_columns(columns)
    assert store.version == version


@pytest.mark.parametrize("keep", ["float16", "float32"])
def test_kept_vectors_stay(docs, codec, keep) -> None:
    store = compress(docs, codec, "store", keep_vectors=keep, progress=False)
    with pytest.raises(InvalidInputError, match="Got column 'vector'; expected some of id, text"):
        store.drop_columns("vector")
    with pytest.raises(InvalidInputError, match="Got column 'vector'"):
        store.alter_columns({"path": "vector", "data_type": pa.list_(pa.float64(), DIM)})


def test_text_that_is_embedded_keeps_its_name(db, codec) -> None:
    store = compress(text_table(db, "texts", sentences(60)), codec, "store", progress=False)
    with pytest.raises(InvalidInputError, match="'text', which vectors are computed from"):
        store.alter_columns({"path": "text", "rename": "words"})
    store.alter_columns({"path": "title", "rename": "heading"})
    assert store.add([{"id": 900, "text": "copper", "heading": "h"}]) == 1


# Keys.


def test_a_key(store, vectors) -> None:
    assert store.key is None
    with pytest.raises(InvalidInputError, match="no columns to tell rows apart by"):
        store.merge_insert().when_not_matched_insert_all().execute([])
    store.set_key("id")
    assert store.key == "id"
    merge = store.merge_insert().when_matched_update_all().when_not_matched_insert_all()
    result = merge.execute([{"id": row, "text": "new", "vector": vectors[0]} for row in (3, 1000)])
    assert (result.num_updated_rows, result.num_inserted_rows) == (1, 1)
    for refused in (
        lambda: store.drop_columns("id"),
        lambda: store.alter_columns({"path": "id", "nullable": True}),
        lambda: store.update("id = 3", {"id": 5}),
        lambda: store.update("id = 3", values_sql={"id": "id + 1"}),
    ):
        with pytest.raises(InvalidInputError, match="the table's key"):
            refused()
    store.alter_columns({"path": "id", "rename": "number"})
    assert store.key == "number"
    assert CompressedTable.open(lancedb.connect(store.table.uri.rpartition("/")[0]), "store").key == "number"


def test_keys_that_cannot_be(store) -> None:
    store.add_columns({"same": "'x'"})
    for column in ("same", "vector_code", "vector", "nope"):
        with pytest.raises(InvalidInputError):
            store.set_key(column)
    store.update("id = 3", {"text": None})
    with pytest.raises(TableError, match="has nulls"):
        store.set_key("text")
    assert store.key is None


# Indexes.


def test_scalar_indexes(store) -> None:
    kinds = lambda: sorted((i.index_type, *i.columns) for i in store.table.list_indices())  # noqa: E731
    ours = ("BTree", "vector_partition")
    store.create_scalar_index("id")
    assert kinds() == [("BTree", "id"), ours]
    store.create_scalar_index("id", index_type="BITMAP")
    assert kinds() == [ours, ("Bitmap", "id")]
    store.create_scalar_index("id", index_type="BITMAP", name="mine")
    assert kinds() == [ours, ("Bitmap", "id")]
    assert "mine" in [index.name for index in store.table.list_indices()]
    with pytest.raises(TableError, match="'id' has an index; set replace=True"):
        store.create_scalar_index("id", replace=False)
    store.create_scalar_index("text", replace=False)
    store.create_scalar_index("text")
    assert kinds() == [("BTree", "text"), ours, ("Bitmap", "id")]
    assert store.count_rows("id = 7") == 1


@pytest.mark.parametrize(
    ("column", "settings", "message"),
    [
        ("nope", {}, "Got column 'nope'"),
        ("vector_partition", {}, "Got column 'vector_partition'"),
        ("vector_code", {}, "Got column 'vector_code'"),
        ("id", {"index_type": "HASH"}, "expected one of BTREE, BITMAP, LABEL_LIST"),
        ("id", {"index_type": "LABEL_LIST"}, "LanceDB refuses.*cannot be created"),
    ],
)
def test_indexes_that_cannot_be(store, column, settings, message) -> None:
    version = store.version
    with pytest.raises(InvalidInputError, match=f"(?s){message}"):
        store.create_scalar_index(column, **settings)
    assert store.version == version


def test_indexes_are_listed_told_of_and_dropped(store) -> None:
    assert store.list_indices() == [] and store.index_stats("id_idx") is None
    store.create_scalar_index("id")
    (index,) = store.list_indices()
    assert (index.name, index.columns, index.index_type) == ("id_idx", ["id"], "BTree")
    statistics = store.index_stats("id_idx")
    assert (statistics.num_indexed_rows, statistics.num_unindexed_rows) == (len(store), 0)
    for name in ("nope", 3, None):
        with pytest.raises(InvalidInputError, match="index"):
            store.drop_index(name)
    rows = len(store)
    store.drop_index("id_idx")
    assert store.list_indices() == [] and len(store) == rows
