"""Rows encoded in a thread: found and changed meanwhile, and never half done."""

import dataclasses
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import lancedb
import numpy as np
import pytest

from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.errors import InvalidInputError, StorageError, TableError
from rqmoe_store.store import reencoding
from rqmoe_store.store.reencoding import BackgroundEncoding
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import create_table, open_table

DIM, PARTS, PART = 8, 4, 60
ROWS = PARTS * PART
VECTORS = np.random.default_rng(3).normal(size=(ROWS + 100, DIM)).astype(np.float32)
CONFIG = CodecConfig(kind="rq", code_bytes=4, codebook_size=16, num_partitions=3, beam=1)
TRAINING = TrainConfig(epochs=0, progress=False)
ANOTHER = dataclasses.replace(TRAINING, seed=1)


def rows_of(first: int, last: int, text: str = "first") -> list[dict]:
    return [{"id": row, "text": text, "vector": VECTORS[row]} for row in range(first, last)]


class Gate:
    """Lets commits of the thread pass one by one."""

    def __init__(self) -> None:
        self._reached, self._open = threading.Semaphore(0), threading.Semaphore(0)
        self.failure: Exception | None = None

    def hold(self) -> None:
        """Called by the thread, before every commit."""
        self._reached.release()
        assert self._open.acquire(timeout=60)
        if self.failure is not None:
            raise self.failure

    def await_commit(self) -> None:
        """Wait until the thread is about to commit."""
        assert self._reached.acquire(timeout=60)

    def let_pass(self, commits: int = 1) -> None:
        self._open.release(commits)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate, replace = Gate(), reencoding.replace_fragment

    def held(*arguments: object) -> None:
        if threading.current_thread() is not threading.main_thread():
            gate.hold()
        replace(*arguments)

    monkeypatch.setattr(reencoding, "replace_fragment", held)
    yield gate
    gate.let_pass(1000)  # for a thread that a failed test has left


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with a table in several fragments, all of them coded."""
    folder: Path = tmp_path_factory.mktemp("template")
    store = create_table(lancedb.connect(folder), "docs", rows_of(0, PART), config=CONFIG, key="id")
    for part in range(1, PARTS):
        store.add(rows_of(part * PART, (part + 1) * PART))
    store.train(TRAINING, progress=False)
    return folder


@pytest.fixture
def store(template: Path, tmp_path: Path) -> CompressedTable:
    """A copy of the table."""
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    return open_table(lancedb.connect(tmp_path), "docs")


def begun(store: CompressedTable) -> BackgroundEncoding:
    store.retrain(ANOTHER, vectors=VECTORS, encode="background", progress=False)
    assert store.encoding is not None
    return store.encoding


def generations(store: CompressedTable) -> list[int]:
    """How many rows each codec has encoded."""
    if store.checked_out is None:
        store.refresh()
    partitions = store.table.search().select(["vector_partition"]).limit(None).to_arrow()[0].to_numpy()
    firsts = store.codecs.metadata.first_partitions
    return np.histogram(partitions, firsts)[0].tolist()


def assert_holds(store: CompressedTable, texts: dict[int, str]) -> None:
    """Searches find exactly these rows, by codes in memory and on disk."""
    for cache in ("memory", "disk"):
        found = store.use_cache(cache).search(VECTORS[0]).nprobes(99).shortlist(999).limit(999).to_arrow()
        assert dict(zip(found["id"].to_pylist(), found["text"].to_pylist(), strict=True)) == texts
        assert found.num_rows == len(texts)


def assert_decodes(store: CompressedTable) -> None:
    """Every row decodes to what the newest codec makes of its vector, or of what the first one made of it."""
    rows = store.table.search().select(["id", *store.columns.names]).limit(None).to_arrow()
    codes, valid = store.columns.from_arrow(rows)
    assert valid.all()
    first, newest = store.codecs.generations[0].codec, store.codecs.generations[-1].codec
    vectors = VECTORS[rows["id"].to_numpy()]
    once = first.decode(first.encode(vectors))
    known = np.stack([newest.decode(newest.encode(each)) for each in (vectors, once)])
    errors = np.abs(known - store.codecs.decode(codes)).max(axis=2).min(axis=0)
    assert errors.max() < 1e-5


def test_rows_are_found_and_changed_between_steps(store, gate):
    other = open_table(lancedb.connect(store.table.uri.rpartition("/")[0]), "docs")
    encoding = begun(store)
    texts = dict.fromkeys(range(ROWS), "first")
    changes: list[Callable[[], object]] = [
        lambda: store.add(rows_of(ROWS, ROWS + 10)),
        lambda: store.delete("id % 10 = 3"),
        lambda: store.update("id % 10 = 5", {"text": "updated"}),
        lambda: store.merge_insert().when_matched_update_all().execute(rows_of(0, ROWS, "merged")[::7]),
    ]
    expected: list[Callable[[dict[int, str]], dict[int, str]]] = [
        lambda now: now | dict.fromkeys(range(ROWS, ROWS + 10), "first"),
        lambda now: {row: text for row, text in now.items() if row % 10 != 3},
        lambda now: now | {row: "updated" for row in now if row % 10 == 5},
        lambda now: now | {row: "merged" for row in now if row % 7 == 0 and row < ROWS},
    ]
    for change, after in zip(changes, expected, strict=True):
        gate.await_commit()  # a fragment is written, and what is changed now may be in it
        change()
        texts = after(texts)
        assert_holds(store, texts)
        gate.let_pass()
        assert_holds(other, texts)
    gate.let_pass(1000)
    assert encoding.wait(timeout=60).rows >= ROWS - PART
    assert_holds(store, texts)
    assert_holds(other, texts)
    assert generations(store) == [0, len(texts)]
    assert_decodes(store)
    assert store.verify(progress=False).ok


def test_it_tells_how_far_it_is(store, gate):
    assert store.encoding is None
    encoding = begun(store)
    gate.await_commit()
    assert (encoding.running, encoding.rows_encoded, encoding.rows_left) == (True, 0, ROWS)
    gate.let_pass()
    gate.await_commit()
    assert (encoding.rows_encoded, encoding.rows_left) == (PART, ROWS - PART)
    assert generations(store) == [ROWS - PART, PART]
    with pytest.raises(TimeoutError, match="'docs': 60 rows encoded, 180 left, running>, after 0 seconds"):
        encoding.wait(timeout=0)
    gate.let_pass(PARTS)
    done = encoding.wait()
    assert done.rows == encoding.rows_encoded == ROWS and done.mse is not None
    assert (encoding.running, encoding.rows_left) == (False, 0)
    assert repr(encoding).endswith("240 rows encoded, 0 left, ended>")


@pytest.mark.parametrize("by", ["optimize", "another thread", "another handle"])
def test_what_is_left_is_done_later(store, gate, by):
    encoding = begun(store)
    gate.await_commit()
    gate.let_pass()
    gate.await_commit()
    stopping = threading.Thread(target=encoding.stop)
    stopping.start()
    while not encoding._stop.is_set():
        pass
    gate.let_pass()  # a fragment that is written already is committed
    stopping.join(timeout=60)
    assert encoding.wait().rows == 2 * PART and not encoding.running
    assert generations(store) == [ROWS - 2 * PART, 2 * PART]
    gate.let_pass(1000)
    if by == "optimize":
        assert store.optimize(progress=False).encoded.rows == ROWS - 2 * PART
    elif by == "another thread":
        another = store.encode_in_background()
        assert another is not encoding and another.wait().rows == ROWS - 2 * PART
    else:
        other = open_table(lancedb.connect(store.table.uri.rpartition("/")[0]), "docs")
        assert other.encode_in_background().wait().rows == ROWS - 2 * PART
    assert generations(store) == [0, ROWS]
    assert_holds(store, dict.fromkeys(range(ROWS), "first"))


def test_a_stop_does_not_wait_for_the_end_of_a_fragment(store, monkeypatch):
    monkeypatch.setattr("rqmoe_store.store.metadata.rows_per_batch", lambda dim: 10)
    inside, go_on = threading.Event(), threading.Event()
    encode = reencoding._FragmentStep._encode

    def waiting(step, batch):
        inside.set()
        assert go_on.wait(timeout=60)
        return encode(step, batch)

    monkeypatch.setattr(reencoding._FragmentStep, "_encode", waiting)
    encoding = begun(store)
    assert inside.wait(timeout=60)
    encoding._stop.set()
    go_on.set()
    assert encoding.wait(timeout=60).rows == 0
    assert generations(store) == [ROWS, 0]


def test_optimize_takes_over(store, gate):
    encoding = begun(store)
    gate.await_commit()
    gate.let_pass(1000)
    report = store.optimize(progress=False)
    assert not encoding.running
    assert encoding.wait().rows + report.encoded.rows == ROWS
    assert generations(store) == [0, ROWS]


def test_one_is_under_way_at_a_time(store, gate):
    encoding = begun(store)
    gate.await_commit()
    store.add(rows_of(ROWS, ROWS + 20), encode=False)
    assert store.encode_in_background() is encoding is store.encoding
    gate.let_pass(1000)
    assert encoding.wait().rows == ROWS + 20
    assert store.encode_in_background() is not encoding
    assert store.encoding.wait().rows == 0


@pytest.mark.parametrize("same", [True, False])
def test_it_follows_to_a_newer_codec(store, gate, same):
    encoding = begun(store)
    gate.await_commit()
    handle = store if same else open_table(lancedb.connect(store.table.uri.rpartition("/")[0]), "docs")
    handle.retrain(
        dataclasses.replace(TRAINING, seed=2), vectors=VECTORS, encode="background" if same else False
    )
    assert (handle.encoding is encoding) is same
    gate.let_pass(1000)
    assert encoding.wait().rows == ROWS + PART
    store.refresh()
    assert generations(store) == [0, 0, ROWS]


def test_a_failure_is_told(store, gate):
    gate.failure = OSError("No space left on device")
    with pytest.warns(UserWarning, match="in the background any more: Storage refused"):
        encoding = begun(store)
        gate.let_pass()
        with pytest.raises(StorageError, match="No space left"):
            encoding.wait()
    with pytest.raises(StorageError, match="No space left"):
        encoding.wait()
    assert "failed: Storage refused" in repr(encoding)
    assert generations(store) == [ROWS, 0]
    gate.failure = None
    gate.let_pass(1000)
    assert store.encode_in_background().wait().rows == ROWS


def test_a_table_can_be_dropped_meanwhile(store, gate):
    database = lancedb.connect(store.table.uri.rpartition("/")[0])
    with pytest.warns(UserWarning, match="not encoded in the background any more: Table 'docs' was dropped"):
        encoding = begun(store)
        gate.await_commit()
        database.drop_table("docs")
        gate.let_pass(1000)
        with pytest.raises(TableError, match="Table 'docs' was dropped"):
            encoding.wait()
    assert len(create_table(database, "docs", rows_of(0, 9))) == 9


def test_an_earlier_version_can_be_looked_at_meanwhile(store, gate):
    before = store.version
    encoding = begun(store)
    gate.await_commit()
    store.checkout(before)
    gate.let_pass(1000)
    with pytest.raises(TableError, match=f"checked out at version {before}, which cannot be changed"):
        store.encode_in_background()
    assert encoding.wait().rows == ROWS
    assert generations(store) == [ROWS]
    store.checkout_latest()
    assert generations(store) == [0, ROWS]


def test_a_restored_version_is_left_as_it_is(store, gate):
    before = store.version
    encoding = begun(store)
    gate.await_commit()
    store.restore(before)
    gate.let_pass(1000)
    assert encoding.wait().rows == 0
    assert generations(store) == [ROWS]
    assert_holds(store, dict.fromkeys(range(ROWS), "first"))


def test_a_version_without_a_codec_is_restored_meanwhile(tmp_path, gate):
    store = create_table(lancedb.connect(tmp_path), "raw", rows_of(0, 50), config=CONFIG)
    before = store.version
    store.train(TRAINING, encode="background", progress=False)
    gate.await_commit()
    store.restore(before)
    gate.let_pass(1000)
    assert (store.encoding.wait(timeout=60).rows, store.encoding.rows_left) == (0, 0)
    assert store.stats().raw_rows == 50


def test_what_cannot_be_begun(tmp_path, store):
    for method in (store.retrain, create_table(lancedb.connect(tmp_path), "raw", rows_of(0, 9)).train):
        with pytest.raises(InvalidInputError, match="encode='later'; expected True, False or 'background'"):
            method(TRAINING, encode="later", progress=False)
    assert len(store.codecs.generations) == 1
    raw = open_table(lancedb.connect(tmp_path), "raw")
    assert raw.encode_in_background().wait().rows == 0
    assert raw.stats().raw_rows == 9


SCRIPT = """
import sys, threading, time, concurrent.futures
import lancedb
from rqmoe_store import open_table
from rqmoe_store.store import reencoding

folder, how = sys.argv[1:]
encode, done = reencoding._FragmentStep._encode, []

def encoded(step, batch):
    if done:  # the second fragment
        while threading.main_thread().is_alive():
            if how == "pool":  # as long as it takes work, which it no more does before the main thread ends
                concurrent.futures.ThreadPoolExecutor(1).submit(int).result()
            time.sleep(0.001)
    done.append(batch)
    return encode(step, batch)

reencoding._FragmentStep._encode = encoded
encoding = open_table(lancedb.connect(folder), "docs").encode_in_background()
while not encoding.rows_encoded:
    time.sleep(0.001)
"""


@pytest.mark.parametrize("how", [pytest.param("loop", marks=pytest.mark.slow), "pool"])
def test_the_interpreter_exits_between_two_steps(store, how):
    store.retrain(ANOTHER, vectors=VECTORS, encode=False, progress=False)
    folder = store.table.uri.rpartition("/")[0]
    command = [sys.executable, "-c", SCRIPT, folder, how]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    store.refresh()
    assert generations(store) == [ROWS - PART, PART]
    assert_holds(store, dict.fromkeys(range(ROWS), "first"))
    assert store.encode_in_background().wait().rows == ROWS - PART
