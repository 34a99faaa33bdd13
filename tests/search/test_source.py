"""Codes in memory follow the table; codes on disk give the same results."""

import os
import signal
import threading
from datetime import timedelta
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from other_processes import run_script
from small_tables import source_table, tiny_codec

from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.search import query
from rqmoe_store.search import resident as residents
from rqmoe_store.search import source as sources
from rqmoe_store.search.source import CacheSetting, shared_codes
from rqmoe_store.store.metadata import TunedSearch
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import compress, open_table

DIM = 16
VECTORS = np.random.default_rng(3).normal(size=(300, DIM)).astype(np.float32)


@pytest.fixture
def store(tmp_path: Path) -> CompressedTable:
    db = lancedb.connect(tmp_path)
    docs = db.create_table("docs", source_table(VECTORS))
    return compress(docs, tiny_codec(VECTORS, "l2", 4), "small", progress=False)


def found_by(store: CompressedTable, cache: str, **options: object) -> pa.Table:
    search = store.use_cache(cache).search(VECTORS[:4]).nprobes(2).limit(25).with_row_id()
    if "where" in options:
        search = search.where(str(options["where"]))
    return search.to_arrow()


def assert_up_to_date(store: CompressedTable) -> None:
    for options in ({}, {"where": "id >= 100"}, {"where": "id < 7"}):
        memory, disk = found_by(store, "memory", **options), found_by(store, "disk", **options)
        assert memory.equals(disk)
    resident = store._source.codes.resident
    assert resident is not None
    stored = store.table.search().with_row_id(True).where("vector_code IS NOT NULL").to_arrow()
    assert len(resident) == stored.num_rows
    ids = np.concatenate([selection.rows().row_ids_N for selection in resident.selections])
    assert sorted(ids.tolist()) == sorted(stored["_rowid"].to_pylist())


def rows(first: int, count: int) -> list[dict[str, object]]:
    random = np.random.default_rng(first)
    return [
        {"id": first + row, "lang": "en", "text": f"text {first + row}", "vector": random.normal(size=DIM)}
        for row in range(count)
    ]


CHANGES = {
    "add": lambda table: table.add(rows(1000, 5)),
    "add a row without a vector": lambda table: table.add([{**rows(2000, 1)[0], "vector": None}]),
    "delete old": lambda table: table.delete("id < 20"),
    "add and delete": lambda table: (table.add(rows(3000, 5)), table.delete("id = 3001 OR id = 50")),
    "update": lambda table: table.table.update(where="id = 60", values={"text": "new"}),
    "lose a vector": lambda table: table.table.update(
        where="id = 61", values_sql={"vector_code": "NULL", "vector_partition": "NULL"}
    ),
    "optimize": lambda table: (table.add(rows(4000, 2)), table.delete("id = 70"), table.table.optimize()),
    "index": lambda table: table.table.create_index("id", config=lancedb.index.BTree()),
    "metadata": lambda table: TunedSearch(nprobes=2, shortlist=200, limit=10, target_recall=0.9).write(
        table.table
    ),
    "restore": lambda table: (table.add(rows(5000, 3)), table.table.restore(1)),
    "clean up": lambda table: (
        table.add(rows(6000, 3)),
        table.delete("id = 80"),
        table.table.optimize(cleanup_older_than=timedelta(0), delete_unverified=True),
    ),
    "add a column": lambda table: table.table.add_columns({f"more_{table.version}": "id + 1"}),
}


@pytest.mark.filterwarnings("ignore:optimize")
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_memory_follows_every_change(store, change) -> None:
    assert_up_to_date(store)
    for _ in range(2):
        change(store)
        assert_up_to_date(store)


def test_many_changes_are_merged(store, monkeypatch) -> None:
    monkeypatch.setattr(residents, "_SMALL_ROWS", 10)
    for step in range(6):
        store.add(rows(1000 + 10 * step, 9))
        store.delete(f"id >= {30 * step} AND id < {30 * step + 15}")
        assert_up_to_date(store)
    assert len(store._source.codes.resident.base.segment) > 300 - 90


def test_only_what_changed_is_read(store, monkeypatch) -> None:
    found_by(store, "memory")
    store.add(rows(1000, 2))

    def load(*_: object) -> None:
        raise AssertionError("read everything")

    monkeypatch.setattr(residents, "load", load)
    assert_up_to_date(store)


def test_changes_of_another_process_are_seen(store, tmp_path) -> None:
    before = found_by(store, "memory")["id"].to_pylist()
    program = (
        f"import lancedb; lancedb.connect({str(tmp_path)!r}).open_table('small').delete('id = {before[0]}')"
    )
    run_script(program)
    for cache in ("memory", "disk"):
        assert before[0] not in found_by(store, cache)["id"].to_pylist()


