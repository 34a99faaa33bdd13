"""Forked processes: codecs work in them, and tables if LanceDB was not used before; they never wait for ever.

A child that does is killed, and says where it was.
"""

import asyncio
import faulthandler
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pytest
from small_codecs import curved
from small_tables import source_table, tiny_codec

import rqmoe_store as rqs
from rqmoe_store.codecs.parallel import Lock

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forked processes here"),
    pytest.mark.filterwarnings("ignore"),  # LanceDB and Lance warn of every fork
]

ROWS, DIM = 200, 16
PATIENCE = 120
"""Seconds after which a child is taken to wait for ever."""

VECTORS = np.random.default_rng(5).normal(size=(ROWS, DIM)).astype(np.float32)
TRAINING = rqs.TrainConfig(epochs=1, batch_size=64, progress=True, device="cpu")
CONFIG = rqs.CodecConfig(
    kind="rqmoe", code_bytes=2, refine_bytes=6, codebook_size=8, num_partitions=2, num_experts=2
)


def in_child(work: Callable[[], Any]) -> None:
    """Do `work` in a forked process; fails if it raises, or is killed because it never ends."""
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.dup2(said.fileno(), 2)
                # A timer of faulthandler's own would wait for the one of the process before.
                faulthandler.enable(file=2)
                work()
                status = 0
            except BaseException:
                os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(status)
        ended, until = 0, time.monotonic() + PATIENCE
        while not ended:
            ended, status = os.waitpid(child, os.WNOHANG)
            if not ended and time.monotonic() > until:
                os.kill(child, signal.SIGABRT)  # upon which it says where it is
                ended, status = os.waitpid(child, 0)
            time.sleep(0.02)
        said.seek(0)
        assert status == 0, said.read().decode(errors="replace")


@pytest.fixture
def store(tmp_path: Path) -> rqs.CompressedTable:
    """A table that this process has made and searched, also from event loops."""
    docs = lancedb.connect(tmp_path).create_table("docs", source_table(VECTORS))
    store = rqs.compress(docs, tiny_codec(VECTORS, "l2", 4, refine_bytes=8), "small", progress=False)
    store.search(VECTORS[:64]).limit(10).to_arrow()
    asyncio.run(rqs.AsyncCompressedTable(store).vector_search(VECTORS[3]).to_list())
    return store


async def searched(store: rqs.CompressedTable) -> None:
    await rqs.AsyncCompressedTable(store).vector_search(VECTORS[3]).to_list()


def calls(store: rqs.CompressedTable) -> dict[str, Callable[[], Any]]:
    """Ways to a table, each of which would read or write it."""
    uri = store.snapshots._place.database
    db, docs = lancedb.connect(uri), store.table  # made here: LanceDB itself connects in forked processes
    codec, row = store.codec, {"id": 1, "lang": "en", "text": "t", "vector": VECTORS[0]}
    return {
        "search": lambda: store.search(VECTORS[0]).to_arrow(),
        "plain read": lambda: store.search().to_arrow(),
        "text": lambda: store.search("text", query_type="fts").to_arrow(),
        "coroutine": lambda: asyncio.run(searched(store)),
        "count": lambda: store.count_rows("id > 3"),
        "len": lambda: len(store),
        "schema": lambda: store.schema,
        "stats": store.stats,
        "health": store.health,
        "verify": lambda: store.verify(progress=False),
        "export": lambda: store.export(Path(uri) / "out.parquet", progress=False),
        "versions": store.list_versions,
        "tags": lambda: store.tags.list(),
        "checkout": lambda: store.checkout(1),
        "restore": lambda: store.restore(1),
        "add": lambda: store.add([row]),
        "delete": lambda: store.delete("id = 1"),
        "update": lambda: store.update("id = 1", {"text": "u"}),
        "merge": lambda: store.merge_insert("id").when_matched_update_all().execute([row]),
        "retrain": lambda: store.retrain(TRAINING, vectors=VECTORS),
        "optimize": lambda: store.optimize(progress=False),
        "encode": store.encode_in_background,
        "tune": lambda: store.tune(progress=False),
        "index": lambda: store.create_fts_index("text"),
        "columns": lambda: store.add_columns({"more": "id"}),
        "open": lambda: rqs.open_table(db, "small"),
        "create": lambda: rqs.create_table(db, "new", [row]),
        "compress": lambda: rqs.compress(docs, codec, "again", progress=False),
        "in place": lambda: rqs.compress(docs, codec, in_place=True, progress=False),
        "ingest": lambda: rqs.ingest(source_table(VECTORS), (db, "small"), progress=False),
        "train": lambda: rqs.train(docs, config=CONFIG, training=TRAINING),
    }


def refuses(ways: dict[str, Callable[[], Any]]) -> None:
    for name, call in ways.items():
        try:
            call()
        except rqs.TableError as error:
            assert "'spawn' or 'forkserver'" in str(error), name
        else:
            raise AssertionError(f"{name} was done")


def test_a_table_is_refused_at_once_where_lancedb_was_used_before(store: rqs.CompressedTable) -> None:
    ways, before = calls(store), store.version
    in_child(lambda: refuses(ways))
    assert store.version == before and len(store.search(VECTORS[0]).to_list()) == 10
    in_child(lambda: in_child(lambda: refuses({"search": ways["search"], "open": ways["open"]})))


