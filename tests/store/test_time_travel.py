"""Earlier versions: read, named, restored."""

import lancedb
import pyarrow as pa
import pytest

from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.ingestion.job import ingest
from rqmoe_store.store.table_codec import TableCodec
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import create_table, open_table

DIM = 16


def ids(store, where="id >= 1000"):
    return sorted(store.table.search().where(where).to_arrow()["id"].to_pylist())


def row(number, vectors):
    return [{"id": number, "text": "new", "vector": vectors[0]}]


def test_reading_an_earlier_version(store, vectors) -> None:
    first = store.version
    store.add(row(1000, vectors))
    store.checkout(first)
    assert (store.version, store.checked_out, store.count_rows()) == (first, first, 300)
    store.checkout(first + 1)
    assert (store.checked_out, ids(store)) == (first + 1, [1000])
    store.checkout_latest()
    assert (store.checked_out, store.version) == (None, first + 1)
    store.add(row(1001, vectors))
    assert ids(store) == [1000, 1001]


WRITES = {
    "add": lambda store: store.add([{"id": 1, "vector": [1.0] * DIM}]),
    "merge": lambda store: store.merge_insert("id").when_matched_update_all().execute([{"id": 1}]),
    "update": lambda store: store.update("id = 1", {"text": "x"}),
    "delete": lambda store: store.delete("id = 1"),
    "add columns": lambda store: store.add_columns({"n": "1"}),
    "alter columns": lambda store: store.alter_columns({"path": "text", "rename": "words"}),
    "drop columns": lambda store: store.drop_columns("text"),
    "index": lambda store: store.create_scalar_index("id"),
    "key": lambda store: store.set_key("id"),
    "refresh": lambda store: store.refresh(),
}


@pytest.mark.parametrize("write", WRITES)
def test_nothing_is_written_to_an_earlier_version(store, vectors, write) -> None:
    first = store.version
    store.add(row(1000, vectors))
    store.checkout(first)
    with pytest.raises(TableError, match=f"is checked out at version {first}, which cannot be changed"):
        WRITES[write](store)
    assert store.version == first
    store.checkout_latest()
    assert store.version == first + 1
    WRITES[write](store)


def test_a_merge_begun_before(store, vectors) -> None:
    merge = store.merge_insert("id").when_matched_update_all()
    store.checkout(1)
    with pytest.raises(TableError, match="checked out at version 1"):
        merge.execute(row(1, vectors))


def test_tags(store, vectors) -> None:
    first = store.version
    store.tags.create("before", first)
    store.add(row(1000, vectors))
    assert store.tags.list()["before"]["version"] == store.tags.get_version("before") == first
    store.checkout("before")
    assert (store.checked_out, len(store)) == (first, 300)
    store.tags.update("before", first + 1)
    store.checkout("before")
    assert len(store) == 301
    store.tags.delete("before")
    with pytest.raises(InvalidInputError, match="Got version 'before'; expected one that list_versions"):
        store.checkout("before")
    assert store.checked_out == first + 1


def test_restore(store, vectors) -> None:
    first = store.version
    store.tags.create("before", first)
    store.add(row(1000, vectors))
    store.delete("id < 10")
    with pytest.raises(InvalidInputError, match="Got no version to restore"):
        store.restore()
    store.restore(first)
    assert (store.version, store.checked_out, len(store)) == (first + 3, None, 300)
    store.restore(first + 1)
    assert len(store) == 301
    store.restore("before")
    assert len(store) == 300
    store.checkout(first + 2)
    store.restore()
    assert (store.checked_out, len(store)) == (None, 291)
    assert store.add(row(1001, vectors)) == 1
    versions = [entry["version"] for entry in store.list_versions()]
    assert versions == list(range(1, store.version + 1))


ENCODING_WRITES = {
    "add": lambda store, rows: store.add(rows),
    "merge": lambda store, rows: (
        store.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(rows)
    ),
    "update": lambda store, rows: store.update("id = 3", {"vector": rows[0]["vector"]}),
    "ingest": lambda store, rows: ingest(pa.Table.from_pylist(rows), store, progress=False),
}


@pytest.mark.parametrize("write", ENCODING_WRITES)
def test_a_codec_that_is_gone_when_rows_have_been_encoded(db, docs, vectors, write, monkeypatch) -> None:
    config = CodecConfig(kind="rq", code_bytes=4, codebook_size=16)
    store = create_table(db, "raw", docs.to_arrow(), config=config)
    before = store.version
    store.train(TrainConfig(epochs=0, progress=False), progress=False)
    rows, encode = [{"id": 1000, "text": "new", "vector": vectors[0].tolist()}], TableCodec.encode

    def encode_slowly(codecs, vectors_nD):
        codes = encode(codecs, vectors_nD)
        open_table(db, "raw").restore(before)
        return codes

    with monkeypatch.context() as patch:
        patch.setattr(TableCodec, "encode", encode_slowly)
        with pytest.raises(TableError, match="restored, while rows were encoded, to a version that lacks"):
            ENCODING_WRITES[write](store, rows)
    store.refresh()
    assert store.stats().raw_rows == len(store) == 300
    ENCODING_WRITES[write](store, rows)
    assert store.search(vectors[0]).limit(400).to_arrow().num_rows == len(store) >= 300


@pytest.mark.parametrize("version", [0, -1, 99, "nothing", 1.5, None, True])
def test_versions_that_are_not_there(store, version) -> None:
    before = store.version
    store.checkout(before)
    with pytest.raises(InvalidInputError, match=r"Got version .*; expected one that list_versions"):
        store.checkout(version)
    if version is not None:
        with pytest.raises(InvalidInputError, match=r"Got version .*; expected one that list_versions"):
            store.restore(version)
    assert (store.version, store.checked_out) == (before, before)


def test_versions_of_another_kind_of_table(store, vectors) -> None:
    first = store.version
    marks = [name for name in store.table.schema.metadata if name.startswith(b"rqmoe_store.")]
    store.table.to_lance().update_schema_metadata(dict.fromkeys(name.decode() for name in marks))
    bare = store.table.to_lance().latest_version
    assert bare == first + 1
    for action in (store.checkout, store.restore):
        with pytest.raises(TableError, match="is not a compressed table"):
            action(bare)
    store.restore(first)
    assert len(store) == 300 and store.add(row(1000, vectors)) == 1


def test_another_process_does_not_notice(store, db, vectors) -> None:
    other = CompressedTable.open(lancedb.connect(db.uri), "store")
    store.checkout(1)
    other.add(row(1000, vectors))
    assert (len(store), len(other)) == (300, 301)
    store.restore()
    other.refresh()
    assert len(other) == 300
