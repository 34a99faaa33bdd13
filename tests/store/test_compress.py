"""compress: a table with vectors into a table with codes, whole or not at all."""

import _thread
import copy
import itertools
import json

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from interruptions import Interruption
from lancedb.index import BTree

from rqmoe_store.codecs.codes import Codes
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.store import databases
from rqmoe_store.store.compress import CodeSpill, compress_into
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import compress

CODE_BYTES = 4
DIM = 16


def assert_rows_and_codes(by_id, store, codec, vectors, ids):
    """`store` holds rows `ids`, each with the code of its own vector."""
    rows = by_id(store.table)
    assert rows["id"].to_pylist() == list(ids)
    assert rows["text"].to_pylist() == [f"row {row}" for row in ids]
    stored, valid = store.columns.from_arrow(rows)
    expected = codec.encode(vectors[list(ids)])
    assert valid.all()
    np.testing.assert_array_equal(stored.codes, expected.codes)
    np.testing.assert_array_equal(stored.partitions, expected.partitions)


def test_every_row_keeps_its_columns_and_gets_its_code(docs, codec, vectors, by_id):
    store = compress(docs, codec, "store", progress=False)
    assert type(store) is CompressedTable
    assert_rows_and_codes(by_id, store, codec, vectors, range(300))
    assert store.table.schema.names == ["id", "text", "vector_code", "vector_partition", "vector"]
    assert store.table.schema.field("vector_code").type == pa.binary(CODE_BYTES)


def test_rows_are_grouped_by_partition_in_source_order(store):
    rows = store.table.search().select(["id", "vector_partition"]).to_arrow().to_pydict()
    keys = list(zip(rows["vector_partition"], rows["id"], strict=True))
    assert keys == sorted(keys)
    assert len(set(rows["vector_partition"])) == 4


def test_stable_row_ids_and_index_on_the_partitions(store, docs, plain_codec):
    assert store.table.to_lance().has_stable_row_ids
    (index,) = store.table.list_indices()
    assert index.index_type == "BTree"
    assert index.columns == ["vector_partition"]
    unpartitioned = compress(docs, plain_codec, "plain", progress=False)
    assert list(unpartitioned.table.list_indices()) == []
    assert set(unpartitioned.table.to_arrow()["vector_partition"].to_pylist()) == {0}


def test_metadata_is_kept_but_not_embedding_functions(db, codec, vectors, docs_table):
    rows = docs_table(vectors)
    rows = rows.replace_schema_metadata({"owner": "ann", "embedding_functions": "[]"})
    docs = db.create_table("docs", rows)
    assert b"embedding_functions" in docs.schema.metadata
    store = compress(docs, codec, "store", progress=False)
    metadata = store.table.schema.metadata
    assert metadata[b"owner"] == b"ann"
    assert b"embedding_functions" not in metadata
    (generation,) = json.loads(metadata[b"rqmoe_store.generations"])
    assert generation == {
        "fingerprint": codec.fingerprint,
        "num_partitions": codec.num_partitions,
        "refine_bytes": 0,
    }
    assert metadata[b"rqmoe_store.dim"] == b"16"
    assert store.schema == docs.schema.remove(2).with_metadata({"owner": "ann"})
    assert store.schema.field("text").metadata == {b"language": b"en"}
    assert not store.schema.field("id").nullable


def test_the_source_is_read_at_one_version_and_left_alone(docs, codec, vectors, docs_table):
    docs.add(docs_table(vectors))
    docs.checkout(1)
    store = compress(docs, codec, "store", progress=False)
    assert len(store) == 300
    docs.checkout_latest()
    assert (docs.count_rows(), docs.version) == (600, 2)


def test_fragments_and_deleted_rows(db, codec, vectors, docs_table, by_id):
    rows = docs_table(vectors)
    docs = db.create_table("docs", rows.slice(0, 120))
    docs.add(rows.slice(120, 90))
    docs.add(rows.slice(210))
    docs.delete("id % 3 = 1 OR id < 20")
    ids = [row for row in range(20, 300) if row % 3 != 1]
    assert_rows_and_codes(by_id, compress(docs, codec, "store", progress=False), codec, vectors, ids)


