"""`AsyncCompressedTable`: storing and searching without keeping an event loop waiting, and how to get one."""

import asyncio
import datetime
import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, overload

import lancedb
import pyarrow as pa
from lancedb.db import AsyncConnection, DBConnection
from lancedb.expr import Expr
from lancedb.index import IndexConfig
from lancedb.query import FullTextQuery
from lancedb.table import IndexStatistics

from rqmoe_store.codecs.base import Codec
from rqmoe_store.config import TrainConfig
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.exports.run import ExportReport
from rqmoe_store.lifecycle import OptimizeReport
from rqmoe_store.search.async_query import (
    AsyncCompressedQuery,
    AsyncHybridQuery,
    AsyncPlainQuery,
    AsyncTextQuery,
    as_async,
    in_thread,
)
from rqmoe_store.search.hybrid import HybridQuery
from rqmoe_store.search.plain import PlainQuery
from rqmoe_store.search.query import CompressedQuery
from rqmoe_store.search.source import Cache
from rqmoe_store.search.text import QueryType, TextQuery, is_content
from rqmoe_store.search.tuning import TuningReport
from rqmoe_store.store import databases
from rqmoe_store.store.health import HealthReport
from rqmoe_store.store.merge import MergeBuilder, MergeInsert, MergeResult
from rqmoe_store.store.reencoding import BackgroundEncoding, Reencoded
from rqmoe_store.store.row_encoder import OnBadVectors
from rqmoe_store.store.statistics import TableStats
from rqmoe_store.store.structure import ScalarIndex
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import open_table
from rqmoe_store.verification.report import VerifyReport


class AsyncMergeInsert(MergeBuilder):
    """A `MergeInsert` for event loops: the same actions, done when `execute` is awaited."""

    async def execute(
        self,
        new_data: Any,
        on_bad_vectors: OnBadVectors = "error",
        fill_value: float = 0.0,
        timeout: datetime.timedelta | None = None,
    ) -> MergeResult:
        """Encode and merge rows. Takes and raises what `MergeInsert.execute` does."""
        merge = MergeInsert(self._handle, self._on)
        vars(merge).update(vars(self))  # the actions that were chosen
        return await in_thread(
            functools.partial(merge.execute, new_data, on_bad_vectors, fill_value, timeout)
        )


class AsyncTags:
    """Names for versions of a table, awaited."""

    def __init__(self, table: CompressedTable) -> None:
        self._table = table

    async def list(self) -> dict[str, Any]:
        """All tags, with their versions."""
        return await in_thread(lambda: dict(self._table.tags.list()))

    async def get_version(self, tag: str) -> int:
        """The version that a tag names."""
        return await in_thread(lambda: self._table.tags.get_version(tag))

    async def create(self, tag: str, version: int) -> None:
        """Name a version."""
        await in_thread(lambda: self._table.tags.create(tag, version))

    async def delete(self, tag: str) -> None:
        """Forget a name."""
        await in_thread(lambda: self._table.tags.delete(tag))

    async def update(self, tag: str, version: int) -> None:
        """Let a tag name another version."""
        await in_thread(lambda: self._table.tags.update(tag, version))


class AsyncRows:
    """What is done with the rows of a table, awaited; methods take and raise what those of `CompressedTable`
    do, under the names of LanceDB's `AsyncTable`."""

    blocking: CompressedTable

    async def add(
        self,
        rows: Any,
        *,
        mode: Literal["append"] = "append",
        on_bad_vectors: OnBadVectors = "error",
        fill_value: float = 0.0,
        encode: bool | None = None,
    ) -> int:
        """Encode and append rows, all in one commit or none at all; returns how many. Iterators and readers
        are read in another thread."""
        add = functools.partial(self.blocking.add, rows, mode, on_bad_vectors, fill_value, encode=encode)
        return await in_thread(add)

    def merge_insert(self, on: str | Iterable[str] | None = None) -> AsyncMergeInsert:
        """Start an upsert, whose `execute` is awaited."""
        return AsyncMergeInsert(self.blocking.handle, on)

    async def update(
        self,
        updates: Mapping[str, Any] | None = None,
        *,
        where: str | Expr | None = None,
        updates_sql: Mapping[str, str] | None = None,
    ) -> Any:
        """Change columns of rows: to values, or by SQL expressions."""
        update = functools.partial(self.blocking.update, where, updates, values_sql=updates_sql)
        return await in_thread(update)

    async def delete(self, where: str | Expr) -> int:
        """Delete the rows that match a condition; returns how many."""
        return await in_thread(functools.partial(self.blocking.delete, where))

    async def count_rows(self, filter: str | Expr | None = None) -> int:
        """Number of rows, or of those that match a condition."""
        return await in_thread(functools.partial(self.blocking.count_rows, filter))

    async def head(self, n: int = 5) -> pa.Table:
        """The first rows, in the user's columns."""
        return await in_thread(functools.partial(self.blocking.head, n))

    async def key(self) -> str | None:
        """The column that tells rows apart, if it was said which does."""
        return await in_thread(lambda: self.blocking.key)

    async def set_key(self, key: str) -> None:
        """Make a column the key that tells rows apart."""
        await in_thread(functools.partial(self.blocking.set_key, key))

    async def add_columns(
        self, transforms: Mapping[str, str] | pa.Field | Iterable[pa.Field] | pa.Schema
    ) -> None:
        """Add columns, all or none."""
        await in_thread(functools.partial(self.blocking.add_columns, transforms))

    async def alter_columns(self, *alterations: Mapping[str, Any]) -> None:
        """Rename columns, or change their type or whether they allow nulls."""
        await in_thread(functools.partial(self.blocking.alter_columns, *alterations))

    async def drop_columns(self, columns: str | Iterable[str]) -> None:
        """Drop columns and the indexes on them."""
        await in_thread(functools.partial(self.blocking.drop_columns, columns))

    async def create_scalar_index(
        self,
        column: str,
        *,
        replace: bool = True,
        index_type: ScalarIndex = "BTREE",
        name: str | None = None,
    ) -> None:
        """Make LanceDB's index on a column."""
        create = functools.partial(
            self.blocking.create_scalar_index, column, replace=replace, index_type=index_type, name=name
        )
        await in_thread(create)

    async def list_indices(self) -> list[IndexConfig]:
        """The indexes on columns of the table, as LanceDB describes them."""
        return await in_thread(self.blocking.list_indices)

    async def index_stats(self, index_name: str) -> IndexStatistics | None:
        """Kind of an index, and how many rows are in it or not yet."""
        return await in_thread(functools.partial(self.blocking.index_stats, index_name))

    async def drop_index(self, name: str) -> None:
        """Drop an index; columns and rows stay."""
        await in_thread(functools.partial(self.blocking.drop_index, name))

    @property
    def tags(self) -> AsyncTags:
        """Names for versions."""
        return AsyncTags(self.blocking)

    async def list_versions(self) -> list[dict[str, Any]]:
        """All versions that can be checked out or restored."""
        return await in_thread(self.blocking.list_versions)

    async def checkout(self, version: int | str) -> None:
        """Read everything through this handle from an earlier version."""
        await in_thread(functools.partial(self.blocking.checkout, version))

    async def checkout_latest(self) -> None:
        """Read from the newest version again."""
        await in_thread(self.blocking.checkout_latest)

    async def restore(self, version: int | str | None = None) -> None:
        """Make a new version that is like an earlier one, and go on with it."""
        await in_thread(functools.partial(self.blocking.restore, version))


