"""Queries for event loops: the options of the others, and coroutines for what they do at once."""

import asyncio
import concurrent.futures
import contextvars
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

import pyarrow as pa
from lancedb.arrow import AsyncRecordBatchReader

from rqmoe_store.search.hybrid import HybridQuery, HybridQueryBuilder
from rqmoe_store.search.plain import PlainQuery, PlainQueryBuilder
from rqmoe_store.search.query import CompressedQuery, QueryBuilder, TableQuery, TableQueryBuilder
from rqmoe_store.search.request import batch_length
from rqmoe_store.search.text import TextQuery, TextQueryBuilder

MAX_THREADS = min(32, (os.cpu_count() or 1) + 4)
"""Calls that run at the same time; more wait for their turn. Some of them wait for storage, so there are
more than cores."""

_Result = TypeVar("_Result")


def _new_threads() -> concurrent.futures.ThreadPoolExecutor:
    # Not the loop's own executor: what users run there could take all of its threads.
    return concurrent.futures.ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="rqmoe-async")


_threads = _new_threads()  # none is started before there is work


async def in_thread(work: Callable[[], _Result]) -> _Result:
    """What `work` returns or raises, done in a thread of this process with the caller's context variables.

    Cancelled before a thread has taken it up, it is never done; after that it goes on to its end, and
    what comes out of it is dropped.
    """
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(_threads, context.run, work)


def _renew_threads() -> None:
    global _threads
    _threads = _new_threads()


if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
    os.register_at_fork(after_in_child=_renew_threads)  # a forked process has none of its parent's threads


if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

_Query = TypeVar("_Query", bound=TableQueryBuilder)


class AsyncTableQuery(TableQueryBuilder, ABC):
    """A query that is run by awaiting a `to_...` method.

    Options set while it runs are for its next run. To give up on it cancel what awaits it, as
    `asyncio.timeout` does.
    """

    @abstractmethod
    def _now(self) -> TableQuery:
        """The query with the options that it has at this moment, to be run by a thread."""

    def postfilter(self) -> Self:
        """Take the rows that match `where` out of those found without it, instead of filtering first."""
        self._prefilter = False
        return self

    async def to_arrow(self) -> pa.Table:
        """Run the query. Returns and raises what the query without coroutines does."""
        return await in_thread(self._now().to_arrow)

    async def to_batches(self, *, max_batch_length: int | None = None) -> AsyncRecordBatchReader:
        """Run the query; its rows in batches, to be read with `async for`.

            async for batch in await query.to_batches(max_batch_length=1000): ...

        Args:
            max_batch_length: rows per batch at most; None for no such limit.

        Raises as `to_arrow`, and InvalidInputError for a length below 1.
        """
        length = batch_length(max_batch_length)
        return AsyncRecordBatchReader(await self.to_arrow(), length)

    async def to_list(self) -> list[dict[str, Any]]:
        """Run the query; one dict per row. Raises as `to_arrow`."""
        return await in_thread(self._now().to_list)

    async def to_pandas(self) -> "pd.DataFrame":
        """Run the query into a pandas frame. Raises as `to_arrow`, RQMoEError without pandas."""
        return await in_thread(self._now().to_pandas)

    async def to_polars(self) -> "pl.DataFrame":
        """Run the query into a polars frame. Raises as `to_arrow`, RQMoEError without polars."""
        return await in_thread(self._now().to_polars)


class AsyncPlannedQuery(AsyncTableQuery):
    """A query that tells what it does, awaited."""

    async def explain_plan(self) -> str:
        """The stages that the query would go through, the last one first. Raises as `to_arrow`."""
        return await in_thread(self._now().explain_plan)

    async def analyze_plan(self) -> str:
        """Run the query: its stages with the rows that came out of each and the time it took. Raises as
        `to_arrow`."""
        return await in_thread(self._now().analyze_plan)

    @abstractmethod
    def _now(self) -> CompressedQuery | TextQuery | HybridQuery:
        """The same query, to be run at once."""


class AsyncCompressedQuery(QueryBuilder, AsyncPlannedQuery):
    """A `CompressedQuery` for event loops: the same options, and the same results when awaited."""

    def _now(self) -> CompressedQuery:
        return _copied(self, CompressedQuery)


class AsyncTextQuery(TextQueryBuilder, AsyncPlannedQuery):
    """A `TextQuery` for event loops: the same options, and the same results when awaited."""

    def _now(self) -> TextQuery:
        return _copied(self, TextQuery)


class AsyncHybridQuery(HybridQueryBuilder, AsyncPlannedQuery):
    """A `HybridQuery` for event loops: the same options, and the same results when awaited."""

    def _now(self) -> HybridQuery:
        return _copied(self, HybridQuery)


class AsyncPlainQuery(PlainQueryBuilder, AsyncTableQuery):
    """A `PlainQuery` for event loops: the same options, and the same results when awaited."""

    def _now(self) -> PlainQuery:
        return _copied(self, PlainQuery)


@overload
def as_async(query: CompressedQuery) -> AsyncCompressedQuery: ...


@overload
def as_async(query: TextQuery) -> AsyncTextQuery: ...


@overload
def as_async(query: HybridQuery) -> AsyncHybridQuery: ...


@overload
def as_async(query: PlainQuery) -> AsyncPlainQuery: ...


def as_async(
    query: CompressedQuery | TextQuery | HybridQuery | PlainQuery,
) -> AsyncCompressedQuery | AsyncTextQuery | AsyncHybridQuery | AsyncPlainQuery:
    """The same query for event loops."""
    if isinstance(query, CompressedQuery):
        return _copied(query, AsyncCompressedQuery)
    if isinstance(query, TextQuery):
        return _copied(query, AsyncTextQuery)
    if isinstance(query, PlainQuery):
        return _copied(query, AsyncPlainQuery)
    return _copied(query, AsyncHybridQuery)


def _copied(query: TableQueryBuilder, kind: type[_Query]) -> _Query:
    """A query of another kind with the same options."""
    copy = kind.__new__(kind)
    vars(copy).update(vars(query))
    return copy