def test_rows_without_a_vector_keep_their_columns(db, codec, vectors, docs_table, by_id):
    docs = db.create_table("docs", docs_table(vectors[:0]))
    docs.add(docs_table([None, *vectors[1:20], None]))
    store = compress(docs, codec, "store", progress=False)
    rows = by_id(store.table).to_pylist()
    assert len(rows) == 21
    empty = [row["id"] for row in rows if row["vector_code"] is None]
    assert empty == [row["id"] for row in rows if row["vector_partition"] is None] == [0, 20]
    assert store.table.to_arrow()["id"].to_pylist()[-2:] == [0, 20]  # after all partitions


def test_other_columns_of_any_type_are_copied(db, codec, vectors, docs_table, vector_array, by_id):
    rows = docs_table(vectors[:30])
    rows = rows.rename_columns(["id", "Text With Spaces", "My Vector"])
    rows = rows.append_column(
        "nested", pa.array([{"a": [row], "b": None if row % 2 else "b"} for row in range(30)])
    )
    rows = rows.append_column("labels", pa.array(["x", None, "y"] * 10).dictionary_encode())
    other = vector_array([None, [np.nan] * DIM, *vectors[32:60]])
    rows = rows.append_column("other", other)
    rows = rows.append_column("embedding", pa.array([[1.0], [1.0, 2.0], None] * 10, pa.list_(pa.float32())))
    rows = rows.append_column("meta", pa.array(['{"a":1}'] * 30, pa.json_()))
    docs = db.create_table("docs", schema=rows.schema)
    docs.to_lance().insert(rows)  # other writers than LanceDB's allow NaN
    docs.checkout_latest()
    store = compress(docs, codec, "store", vector_column="My Vector", progress=False)
    kept = by_id(store.table).select(docs.schema.remove(2).names)
    assert repr(kept.to_pylist()) == repr(by_id(docs).drop_columns("My Vector").to_pylist())  # NaN != NaN
    more = [{"id": 1000, "labels": "x", "meta": '{"b":2}', "My Vector": vectors[0]}]
    assert store.add(more) == 1
    (row,) = store.table.search().where("id = 1000").to_list()
    assert (row["labels"], row["nested"], row["meta"]) == ("x", None, '{"b":2}')


def test_a_table_of_nothing_but_vectors(db, codec, vectors, docs_table):
    docs = db.create_table("docs", docs_table(vectors).select(["vector"]))
    store = compress(docs, codec, "store", progress=False)
    assert store.schema.names == []
    assert len(store) == 300
    assert store.add([{"vector": vectors[0]}]) == 1


def test_variable_length_float64_vectors(db, codec, vectors, docs_table, by_id):
    column = pa.array([row.astype(np.float64).tolist() for row in vectors], pa.list_(pa.float64()))
    docs = db.create_table("docs", docs_table(vectors).select(["id", "text"]).append_column("emb", column))
    assert docs.schema.field("emb").type == pa.list_(pa.float64())
    store = compress(docs, codec, "store", vector_column="emb", progress=False)
    codes, _ = store.columns.from_arrow(by_id(store.table))
    np.testing.assert_array_equal(codes.codes, codec.encode(vectors).codes)


def test_into_another_database(docs, codec, tmp_path, vectors, by_id):
    other = lancedb.connect(tmp_path / "other")
    store = compress(docs, codec, "docs", db=other, progress=False)
    assert_rows_and_codes(by_id, store, codec, vectors, range(300))
    assert len(CompressedTable.open(other, "docs")) == 300


def test_subclasses(docs, codec, db):
    class Special(CompressedTable):
        pass

    special = Special(compress_into(docs, codec, "store", progress=False))
    for table in (special.use_cache("disk"), copy.copy(special), Special.open(db, "store")):
        assert type(table) is Special
    assert len(special) == 300 and repr(special).startswith("Special('store', 300 rows")


def test_progress_bar(docs, codec, capsys):
    compress(docs, codec, "store")
    printed = capsys.readouterr().out
    assert "Encoding" in printed
    assert "Writing" in printed


def test_more_rows_than_one_batch(db, plain_codec, by_id):
    vectors = np.random.default_rng(1).normal(size=(20_000, DIM)).astype(np.float32)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), DIM)
    docs = db.create_table("docs", pa.table({"id": np.arange(20_000), "vector": flat}))
    store = compress(docs, plain_codec, "store", progress=False)
    rows = by_id(store.table)
    assert rows["id"].to_pylist() == list(range(20_000))
    some_rows = [0, 16_383, 16_384, 19_999]
    codes, _ = store.columns.from_arrow(rows.take(some_rows))
    np.testing.assert_array_equal(codes.codes, plain_codec.encode(vectors[some_rows]).codes)