_LOOK_EVERY = 0.05
"""Seconds between looks whether a thread has ended. A thread of the pool that waited for it would keep the
interpreter from exiting."""


class AsyncBackgroundEncoding:
    """Rows being encoded by the newest codec of a table, in a thread of this process; `BackgroundEncoding`
    says how."""

    def __init__(self, blocking: BackgroundEncoding) -> None:
        self.blocking = blocking
        """The same, with calls that wait; `running`, `rows_encoded` and `rows_left` say how far it is."""

    async def wait(self, timeout: float | None = None) -> Reencoded:
        """Wait until it has ended; takes and raises what `BackgroundEncoding.wait` does."""
        async with asyncio.timeout(timeout):
            while self.blocking.running:
                await asyncio.sleep(_LOOK_EVERY)
        return self.blocking.wait()

    async def stop(self) -> None:
        """Have it end before its next batch of rows, and wait for that. What was committed stays."""
        await in_thread(self.blocking.stop)


class AsyncLifecycle:
    """What a table goes through, awaited; methods take and raise what those of `CompressedTable` do."""

    blocking: CompressedTable

    async def train(self, training: TrainConfig | None = None, **options: Any) -> Codec:
        """Train the first codec of the table, and encode its rows."""
        return await in_thread(functools.partial(self.blocking.train, training, **options))

    async def retrain(self, training: TrainConfig | None = None, **options: Any) -> Codec:
        """Train another codec and bring all rows to it."""
        return await in_thread(functools.partial(self.blocking.retrain, training, **options))

    async def encode_in_background(self) -> AsyncBackgroundEncoding:
        """Begin to encode, in a thread, rows that are raw or of an older codec; return at once."""
        return AsyncBackgroundEncoding(await in_thread(self.blocking.encode_in_background))

    @property
    def encoding(self) -> AsyncBackgroundEncoding | None:
        """What was begun last by `encode_in_background` or alike; None if nothing was."""
        encoding = self.blocking.encoding
        return None if encoding is None else AsyncBackgroundEncoding(encoding)

    async def optimize(self, **options: Any) -> OptimizeReport:
        """Encode what is raw or of an older codec, merge small files, bring indexes up to date, clean up."""
        return await in_thread(functools.partial(self.blocking.optimize, **options))

    async def health(self) -> HealthReport:
        """Whether the newest codec still fits what is added."""
        return await in_thread(self.blocking.health)

    async def verify(self, *, progress: bool = True) -> VerifyReport:
        """Read the whole table, as it is now, and tell what is wrong with it."""
        return await in_thread(functools.partial(self.blocking.verify, progress=progress))

    async def export(self, path: str | os.PathLike[str], **options: Any) -> ExportReport:
        """Write all rows, as they are now, to files that others can read."""
        return await in_thread(functools.partial(self.blocking.export, path, **options))

    async def tune(self, queries: Any = None, **options: Any) -> TuningReport:
        """Choose the partitions to search and the rows to rerank, and keep the choice with the table."""
        return await in_thread(functools.partial(self.blocking.tune, queries, **options))


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
        """Start a nearest-neighbor query; options follow as in LanceDB, then an awaited output.

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
        return f"{type(self).__name__}({self.name!r}, {self.blocking.handle.summary})"


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
        ArtifactError: its codec is not in the database, is damaged, or is another one.
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
