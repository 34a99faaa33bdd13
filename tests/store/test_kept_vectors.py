"""Raw vectors kept beside the codes: stored as asked, row by row with their codes, checked when opened."""

import _thread
import re

import numpy as np
import pyarrow as pa
import pytest

from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.store import compress as compressing
from rqmoe_store.store.columns import KeptVectors
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import compress

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
