"""`AsyncCompressedTable`: storing and searching without keeping an event loop waiting, and how to get one."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

import lancedb
import pyarrow as pa
from lancedb.db import AsyncConnection, DBConnection
from lancedb.query import FullTextQuery

from rqmoe_store.async_lifecycle import AsyncLifecycle
from rqmoe_store.async_rows import AsyncRows
from rqmoe_store.codecs.base import Codec
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.search.async_query import (
    AsyncCompressedQuery,
    AsyncHybridQuery,
    AsyncPlainQuery,
    AsyncTextQuery,
    as_async,
)
from rqmoe_store.search.dispatch import QueryType, is_content
from rqmoe_store.search.hybrid import HybridQuery
from rqmoe_store.search.plain import PlainQuery
from rqmoe_store.search.query import CompressedQuery
from rqmoe_store.search.source import Cache
from rqmoe_store.search.text import TextQuery
from rqmoe_store.search.threads import in_thread
from rqmoe_store.store import databases
from rqmoe_store.store.statistics import TableStats
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import open_table

_NOT_ON_DISK = ("memory:", "db:")


class AsyncCompressedTable(AsyncRows, AsyncLifecycle):
    """A compressed table with the calls of LanceDB's `AsyncTable`, for event loops.

    Made by `open_table_async`, or from a `CompressedTable` that is open already. Work is done in threads
    of this package's own; any number of calls may be awaited at once, from any loop.

    A call that is cancelled leaves the table as usable as before. If no thread has taken it up yet, it is
    never done; otherwise it goes on to its end without its caller, so that an `add` or `delete` that has
    begun is still done, all of it or, when it fails, none.
    """

    def __init__(self, table: CompressedTable) -> None:
        self.blocking = table
        """The same table for everything else; its calls wait until they are done."""

    @property
    def name(self) -> str:
        """Name of the table."""
        return self.blocking.name

    @property
    def codec(self) -> Codec:
        """Encodes and decodes the vectors of this table."""
        return self.blocking.codec

    async def version(self) -> int:
        """Version of the table; grows with every change."""
        return await in_thread(lambda: self.blocking.version)

    async def schema(self) -> pa.Schema:
        """The user's columns: the table's schema without codes, partitions and our metadata."""
        return await in_thread(lambda: self.blocking.schema)

    async def stats(self) -> TableStats:
        """Rows, bytes and quality of this table, measured now."""
        return await in_thread(self.blocking.stats)

    @overload
    async def search(
        self,
        query: None = None,
        query_type: Literal["auto"] = "auto",
        *,
        vector_column_name: str | None = None,
    ) -> AsyncPlainQuery: ...

    @overload
    async def search(
        self,
        query: FullTextQuery,
        query_type: Literal["auto"] = "auto",
        fts_columns: str | Sequence[str] | None = None,
        *,
        vector_column_name: str | None = None,
    ) -> AsyncTextQuery: ...

    @overload
    async def search(
        self,
        query: Any,
        query_type: Literal["fts"],
        fts_columns: str | Sequence[str] | None = None,
        *,
        vector_column_name: str | None = None,
    ) -> AsyncTextQuery: ...

    @overload
    async def search(
        self,
        query: str | None = None,
        *,
        query_type: Literal["hybrid"],
        fts_columns: str | Sequence[str] | None = None,
        vector_column_name: str | None = None,
    ) -> AsyncHybridQuery: ...

    @overload
    async def search(
        self,
        query: Any,
        query_type: Literal["auto", "vector"] = "auto",
        *,
        vector_column_name: str | None = None,
    ) -> AsyncCompressedQuery: ...

    async def search(
        self,
        query: Any = None,
        query_type: QueryType = "auto",
        fts_columns: str | Sequence[str] | None = None,
        *,
        vector_column_name: str | None = None,
    ) -> AsyncCompressedQuery | AsyncTextQuery | AsyncHybridQuery | AsyncPlainQuery:
        """Start a query; as with LanceDB, this is awaited too, for text may have to be embedded.

            await (await table.search("some text")).limit(10).to_pandas()

        Args:
            query, query_type, fts_columns, vector_column_name: as for `CompressedTable.search`, which tells
                what it raises.
        """
        start: Callable[..., CompressedQuery | TextQuery | HybridQuery | PlainQuery] = self.blocking.search
        started = functools.partial(
            start, query, query_type, fts_columns, vector_column_name=vector_column_name
        )
        return as_async(await in_thread(started))

    def query(self) -> AsyncPlainQuery:
        """Start a plain read of all rows that match, in the order of the table.

        await table.query().where("lang = 'en'").select(["id", "text"]).limit(10).to_list()
        """
        return as_async(self.blocking.search())

    def vector_search(self, query: Any) -> AsyncCompressedQuery:
        """Start a nearest-neighbour query; options follow as in LanceDB, then an awaited output.

            await table.vector_search(vector).where("lang = 'en'").limit(10).to_pandas()

        Args:
            query: one vector (D,) or a batch (Q, D): list, array or tensor that casts to float32. A
                batch of several vectors gives a column `query_index`.

        Raises:
            InvalidInputError: another dimension, NaN or infinite values, a zero vector under cosine,
                an empty batch, or text, which `search` takes.
        """
        if is_content(query):
            raise InvalidInputError(
                f"Got {query!r} for vector_search; expected a vector. Await search(...), which embeds what "
                "is no vector."
            )
        return as_async(self.blocking.search(query, "vector"))

    async def create_fts_index(
        self, columns: str | Sequence[str], *, replace: bool = False, exist_ok: bool = False, **options: Any
    ) -> None:
        """Make LanceDB's full-text index on columns of text. Takes and raises what
        `CompressedTable.create_fts_index` does."""
        create = functools.partial(
            self.blocking.create_fts_index, columns, replace=replace, exist_ok=exist_ok, **options
        )
        await in_thread(create)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.blocking._described})"


async def open_table_async(
    db: AsyncConnection | DBConnection,
    name: str,
    *,
    cache: Cache = "memory",
    memory_budget: int | None = None,
) -> AsyncCompressedTable:
    """Open the compressed table `name` for use in event loops; its codec is read from the same database.

    Args:
        db: the database, as opened by `lancedb.connect_async` or `lancedb.connect`.
        name: the table.
        cache, memory_budget: where searches read codes; see `CompressedTable.use_cache`.

    Raises:
        TableNotFoundError: no such table.
        TableError: not a compressed one.
        ArtefactError: its codec is not in the database, is damaged, or is another one.
        InvalidInputError: not a connection, an unknown `cache`, or a budget that is not a number of bytes.
    """
    databases.require_table_name(name)
    if isinstance(db, AsyncConnection):
        db = await _blocking(db, name)
    elif not isinstance(db, DBConnection):
        raise InvalidInputError(
            f"Got {db!r} as the database; expected what lancedb.connect(...) or await "
            "lancedb.connect_async(...) returns."
        )
    opened = functools.partial(open_table, db, name, cache=cache, memory_budget=memory_budget)
    return AsyncCompressedTable(await in_thread(opened))


async def _blocking(db: AsyncConnection, name: str) -> DBConnection:
    """A connection for threads to the database of `db`."""
    if db.uri.startswith(_NOT_ON_DISK):
        raise TableError(
            f"Got {db.uri!r} as the database; expected one in a folder or bucket, as opened by "
            "lancedb.connect_async(<folder or bucket>)."
        )
    try:
        # LanceDB tells what the storage was opened with for tables alone.
        options = await (await db.open_table(name)).initial_storage_options()
    except ValueError as error:
        if "was not found" not in str(error):
            raise
        raise databases.no_such_table(db.uri, name) from error
    interval = await db.get_read_consistency_interval()
    return await in_thread(
        functools.partial(
            lancedb.connect, db.uri, storage_options=options, read_consistency_interval=interval
        )
    )
