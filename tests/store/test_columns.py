"""Columns of codes and of kept vectors, and the checks of vector columns."""

import _thread
import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from rqmoe_store.codecs.codes import Codes
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.store import compress as compressing
from rqmoe_store.store.columns import CodeColumns, KeptVectors
from rqmoe_store.store.vector_arrays import (
    is_vector_type,
    read_vectors,
    require_vector_column,
    rows_per_batch,
)
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import compress

COLUMNS = CodeColumns("vector")


def make_codes(rows: int, code_bytes: int, seed: int = 0) -> Codes:
    random = np.random.default_rng(seed)
    codes = random.integers(0, 256, (rows, code_bytes), dtype=np.uint8)
    return Codes(codes, random.integers(0, 9, rows).astype(np.int32))


def as_table(codes: Codes, valid: np.ndarray) -> pa.Table:
    fields = COLUMNS.fields(codes.codes.shape[1])
    return pa.table(COLUMNS.to_arrow(codes, valid), schema=pa.schema(fields))


def test_names_follow_the_vector_column():
    assert CodeColumns("embedding").names == ("embedding_code", "embedding_partition")


@settings(deadline=None, max_examples=60)
@given(
    valid=some.lists(some.booleans(), max_size=40), code_bytes=some.integers(1, 9), cut=some.integers(0, 40)
)
def test_round_trip_keeps_codes_partitions_and_nulls(valid, code_bytes, cut):
    valid = np.array(valid, dtype=bool)
    codes = make_codes(int(valid.sum()), code_bytes)
    table = as_table(codes, valid)
    assert table["vector_code"].null_count == table["vector_partition"].null_count == int((~valid).sum())
    # Slices and chunks have offsets of their own; the result must not depend on them.
    for rows in (table, pa.concat_tables([table.slice(0, cut), table.slice(cut)])):
        read, read_valid = COLUMNS.from_arrow(rows)
        np.testing.assert_array_equal(read_valid, valid)
        np.testing.assert_array_equal(read.codes, codes.codes)
        np.testing.assert_array_equal(read.partitions, codes.partitions)


def test_from_arrow_reads_a_sliced_record_batch():
    codes = make_codes(10, 3)
    batch = as_table(codes, np.ones(10, dtype=bool)).to_batches()[0].slice(4, 5)
    np.testing.assert_array_equal(COLUMNS.from_arrow(batch)[0].codes, codes.codes[4:9])


def test_code_bytes_are_stored_as_they_are():
    table = as_table(Codes(np.array([[1, 2, 255]], np.uint8), np.array([5], np.int32)), np.array([True]))
    assert table.to_pylist() == [{"vector_code": bytes([1, 2, 255]), "vector_partition": 5}]


def test_columns_of_the_wrong_kind_are_refused():
    good = as_table(make_codes(2, 4), np.array([True, True]))
    with pytest.raises(TableError, match="no column 'vector_partition'"):
        COLUMNS.from_arrow(good.select(["vector_code"]))
    with pytest.raises(TableError, match="fixed_size_binary"):
        COLUMNS.from_arrow(good.set_column(0, "vector_code", pa.array([b"ab", b"c"])))
    with pytest.raises(TableError, match=r"fixed_size_binary\[8\]"):
        COLUMNS.require_in(good.schema, code_bytes=8)
    with pytest.raises(TableError, match="expected int32"):
        COLUMNS.from_arrow(good.set_column(1, "vector_partition", pa.array([1, 2])))
    with pytest.raises(TableError, match="already has column 'vector_code', 'vector_partition'"):
        COLUMNS.require_absent_from(good.schema)


@pytest.mark.parametrize(
    ("data_type", "expected"),
    [
        (pa.list_(pa.float32(), 4), True),
        (pa.list_(pa.float16(), 4), True),
        (pa.list_(pa.float64()), True),
        (pa.large_list(pa.int8()), True),
        (pa.list_(pa.string()), False),
        (pa.list_(pa.list_(pa.float32())), False),
        (pa.binary(4), False),
        (pa.float32(), False),
    ],
)
def test_vector_types(data_type, expected):
    assert is_vector_type(data_type) is expected


@pytest.mark.parametrize(
    "data_type",
    [
        pa.list_(pa.float32(), 2),
        pa.list_(pa.float16(), 2),
        pa.list_(pa.float64()),
        pa.large_list(pa.int16()),
    ],
)
def test_vectors_of_every_type_are_read_as_float32(data_type):
    column = pa.chunked_array([pa.array([[9, 9], [1, 2], None], data_type), pa.array([[3, 4]], data_type)])
    read, valid = read_vectors(column.slice(1), dim=2, metric="l2", first_row=0)
    assert read.dtype == np.float32
    assert read.tolist() == [[1, 2], [3, 4]]
    assert valid.tolist() == [True, False, True]


