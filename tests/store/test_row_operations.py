"""update: new values, new vectors and their codes."""

import datetime
import decimal

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from lancedb.expr import col
from small_tables import coded, stored
from word_embedding import embed, sentences, table_of_two_vectors, text_table

from rqmoe_store.errors import InvalidInputError, RQMoEError
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import compress, create_table

DIM = 16


def test_other_columns_leave_codes_alone(store) -> None:
    before = stored(store)
    result = store.update(where="id IN (3, 4)", values={"text": "it's new"})
    assert (result.rows_updated, result.version) == (2, store.version)
    assert stored(store) == {**before, **{row: ("it's new", *before[row][1:]) for row in (3, 4)}}
    assert store.update("id = 3", {"text": None}).rows_updated == 1
    assert stored(store, "id = 3") == {3: (None, *before[3][1:])}
    assert store.update("id = 9999", {"text": "x"}).rows_updated == 0


def test_sql_expressions(store) -> None:
    before = stored(store)
    result = store.update(col("id") < 2, values_sql={"text": "text || '!' -- shout", "id": "id + 1000"})
    assert result.rows_updated == 2
    assert stored(store, "id >= 1000") == {1000 + row: (f"row {row}!", *before[row][1:]) for row in (0, 1)}
    assert store.update(values_sql={"text": "'all'"}).rows_updated == 300
    assert {text for text, *_ in stored(store).values()} == {"all"}


@pytest.mark.parametrize("keep", ["none", "float16", "float32"])
def test_vectors_are_encoded_anew(docs, codec, vectors, keep) -> None:
    store = compress(docs, codec, "store", keep_vectors=keep, progress=False)
    before = stored(store)
    new = vectors[0] * np.float32(1.2345678)
    assert store.update("id IN (3, 4)", {"vector": new}).rows_updated == 2
    assert stored(store) == {**before, **{row: (before[row][0], *coded(codec, new)) for row in (3, 4)}}
    assert store.update("id = 5", {"vector": new.tolist(), "text": "both"}).rows_updated == 1
    assert stored(store, "id = 5") == {5: ("both", *coded(codec, new))}
    assert store.update("id = 6", {"vector": None}).rows_updated == 1
    assert stored(store, "id = 6") == {6: (before[6][0], None, None)}
    if keep != "none":
        kept = {row["id"]: row["vector"] for row in store.table.search().where("id IN (3, 6, 7)").to_list()}
        np.testing.assert_array_equal(np.float32(kept[3]), new.astype(keep).astype(np.float32))
        np.testing.assert_array_equal(np.float32(kept[7]), vectors[7].astype(keep).astype(np.float32))
        assert kept[6] is None


def test_names_of_every_kind(db, codec, vectors, docs_table) -> None:
    rows = docs_table(vectors).rename_columns(["id", "Text 'C'", "My Vec-1"])
    docs = db.create_table("odd", rows)
    store = compress(docs, codec, "store", vector_column="My Vec-1", keep_vectors="float32", progress=False)
    store.update("id = 3", {"My Vec-1": vectors[8]})
    (row,) = store.table.search().where("id = 3").to_list()
    assert (row["My Vec-1_code"], row["My Vec-1_partition"]) == coded(codec, vectors[8])


def test_values_of_every_type(db, codec, vectors, docs_table) -> None:
    moment = datetime.datetime(2024, 5, 6, 7, 8, 9)
    values = {
        "number": (pa.float64(), 1.5e-7),
        "flag": (pa.bool_(), True),
        "bytes": (pa.binary(), b"\x00'\xff"),
        "moment": (pa.timestamp("us"), moment),
        "day": (pa.date32(), moment.date()),
        "list": (pa.list_(pa.int64()), [1, 2, 3]),
        "struct": (pa.struct([("a", pa.int64()), ("b", pa.string())]), {"a": 1, "b": "it's"}),
    }
    rows = docs_table(vectors)
    for name, (data_type, _) in values.items():
        rows = rows.append_column(name, pa.nulls(len(rows), data_type))
    store = compress(db.create_table("typed", rows), codec, "store", progress=False)
    store.update("id = 3", {name: value for name, (_, value) in values.items()})
    (row,) = store.table.search().where("id = 3").to_list()
    assert {name: row[name] for name in values} == {name: value for name, (_, value) in values.items()}


