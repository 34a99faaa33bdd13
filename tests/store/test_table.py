"""CompressedTable: open, add, delete, count."""

import json

import lancedb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

from rqmoe_store.errors import ArtifactError, InvalidInputError, TableError, TableNotFoundError
from rqmoe_store.store import registry
from rqmoe_store.store.table_codec import TableCodec
from rqmoe_store.table import CompressedTable

DIM = 16


@pytest.fixture
def new(vectors, docs_table):
    """Twelve new rows, ids from 1000."""
    rows = docs_table(vectors[:12])
    return rows.set_column(0, rows.schema.field("id"), pa.array(range(1000, 1012)))


def dicts(table):
    return table.to_pylist()


def as_pandas(table):
    return pd.DataFrame(dicts(table))


def as_polars(table):
    return pl.DataFrame(dicts(table), schema_overrides={"vector": pl.Array(pl.Float32, DIM)})


FORMS = {
    "dicts": dicts,
    "dicts of arrays": lambda table: [{**row, "vector": np.array(row["vector"])} for row in dicts(table)],
    "dicts of tensors": lambda table: [
        {**row, "vector": torch.tensor(row["vector"])} for row in dicts(table)
    ],
    "tuple of dicts": lambda table: tuple(dicts(table)),
    "pandas": as_pandas,
    "pandas with an index": lambda table: as_pandas(table).set_index(pd.Index(range(5, 17), name="n")),
    "polars": as_polars,
    "polars lists": lambda table: pl.DataFrame(dicts(table)),
    "polars lazy": lambda table: as_polars(table).lazy(),
    "table": lambda table: table,
    "record batch": lambda table: table.to_batches()[0],
    "reader": lambda table: table.to_reader(max_chunksize=5),
    "reader of ragged batches": lambda table: pa.RecordBatchReader.from_batches(
        table.schema,
        [*table.slice(0, 1).to_batches(), *table.slice(1, 0).to_batches(), *table.slice(1).to_batches()],
    ),
    "list of batches": lambda table: table.to_batches(max_chunksize=5),
    "iterator of batches": lambda table: iter(table.to_batches(max_chunksize=5)),
    "iterator of lists": lambda table: (dicts(table.slice(start, 5)) for start in (0, 5, 10)),
    "iterator of frames": lambda table: (as_pandas(table.slice(start, 6)) for start in (0, 6)),
    "float64": lambda table: table.set_column(
        2, "vector", table["vector"].cast(pa.list_(pa.float64())).combine_chunks()
    ),
    "other column order": lambda table: table.select(["vector", "text", "id"]),
}


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_every_form_are_encoded_in_one_commit(store, codec, vectors, new, form, by_id):
    version = store.version
    assert store.add(FORMS[form](new)) == 12
    assert store.version == version + 1
    assert len(store) == 312
    added = by_id(store.table.search().where("id >= 1000").to_arrow())
    assert added["id"].to_pylist() == list(range(1000, 1012))
    assert added["text"].to_pylist() == [f"row {row}" for row in range(12)]
    stored, _ = store.columns.from_arrow(added)
    expected = codec.encode(vectors[:12])
    np.testing.assert_array_equal(stored.codes, expected.codes)
    np.testing.assert_array_equal(stored.partitions, expected.partitions)


def test_absent_nullable_columns_and_vectors_are_null(store, vectors, by_id):
    assert store.add([{"id": 1000, "vector": vectors[0]}, {"id": 1001, "text": "no vector"}]) == 2
    rows = by_id(store.table.search().where("id >= 1000").to_arrow()).to_pylist()
    assert [row["text"] for row in rows] == [None, "no vector"]
    assert [row["vector_code"] is None for row in rows] == [False, True]
    assert [row["vector_partition"] is None for row in rows] == [False, True]
    nothing = pa.table({"id": [1002, 1003], "vector": pa.nulls(2)})
    assert store.add(nothing) == 2
    assert store.table.count_rows("vector_code IS NULL") == store.count_rows("vector IS NULL") == 3