def test_a_column_of_nulls_has_no_vectors():
    read, valid = read_vectors(pa.nulls(3, pa.list_(pa.float32(), 2)), dim=2, metric="l2", first_row=0)
    assert read.shape == (0, 2)
    assert not valid.any()


def test_tensor_columns_are_vectors():
    data = pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(6, dtype=np.float32).reshape(3, 2))
    require_vector_column(pa.schema([("vector", data.type)]), "vector", 2)
    read, _ = read_vectors(data, dim=2, metric="l2", first_row=0)
    assert read.tolist() == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("bad", "metric", "message"),
    [
        ([1.0, float("nan")], "l2", "NaN or infinite"),
        ([float("-inf"), 1.0], "l2", "NaN or infinite"),
        ([1e300, 1.0], "l2", "NaN or infinite"),
        ([1.0, None], "l2", "missing, NaN"),
        ([1.0], "l2", "another dimension than the codec's 2"),
        ([1.0, 2.0, 3.0], "l2", "another dimension"),
        ([0.0, 0.0], "cosine", "zero"),
    ],
)
def test_bad_vectors_are_named_by_position(bad, metric, message):
    column = pa.array([[1.0, 2.0], None, bad, [3.0, 4.0], bad], pa.list_(pa.float64()))
    with pytest.raises(InvalidInputError, match=rf"{message}.*rows 102, 104 \(counted from 0\)"):
        read_vectors(column, dim=2, metric=metric, first_row=100)


def test_many_bad_vectors_are_counted():
    column = pa.array([[float("nan")]] * 8, pa.list_(pa.float32()))
    with pytest.raises(InvalidInputError, match="rows 0, 1, 2, 3, 4 and 3 more"):
        read_vectors(column, dim=1, metric="l2", first_row=0)


def test_columns_that_hold_no_vectors_are_refused():
    schema = pa.schema([("id", pa.int64()), ("emb", pa.list_(pa.float32(), 8))])
    with pytest.raises(TableError, match=r"no column 'vector'; its vector columns are \['emb'\]"):
        require_vector_column(schema, "vector", 8)
    with pytest.raises(TableError, match="none of vectors"):
        require_vector_column(pa.schema([("id", pa.int64())]), "vector", 8)
    with pytest.raises(TableError, match="'id' is int64; expected a vector column"):
        require_vector_column(schema, "id", 8)
    with pytest.raises(InvalidInputError, match="dimension 8; the codec was trained on dimension 16"):
        require_vector_column(schema, "emb", 16)


def test_batches_of_wide_vectors_are_short():
    assert rows_per_batch(4096) * 4096 * 4 <= 32 * 2**20
    assert rows_per_batch(2) == 16_384


DIM, CODE_BYTES = 16, 4

KEPT = ["float16", "float32"]


@pytest.fixture
def holes(db, vectors, docs_table):
    """A table in two fragments where every seventh row has no vector."""
    rows = docs_table([None if row % 7 == 0 else vector for row, vector in enumerate(vectors)])
    docs = db.create_table("docs", schema=rows.schema)
    docs.add(rows.slice(0, 120))
    docs.add(rows.slice(120))
    return docs


@pytest.fixture(params=KEPT)
def keeper(request, holes, codec):
    return compress(holes, codec, "store", keep_vectors=request.param, progress=False)


def assert_together(store, codec, wanted):
    """Every row has its own vector, as rounded, and the code of the vector before rounding."""
    rows = store.table.to_arrow()
    assert sorted(rows["id"].to_pylist()) == sorted(wanted)
    stored, valid = store.columns.from_arrow(rows)
    raw = [wanted[row] for row in rows["id"].to_pylist()]
    assert valid.tolist() == [vector is not None for vector in raw]
    assert rows["vector"].is_valid().to_pylist() == valid.tolist()
    expected = np.stack([vector for vector in raw if vector is not None])
    np.testing.assert_array_equal(stored.codes, codec.encode(expected).codes)
    values = rows["vector"].drop_null().combine_chunks().flatten().to_numpy(zero_copy_only=False)
    assert values.dtype == store.kept.keep
    np.testing.assert_array_equal(values, expected.astype(store.kept.keep).ravel())


def source_rows(vectors):
    return {row: None if row % 7 == 0 else vector for row, vector in enumerate(vectors)}


