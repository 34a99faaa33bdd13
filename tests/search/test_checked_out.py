"""Searches of versions that were checked out or restored."""

import datetime
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pytest
from lancedb.rerankers import RRFReranker
from small_tables import source_table, tiny_codec

from rqmoe_store.config import TrainConfig
from rqmoe_store.errors import TableError
from rqmoe_store.search.reranker import DecodedReranker
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import compress, open_table

ROWS, DIM = 200, 16
VECTORS = np.random.default_rng(7).normal(size=(ROWS, DIM)).astype(np.float32)
FAR = VECTORS[0] + np.float32(9)
TRAINING = TrainConfig(epochs=0, progress=False)


@pytest.fixture
def store(tmp_path: Path) -> CompressedTable:
    docs = lancedb.connect(tmp_path).create_table("docs", source_table(VECTORS))
    store = compress(docs, tiny_codec(VECTORS, "l2", 4), "small", progress=False)
    store.create_fts_index("text")
    return store


def found(store: CompressedTable, query: Any = FAR, limit: int = 3) -> list[int]:
    ids: list[int] = store.search(query).nprobes(4).limit(limit).to_arrow()["id"].to_pylist()
    return ids


def add(store: CompressedTable, row: int, text: str = "added", **options: Any) -> int:
    store.add([{"id": row, "lang": "en", "text": text, "vector": FAR}], **options)
    return store.version


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_searches_see_the_version_that_is_checked_out(store: CompressedTable, cache: Any) -> None:
    store.use_cache(cache)
    first, nearest = store.version, found(store)
    second = add(store, 1000)
    third = add(store, 1001, encode=False)
    assert found(store)[:2] in ([1000, 1001], [1001, 1000])
    store.checkout(first)
    assert found(store) == nearest
    assert store.search("added", query_type="fts").to_list() == []
    store.checkout(second)
    assert found(store, limit=1) == [1000]
    assert [row["id"] for row in store.search("added", query_type="fts").to_list()] == [1000]
    hybrid = store.search(query_type="hybrid").vector(FAR).text("added").rerank(RRFReranker()).limit(2)
    assert hybrid.to_arrow()["id"].to_pylist()[0] == 1000
    store.checkout_latest()
    assert store.version == third
    assert sorted(found(store, limit=2)) == [1000, 1001]


def test_other_handles_and_queries_go_on(store: CompressedTable, tmp_path: Path) -> None:
    other, first = open_table(lancedb.connect(tmp_path), "small"), store.version
    query = store.search(FAR).nprobes(4).limit(1)
    add(other, 1000)
    store.checkout(first)
    assert found(other, limit=1) == [1000]
    assert query.to_arrow()["id"].to_pylist() == [1000]  # begun before
    old = store.search(FAR).nprobes(4).limit(1)
    store.checkout_latest()
    assert old.to_arrow()["id"].to_pylist() != [1000]  # begun meanwhile
    assert found(store, limit=1) == [1000]


def test_a_version_is_read_once_for_all_handles(store: CompressedTable, tmp_path: Path) -> None:
    other, first = open_table(lancedb.connect(tmp_path), "small"), store.version
    add(store, 1000)
    store.checkout(first)
    other.checkout(first)
    assert store._source.codes is other._source.codes
    assert found(store) == found(other)
    assert store.stats().rows == ROWS and store.stats().resident_bytes > 0
    other.checkout_latest()
    assert store._source.codes is not other._source.codes


def test_searches_follow_a_restore(store: CompressedTable, tmp_path: Path) -> None:
    other, first, nearest = open_table(lancedb.connect(tmp_path), "small"), store.version, found(store)
    add(store, 1000)
    assert found(store, limit=1) == found(other, limit=1) == [1000]
    store.restore(first)
    assert found(store) == found(other) == nearest
    add(store, 1001)
    assert found(store, limit=1) == found(other, limit=1) == [1001]


def test_older_codecs_come_back(store: CompressedTable) -> None:
    first, nearest = store.version, found(store, VECTORS[:2])
    store.retrain(TRAINING, vectors=VECTORS[:150] * 2, progress=False)
    assert len(store.codecs.generations) == 2
    last, later = store.version, found(store, VECTORS[:2])
    store.checkout(first)
    assert len(store.codecs.generations) == 1
    assert found(store, VECTORS[:2]) == nearest
    store.checkout_latest()
    assert (store.version, len(store.codecs.generations)) == (last, 2)
    assert found(store, VECTORS[:2]) == later
    store.restore(first)
    assert len(store.codecs.generations) == 1
    assert found(store, VECTORS[:2]) == nearest
    assert add(store, 1000) and found(store, limit=1) == [1000]


def test_rerankers_read_the_same_version(store: CompressedTable) -> None:
    first = store.version
    store.delete("id = 5")
    store.checkout(first)
    search = store.table.search("text 5", query_type="fts").with_row_id(True).limit(ROWS)
    ranked = search.rerank(DecodedReranker(store, query=VECTORS[5])).to_list()
    assert ranked[0]["id"] == 5 and ranked[0]["_relevance_score"] is not None


def test_nothing_is_kept_with_an_earlier_version(store: CompressedTable) -> None:
    first = store.version
    add(store, 1000)
    store.checkout(first)
    for write in (
        lambda: store.tune(VECTORS[:5], progress=False),
        lambda: store.create_fts_index("lang"),
        lambda: store.optimize(progress=False),
        lambda: store.retrain(progress=False),
    ):
        with pytest.raises(TableError, match="is checked out at version"):
            write()


@pytest.mark.parametrize("tagged", [False, True])
def test_versions_that_are_cleaned_up(store: CompressedTable, tmp_path: Path, tagged: bool) -> None:
    first, nearest = store.version, found(store)
    if tagged:
        store.tags.create("kept", first)
    add(store, 1000)
    other = open_table(lancedb.connect(tmp_path), "small").use_cache("disk")
    other.checkout(first)
    assert found(other) == nearest
    store.delete("id < 50")
    store.table.to_lance().optimize.compact_files(materialize_deletions_threshold=0.0)  # into other files
    store.optimize(cleanup_older_than=datetime.timedelta(0), progress=False)
    if tagged:
        assert found(other) == nearest
    else:
        with pytest.raises(TableError, match=f"Version {first} of table 'small', which is checked out, was"):
            found(other)
    other.checkout_latest()
    assert found(other, limit=1) == [1000]
