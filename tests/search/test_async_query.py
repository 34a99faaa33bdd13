"""Asynchronous queries give what `CompressedQuery` gives, and leave the event loop free."""

import asyncio
import inspect
import sys
import threading

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from busy_threads import PATIENCE_SECONDS, all_threads_busy, assert_done_by_threads
from hypothesis import given, settings
from hypothesis import strategies as st
from lancedb.arrow import AsyncRecordBatchReader
from lancedb.query import MatchQuery
from lancedb.rerankers import RRFReranker

from rqmoe_store.async_table import (
    AsyncCompressedQuery,
    AsyncCompressedTable,
    AsyncHybridQuery,
    AsyncPlainQuery,
    AsyncTextQuery,
)
from rqmoe_store.errors import InvalidInputError, RQMoEError
from rqmoe_store.search import query as builder

OUTPUTS = ["to_arrow", "to_batches", "to_list", "to_pandas", "to_polars", "explain_plan", "analyze_plan"]


def queries_of(seed: int, count: int) -> np.ndarray:
    queries = np.random.default_rng(seed).normal(size=(count, 16)).astype(np.float32)
    return queries[0] if count == 1 else queries


def asked(world, query=None) -> AsyncCompressedQuery:
    return AsyncCompressedQuery(world.store.search(queries_of(1, 1) if query is None else query))


def public(kind: type) -> dict[str, object]:
    return {name: value for name, value in inspect.getmembers(kind) if not name.startswith("_")}


TWINS = [
    (AsyncCompressedQuery, lancedb.query.AsyncVectorQuery),
    (AsyncTextQuery, lancedb.query.AsyncFTSQuery),
    (AsyncHybridQuery, lancedb.query.AsyncHybridQuery),
    (AsyncPlainQuery, lancedb.query.AsyncQuery),
]


@pytest.mark.parametrize(("ours", "theirs"), TWINS)
def test_coroutines_are_those_of_lancedb(ours, theirs) -> None:
    ours, theirs = public(ours), public(theirs)
    shared = set(ours) & set(theirs)
    assert {"where", "postfilter", "select", "limit", "with_row_id", *OUTPUTS[:5]} <= shared
    for name in shared:
        assert inspect.iscoroutinefunction(ours[name]) == inspect.iscoroutinefunction(theirs[name]), name


@pytest.mark.parametrize("cache", ["memory", "disk"])
@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 4),
    where=st.sampled_from([None, "lang = 'en'", "id >= 480", "id < 0"]),
    after=st.booleans(),
    limit=st.integers(1, 60),
    offset=st.integers(0, 20),
    nprobes=st.integers(1, 4),
)
def test_results_are_those_of_the_other_query(
    worlds, metric, cache, seed, count, where, after, limit, offset, nprobes
) -> None:
    world, query = worlds(metric, 4), queries_of(seed, count)
    sync = world.store.use_cache(cache).search(query)
    ours = asked(world, query)
    for search in (sync, ours):
        search.limit(limit).offset(offset).nprobes(nprobes).with_row_id().select(["text", "id"])
    if where is not None:
        sync.where(where, prefilter=not after)
        ours.where(where)
        if after:
            ours.postfilter()
    assert asyncio.run(ours.to_arrow()).equals(sync.to_arrow())


def test_every_output(world) -> None:
    async def main() -> None:
        query = asked(world, queries_of(2, 3)).where("id > 20").distance_range(None, 30.0).shortlist(90)
        sync = world.store.search(queries_of(2, 3)).where("id > 20").distance_range(None, 30.0).shortlist(90)
        table = sync.to_arrow()
        assert (await query.to_arrow()).equals(table)
        assert await query.to_list() == sync.to_list()
        assert (await query.to_pandas()).equals(sync.to_pandas())
        assert (await query.to_polars()).equals(sync.to_polars())
        assert await query.explain_plan() == sync.explain_plan()
        measured = (await query.analyze_plan()).splitlines()
        assert [line.split("time=")[0] for line in measured] == [
            line.split("time=")[0] for line in sync.analyze_plan().splitlines()
        ]

    asyncio.run(main())


