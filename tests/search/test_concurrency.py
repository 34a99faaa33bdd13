"""Threads that search while another process writes: no wrong row, none missing, no crash."""

import contextlib
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pytest
from other_processes import processes
from small_tables import source_table, tiny_codec

from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import compress, open_table

DIM, FIRST_ROWS, THREADS = 16, 300, 8


def write(folder: str, journal: Any, stopped: Any) -> None:
    """Add and delete rows, and say what is about to be deleted and what was done, until that is enough."""
    store = open_table(lancedb.connect(folder), "small")
    random, first, alive = np.random.default_rng(0), 10_000, list(range(FIRST_ROWS))
    while not stopped.is_set():
        ids = list(range(first, first + 3))
        rows = [
            {"id": row, "lang": "en", "text": f"text {row}", "vector": random.normal(size=DIM)} for row in ids
        ]
        store.add(rows)
        journal.send(("added", ids))
        alive, first = alive + ids, first + 3
        gone = [alive.pop(random.integers(len(alive))) for _ in range(2)]
        journal.send(("deletes", gone))
        store.delete(f"id IN ({gone[0]}, {gone[1]})")
        journal.send(("deleted", gone))
        if first % 300 == 0:
            store.table.optimize()


class Journal:
    """What the writer has said so far."""

    def __init__(self, said: Connection) -> None:
        self.added, self.going, self.gone = set(range(FIRST_ROWS)), set(), set()
        self._sets = {"added": self.added, "deletes": self.going, "deleted": self.gone}
        self._lock = threading.Lock()
        self.begun = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(said,))
        self._thread.start()

    def _read(self, said: Connection) -> None:
        with contextlib.suppress(EOFError):  # the writer has ended
            while True:
                word, ids = said.recv()
                with self._lock:
                    self._sets[word].update(ids)
                self.begun.set()
        self.begun.set()

    def now(self, word: str) -> set[int]:
        with self._lock:
            return set(self._sets[word])

    def end(self) -> None:
        self._thread.join()


def ask(store: CompressedTable, journal: Journal, seconds: float, failures: list[BaseException]) -> None:
    random, until = np.random.default_rng(threading.get_ident() % 2**32), time.monotonic() + seconds
    try:
        while time.monotonic() < until and not failures:
            committed, gone = journal.now("added"), journal.now("deleted")
            search = store.search(random.normal(size=DIM)).nprobes(4).limit(10**6).shortlist(10**6)
            found = search.to_pandas()
            ids = set(found["id"])
            assert len(ids) == len(found), "a row came twice"
            assert (found["text"] == "text " + found["id"].astype(str)).all(), "a row of another id"
            assert not committed - journal.now("deletes") - ids, "a committed row is missing"
            assert not ids & gone, "a deleted row came back"
            assert (np.diff(found["_distance"]) >= 0).all(), "rows out of order"
    except BaseException as error:
        failures.append(error)


@pytest.mark.parametrize("seconds", [3, pytest.param(125, marks=pytest.mark.slow)])
def test_threads_search_while_a_process_writes(tmp_path: Path, seconds: float) -> None:
    vectors = np.random.default_rng(3).normal(size=(FIRST_ROWS, DIM)).astype(np.float32)
    docs = lancedb.connect(tmp_path).create_table("docs", source_table(vectors))
    store = compress(docs, tiny_codec(vectors, "l2", 4), "small", progress=False)
    failures: list[BaseException] = []
    stopped, (said, saying) = processes.Event(), processes.Pipe(duplex=False)
    writer = processes.Process(target=write, args=(str(tmp_path), saying, stopped), daemon=True)
    writer.start()
    saying.close()  # the pipe ends with the writer then
    journal = Journal(said)
    journal.begun.wait()
    threads = [threading.Thread(target=ask, args=(store, journal, seconds, failures)) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stopped.set()
    writer.join()
    assert writer.exitcode == 0
    journal.end()
    assert not failures, failures[0]
    assert len(journal.gone) > 2, "the writer wrote nothing while the threads searched"
    left = store.search(np.ones(DIM)).nprobes(4).limit(10**6).to_arrow()["id"].to_pylist()
    assert sorted(left) == sorted(journal.added - journal.gone)