@settings(deadline=None, max_examples=40)
@given(
    partitions=some.lists(some.integers(-1, 5), min_size=1, max_size=60),
    cuts=some.lists(some.integers(0, 60), max_size=4),
)
def test_order_by_partition_is_a_stable_sort(tmp_path_factory, partitions, cuts):
    partitions = np.array(partitions, dtype=np.int32)
    valid, codes = partitions >= 0, np.arange(len(partitions), dtype=np.uint8)[:, None]
    spill = CodeSpill(tmp_path_factory.mktemp("spill"), rows=len(partitions), code_bytes=1, num_partitions=6)
    bounds = sorted({0, len(partitions), *(min(cut, len(partitions)) for cut in cuts)})
    for start, stop in itertools.pairwise(bounds):
        keep = valid[start:stop]
        part = Codes(codes[start:stop][keep], partitions[start:stop][keep])
        spill.append(np.arange(start, stop, dtype=np.uint64) + 100, part, keep)
    order = np.asarray(spill.order_by_partition())
    np.testing.assert_array_equal(order, np.argsort(np.where(valid, partitions, 6), kind="stable"))
    read, read_valid = spill.codes(order)
    np.testing.assert_array_equal(read_valid, valid[order])
    np.testing.assert_array_equal(read.codes[:, 0], order[valid[order]])
    np.testing.assert_array_equal(spill.row_ids(order), order + 100)


# Bad input: an error before anything is written.


@pytest.mark.parametrize(
    ("change", "metric", "message"),
    [
        (lambda row: row.__setitem__(3, np.nan), "l2", "NaN or infinite"),
        (lambda row: row.__setitem__(0, np.inf), "l2", "NaN or infinite"),
        (lambda row: row.fill(0), "cosine", "zero"),
    ],
)
def test_a_bad_vector_is_named_and_nothing_written(
    db, plain_codec, cosine_codec, vectors, table_names, change, metric, message, docs_table
):
    vectors = vectors.copy()
    change(vectors[217])
    rows = docs_table(vectors)
    docs = db.create_table("docs", schema=rows.schema)
    docs.to_lance().insert(rows)  # LanceDB's own add refuses such rows, other writers do not
    docs.checkout_latest()
    version = docs.version
    with pytest.raises(InvalidInputError, match=f"{message}.*rows 217"):
        compress(docs, cosine_codec if metric == "cosine" else plain_codec, "store", progress=False)
    assert table_names() == {"docs"}
    docs.checkout_latest()
    assert docs.version == version


def refused(docs, codec, error, message, **arguments):
    before = docs.version
    with pytest.raises(error, match=message):
        compress_into(docs, codec, **{"into": "store", "progress": False, **arguments})
    docs.checkout_latest()
    assert docs.version == before


def test_unusable_sources(db, docs, codec, vectors, table_names, docs_table, vector_array):
    refused(docs, codec, TableError, "no column 'embedding'", vector_column="embedding")
    refused(docs, codec, TableError, "'text' is string", vector_column="text")
    narrow = db.create_table("narrow", [{"id": 1, "vector": [1.0, 2.0]}])
    refused(narrow, codec, InvalidInputError, "dimension 2; the codec was trained on dimension 16")
    empty = db.create_table("empty", schema=docs.schema)
    refused(empty, codec, TableError, "'empty' has no rows")
    ours = db.create_table("ours", docs_table(vectors).append_column("vector_code", pa.array(range(300))))
    refused(ours, codec, TableError, "already has column 'vector_code'")
    blob = pa.schema(
        [
            docs.schema.field("vector"),
            pa.field("b", pa.large_binary(), metadata={"lance-encoding:blob": "true"}),
        ]
    )
    blobs = db.create_table("blobs", pa.table([vector_array(vectors[:1]), [b"x"]], schema=blob))
    refused(blobs, codec, TableError, "blob columns")
    assert table_names() == {"docs", "narrow", "empty", "ours", "blobs"}