@pytest.mark.parametrize(
    "rows",
    [
        [],
        iter([]),
        pa.table({"id": pa.array([], pa.int64()), "vector": pa.array([], pa.list_(pa.float32(), DIM))}),
    ],
)
def test_adding_nothing_changes_nothing(store, rows):
    version = store.version
    assert store.add(rows) == 0
    assert store.version == version


def test_a_long_stream_is_spooled_to_disk_and_added_in_one_commit(docs, vectors, make_codec):
    from rqmoe_store.store.creation import SPOOL_BYTES
    from rqmoe_store.tables import compress

    store = compress(docs, make_codec(code_bytes=1), "long", progress=False)
    text = "x" * 2**20

    def batches():
        for start in range(0, 80, 10):
            yield [{"id": start + row, "text": text, "vector": vectors[row]} for row in range(10)]

    version = store.version
    assert 80 * len(text) > SPOOL_BYTES  # it does leave memory
    assert store.add(batches()) == 80
    assert store.version == version + 1
    assert store.count_rows("length(text) = 1048576") == 80


def refused(store, rows, message):
    version = store.version
    with pytest.raises(InvalidInputError, match=message):
        store.add(rows)
    assert store.version == version
    assert len(store) == 300


def with_vector(vector, **more):
    return [{"id": 1, "vector": [1.0] * DIM}, {"id": 2, "vector": vector, **more}]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (with_vector([1.0] * 3), "another dimension than the codec's 16: rows 1"),
        (with_vector([float("nan")] * DIM), "NaN or infinite.*rows 1"),
        (with_vector([1e300] * DIM), "NaN or infinite.*rows 1"),
        (with_vector([None] * DIM), "missing, NaN.*rows 1"),
        (with_vector(["a"] * DIM), "row 1 of the list cannot be read as float32"),
        (with_vector(float("nan")), r"row 1 of the list has shape \(\)"),
        (with_vector([[1.0] * DIM]), "Row 0 of the list has one vector, and another row a list of vectors"),
        (with_vector([1.0] * DIM, color="red"), "unknown: color.*expected id, text, vector"),
        (with_vector([1.0] * DIM, text=5), "'text' cannot be read as string"),
        ([{"id": "one", "vector": [1.0] * DIM}], "'id' cannot be read as int64"),
        ([{"id": None, "vector": [1.0] * DIM}], "'id' has 1 nulls but allows none"),
        ([{"vector": [1.0] * DIM}], "missing: id"),
        ([{"id": 1}], "missing: vector"),
        ([{"id": 1, "vector": None}, 5], "Row 1 of the list is int; expected a dict"),
        ({"id": 1, "vector": [1.0] * DIM}, "Got rows of type dict.*Put a single row in a list"),
        (iter([{"id": 1, "vector": [1.0] * DIM}, 5]), "Got rows of type int"),
        ("rows", "Got rows of type str"),
        (5, "Got rows of type int"),
        (np.ones((3, DIM)), "Got rows of type ndarray"),
        (None, "Got rows of type NoneType"),
        (
            pd.DataFrame({"id": [1], "vector": ["text"]}),
            "'vector' is .*string; expected vectors of 16 numbers",
        ),
        (pd.DataFrame({"id": [1, 2], "vector": [[1.0] * DIM, "text"]}), "pandas frame cannot be read"),
        (
            pa.table({"id": [1], "vector": pa.array([[1.0] * 3], pa.list_(pa.float32(), 3))}),
            "another dimension",
        ),
        (pa.table([[1], [2], [None]], names=["id", "id", "vector"]), "repeated: id"),
        (pa.table({"id": [1.5], "vector": pa.nulls(1)}), "'id' cannot be read as int64"),
        (pa.table({"id": [1], "vector": pa.nulls(1), "vector_code": [b"abcd"]}), "unknown: vector_code"),
    ],
)
def test_bad_rows_change_nothing(store, rows, message):
    refused(store, rows, message)