def test_a_child_of_another_thread(store: rqs.CompressedTable) -> None:
    ways, failures = calls(store), list[BaseException]()

    def fork() -> None:
        try:
            in_child(lambda: refuses(ways))
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=fork)
    thread.start()
    thread.join()
    for failure in failures:
        raise failure


@pytest.mark.slow
def test_a_child_of_a_busy_parent(store: rqs.CompressedTable) -> None:
    """Its threads hold locks at any moment, and are in the middle of reading, loading and decoding."""
    done, failures, ways, codec = threading.Event(), list[BaseException](), calls(store), store.codec
    database = lancedb.connect(store.snapshots._place.database)

    def busy(work: Callable[[], Any]) -> None:
        try:
            while not done.is_set():
                work()
        except BaseException as error:
            failures.append(error)

    tasks = [
        lambda: rqs.open_table(database, "small").search(VECTORS[:8]).to_arrow(),
        lambda: store.search(VECTORS[:8]).to_arrow(),
        lambda: codec.decode(codec.encode(VECTORS)),
    ]
    threads = [threading.Thread(target=busy, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            in_child(lambda: (refuses(ways), compute(codec)))
    finally:
        done.set()
        for thread in threads:
            thread.join()
    for failure in failures:
        raise failure


def compute(codec: rqs.Codec) -> None:
    assert codec.decode(codec.encode(VECTORS)).shape == VECTORS.shape
    again = rqs.train(curved(300, seed=2), config=CONFIG, training=TRAINING)
    assert len(again.encode(curved(50, seed=3))) == 50


def test_codecs_work_in_children(tmp_path: Path) -> None:
    codec = tiny_codec(VECTORS, "l2", 4, refine_bytes=8)
    compute(codec)
    in_child(lambda: (compute(codec), in_child(lambda: compute(codec))))
    compute(codec)


def test_a_lock_that_is_held_at_the_fork_is_free_in_the_child() -> None:
    lock = Lock()

    def take() -> None:
        with lock:
            pass

    with lock:
        in_child(take)


def test_encoding_stays_with_the_process_that_began_it(store: rqs.CompressedTable) -> None:
    more = [{"id": row, "lang": "en", "text": "t", "vector": VECTORS[row % ROWS]} for row in range(3000)]
    store.add(more, encode=False)
    begun = store.encode_in_background()

    def child() -> None:
        assert not begun.running and not begun.request_another_pass()
        begun.stop()
        with pytest.raises(rqs.TableError, match="forked"):
            begun.wait()

    in_child(child)
    begun.wait()
    assert store.stats().raw_rows == 0


def failing(row: int) -> int:
    return int(_shared.search(VECTORS[row]).to_list()[0]["id"])


def test_pools_and_data_loaders_say_so(store: rqs.CompressedTable) -> None:
    from torch.utils.data import DataLoader, Dataset

    class Neighbors(Dataset):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, row: int) -> int:
            return failing(row)

    global _shared
    _shared = store
    with multiprocessing.get_context("fork").Pool(1) as pool:
        asked = pool.map_async(failing, range(2))
        with pytest.raises(rqs.TableError, match="'spawn' or 'forkserver'"):
            asked.get(timeout=120)
    loader = DataLoader(Neighbors(), num_workers=2, timeout=120, multiprocessing_context="fork")
    with pytest.raises(rqs.TableError, match="'spawn' or 'forkserver'"):
        list(loader)


PRELOADED = """
import faulthandler, os, sys
import lancedb, numpy as np
import rqmoe_store as rqs
import rqmoe_store.tables, rqmoe_store.async_table, rqmoe_store.ingestion.job

vectors = np.random.default_rng(0).normal(size=(300, 16)).astype("float32")
config = rqs.CodecConfig(kind="rq", code_bytes=4, codebook_size=16)
codec = rqs.train(vectors, config=config, training=rqs.TrainConfig(epochs=0, progress=False))
if sys.argv[2] == "plain":  # LanceDB, without this package
    lancedb.connect(sys.argv[1]).create_table("docs", [{"id": 1}])
children = []
for name in ("one", "other"):
    child = os.fork()
    if child == 0:
        faulthandler.dump_traceback_later(100, exit=True)
        rows = [{"id": row, "vector": vectors[row]} for row in range(300)]
        try:
            store = rqs.create_table(lancedb.connect(sys.argv[1]), name, rows, config=config)
            store.train(rqs.TrainConfig(epochs=0, progress=False), progress=False)
            store.add(rows[:5])
            store.delete("id = 4")
            assert len(store) == len(store.search(vectors[0]).limit(1000).nprobes(999).to_list()) == 303
        except rqs.TableError as error:
            os._exit(7 if "'spawn' or 'forkserver'" in str(error) else 8)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(9)
        os._exit(0)
    children.append(child)
print(*(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "wanted"),
    [
        ("nothing", ["0", "0"]),
        pytest.param(
            "plain",
            ["7", "7"],
            marks=pytest.mark.skipif(sys.platform != "linux", reason="threads have no names to look for"),
        ),
    ],
)
def test_servers_that_import_before_they_fork(tmp_path: Path, before: str, wanted: list[str]) -> None:
    """As with `gunicorn --preload`."""
    command = [sys.executable, "-W", "ignore", "-c", PRELOADED, str(tmp_path), before]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.stdout.split() == wanted, done.stderr