def test_vectors_are_kept_with_their_codes(keeper, codec, vectors):
    assert_together(keeper, codec, source_rows(vectors))
    assert keeper.table.to_lance().has_stable_row_ids
    field = keeper.table.schema.field("vector")
    assert field.nullable
    assert field.type == pa.list_(getattr(pa, keeper.kept.keep)(), DIM)


def test_more_vectors_than_one_read(holes, codec, vectors, monkeypatch):
    monkeypatch.setattr(compressing, "rows_per_batch", lambda dim: 90)
    store = compress(holes, codec, "store", keep_vectors="float32", progress=False)
    assert_together(store, codec, source_rows(vectors))


def test_codes_and_other_columns_are_those_of_a_table_without_vectors(keeper, holes, codec):
    plain = compress(holes, codec, "plain", progress=False)

    def others(store):
        return store.table.search().with_row_id(True).to_arrow().drop_columns("vector")

    assert others(keeper).equals(others(plain))
    assert keeper.add([{"id": 900, "vector": [1.0] * DIM}]) == plain.add([{"id": 900, "vector": [1.0] * DIM}])
    assert others(keeper).equals(others(plain))


def test_add_delete_and_optimize_keep_them_together(keeper, db, codec, vectors):
    wanted = source_rows(vectors)
    more = {1000: vectors[5] / 3, 1001: None, 1002: vectors[6] / 7}
    assert keeper.add([{"id": row, "vector": vector} for row, vector in more.items()]) == 3
    assert keeper.add([{"id": 1003}, {"id": 1004, "vector": None}]) == 2
    wanted |= more | {1003: None, 1004: None}
    assert_together(keeper, codec, wanted)
    assert keeper.delete("id % 5 = 1") > 50
    wanted = {row: vector for row, vector in wanted.items() if row % 5 != 1}
    assert_together(keeper, codec, wanted)
    row_ids = keeper.table.search().select(["id"]).with_row_id(True).to_arrow().sort_by("id")
    keeper.table.optimize()
    keeper.table.update(where="id = 2", values={"text": "changed"})
    keeper.table.optimize()
    assert_together(keeper, codec, wanted)
    after = keeper.table.search().select(["id"]).with_row_id(True).to_arrow().sort_by("id")
    assert after.equals(row_ids)
    assert_together(CompressedTable.open(db, "store"), codec, wanted)


def test_rows_read_from_the_table_can_be_added_again(keeper, codec, vectors):
    assert keeper.schema.names == ["id", "text", "vector"]
    rows = keeper.table.search().where("id IN (7, 8)").select(keeper.schema.names).to_arrow()
    keeper.delete("id IN (7, 8)")
    assert keeper.add(rows) == 2
    assert len(keeper) == 300
    assert keeper.count_rows("vector IS NULL") == keeper.table.count_rows("vector_code IS NULL") == 43


def test_a_scan_of_the_codes_reads_no_vectors(holes, codec):
    def scanned(keep_vectors):
        store = compress(holes, codec, keep_vectors, keep_vectors=keep_vectors, progress=False)
        dataset = store.table.to_lance()
        dataset.io_stats_incremental()
        dataset.to_table(columns=list(store.columns.names))
        return dataset.io_stats_incremental().read_bytes

    assert scanned("none") == scanned("float32") < 300 * DIM * 4


def test_statistics_count_codes_and_vectors_apart(holes, codec):
    stats = {
        keep: compress(holes, codec, keep, keep_vectors=keep, progress=False).stats()
        for keep in ["none", *KEPT]
    }
    assert len({(each.code_disk_bytes, each.bytes_per_vector) for each in stats.values()}) == 1
    assert stats["none"].vector_disk_bytes == 0
    assert stats["float16"].vector_disk_bytes >= 300 * DIM * 2
    assert stats["float32"].vector_disk_bytes >= 300 * DIM * 4 > stats["float16"].vector_disk_bytes
    assert stats["float32"].disk_bytes > stats["none"].disk_bytes + 300 * DIM * 4
    assert re.search(r"raw vectors on disk +none", str(stats["none"]))
    assert f"{stats['float16'].vector_disk_bytes:,} bytes" in str(stats["float16"])


def test_another_column_name_and_variable_length_float64(db, codec, vectors, docs_table):
    column = pa.array([row.astype(np.float64).tolist() for row in vectors], pa.list_(pa.float64()))
    docs = db.create_table("docs", docs_table(vectors).select(["id"]).append_column("My Vec", column))
    store = compress(docs, codec, "store", vector_column="My Vec", keep_vectors="float32", progress=False)
    rows = store.table.to_arrow().sort_by("id")
    np.testing.assert_array_equal(np.array(rows["My Vec"].to_pylist(), dtype=np.float32), vectors)
    assert store.schema.names == ["id", "My Vec"]