def test_handles_share_what_is_in_memory(store, tmp_path) -> None:
    again = open_table(lancedb.connect(tmp_path), "small")
    assert found_by(again, "memory").equals(found_by(store, "memory"))
    assert again._source.codes is store._source.codes
    assert again.stats().resident_bytes == store.stats().resident_bytes == store._source.codes.resident.nbytes
    assert "in memory" in str(store.stats())


def test_a_table_above_the_budget_stays_on_disk(store, tmp_path) -> None:
    needed = residents.bytes_needed(300, 4)
    wanted = found_by(store, "disk")
    for budget, held in [(needed - 1, False), (needed, True)]:
        small = store.use_cache("memory", budget)
        assert small.search(VECTORS[:4]).nprobes(2).limit(25).with_row_id().to_arrow().equals(wanted)
        assert (small._source.codes.resident is not None) == held
        assert (small.stats().resident_bytes > 0) == held


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_a_dropped_table(store, tmp_path, cache) -> None:
    found_by(store, cache)
    lancedb.connect(tmp_path).drop_table("small")
    with pytest.raises(TableError, match="'small' is no longer in"):
        found_by(store, cache)


@pytest.mark.parametrize("cache", ["memory", "disk"])
@pytest.mark.parametrize("added", [0, 1, 3])
def test_a_table_that_was_made_again(store, tmp_path, cache, added) -> None:
    db, codec = lancedb.connect(tmp_path), store.codec
    store.add(rows(1000, 1))
    found_by(store, cache)
    db.drop_table("small")
    other = VECTORS[::-1][:290]
    docs = db.create_table("other", source_table(other))
    again = compress(docs, codec, "small", progress=False)
    for step in range(added):
        again.add(rows(7000 + step, 1))
    assert_up_to_date(again)
    assert found_by(store, cache).equals(found_by(again, "disk"))


def test_versions_that_were_cleaned_up_under_a_query(store, monkeypatch) -> None:
    taken, calls = query.take, []

    def take_late(*arguments: object) -> pa.Table:
        if not calls:
            store.delete("id < 10")
            store.table.optimize(cleanup_older_than=timedelta(0), delete_unverified=True)
        calls.append(1)
        return taken(*arguments)

    monkeypatch.setattr(query, "take", take_late)
    with pytest.warns(UserWarning, match="removes every version"):
        found = store.search(VECTORS[3]).limit(300).to_arrow()
    # Whole, of the version before if its files were still open, else of the one after.
    assert sorted(found["id"].to_pylist()) in (list(range(300)), list(range(10, 300)))


def test_queries_of_many_threads_beside_writes(store) -> None:
    """Every answer is one that some version of the table gives."""
    failures: list[BaseException] = []
    done = threading.Event()

    def ask() -> None:
        try:
            while not done.is_set():
                found = (
                    store.search(VECTORS[0])
                    .nprobes(4)
                    .limit(1000)
                    .select(["id"])
                    .to_arrow()["id"]
                    .to_pylist()
                )
                new = sorted(row for row in found if row >= 1000)
                assert len(found) == len(set(found))
                assert set(range(100, 300)) <= set(found)
                assert new == list(range(1000, 1000 + len(new)))  # added in this order
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for step in range(15):
        store.add(rows(1000 + step, 1))
        store.delete(f"id = {step}")
    done.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert_up_to_date(store)


@pytest.mark.filterwarnings("ignore")
def test_locks_held_at_a_fork_are_free_in_the_new_process(store) -> None:
    """Only the locks are tried: LanceDB itself promises nothing in a forked process."""
    with store._source.codes._lock, sources._shared_lock:
        process = os.fork()
        if process == 0:
            signal.alarm(20)
            with store._source.codes._lock:
                os._exit(0 if shared_codes(store.snapshots, store.columns) is store._source.codes else 1)
    assert os.waitpid(process, 0)[1] == 0


def test_budgets() -> None:
    assert not CacheSetting("disk", 10**9).allows(0)
    assert CacheSetting("memory", 5).allows(5) and not CacheSetting("memory", 5).allows(6)
    assert CacheSetting("memory", None).allows(2**28)
    for cache, limit in [("ram", None), (None, 1), ("memory", -1), ("memory", 1.5), ("memory", True)]:
        with pytest.raises(InvalidInputError, match=r"Got (cache|memory_budget)="):
            CacheSetting(cache, limit)
