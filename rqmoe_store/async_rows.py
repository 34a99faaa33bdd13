"""Rows, columns and versions of a table without keeping an event loop waiting."""

import datetime
import functools
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import pyarrow as pa
from lancedb.expr import Expr
from lancedb.index import IndexConfig
from lancedb.table import IndexStatistics

from rqmoe_store.search.threads import in_thread
from rqmoe_store.store.bad_vectors import OnBadVectors
from rqmoe_store.store.merge import MergeBuilder, MergeInsert, MergeResult
from rqmoe_store.store.structure import ScalarIndex
from rqmoe_store.table import CompressedTable


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
        merge = MergeInsert(self._store, self._on)
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
        return AsyncMergeInsert(self.blocking, on)

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