def test_plans_of_text_and_hybrid_queries(text_world) -> None:
    text = text_world.store.search("copper", "fts")
    hybrid = text_world.store.search(query_type="hybrid").vector(queries_of(1, 1)).text("copper")
    for query, twin in ((text, AsyncTextQuery(text)), (hybrid, AsyncHybridQuery(hybrid))):
        assert asyncio.run(twin.explain_plan()) == query.explain_plan()
        measured = asyncio.run(twin.analyze_plan())
        assert len(measured.splitlines()) == len(query.analyze_plan().splitlines())


@pytest.mark.parametrize("length", [None, 1, 7, 1000])
@pytest.mark.parametrize("where", ["id >= 0", "id < 0"])
def test_batches(world, length, where) -> None:
    async def main() -> tuple[AsyncRecordBatchReader, list[pa.RecordBatch]]:
        query = asked(world).where(where).limit(40)
        reader = await query.to_batches(max_batch_length=length)
        return reader, [batch async for batch in reader]

    reader, batches = asyncio.run(main())
    wanted = world.store.search(queries_of(1, 1)).where(where).limit(40)
    assert isinstance(reader, AsyncRecordBatchReader)
    assert pa.Table.from_batches(batches, reader.schema).equals(wanted.to_arrow())
    assert [batch.num_rows for batch in batches] == [batch.num_rows for batch in wanted.to_batches(length)]


@pytest.mark.parametrize("output", OUTPUTS)
def test_the_loop_does_none_of_the_work(world, output) -> None:
    asyncio.run(assert_done_by_threads(getattr(asked(world), output)()))


def test_a_query_may_wait_for_another_task(world, monkeypatch) -> None:
    """The query ends only because a task sets what it waits for: the loop must be free meanwhile."""
    taken, told = builder.take, threading.Event()

    def take_when_told(*arguments: object) -> pa.Table:
        assert told.wait(PATIENCE_SECONDS)
        return taken(*arguments)

    async def tell() -> None:
        told.set()

    async def main() -> pa.Table:
        found, _ = await asyncio.gather(asked(world).to_arrow(), tell())
        return found

    wanted = world.store.search(queries_of(1, 1)).to_arrow()
    monkeypatch.setattr(builder, "take", take_when_told)
    assert asyncio.run(main()).equals(wanted)


def test_options_set_while_a_query_runs_are_for_the_next(world) -> None:
    async def main() -> tuple[pa.Table, pa.Table]:
        query = asked(world).where("id > 20").limit(5)
        async with all_threads_busy():
            running = asyncio.create_task(query.to_arrow())
            await asyncio.sleep(0)
            query.where("id > 400").limit(3).select(["id"])
        return await running, await query.to_arrow()

    search = world.store.search(queries_of(1, 1)).where("id > 20").limit(5)
    wanted = search.to_arrow()
    found, later = asyncio.run(main())
    assert found.equals(wanted)
    assert later.equals(search.where("id > 400").limit(3).select(["id"]).to_arrow())


def test_a_query_made_from_another_has_options_of_its_own(world) -> None:
    search = world.store.search(queries_of(1, 1)).where("id > 20")
    wanted = search.to_arrow()
    AsyncCompressedQuery(search).where("id > 400").limit(2)
    assert search.to_arrow().equals(wanted)


def test_where_after_postfilter_leaves_it_at_that(world) -> None:
    plans = [
        asyncio.run(query.explain_plan()).splitlines()[1].strip()
        for query in (
            asked(world).postfilter().where("id > 20"),
            asked(world).where("id > 20").postfilter(),
        )
    ]
    assert plans == ["Filter: id > 20, of the results"] * 2


def test_a_cancelled_query_leaves_the_next_one_alone(world, monkeypatch) -> None:
    taken, release = builder.take, threading.Event()
    query = asked(world).limit(20)
    wanted = world.store.search(queries_of(1, 1)).limit(20).to_arrow()

    async def main() -> pa.Table:
        loop, begun = asyncio.get_running_loop(), asyncio.Event()

        def take_late(*arguments: object) -> pa.Table:
            loop.call_soon_threadsafe(begun.set)
            assert release.wait(PATIENCE_SECONDS)
            return taken(*arguments)

        monkeypatch.setattr(builder, "take", take_late)
        task = asyncio.create_task(query.to_arrow())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        monkeypatch.setattr(builder, "take", taken)
        beside = await query.to_arrow()
        release.set()
        return beside

    assert asyncio.run(main()).equals(wanted)
    assert asyncio.run(query.to_arrow()).equals(wanted)


