"""All reads through a handle are of one version of its table: the newest, or one as fresh as asked for."""

import datetime
import tempfile
import threading
from typing import Any

import lancedb
import numpy as np
import pytest
from costly_examples import costly_examples
from hypothesis import given
from hypothesis import strategies as st
from small_tables import source_table, tiny_codec

from rqmoe_store.errors import TableError
from rqmoe_store.lifecycle import add_generation
from rqmoe_store.store import lance
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import compress, create_table, open_table

DIM, ROWS = 16, 40
VECTORS = np.random.default_rng(3).normal(size=(ROWS, DIM)).astype(np.float32)
CODECS = [tiny_codec(VECTORS[::step], "l2", 4) for step in (1, -1)]
HOUR = datetime.timedelta(hours=1)


def made(folder: str) -> CompressedTable:
    docs = lancedb.connect(folder).create_table("docs", source_table(VECTORS))
    return compress(docs, CODECS[0], "small", progress=False)


def opened(folder: Any, interval: datetime.timedelta | None) -> CompressedTable:
    return open_table(lancedb.connect(folder, read_consistency_interval=interval), "small")


def seen(store: CompressedTable) -> dict[str, Any]:
    """What a handle says of its table, each by another call."""
    plain, found = store.search().to_arrow(), store.search(VECTORS[0]).limit(10_000).nprobes(4).to_arrow()
    names = store.schema.names
    assert plain.column_names == store.head(1).column_names == names
    assert found.column_names == [*names, "_distance"]
    ids = sorted(plain["id"].to_pylist())
    assert ids == sorted(found["id"].to_pylist()) == sorted(store.head(10_000)["id"].to_pylist())
    assert len(ids) == len(store) == store.count_rows() == store.count_rows("id >= 0") == store.stats().rows
    assert f" {len(ids)} rows" in repr(store)
    newest = store.version if store.checked_out is None else store.list_versions()[-1]["version"]
    assert max(each["version"] for each in store.list_versions()) == newest
    assert store.codec.fingerprint == store.codecs.metadata.generations[-1].fingerprint
    return {
        "version": store.version,
        "ids": ids,
        "names": names,
        "key": store.key,
        "codec": store.codec.fingerprint,
        "older": store.health().older_rows,
    }


def change(store: CompressedTable, what: str, step: int) -> None:
    if what == "add":
        rows = {"id": 1000 + step, "vector": VECTORS[step % ROWS]}
        others = {"lang": "en", "text": "t"}
        store.add([{**{name: others.get(name) for name in store.schema.names}, **rows}])
    elif what == "delete":
        store.delete(f"id = {step}")
    elif what == "update":
        store.update(f"id = {step}", {"lang": "fr"})
    elif what == "new column":
        store.add_columns({f"new_{step}": "id + 1"})
    elif what == "rename":
        (name,) = [name for name in store.schema.names if name.startswith("text")]
        store.alter_columns({"path": name, "rename": f"text_{step}"})
    elif what == "key":
        store.set_key("id")
    elif what == "optimize":
        store.optimize(progress=False)
    elif what == "restore":
        store.restore(store.list_versions()[0]["version"])
    elif what == "codec":
        add_generation(store.handle, CODECS[1], CODECS[1].config, first=False)  # as retraining does


changes = st.sampled_from(
    ["add", "delete", "update", "new column", "rename", "key", "optimize", "restore", "codec"]
)


