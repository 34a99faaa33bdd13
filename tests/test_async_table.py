"""The table for event loops: opening, writing beside searching, cancelling, failing."""

import asyncio
import inspect
import threading
from collections.abc import Iterator
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from busy_threads import PATIENCE_SECONDS, all_threads_busy, assert_done_by_threads
from small_tables import source_table, tiny_codec

from rqmoe_store.async_table import AsyncCompressedTable, open_table_async
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.search.async_query import MAX_THREADS
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import compress, open_table

DIM, ROWS = 16, 300
VECTORS = np.random.default_rng(3).normal(size=(ROWS, DIM)).astype(np.float32)


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


def test_names_and_coroutines_are_those_of_lancedb() -> None:
    own = {"codec", "create_fts_index", "create_scalar_index", "train", "retrain", "health", "tune", "export"}
    own |= {"verify", "key", "set_key", "encode_in_background", "encoding"}
    for name, ours in inspect.getmembers(AsyncCompressedTable):
        if not name.startswith("_") and name not in own:
            theirs = getattr(lancedb.AsyncTable, name)
            assert inspect.iscoroutinefunction(ours) == inspect.iscoroutinefunction(theirs), name
            assert isinstance(ours, property) == isinstance(theirs, property), name


def test_answers_are_those_of_the_other_table(sync, table) -> None:
    async def main() -> None:
        assert await table.schema() == sync.schema
        assert await table.version() == sync.version
        assert await table.count_rows() == ROWS
        assert await table.count_rows("id < 7") == 7
        assert await table.stats() == sync.stats()
        assert await table.add([row(1000), row(1001, None)]) == 2
        assert await table.delete("id < 5") == 5
        assert await table.version() == sync.version
        assert await table.count_rows() == sync.count_rows() == ROWS - 3

    asyncio.run(main())
    assert asyncio.run(stored_ids(table)) == [*range(5, ROWS), 1000]


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


CALLS = {
    "version": lambda table: table.version(),
    "schema": lambda table: table.schema(),
    "count_rows": lambda table: table.count_rows(),
    "stats": lambda table: table.stats(),
    "add": lambda table: table.add([row(1000)]),
    "delete": lambda table: table.delete("id = 3"),
    "search": lambda table: table.search(VECTORS[:2]),
    "open": lambda table: open_table_async(lancedb.connect(Path(table.blocking.table.uri).parent), "small"),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_the_loop_does_none_of_the_work(table, call) -> None:
    async def main() -> None:
        await assert_done_by_threads(call(table))

    asyncio.run(main())


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