GOOD = [1.0] * DIM


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "expected one of them"),
        ({"where": "id = 1"}, "expected one of them"),
        ({"values": {}}, "expected one of them"),
        ({"values": {"text": "a"}, "values_sql": {"id": "id"}}, "expected one of them"),
        ({"values": {"nope": 1}}, "column 'nope', which is unknown; expected some of id, text, vector"),
        ({"values": {"vector_code": b"abcd"}}, "'vector_code', which is written along with the vector"),
        ({"values": {"vector_partition": 1}}, "'vector_partition', which is written along"),
        ({"values_sql": {"vector_code": "x'01020304'"}}, "'vector_code', which is written along"),
        ({"values_sql": {"vector": "NULL"}}, "'vector', which has to be encoded; expected a value"),
        ({"values_sql": {"text": "nope"}}, "nope"),
        ({"values_sql": {"text": "id +"}}, "sql parser error"),
        ({"values_sql": {"text": "text ; x"}}, "';'"),
        ({"values_sql": {"text": "text) || (text"}}, "parentheses"),
        ({"values_sql": {"text": 5}}, r"values_sql\['text'\]=5"),
        ({"values": {"id": "one"}}, "'id' cannot be read as int64.*one"),
        ({"values": {"id": 5.5}}, "'id' cannot be read as int64.*5.5"),
        ({"values": {"vector": GOOD, "id": 5.5}}, "'id' cannot be read as int64.*5.5"),
        ({"values": {"text": 5}}, "'text' cannot be read as string"),
        ({"values": {"id": None}}, "None as the new value for column 'id', which allows no nulls"),
        ({"values": {"text": object()}}, "'text' cannot be read as string"),
        ({"values": {"vector": GOOD[:3]}}, "another dimension"),
        ({"values": {"vector": [float("nan")] * DIM}}, "NaN or infinite"),
        ({"values": {"vector": "text"}}, "cannot be read as float32|one dimension"),
        ({"values": {"vector": GOOD}, "where": "nope = 1"}, "No field named nope"),
        ({"values": {"text": "a"}, "where": ""}, "empty where"),
        ({"values": {"text": "a"}, "where": "id = 1; x"}, "';'"),
        ({"values": {"text": "a"}, "where": 5}, "expected an SQL condition"),
    ],
)
def test_what_cannot_be_done_changes_nothing(store, arguments, message) -> None:
    version = store.version
    with pytest.raises(InvalidInputError, match=f"(?s){message}"):
        store.update(**arguments)
    assert store.version == version


def test_an_old_handle_changes_what_others_added(store, db, vectors) -> None:
    CompressedTable.open(lancedb.connect(db.uri), "store").add(
        [{"id": 1000, "text": "theirs", "vector": None}]
    )
    assert store.update("id = 1000", {"vector": vectors[0]}).rows_updated == 1


def test_raw_rows(store, codec, vectors) -> None:
    store.add([{"id": 1000 + row, "vector": vectors[row]} for row in range(3)], encode=False)
    store.update("id = 1000", {"text": "still raw"})
    store.update("id = 1001", {"vector": vectors[9]})
    store.update("id = 1002", {"vector": None})
    found = {row["id"]: row for row in store.table.search().where("id >= 1000").to_list()}
    assert found[1000]["vector"] == vectors[0].tolist() and found[1000]["vector_code"] is None
    assert found[1001]["vector"] is None
    assert (found[1001]["vector_code"], found[1001]["vector_partition"]) == coded(codec, vectors[9])
    assert found[1002]["vector"] is None and found[1002]["vector_code"] is None


# Embedding functions.


@pytest.fixture
def texts(db, codec):
    return compress(text_table(db, "texts", sentences(60)), codec, "store", progress=False)


