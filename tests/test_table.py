"""The public table: compress, search, write, open again."""

import gc
import weakref
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest

from rqmoe_store.codecs.base import Codec
from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.store import databases
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import compress, open_table
from rqmoe_store.training.trainer import train

ROWS, DIM = 200, 8
VECTORS = np.random.default_rng(3).normal(size=(ROWS, DIM)).astype(np.float32)


def rows_of(ids: list[int], vectors: list) -> pa.Table:
    vector_type = pa.list_(pa.float32(), DIM)
    return pa.table({"id": pa.array(ids, pa.int64()), "vector": pa.array(vectors, vector_type)})


@pytest.fixture(scope="module")
def codec() -> Codec:
    config = CodecConfig(kind="rq", code_bytes=4, codebook_size=16, num_partitions=4, beam=2)
    return train(VECTORS, config=config, training=TrainConfig(epochs=0, progress=False))


@pytest.fixture
def db(tmp_path: Path) -> lancedb.DBConnection:
    return lancedb.connect(tmp_path)


@pytest.fixture
def store(db: lancedb.DBConnection, codec: Codec) -> CompressedTable:
    docs = db.create_table("docs", rows_of(list(range(ROWS)), VECTORS.tolist()))
    return compress(docs, codec, into="small", progress=False)


def found(store: CompressedTable, query: np.ndarray, limit: int = ROWS) -> list[int]:
    search = store.search(query).nprobes(4).limit(limit)
    ids: list[int] = search.to_arrow()["id"].to_pylist()
    return ids


def test_open_table_searches_alike(store: CompressedTable, db: lancedb.DBConnection) -> None:
    reopened = open_table(lancedb.connect(db.uri), "small")
    assert isinstance(reopened, CompressedTable) and isinstance(store, CompressedTable)
    assert reopened.search(VECTORS[:3]).to_arrow().equals(store.search(VECTORS[:3]).to_arrow())
    with pytest.raises(TableError):
        open_table(db, "docs")
    with pytest.raises(TableError):
        open_table(db, "nope")


def test_another_vector_column_and_no_other_columns(db: lancedb.DBConnection, codec: Codec) -> None:
    table = rows_of(list(range(ROWS)), VECTORS.tolist()).select(["vector"]).rename_columns(["My Vec-1"])
    bare = compress(db.create_table("bare", table), codec, "small", vector_column="My Vec-1", progress=False)
    hits = bare.search(VECTORS[0]).nprobes(2).limit(3).with_row_id(True).to_arrow()
    assert hits.schema.names == ["_distance", "_rowid"] and hits.num_rows == 3


@pytest.mark.parametrize(
    "where",
    [None, "", " \n", "-- all", "--\n--", "/* all */", "()", "''", "null", "\u00a0", [], {}, b"", "\0"],
)
def test_nothing_is_deleted_by_a_condition_that_says_nothing(store: CompressedTable, where) -> None:
    with pytest.raises(InvalidInputError, match=r"expected|which LanceDB refuses"):
        store.delete(where)
    assert len(store) == ROWS


def test_deleted_rows_are_never_returned(store: CompressedTable) -> None:
    before = found(store, VECTORS[0])
    assert sorted(before) == list(range(ROWS))
    store.delete("id % 2 = 0")
    after = found(store, VECTORS[0])
    assert after == [row for row in before if row % 2 == 1]
    store.table.optimize()
    assert found(store, VECTORS[0]) == after
    store.delete("id >= 0")
    empty = store.search(VECTORS[:2]).to_arrow()
    assert empty.num_rows == 0 and empty.schema.names == ["query_index", "id", "_distance"]


def test_added_rows_are_found_and_null_vectors_are_not(store: CompressedTable) -> None:
    query = VECTORS[0] + np.float32(5)
    store.add(rows_of([900, 901, 902], [query.tolist(), None, VECTORS[1].tolist()]))
    ids = found(store, query, ROWS + 5)
    assert sorted(ids) == [*range(ROWS), 900, 902]
    assert found(store, query, 1) == [900]
    for nprobes in (1, 4):
        search = store.search(query).where("id = 901").nprobes(nprobes)
        assert search.to_arrow().num_rows == 0


def test_a_query_reads_one_version(store: CompressedTable) -> None:
    pinned = store.snapshots.current()
    assert store.snapshots.current() is pinned
    store.delete("id < 100")
    assert pinned.table.count_rows() == ROWS
    assert store.snapshots.current().table.count_rows() == ROWS - 100


def test_the_plain_handle_stays_writable(store: CompressedTable) -> None:
    found(store, VECTORS[0])
    store.delete("id = 5")
    store.add(rows_of([5], [VECTORS[5].tolist()]))
    assert sorted(found(store, VECTORS[0])) == list(range(ROWS))


def test_codes_the_codec_does_not_have_are_reported(store: CompressedTable) -> None:
    schema = store.table.schema.remove(store.table.schema.get_field_index("vector"))
    bad = {"id": [1000], "vector_code": [b"\xff\x00\x00\x00"], "vector_partition": [0]}
    store.table.add(pa.table(bad, schema=schema))
    with pytest.raises(TableError, match="Got code 255"):
        found(store, VECTORS[0])
    store.delete("id = 1000")
    bad = {"id": [1000], "vector_code": [b"\x00\x00\x00\x00"], "vector_partition": [4]}
    store.table.add(pa.table(bad, schema=schema))
    with pytest.raises(TableError, match="Got partition id 4"):
        found(store, VECTORS[0])


def test_what_is_in_memory_goes_with_the_last_handle(store) -> None:
    gc.disable()  # codes of gigabytes, or processes that hold them, are not to wait for it
    try:
        store.search(VECTORS[0]).to_list()
        store.checkout(store.version)
        store.checkout_latest()
        store.search(VECTORS[0]).to_list()
        handle = open_table(databases.database_of(store.table), "small")
        source = weakref.ref(handle._source.codes)
        del handle
        assert source() is store._source.codes
        spread = open_table(databases.database_of(store.table), "small").use_shards(2, lambda *asked: [])
        sharded = weakref.ref(spread._source.codes)
        del spread
        assert sharded() is None
    finally:
        gc.enable()
