"""Tables that were dropped or replaced, lost files, or may not be written to: every public call says so
in words of this package."""

import asyncio
import inspect
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from small_disks import read_only

from rqmoe_store.async_table import AsyncCompressedTable
from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.errors import RQMoEError, StorageError, TableError
from rqmoe_store.ingestion.job import ingest
from rqmoe_store.search.hybrid import HybridQuery
from rqmoe_store.search.plain import PlainQuery
from rqmoe_store.search.query import CompressedQuery
from rqmoe_store.search.text import TextQuery
from rqmoe_store.store.merge import MergeInsert
from rqmoe_store.store.reencoding import BackgroundEncoding
from rqmoe_store.store.versions import TableTags
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import compress, create_table, open_table
from rqmoe_store.training.trainer import train

TRAINING = TrainConfig(epochs=0, progress=False)
VECTORS = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
ROW = {"id": 1000, "text": "x", "vector": VECTORS[0]}
PUBLIC = [
    *(CompressedTable, TableTags, MergeInsert, BackgroundEncoding),
    *(CompressedQuery, PlainQuery, TextQuery, HybridQuery),
]

Calls = dict[str, Callable[[], object]]


@pytest.fixture
def store(tmp_path: Path) -> CompressedTable:
    rows = [{"id": row, "text": f"text {row}", "vector": VECTORS[row]} for row in range(300)]
    config = CodecConfig(kind="rq", code_bytes=4, codebook_size=16, beam=1)
    store = create_table(lancedb.connect(tmp_path / "db"), "docs", rows, config=config)
    store.train(TRAINING, progress=False)
    store.create_fts_index("text")
    store.tags.create("first", 1)
    store.add([ROW])
    store.build_neighbor_graph(2, progress=False)
    return store


def reads(store: CompressedTable, folder: Path) -> Calls:
    vector = VECTORS[0]
    return {
        "count_rows": lambda: store.count_rows("id < 3"),
        "head": store.head,
        "stats": store.stats,
        "health": store.health,
        "save_health_report": lambda: store.save_health_report(folder / "health.html"),
        "search": lambda: store.search(vector).to_list(),
        "search where": lambda: store.search(vector).where("id < 3").to_arrow(),
        "search expanded": lambda: store.search(vector).expand(neighbors=2).to_list(),
        "search plain": lambda: store.search().to_list(),
        "search plain batches": lambda: store.search().to_batches().read_all(),
        "search text": lambda: store.search("text", query_type="fts").to_list(),
        "search hybrid": lambda: store.search(query_type="hybrid").vector(vector).text("text").to_list(),
        "export": lambda: store.export(folder / "out.parquet", progress=False),
    }


def versions(store: CompressedTable) -> Calls:
    return {
        "list_versions": store.list_versions,
        "checkout": lambda: store.checkout(1),
        "checkout_latest": store.checkout_latest,
        "refresh": store.refresh,
        "list_indices": store.list_indices,
        "index_stats": lambda: store.index_stats("text_idx"),
        "tags list": store.tags.list,
        "tags get_version": lambda: store.tags.get_version("first"),
    }


def writes(store: CompressedTable) -> Calls:
    merge = store.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
    return {
        "add": lambda: store.add([ROW]),
        "merge_insert": lambda: merge.execute([ROW]),
        "update": lambda: store.update("id = 1", {"text": "y"}),
        "update vector": lambda: store.update("id = 1", {"vector": VECTORS[1]}),
        "delete": lambda: store.delete("id = 2"),
        "set_key": lambda: store.set_key("id"),
        "add_columns": lambda: store.add_columns({"more": "1"}),
        "alter_columns": lambda: store.alter_columns({"path": "text", "rename": "words"}),
        "drop_columns": lambda: store.drop_columns("text"),
        "create_fts_index": lambda: store.create_fts_index("text", replace=True),
        "create_scalar_index": lambda: store.create_scalar_index("id"),
        "drop_index": lambda: store.drop_index("text_idx"),
        "optimize": lambda: store.optimize(progress=False),
        "build_neighbor_graph": lambda: store.build_neighbor_graph(rebuild=True, progress=False),
        "retrain": lambda: store.retrain(TRAINING, vectors=VECTORS, progress=False),
        "tune": lambda: store.tune(VECTORS[:3] + 1, progress=False),
        # One row answers all queries, which pays, so that it is written.
        "tune_codec": lambda: store.tune_codec(VECTORS[:120] + 1, [21] * 120, on="id", progress=False),
        "ingest": lambda: ingest(pa.table({"vector": VECTORS.tolist()}), store, progress=False),
        "restore": lambda: store.restore(2),
        "tags create": lambda: store.tags.create("second", 2),
        "tags update": lambda: store.tags.update("first", 2),
        "tags delete": lambda: store.tags.delete("first"),
    }


def others(store: CompressedTable) -> Calls:
    """Calls that have words of their own."""
    return {
        "train": lambda: store.train(TRAINING, progress=False),
        "encode_in_background": lambda: store.encode_in_background().wait(),
        "verify": lambda: store.verify(progress=False).problems,
    }