def test_new_text_brings_its_vector(texts, codec) -> None:
    before = stored(texts)
    texts.update("id = 7", {"text": "copper 'quoted'"})
    texts.update("id = 8", {"text": "silver", "vector": GOOD})
    texts.update("id = 9", {"text": None})
    texts.update("id = 10", {"title": "another"})
    texts.update("id = 11", {"text": "bread", "vector": None})
    assert stored(texts) == {
        **before,
        7: ("copper 'quoted'", *coded(codec, embed("copper 'quoted'"))),
        8: ("silver", *coded(codec, GOOD)),
        9: (None, None, None),
        11: ("bread", *coded(codec, embed("bread"))),
    }
    assert texts.count_rows("title = 'another'") == 1


def test_text_that_cannot_be_embedded(texts) -> None:
    version = texts.version
    with pytest.raises(InvalidInputError, match="'text', which column 'vector' is computed from"):
        texts.update("id = 7", values_sql={"text": "upper(text)"})
    with pytest.raises(RQMoEError, match="the model is out"):
        texts.update("id = 7", {"text": "RAISE"})
    with pytest.raises(InvalidInputError, match="NaN"):
        texts.update("id = 7", {"text": "NAN"})
    assert texts.version == version
    assert texts.update("id = 7", values_sql={"title": "upper(title)"}).rows_updated == 1


def test_vectors_of_other_functions(db, codec) -> None:
    store = compress(table_of_two_vectors(db), codec, "store", progress=False)
    before = stored(store)
    store.update("id = 7", {"title": "copper"})
    (row,) = store.table.search().where("id = 7").to_list()
    np.testing.assert_allclose(row["title_vector"], embed("copper"), rtol=1e-6)
    assert stored(store) == before
    store.update("id = 7", {"title": "silver", "title_vector": GOOD})
    (row,) = store.table.search().where("id = 7").to_list()
    assert row["title_vector"] == GOOD


VALUES = pa.schema(
    [
        ("id", pa.int64()),
        ("when", pa.timestamp("s")),
        ("day", pa.date32()),
        ("price", pa.decimal128(5, 2)),
        ("meta", pa.struct([("author", pa.string()), ("year", pa.int64())])),
        ("tags", pa.list_(pa.int64())),
        ("vector", pa.list_(pa.float32(), DIM)),
    ]
)
NOON = datetime.datetime(2024, 1, 2, 12)


@pytest.mark.parametrize(
    ("values", "stored"),
    [
        ({"id": 7.0}, {"id": 7}),
        ({"id": np.int16(7)}, {"id": 7}),
        ({"when": NOON}, {"when": NOON}),
        ({"when": "2024-01-02T12:00:00"}, {"when": NOON}),
        ({"price": 1.25}, {"price": decimal.Decimal("1.25")}),
        ({"meta": {"year": 5.0}}, {"meta": {"author": None, "year": 5}}),
        ({"meta": None}, {"meta": None}),
        ({"tags": np.array([1.0, 2.0])}, {"tags": [1, 2]}),
        ({"when": NOON.replace(microsecond=1)}, "'when' cannot be read as timestamp"),
        ({"when": NOON.replace(tzinfo=datetime.UTC)}, "has time zone UTC"),
        ({"day": NOON}, "'day' cannot be read as date32"),
        ({"price": 1.255}, "'price' cannot be read as decimal"),
        ({"meta": {"Author": "Ann"}}, "unknown: meta.Author; expected meta.author, meta.year"),
        ({"meta": {"year": 1.5}}, "meta.year: Float value 1.5"),
        ({"tags": [1.5]}, "'tags' cannot be read as list"),
    ],
)
def test_values_are_stored_as_given_or_refused(db, values, stored) -> None:
    store = create_table(db, "values", [{"id": 1, "vector": GOOD}], schema=VALUES)
    before = store.search().to_list()
    if isinstance(stored, str):
        with pytest.raises(InvalidInputError, match=stored):
            store.update("id = 1", values)
        assert store.search().to_list() == before
    else:
        store.update("id = 1", values)
        assert store.search().to_list() == [{**before[0], **stored}]
