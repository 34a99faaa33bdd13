"""Handles, codecs and queries sent to other processes: by where the table is, and without secrets."""

import copy
import datetime
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import cloudpickle
import lancedb
import numpy as np
import pytest
from small_tables import source_table, tiny_codec

import rqmoe_store as rqs

VECTORS = np.random.default_rng(8).normal(size=(200, 16)).astype(np.float32)
SECRET = {"aws_secret_access_key": "very-secret"}


@pytest.fixture
def store(tmp_path: Path) -> rqs.CompressedTable:
    docs = lancedb.connect(tmp_path).create_table("docs", source_table(VECTORS))
    rqs.compress(docs, tiny_codec(VECTORS, "l2", 4, refine_bytes=8), "small", progress=False)
    db = lancedb.connect(tmp_path, read_consistency_interval=datetime.timedelta(seconds=7))
    return rqs.open_table(db, "small", memory_budget=10**6)


def sent(thing: Any, library: Any = pickle) -> Any:
    return pickle.loads(library.dumps(thing))  # noqa: S301  # made here


def nearest(work: tuple[rqs.CompressedTable, int]) -> list[int]:
    store, row = work
    return [int(each["id"]) for each in store.search(VECTORS[row]).limit(3).to_list()]


@pytest.mark.parametrize("again", [sent, copy.copy, copy.deepcopy, lambda one: sent(one, cloudpickle)])
def test_a_handle_is_opened_where_its_table_is(store: rqs.CompressedTable, again: Any) -> None:
    other = again(store)
    assert nearest((other, 3)) == nearest((store, 3))
    assert other.snapshots._place == store.snapshots._place
    assert other._source.cache.memory_budget == 10**6
    assert nearest((again(rqs.AsyncCompressedTable(store)).blocking, 3)) == nearest((store, 3))
    first = store.version
    store.delete("id < 100")
    store.checkout(first)
    assert (len(again(store)), again(store).version) == (200, first)
    store.checkout_latest()
    assert len(again(store)) == 100


def test_codecs_and_queries(store: rqs.CompressedTable) -> None:
    codec = store.codec
    for other in (sent(codec), copy.deepcopy(codec), sent(codec, cloudpickle)):
        assert other is not codec and other.fingerprint == codec.fingerprint
        assert (other.encode(VECTORS).codes == codec.encode(VECTORS).codes).all()
    store.create_fts_index("text")
    hybrid = store.search(query_type="hybrid").vector(VECTORS[0]).text("text 7").nprobes(4)
    text, plain = store.search("text 7", query_type="fts"), store.search()
    for query in (store.search(VECTORS[0]).where("id > 5").limit(3), text, plain, hybrid):
        assert sent(query).to_list() == copy.copy(query).to_list() == query.to_list()


def test_secrets_are_pickled_only_if_that_is_said(store: rqs.CompressedTable, tmp_path: Path) -> None:
    other = rqs.open_table(lancedb.connect(tmp_path, storage_options=SECRET), "small")
    for thing in (other, rqs.AsyncCompressedTable(other), other.search(VECTORS[0])):
        with pytest.raises(rqs.TableError, match="may hold secrets"):
            pickle.dumps(thing)
    assert len(copy.copy(other)) == 200 and "very-secret" not in repr(other.snapshots._place)
    assert b"very-secret" not in pickle.dumps(other.codec)
    again = sent(other.allow_pickling(storage_options=True))
    assert dict(again.snapshots._place.storage_options) == SECRET
    other.allow_pickling(storage_options=False)
    with pytest.raises(rqs.TableError, match="may hold secrets"):
        pickle.dumps(other)


def test_a_table_held_by_other_processes_is_not_pickled(store: rqs.CompressedTable) -> None:
    store.use_shards(2, lambda method, parts, arguments: [])
    with pytest.raises(rqs.TableError, match="held by other processes"):
        pickle.dumps(store)


@pytest.mark.slow
def test_a_pool_of_spawned_processes(store: rqs.CompressedTable) -> None:
    work = [(store, row) for row in range(4)]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map_async(nearest, work).get(timeout=300) == [nearest(each) for each in work]
