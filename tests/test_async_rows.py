"""The awaited methods on rows, columns and versions: the same as those that are not awaited."""

import asyncio
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pytest
from lancedb.table import AsyncTable
from small_tables import source_table, tiny_codec

from rqmoe_store.async_table import AsyncCompressedTable, AsyncRows
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import compress

ROWS, DIM = 100, 8
VECTORS = np.random.default_rng(7).normal(size=(ROWS, DIM)).astype(np.float32)


@pytest.fixture
def table(tmp_path: Path) -> AsyncCompressedTable:
    docs = lancedb.connect(tmp_path).create_table("docs", source_table(VECTORS))
    store = compress(docs, tiny_codec(VECTORS, "l2", 0), "small", progress=False)
    return AsyncCompressedTable(store)


SYNC_ONLY = {"open", "refresh", "use_cache", "use_shards", "allow_pickling", "is_due_for_training"}


def test_every_method_has_its_twin() -> None:
    methods = {name for name, _ in inspect.getmembers(CompressedTable, inspect.isfunction)}
    assert {name for name in methods if not name.startswith("_")} - SYNC_ONLY <= set(
        dir(AsyncCompressedTable)
    )


@pytest.mark.parametrize(
    "name",
    ["add", "update", "delete", "count_rows", "head", "merge_insert", "create_scalar_index", "restore"],
)
def test_the_arguments_of_lancedbs_methods_are_taken(name: str) -> None:
    """As far as they are there; LanceDB's table has no `create_scalar_index` for event loops."""
    theirs = getattr(AsyncTable, name, None) or getattr(lancedb.table.LanceTable, name)
    mine = inspect.signature(getattr(AsyncRows, name)).parameters
    left_out = {"data", "progress", "write_parallelism", "allow_external_blob_outside_bases"}
    assert set(inspect.signature(theirs).parameters) - left_out <= set(mine)


def new(*ids: int) -> list[dict[str, Any]]:
    return [{"id": row, "lang": "fr", "text": "new", "vector": VECTORS[0]} for row in ids]


def test_rows(table: AsyncCompressedTable) -> None:
    async def work() -> None:
        bad = [{"id": 1002, "vector": [float("nan")] * DIM}]
        assert await table.add([*new(1000, 1001), *bad], on_bad_vectors="drop") == 2
        merge = table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
        merged = await merge.execute(new(1, 2000))
        assert (merged.num_updated_rows, merged.num_inserted_rows) == (1, 1)
        assert (await table.update({"lang": "it"}, where="id = 2")).rows_updated == 1
        assert (await table.update(where="id = 2", updates_sql={"text": "lang || '!'"})).rows_updated == 1
        assert await table.count_rows("lang = 'fr'") == 4
        assert await table.delete("lang = 'fr'") == 4
        (row,) = [row for row in (await table.head(500)).to_pylist() if row["id"] == 2]
        assert row == {"id": 2, "lang": "it", "text": "it!"}
        with pytest.raises(InvalidInputError, match="unknown: color"):
            await merge.execute([{**new(1)[0], "color": "red"}])

    asyncio.run(work())


def test_columns(table: AsyncCompressedTable) -> None:
    async def work() -> None:
        await table.add_columns({"double": "2 * id", "gone": "1"})
        await table.drop_columns(["gone"])
        await table.alter_columns({"path": "double", "rename": "twice"})
        await table.create_scalar_index("twice", index_type="BITMAP")
        assert await table.key() is None
        await table.set_key("id")
        assert await table.key() == "id"
        assert (await table.schema()).names == ["id", "lang", "text", "twice"]
        assert await table.count_rows("twice = 14") == 1

    asyncio.run(work())


def test_versions(table: AsyncCompressedTable) -> None:
    async def work() -> None:
        first = await table.version()
        await table.tags.create("before", first)
        await table.tags.create("other", first)
        await table.tags.delete("other")
        await table.add(new(1000))
        await table.checkout("before")
        assert await table.count_rows() == ROWS
        with pytest.raises(TableError, match="checked out"):
            await table.add(new(1001))
        await table.checkout_latest()
        assert await table.count_rows() == ROWS + 1
        await table.tags.update("before", first + 1)
        assert await table.tags.get_version("before") == first + 1
        assert {name: tag["version"] for name, tag in (await table.tags.list()).items()} == {
            "before": first + 1
        }
        await table.restore(first)
        assert await table.count_rows() == ROWS
        assert len(await table.list_versions()) == await table.version()

    asyncio.run(work())


@pytest.mark.parametrize(
    "write",
    [
        lambda table, row: table.add(new(1000 + row)),
        lambda table, row: table.update({"lang": "it"}, where=f"id = {row}"),
        lambda table, row: table.merge_insert("id").when_not_matched_insert_all().execute(new(1000 + row)),
        lambda table, row: table.delete(f"id = {row}"),
    ],
)
def test_several_at_once(
    table: AsyncCompressedTable, write: Callable[[AsyncCompressedTable, int], Any]
) -> None:
    async def work() -> None:
        await asyncio.gather(*(write(table, row) for row in range(6)))

    asyncio.run(work())
    blocking = table.blocking
    found = blocking.table.search().limit(None).to_arrow()
    changed = blocking.count_rows("id >= 1000 OR lang = 'it'") + ROWS - blocking.count_rows("id < 1000")
    assert changed == 6 and len(set(found["id"].to_pylist())) == found.num_rows


def test_indexes(table: AsyncCompressedTable) -> None:
    async def work() -> None:
        await table.create_scalar_index("id")
        (name,) = [index.name for index in await table.list_indices() if index.columns == ["id"]]
        statistics = await table.index_stats(name)
        assert statistics is not None and statistics.num_indexed_rows == await table.count_rows()
        await table.drop_index(name)
        assert [index for index in await table.list_indices() if index.columns == ["id"]] == []

    asyncio.run(work())