def test_a_bad_row_in_a_late_batch_changes_nothing(store, new):
    def batches():
        yield new
        yield dicts(new)
        yield with_vector([float("inf")] * DIM)

    refused(store, batches(), "rows 25")


def test_an_iterator_that_fails_changes_nothing(store, new):
    def batches():
        yield new
        raise OSError("connection lost")

    version = store.version
    with pytest.raises(OSError, match="connection lost"):
        store.add(batches())
    assert store.version == version


def test_zero_vectors_under_cosine(docs, cosine_codec):
    from rqmoe_store.tables import compress

    store = compress(docs, cosine_codec, "cosine", progress=False)
    refused(store, with_vector([0.0] * DIM), "zero.*rows 1")


def test_delete_and_count(store):
    assert store.count_rows("id < 10") == 10
    assert store.delete("id < 10") == 10
    assert len(store) == store.count_rows() == 290
    assert store.delete("id < 10") == 0


@pytest.mark.parametrize("where", ["id = = 3", "nope = 1", "", "id", "text = 'open"])
def test_conditions_that_cannot_be_used(store, where):
    version = store.version
    for method in (store.count_rows, store.delete):
        with pytest.raises(InvalidInputError, match=r"expected an SQL condition|LanceDB refuses"):
            method(where)
    assert store.version == version


@pytest.mark.parametrize("where", [None, 5])
def test_delete_needs_a_condition(store, where):
    with pytest.raises(InvalidInputError, match="expected an SQL condition"):
        store.delete(where)
    assert len(store) == 300


def test_names_and_repr(store, docs):
    assert store.name == "store"
    assert store.schema == docs.schema.remove(2)
    assert repr(store) == "CompressedTable('store', 300 rows, dim 16 as 4 code bytes, rq, metric 'l2')"


# Opening.


def test_everything_needed_is_in_the_database(store, db, codec, vectors, new, by_id):
    store.add(new)
    opened = CompressedTable.open(lancedb.connect(db.uri), "store")
    assert opened.codec.fingerprint == codec.fingerprint
    assert opened.schema == store.schema
    assert len(opened) == 312
    codes, _ = opened.columns.from_arrow(by_id(opened.table).slice(0, 300))
    np.testing.assert_array_equal(opened.codec.decode(codes), codec.decode(codec.encode(vectors)))
    assert opened.add(new) == 12


def test_metadata_survives_what_users_do(store, db, new):
    store.add(new)
    store.delete("id = 3")
    store.table.optimize()
    store.table.add_columns({"double": "id * 2"})
    store.table.update(where="id = 1", values={"text": "changed"})
    opened = CompressedTable.open(db, "store")
    assert opened.schema.names == ["id", "text", "double"]
    assert len(opened) == 311


def test_opening_what_is_not_there(db, docs):
    with pytest.raises(TableNotFoundError, match="has no table 'nothing'"):
        CompressedTable.open(db, "nothing")
    with pytest.raises(InvalidInputError, match="cannot be a table name"):
        CompressedTable.open(db, "../docs")
    with pytest.raises(TableError, match="'docs' is not a compressed table; make one with"):
        CompressedTable.open(db, "docs")


def test_a_missing_codec(store, db, codec):
    db.open_table(registry.REGISTRY_TABLE).delete("true")
    with pytest.raises(ArtifactError, match="no codec with fingerprint"):
        CompressedTable.open(db, "store")
    db.drop_table(registry.REGISTRY_TABLE)
    with pytest.raises(ArtifactError, match="no codec with fingerprint"):
        CompressedTable.open(db, "store")
    registry.save(db, codec)
    assert len(CompressedTable.open(db, "store")) == 300


def set_mark(store, **marks):
    values = {f"rqmoe_store.{name}": value for name, value in marks.items()}
    store.table.to_lance().update_schema_metadata(values)