def test_unusable_names(docs, codec, store):
    refused(docs, codec, TableError, "'store' exists already")
    refused(docs, codec, TableError, "the table being compressed", into="docs")
    refused(docs, codec, InvalidInputError, "cannot be a table name", into="a b")
    refused(docs, codec, InvalidInputError, "cannot be a table name", into="")
    refused(docs, codec, InvalidInputError, "cannot be a table name", into=None)
    refused(store.table, codec, TableError, "already has column 'vector_code'", into="again")
    assert len(store) == 300


def test_tables_that_are_not_on_disk(docs, codec, vectors, docs_table):
    memory = lancedb.connect("memory://").create_table("docs", docs_table(vectors))
    refused(memory, codec, TableError, "cannot be told from its location")
    refused(docs, codec, TableError, "expected one in a folder or bucket", db=lancedb.connect("memory://"))
    with pytest.raises(TableError, match="Got Table as the table to compress"):
        compress(docs_table(vectors), codec, "store", progress=False)  # type: ignore[arg-type]


# Whole or not at all.


SCHEMA = pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.float32(), 2))])


def create(db, batches):
    neighbor = db.create_table("neighbor", [{"id": 1}], exist_ok=True)
    return databases.create_atomically(db, "new", SCHEMA, ["id"], batches, neighbor=neighbor)


def stream(rows, then):
    yield pa.record_batch({"id": pa.array(range(rows))})
    then()
    yield pa.record_batch({"id": pa.array(range(rows))})


def test_a_failing_stream_leaves_nothing_and_raises_its_own_error(db, docs, table_names):
    def fail():
        raise TableError("no more rows")

    with pytest.raises(TableError, match="no more rows"):
        create(db, stream(50_000, fail))
    assert table_names() == {"docs", "neighbor"}
    table = create(db, stream(10, lambda: None))
    assert table.count_rows() == 20


def test_ctrl_c_while_writing_leaves_nothing(db, docs, table_names):
    with pytest.raises(KeyboardInterrupt), Interruption() as interruption:
        create(db, stream(50_000, interruption.wait))
    assert table_names() == {"docs", "neighbor"}


def test_a_table_made_meanwhile_by_someone_else_stays(db, table_names):
    def rival():
        lancedb.connect(db.uri).create_table("new", [{"other": 1}])

    with pytest.raises(TableError, match="Another process made table 'new' meanwhile"):
        create(db, stream(10, rival))
    assert db.open_table("new").to_arrow().to_pylist() == [{"other": 1}]


def test_ctrl_c_after_a_rival_was_overwritten_puts_it_back(db, table_names):
    def rival():
        lancedb.connect(db.uri).create_table("new", [{"other": 1}])
        _thread.interrupt_main()

    with pytest.raises((KeyboardInterrupt, TableError)):
        create(db, stream(10, rival))
    assert db.open_table("new").to_arrow().to_pylist() == [{"other": 1}]


# What this module relies on LanceDB for.


def test_lancedb_facts(db, vectors):
    options = {"new_table_enable_stable_row_ids": "true"}
    schema = pa.schema([("id", pa.int64()), ("c", pa.binary(4)), ("p", pa.int32())], metadata={"a": "b"})
    rows = pa.table({"id": range(100), "c": [b"abcd"] * 100, "p": range(100)}, schema=schema)
    table = db.create_table("facts", rows, storage_options=options)
    assert table.to_lance().has_stable_row_ids
    with pytest.raises(ValueError, match="vector column"):  # a code column is no vector column
        table.search([1.0, 2.0, 3.0, 4.0]).to_arrow()
    ids = table.search().where("id = 50").with_row_id(True).to_list()[0]["_rowid"]
    table.create_index("p", config=BTree())
    table.add(rows)
    table.delete("id < 50")
    table.optimize()
    assert db.open_table("facts").schema == schema
    assert db.open_table("facts").schema.metadata == {b"a": b"b"}
    assert db.open_table("facts").take_row_ids([ids]).to_arrow()["id"].to_pylist() == [50]
    with pytest.raises(ValueError, match="was not found"):
        db.open_table("nothing")
    taken = table.take_row_ids([ids + 3, ids, ids + 3]).with_row_id().to_arrow()["_rowid"].to_pylist()
    assert set(taken) == {ids, ids + 3}
    assert taken == sorted(taken)
    assert sum(batch.num_rows for batch in table.search().select(["c"]).to_batches(7)) == 100  # no limit
