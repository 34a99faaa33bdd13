"""The table for event loops: opening, rows, columns, versions, writing beside searching, failing."""

import asyncio
import inspect
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from busy_threads import PATIENCE_SECONDS, all_threads_busy, assert_done_by_threads
from small_tables import source_table, tiny_codec

from rqmoe_store.async_table import AsyncCompressedTable
from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import compress, create_table, open_table, open_table_async
from rqmoe_store.threads import MAX_THREADS

DIM, ROWS = 16, 300
VECTORS = np.random.default_rng(3).normal(size=(ROWS, DIM)).astype(np.float32)
TRAINING = TrainConfig(epochs=0, progress=False)


@pytest.fixture
def sync(tmp_path: Path) -> CompressedTable:
    db = lancedb.connect(tmp_path)
    docs = db.create_table("docs", source_table(VECTORS))
    return compress(docs, tiny_codec(VECTORS, "l2", 4), "small", progress=False)


@pytest.fixture
def table(sync: CompressedTable) -> AsyncCompressedTable:
    return AsyncCompressedTable(sync)


def row(number: int, vector: object = VECTORS[0]) -> dict[str, object]:
    return {"id": number, "lang": "en", "text": f"text {number}", "vector": vector}


def new(*ids: int) -> list[dict[str, Any]]:
    return [{"id": row, "lang": "fr", "text": "new", "vector": VECTORS[0]} for row in ids]


def ids_of(found: pa.Table) -> list[int]:
    ids: list[int] = found["id"].to_pylist()
    return ids


async def stored_ids(table: AsyncCompressedTable) -> list[int]:
    return sorted(ids_of(await table.vector_search(VECTORS[0]).nprobes(4).limit(10_000).to_arrow()))


@pytest.mark.parametrize("connect", [lancedb.connect, lancedb.connect_async])
@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_open(sync, tmp_path, connect, cache) -> None:
    async def main() -> None:
        db = connect(tmp_path)
        table = await open_table_async(await db if inspect.isawaitable(db) else db, "small", cache=cache)
        assert isinstance(table, AsyncCompressedTable) and table.name == "small"
        assert table.codec.fingerprint == sync.codec.fingerprint
        found = await table.vector_search(VECTORS[:3]).limit(5).to_arrow()
        assert found.equals(sync.search(VECTORS[:3]).limit(5).to_arrow())
        again = await (await table.search(VECTORS[:3])).limit(5).to_arrow()
        assert again.equals(found)
        plan = await table.vector_search(VECTORS[0]).explain_plan()
        assert f", {cache}, " in plan

    asyncio.run(main())


def test_open_within_a_budget(sync, tmp_path) -> None:
    async def main() -> str:
        db = await lancedb.connect_async(tmp_path)
        table = await open_table_async(db, "small", memory_budget=ROWS)
        return await table.vector_search(VECTORS[0]).explain_plan()

    assert ", disk, " in asyncio.run(main())


@pytest.mark.parametrize("connect", [lancedb.connect, lancedb.connect_async])
@pytest.mark.parametrize(
    ("name", "options", "error", "reason"),
    [
        ("nope", {}, TableError, "has no table 'nope'"),
        ("docs", {}, TableError, "not a compressed table"),
        ("bad name!", {}, InvalidInputError, "cannot be a table name"),
        ("small", {"cache": "ram"}, InvalidInputError, "Got cache='ram'"),
        ("small", {"memory_budget": -1}, InvalidInputError, "Got memory_budget=-1"),
    ],
)
def test_what_cannot_be_opened(sync, tmp_path, connect, name, options, error, reason) -> None:
    with pytest.raises(error, match=reason) as wanted:
        open_table(lancedb.connect(tmp_path), name, **options)

    async def main() -> None:
        db = connect(tmp_path)
        await open_table_async(await db if inspect.isawaitable(db) else db, name, **options)

    with pytest.raises(error) as raised:
        asyncio.run(main())
    assert str(raised.value) == str(wanted.value)


def test_databases_without_compressed_tables(tmp_path) -> None:
    async def main(db: object) -> None:
        await open_table_async(await db if inspect.isawaitable(db) else db, "small")  # type: ignore[arg-type]

    with pytest.raises(TableError, match="expected one in a folder or bucket"):
        asyncio.run(main(lancedb.connect_async("memory://")))
    with pytest.raises(TableError, match="expected one in a folder or bucket"):
        asyncio.run(main(lancedb.connect_async("db://cloud", api_key="none")))
    with pytest.raises(InvalidInputError, match=r"lancedb\.connect_async"):
        asyncio.run(main(str(tmp_path)))