def generations_text(fingerprint, num_partitions=4):
    return json.dumps([{"fingerprint": fingerprint, "num_partitions": num_partitions}])


@pytest.mark.parametrize(
    ("marks", "error", "message"),
    [
        ({"generations": generations_text("f" * 64)}, ArtifactError, "no codec with fingerprint 'f"),
        (
            {"generations": generations_text("f" * 64, 0)},
            TableError,
            "generations.*no generation",
        ),
        ({"generations": generations_text(3)}, TableError, "generations.*no generation"),
        ({"generations": "[{}]"}, TableError, "rqmoe_store.generations.*missing 2 required"),
        ({"generations": "["}, TableError, "rqmoe_store.generations' of table 'store' is b'\\['"),
        ({"config": "{}"}, ArtifactError, "codec of code_bytes 16; got .* of code_bytes 4"),
        (
            {"config": '{"metric": "dot", "code_bytes": 4}'},
            ArtifactError,
            "metric 'dot'; got .* of metric 'l2'",
        ),
        ({"config": '{"metric": "far"}'}, TableError, "rqmoe_store.config.*metric='far' is unknown"),
        ({"dim": "17"}, ArtifactError, "codec of dim 17; got .* of dim 16"),
        ({"dim": "wide"}, TableError, "rqmoe_store.dim' of table 'store' is b'wide'"),
        ({"format_version": "4"}, TableError, "rqmoe_store.multi_vector.*it is missing"),
        ({"format_version": "5"}, TableError, "rqmoe_store.multi_vector.*it is missing"),
        ({"format_version": "6"}, TableError, "format version 6.*reads up to 5. Upgrade"),
        ({"vector_column": "emb"}, TableError, "no column 'emb_code', 'emb_partition'"),
    ],
)
def test_marks_that_do_not_fit(store, db, marks, error, message):
    set_mark(store, **marks)
    with pytest.raises(error, match=message):
        CompressedTable.open(db, "store")


def test_a_codec_of_another_fingerprint_under_this_one(store, db, codec, plain_codec):
    table = db.open_table(registry.REGISTRY_TABLE)
    other = plain_codec.to_artifact()
    table.delete("true")
    row = {"fingerprint": codec.fingerprint, "config_json": other.config_json, "weights": other.weights}
    table.add([{**row, "created_at": pd.Timestamp.now("UTC").to_pydatetime()}])
    with pytest.raises(ArtifactError, match="fingerprint"):
        CompressedTable.open(db, "store")


def test_a_wrong_codec_is_refused(store, plain_codec):
    with pytest.raises(ArtifactError, match=r"codec of num_partitions 4; got .* of num_partitions 1"):
        TableCodec.of(store.codecs.metadata, [plain_codec])


def test_a_dropped_code_column(store, db):
    store.table.drop_columns(["vector_code"])
    with pytest.raises(TableError, match="no column 'vector_code'"):
        CompressedTable.open(db, "store")


def test_a_code_column_of_another_width(store, db, codec, make_codec):
    narrow = make_codec(num_partitions=4, code_bytes=2)
    registry.save(db, narrow)
    set_mark(
        store,
        config=json.dumps(narrow.config.to_dict()),
        generations=generations_text(narrow.fingerprint),
    )
    with pytest.raises(TableError, match=r"fixed_size_binary\[4\]; its codec writes fixed_size_binary\[2\]"):
        CompressedTable.open(db, "store")


def test_our_metadata_is_plain_text(store):
    ours = {
        key.decode(): value.decode()
        for key, value in store.table.schema.metadata.items()
        if key.startswith(b"rqmoe_store.")
    }
    names = ("format_version", "vector_column", "dim", "keep_vectors", "config", "generations")
    assert set(ours) == {f"rqmoe_store.{name}" for name in (*names, "refine_bytes")}
    assert json.dumps(ours)