# Refused before anything is visible.


@pytest.mark.parametrize("largest", [65_504.0, -65_519.0])
def test_the_largest_half_floats_are_kept(db, codec, vectors, docs_table, largest):
    vectors = vectors.copy()
    vectors[217, 3] = largest
    docs = db.create_table("docs", docs_table(vectors))
    store = compress(docs, codec, "store", keep_vectors="float16", progress=False)
    (row,) = store.table.search().where("id = 217").to_list()
    assert row["vector"][3] == np.sign(largest) * 65_504


@pytest.mark.parametrize("large", [65_520.0, -1e30])
def test_vectors_beyond_float16_are_refused(db, codec, vectors, docs_table, table_names, large):
    vectors = vectors.copy()
    vectors[217, 3] = large
    docs = db.create_table("docs", docs_table(vectors))
    with pytest.raises(InvalidInputError, match=r"range of float16; .*'float32'.*rows 217"):
        compress(docs, codec, "store", keep_vectors="float16", progress=False)
    assert table_names() == {"docs"}
    assert len(compress(docs, codec, "store", keep_vectors="float32", progress=False)) == 300


def test_adding_vectors_beyond_float16_changes_nothing(docs, codec, vectors):
    store = compress(docs, codec, "store", keep_vectors="float16", progress=False)
    version = store.version
    with pytest.raises(InvalidInputError, match=r"range of float16.*rows 1 \(counted"):
        store.add([{"id": 1, "vector": vectors[0]}, {"id": 2, "vector": [7e4] * DIM}])
    assert (store.version, len(store)) == (version, 300)


def test_vectors_that_round_to_zero_have_no_direction(db, cosine_codec, plain_codec, vectors, docs_table):
    vectors = vectors.copy()
    vectors[5] = 1e-9
    docs = db.create_table("docs", docs_table(vectors))
    with pytest.raises(InvalidInputError, match=r"zeros only in float16.*rows 5"):
        compress(docs, cosine_codec, "store", keep_vectors="float16", progress=False)
    assert len(compress(docs, plain_codec, "store", keep_vectors="float16", progress=False)) == 300


@pytest.mark.parametrize("keep", ["float64", "", None, True])
def test_unknown_ways_of_keeping(docs, codec, table_names, keep):
    with pytest.raises(InvalidInputError, match="expected one of 'none', 'float16', 'float32'"):
        compress(docs, codec, "store", keep_vectors=keep, progress=False)
    assert table_names() == {"docs"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_failure_half_way_through_the_vectors_leaves_nothing(docs, codec, monkeypatch, table_names, error):
    original, calls = KeptVectors.raw_array, []

    def fails_later(self, vectors, valid):
        calls.append(len(valid))
        if len(calls) == 2 and error is KeyboardInterrupt:
            _thread.interrupt_main()
        elif len(calls) == 2:
            raise OSError("disk full")
        return original(self, vectors, valid)

    monkeypatch.setattr(KeptVectors, "raw_array", fails_later)
    monkeypatch.setattr(compressing, "rows_per_batch", lambda dim: 90)
    with pytest.raises(error):
        compress(docs, codec, "store", keep_vectors="float32", progress=False)
    assert len(calls) >= 2
    assert table_names() == {"docs", "_rqmoe_codecs"}
    monkeypatch.undo()
    assert len(compress(docs, codec, "store", keep_vectors="float32", progress=False)) == 300


# Opening.


def test_opening_finds_what_was_kept(keeper, db):
    assert CompressedTable.open(db, "store").kept == keeper.kept
    mark = keeper.table.schema.metadata[b"rqmoe_store.keep_vectors"]
    assert mark.decode() == keeper.kept.keep


def test_a_dropped_vector_column(keeper, db):
    keeper.table.drop_columns(["vector"])
    with pytest.raises(TableError, match=r"expected column 'vector' as fixed_size_list.*got none"):
        CompressedTable.open(db, "store")


def test_a_vector_column_of_another_type(store, db):
    store.table.drop_columns(["vector"])
    store.table.add_columns({"vector": "id * 2"})
    with pytest.raises(TableError, match=r"expected column 'vector' as fixed_size_list.*got one of int64"):
        CompressedTable.open(db, "store")


@pytest.mark.parametrize(
    ("mark", "message"),
    [("float16", "expected column 'vector' as fixed_size_list"), ("some", "keeps vectors as 'some'")],
)
def test_a_mark_that_does_not_fit(store, db, mark, message):
    store.table.to_lance().update_schema_metadata({"rqmoe_store.keep_vectors": mark})
    with pytest.raises(TableError, match=message):
        CompressedTable.open(db, "store")