def test_a_full_text_index(table) -> None:
    async def main() -> list[dict[str, object]]:
        with pytest.raises(InvalidInputError, match="unknown option 'nope'"):
            await table.create_fts_index("text", nope=1)
        await assert_done_by_threads(table.create_fts_index("text", stem=False))
        with pytest.raises(TableError, match="set replace=True"):
            await table.create_fts_index("text")
        await table.create_fts_index(["text"], replace=True)
        return await (await table.search("17", "fts")).to_list()

    assert [found["id"] for found in asyncio.run(main())] == [17]


@pytest.mark.parametrize(
    "call",
    [
        lambda table: table.update({"lang": "it"}, where="id = 2"),
        lambda table: table.merge_insert("id").when_not_matched_insert_all().execute(new(1000)),
        lambda table: table.tags.create("first", 1),
        lambda table: open_table_async(
            lancedb.connect(Path(table.blocking.table.uri).parent), table.blocking.name
        ),
    ],
)
def test_the_loop_does_none_of_the_work(table, call) -> None:
    asyncio.run(assert_done_by_threads(call(table)))


def test_the_handle_outlives_a_loop_and_serves_several(table) -> None:
    answers: list[list[int]] = []

    def ask() -> None:
        answers.append(asyncio.run(stored_ids(table)))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [list(range(ROWS))] * 4