@pytest.mark.parametrize(
    "build",
    [
        lambda query: query.limit(10).offset(5).shortlist(14),
        lambda query: query.where("id <"),
        lambda query: query.where("nope = 1"),
        lambda query: query.where("id > 0) OR (1 = 1"),
        lambda query: query.select(["nope"]),
    ],
)
def test_errors_are_those_of_the_other_query(world, build) -> None:
    with pytest.raises(InvalidInputError) as wanted:
        build(world.store.search(queries_of(1, 1))).to_arrow()
    for output in OUTPUTS:
        with pytest.raises(InvalidInputError) as raised:
            asyncio.run(getattr(build(asked(world)), output)())
        assert str(raised.value) == str(wanted.value)


@pytest.mark.parametrize("length", [0, -1, 2.5, True, "all"])
def test_unusable_batch_lengths(world, length) -> None:
    with pytest.raises(InvalidInputError, match="Got max_batch_length="):
        asyncio.run(asked(world).to_batches(max_batch_length=length))


def test_a_missing_package_is_named(world, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(RQMoEError, match="pip install polars"):
        asyncio.run(asked(world).to_polars())


STARTS = {
    "embedded": (AsyncCompressedQuery, lambda table: table.search("copper river")),
    "fts": (AsyncTextQuery, lambda table: table.search("copper river", "fts", fts_columns="text")),
    "structured": (AsyncTextQuery, lambda table: table.search(MatchQuery("copper", "text"))),
    "hybrid": (AsyncHybridQuery, lambda table: table.search("copper river", query_type="hybrid")),
}


@pytest.mark.parametrize(("kind", "start"), STARTS.values(), ids=STARTS.keys())
def test_searches_by_text(text_world, kind, start) -> None:
    async def main() -> None:
        query = await assert_done_by_threads(start(AsyncCompressedTable(text_world.store)))
        assert type(query) is kind
        query.where("id > 20").limit(7).with_row_id()
        sync = start(text_world.store).where("id > 20").limit(7).with_row_id()
        assert (await assert_done_by_threads(query.to_arrow())).equals(sync.to_arrow())
        assert await query.to_list() == sync.to_list()
        assert (await query.to_pandas()).equals(sync.to_pandas())
        assert (await query.to_polars()).equals(sync.to_polars())
        assert await (await query.to_batches()).read_all() == sync.to_arrow().to_batches()
        sync.where("id < 200", prefilter=False)
        assert (await query.postfilter().where("id < 200").to_arrow()).equals(sync.to_arrow())

    asyncio.run(main())


def test_options_of_searches_by_text(text_world) -> None:
    async def main() -> None:
        table, vector = AsyncCompressedTable(text_world.store), text_world.vectors[3]
        query = (await table.search(query_type="hybrid")).vector(vector).text("copper").nprobes(1)
        before = text_world.store.search(query_type="hybrid").vector(vector).text("copper").nprobes(1)
        wanted = before.to_arrow()
        async with all_threads_busy():
            running = asyncio.create_task(query.to_arrow())
            await asyncio.sleep(0)
            query.nprobes(4).distance_range(None, 0.1).rerank(RRFReranker(return_score="all"))
        assert (await running).equals(wanted)
        after = before.nprobes(4).distance_range(None, 0.1).rerank(RRFReranker(return_score="all"))
        assert (await query.to_arrow()).equals(after.to_arrow())
        with pytest.raises(InvalidInputError, match="hybrid query without text"):
            await (await table.search(query_type="hybrid")).vector(vector).to_arrow()

    asyncio.run(main())


def test_vector_search_embeds_nothing(text_world) -> None:
    with pytest.raises(InvalidInputError, match=r"Await search\("):
        AsyncCompressedTable(text_world.store).vector_search("copper")