@pytest.mark.parametrize("interval", [None, datetime.timedelta(0), HOUR])
@costly_examples(20, part=2)
@given(st.data())
def test_all_reads_agree_after_any_change_of_another_handle(interval: Any, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        writer = made(folder)
        reader = opened(folder, interval)
        before = seen(reader)
        for step in range(data.draw(st.integers(1, 6))):
            by_reader = data.draw(st.booleans())
            if by_reader:
                reader.refresh()  # what it adds is to have the columns of the newest version
            change(reader if by_reader else writer, data.draw(changes), step)
            now = seen(reader)
            if interval == HOUR and not by_reader:
                assert now == before  # nothing has been looked for
            else:
                assert now == seen(writer)
            before = now
        reader.refresh()
        assert seen(reader) == seen(writer)


def test_the_rule_of_an_interval(tmp_path, monkeypatch) -> None:
    writer, reader = made(str(tmp_path)), opened(tmp_path, HOUR)
    first = seen(reader)
    writer.delete("id < 10")
    assert seen(reader) == first
    assert seen(opened(tmp_path, HOUR)) == seen(writer)  # who opens the table sees it as it is
    writer.delete("id < 20")
    then = seen(reader)
    now = lance.time.monotonic()
    monkeypatch.setattr(lance.time, "monotonic", lambda: now + 2 * 3600)
    assert seen(reader) == seen(writer) != then


def test_handles_of_different_intervals_are_at_versions_of_their_own(tmp_path) -> None:
    made(str(tmp_path))
    one, other = opened(tmp_path, HOUR), opened(tmp_path, datetime.timedelta(hours=2))
    first = seen(other)
    one.delete("id = 0")
    assert seen(other) == first != seen(one)
    other.update("id = 1", {"lang": "it"})
    assert seen(other) == seen(opened(tmp_path, None)) != seen(one)


def test_what_a_handle_does_in_the_background_is_seen_by_it(tmp_path) -> None:
    made(str(tmp_path))
    store = opened(tmp_path, HOUR)
    store.add([{"id": 100, "lang": "en", "text": "t", "vector": VECTORS[0]}], encode=False)
    assert store.stats().raw_rows == 1
    store.encode_in_background().wait()
    assert store.stats().raw_rows == 0


def test_a_query_sees_the_columns_of_the_version_that_it_runs_on(tmp_path) -> None:
    writer, reader = made(str(tmp_path)), opened(tmp_path, None)
    queries = [reader.search(VECTORS[0]), reader.search()]
    writer.alter_columns({"path": "text", "rename": "label"})
    for query in queries:
        assert "label" in query.to_arrow().column_names
        assert query.select(["label"]).to_arrow().column_names[0] == "label"


def dropped(store: CompressedTable) -> None:
    lancedb.connect(store.snapshots._place.database).drop_table("small")


READS = {
    "len": len,
    "count_rows": lambda store: store.count_rows("id > 3"),
    "schema": lambda store: store.schema,
    "version": lambda store: store.version,
    "key": lambda store: store.key,
    "head": lambda store: store.head(),
    "stats": lambda store: store.stats(),
    "health": lambda store: store.health(),
    "codec": lambda store: store.codec,
    "codecs": lambda store: store.codecs,
    "list_versions": lambda store: store.list_versions(),
    "is_due_for_training": lambda store: store.is_due_for_training(),
    "search": lambda store: store.search(VECTORS[0]).to_arrow(),
    "plain": lambda store: store.search().to_arrow(),
    "refresh": lambda store: store.refresh(),
    "add": lambda store: store.add([{"id": 1, "lang": "en", "text": "t", "vector": VECTORS[0]}]),
    "delete": lambda store: store.delete("id = 1"),
}


def test_a_dropped_table_is_told_by_every_call(tmp_path) -> None:
    made(str(tmp_path))
    reader = opened(tmp_path, None)
    dropped(reader)
    for name, read in READS.items():
        with pytest.raises(TableError, match="'small' is no longer in"):
            read(reader)
            pytest.fail(name)
    assert "no longer in" in repr(reader)


@pytest.mark.parametrize("versions", [0, 1])
def test_a_table_made_again_is_followed_where_it_can_take_the_place(tmp_path, versions) -> None:
    """Also if it has as many versions as the one before, from which no number tells it."""
    writer, reader = made(str(tmp_path)), opened(tmp_path, None)
    seen(reader)
    docs = lancedb.connect(tmp_path).open_table("docs")
    dropped(writer)
    docs.delete("id < 5")
    again = compress(docs, CODECS[0], "small", progress=False)
    for row in range(versions):
        again.delete(f"id = {10 + row}")
    assert seen(reader) == seen(again)
    assert len(reader) == ROWS - 5 - versions


@pytest.mark.parametrize("other", ["dimension", "metric", "plain"])
def test_a_table_made_again_as_another_one_is_refused_by_every_call(tmp_path, other) -> None:
    db = lancedb.connect(tmp_path)
    made(str(tmp_path))
    reader = opened(tmp_path, None)
    dropped(reader)
    if other == "plain":
        db.create_table("small", source_table(VECTORS))
    else:
        dim = DIM // 2 if other == "dimension" else DIM
        config = tiny_codec(VECTORS, "dot" if other == "metric" else "l2", 4).config
        rows = [{"id": row, "lang": "en", "text": "t", "vector": VECTORS[row, :dim]} for row in range(9)]
        create_table(db, "small", rows, config=config)
    for name, read in READS.items():
        with pytest.raises(TableError, match=f"made again as another one.*{other}|not a compressed table"):
            read(reader)
            pytest.fail(name)
    assert len(db.open_table("small")) == (ROWS if other == "plain" else 9)


@pytest.mark.parametrize("interval", [None, HOUR])
def test_threads_that_share_a_handle_see_whole_versions(tmp_path, interval) -> None:
    """Every version of this table has as many rows as its newest column says."""
    docs = lancedb.connect(tmp_path).create_table("docs", source_table(VECTORS))
    writer = compress(docs, CODECS[0], "small", progress=False)
    shared = opened(tmp_path, interval)
    failures: list[BaseException] = []
    done = threading.Event()

    def read() -> None:
        try:
            last = 0
            while not done.is_set():
                assert not shared.is_due_for_training()
                counts = [len(shared), shared.search().to_arrow().num_rows, shared.count_rows("true")]
                counts.append(shared.search(VECTORS[0]).limit(1000).nprobes(4).to_arrow().num_rows)
                assert counts == sorted(counts), "a later read was of an earlier version"
                assert last <= shared.version
                last = shared.version
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for row in range(12):
        change(writer if row % 2 else shared, "add", row)
    done.set()
    for thread in threads:
        thread.join()
    for failure in failures:
        raise failure
    shared.refresh()
    assert seen(shared) == seen(writer)
    assert len(shared) == ROWS + 12