WITHOUT_STORAGE = {"use_cache", "use_device", "allow_pickling", "use_shards", "is_due_for_training", "open"}
"""Methods that read and write nothing, or are called before there is a table."""


def test_no_method_is_forgotten(store: CompressedTable, tmp_path: Path) -> None:
    calls = reads(store, tmp_path) | versions(store) | writes(store) | others(store)
    called = {name.partition(" ")[0] for name in calls}
    methods = {name for name, _ in inspect.getmembers(CompressedTable, inspect.isroutine)}
    assert {name for name in methods if not name.startswith("_")} - WITHOUT_STORAGE <= called


@pytest.mark.parametrize("cls", PUBLIC)
def test_every_public_method_translates_errors(cls: type) -> None:
    for name, member in inspect.getmembers_static(cls):
        function = getattr(member, "fget", None) or getattr(member, "__func__", None) or member
        if not name.startswith("_") and inspect.isfunction(function):
            assert getattr(function, "translates_errors", False), f"{cls.__name__}.{name}"
    for function in (create_table, compress, open_table, train, ingest):
        assert getattr(function, "translates_errors", False), function.__name__


def drop(store: CompressedTable) -> None:
    lancedb.connect(store.table.uri.rpartition("/")[0]).drop_table("docs")


def rename(store: CompressedTable) -> None:
    shutil.move(store.table.uri, store.table.uri.replace("docs", "others"))


def drop_database(store: CompressedTable) -> None:
    shutil.rmtree(store.table.uri.rpartition("/")[0])


def replace(store: CompressedTable) -> None:
    drop(store)
    lancedb.connect(store.table.uri.rpartition("/")[0]).create_table("docs", [{"other": 1}])


def lose_data(store: CompressedTable) -> None:
    shutil.rmtree(Path(store.table.uri) / "data")


def damage_versions(store: CompressedTable) -> None:
    for path in (Path(store.table.uri) / "_versions").iterdir():
        path.write_bytes(b"damage")


@pytest.mark.parametrize("lose", [drop, rename, drop_database])
def test_a_table_that_is_gone(
    store: CompressedTable, tmp_path: Path, lose: Callable[[CompressedTable], None]
) -> None:
    calls = reads(store, tmp_path) | versions(store) | writes(store) | others(store)
    lose(store)
    for name, call in calls.items():
        with pytest.raises(TableError, match=r"was dropped|has no table 'docs'"):
            call()
            pytest.fail(f"{name} went through")
    asyncio.run(all_awaited(AsyncCompressedTable(store)))


async def all_awaited(table: AsyncCompressedTable) -> None:
    for call in (
        lambda: table.add([ROW]),
        lambda: table.delete("id = 1"),
        lambda: table.head(),
        lambda: table.tags.list(),
        lambda: table.tags.create("second", 2),
        lambda: table.list_versions(),
        lambda: table.query().to_list(),
        lambda: table.vector_search(VECTORS[0]).to_list(),
        lambda: table.optimize(progress=False),
        lambda: table.health(),
    ):
        with pytest.raises(TableError, match="was dropped"):
            await call()


@pytest.mark.parametrize("lose", [replace, lose_data, damage_versions])
def test_a_table_that_is_not_what_it_was(
    store: CompressedTable, tmp_path: Path, lose: Callable[[CompressedTable], None]
) -> None:
    calls = reads(store, tmp_path) | versions(store) | writes(store) | others(store)
    lose(store)
    for name, call in calls.items():
        try:
            call()
        except RQMoEError:
            continue
        except Exception as error:
            pytest.fail(f"{name}: {error!r}")


def test_a_table_that_may_not_be_written_to(store: CompressedTable, tmp_path: Path) -> None:
    with read_only(tmp_path / "db"):
        for name, call in writes(store).items():
            with pytest.raises(StorageError, match=r"Read-only file system|Permission denied"):
                call()
                pytest.fail(f"{name} went through")
        for call in reads(store, tmp_path).values():
            call()
    assert store.tags.list().keys() == {"first"} and store.count_rows("id = 1000") == 1


def test_tags_are_told_apart(store: CompressedTable) -> None:
    for call in (store.tags.get_version, store.tags.delete, lambda tag: store.tags.update(tag, 1)):
        with pytest.raises(RQMoEError, match="tag='second'; expected one of first"):
            call("second")
    with pytest.raises(TableError, match="a tag 'first' already"):
        store.tags.create("first", 2)
    for version in (0, 99, True, "first", None):
        with pytest.raises(RQMoEError, match="version"):
            store.tags.create("second", version)  # type: ignore[arg-type]
    store.tags.update("first", 2)
    assert store.tags.get_version("first") == 2
    store.tags.delete("first")
    assert store.tags.list() == {}


def test_errors_that_are_not_lance_s_are_left_as_they_are(store: CompressedTable) -> None:
    class Rows:
        def __iter__(self) -> Any:
            raise ZeroDivisionError("the user's own")

    with pytest.raises(ZeroDivisionError, match="the user's own"):
        store.add(Rows())