def test_many_queries_beside_adds_and_deletes(table) -> None:
    """Every answer is one that some version of the table gives; nothing written is lost."""

    async def ask(number: int) -> None:
        for _ in range(2):
            found = (
                await table.vector_search(VECTORS[number]).nprobes(4).limit(1000).select(["id"]).to_arrow()
            )
            ids = ids_of(found)
            assert len(ids) == len(set(ids))
            assert set(range(50, ROWS)) <= set(ids)
            for writer in range(3):
                new = sorted(row for row in ids if row // 1000 == writer + 1)
                assert new == [1000 * (writer + 1) + step for step in range(len(new))]

    async def write(writer: int) -> None:
        for step in range(4):
            assert await table.add([row(1000 * (writer + 1) + step)]) == 1
            assert await table.delete(f"id = {10 * writer + step}") == 1

    async def main() -> None:
        queries = [ask(number) for number in range(50)]
        await asyncio.gather(*queries[:5], *(write(writer) for writer in range(3)), *queries[5:])

    asyncio.run(main())
    deleted = {10 * writer + step for writer in range(3) for step in range(4)}
    added = [1000 * writer + step for writer in (1, 2, 3) for step in range(4)]
    assert asyncio.run(stored_ids(table)) == sorted({*range(ROWS), *added} - deleted)


def test_rows_may_wait_for_another_task(table) -> None:
    """The rows come only because a task lets them: the loop must be free meanwhile."""
    told = threading.Event()

    def rows() -> Iterator[list[dict[str, object]]]:
        assert told.wait(PATIENCE_SECONDS)
        yield [row(1000)]

    async def tell() -> None:
        told.set()

    async def main() -> int:
        added, _ = await asyncio.gather(table.add(rows()), tell())
        return added

    assert asyncio.run(main()) == 1


def test_rows_may_be_read_with_blocking_calls_by_all_threads(sync, table, tmp_path) -> None:
    docs = lancedb.connect(tmp_path).open_table("docs")

    def rows(number: int) -> Iterator[pa.Table]:
        assert sync.count_rows() >= ROWS and len(sync.search(VECTORS[0]).to_list()) == 10
        yield docs.search().where(f"id = {number}").to_arrow()

    async def main() -> list[int]:
        return await asyncio.gather(*(table.add(rows(number)) for number in range(MAX_THREADS + 3)))

    assert asyncio.run(main()) == [1] * (MAX_THREADS + 3)
    assert sync.count_rows() == ROWS + MAX_THREADS + 3


def test_an_add_that_fails_writes_nothing(table) -> None:
    def rows() -> Iterator[list[dict[str, object]]]:
        yield [row(1000)]
        yield [row(1001, [float("nan")] * DIM)]

    with pytest.raises(InvalidInputError, match="NaN"):
        asyncio.run(table.add(rows()))
    assert asyncio.run(stored_ids(table)) == list(range(ROWS))


def test_an_add_cancelled_before_its_turn_writes_nothing(table) -> None:
    async def main() -> None:
        async with all_threads_busy():
            task = asyncio.create_task(table.add([row(1000)]))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert await stored_ids(table) == list(range(ROWS))
        assert await table.add([row(1001)]) == 1

    asyncio.run(main())
    assert asyncio.run(stored_ids(table)) == [*range(ROWS), 1001]


def test_an_add_cancelled_after_it_began_is_done_whole(table) -> None:
    release = threading.Event()

    async def main() -> None:
        loop, begun = asyncio.get_running_loop(), asyncio.Event()

        def rows() -> Iterator[list[dict[str, object]]]:
            yield [row(1000)]
            loop.call_soon_threadsafe(begun.set)
            assert release.wait(PATIENCE_SECONDS)
            yield [row(1001)]

        task = asyncio.create_task(table.add(rows()))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await stored_ids(table) == list(range(ROWS))
        release.set()
        async with all_threads_busy():  # the one that adds takes part once it has come to its end
            pass
        assert await stored_ids(table) == [*range(ROWS), 1000, 1001]

    asyncio.run(main())


@pytest.mark.parametrize("awaited", [True, False])
@pytest.mark.parametrize(
    ("query", "reason"),
    [
        (np.zeros(DIM + 1), f"dimension {DIM + 1}; expected {DIM}"),
        ([float("nan")] * DIM, "NaN"),
        (np.zeros((0, DIM)), "empty batch"),
        ("some text", "expected a vector|Pass a vector"),
    ],
)
def test_unusable_queries(table, awaited, query, reason) -> None:
    with pytest.raises(InvalidInputError, match=reason):
        asyncio.run(table.search(query)) if awaited else table.vector_search(query)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda table: table.count_rows("nope = 1"), "nope"),
        (lambda table: table.delete("id <"), "LanceDB refuses"),
        (lambda table: table.delete(3), "Got where=3"),
        (lambda table: table.add([{"id": 1, "other": 2}]), "unknown: other"),
        (lambda table: table.add([row(1, VECTORS[0][:5])]), "another dimension than the codec's 16"),
    ],
)
def test_unusable_arguments(table, call, reason) -> None:
    with pytest.raises(InvalidInputError, match=reason):
        asyncio.run(call(table))
    assert asyncio.run(table.count_rows()) == ROWS


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_a_dropped_table(sync, table, tmp_path, cache) -> None:
    sync.use_cache(cache)
    query = table.vector_search(VECTORS[0])
    assert asyncio.run(query.to_arrow()).num_rows == 10
    lancedb.connect(tmp_path).drop_table("small")
    with pytest.raises(TableError, match="'small' is no longer in"):
        asyncio.run(query.to_arrow())
    assert repr(table) == "AsyncCompressedTable('small', dim 16 as 4 code bytes, rq, metric 'l2')"


def test_rows_are_written_and_read(table: AsyncCompressedTable) -> None:
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


def test_a_table_lives_in_an_event_loop(tmp_path):
    rows = [{"id": number, "vector": vector} for number, vector in enumerate(VECTORS)]
    config = CodecConfig(kind="rq", code_bytes=4, codebook_size=16)
    store = AsyncCompressedTable(create_table(lancedb.connect(tmp_path), "docs", rows, config=config))

    async def live() -> None:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        codec = await store.train(TRAINING, progress=False)
        before = ticks
        assert before > 10  # the loop went on while the codec was trained
        assert (await store.retrain(TRAINING, vectors=VECTORS, progress=False)).dim == codec.dim
        assert store.encoding is None
        await store.retrain(TRAINING, vectors=VECTORS, encode="background", progress=False)
        assert store.encoding is not None
        assert (await store.encoding.wait()).rows == len(rows)
        again = await store.encode_in_background()
        await again.stop()
        assert (await again.wait(timeout=60)).rows == again.blocking.rows_left == 0
        assert (await store.optimize(progress=False)).raw_rows == 0
        assert not (await store.health()).needs_retraining
        assert (await store.tune(VECTORS[:5], target_recall=0.5, progress=False)).recall >= 0.5
        assert (await store.verify(progress=False)).ok
        assert (await store.export(tmp_path / "docs.parquet", progress=False)).rows == len(rows)
        ticking.cancel()

    asyncio.run(live())
