"""Where a table is, in words that another process understands."""

import dataclasses
import datetime
from collections.abc import Mapping

import lancedb
from lancedb.db import DBConnection
from lancedb.table import LanceTable

from rqmoe_store.store import databases


@dataclasses.dataclass(frozen=True, kw_only=True)
class TablePlace:
    """Where a table is; can be sent to another process."""

    database: str
    """URI of the database."""
    storage_options: Mapping[str, str] | None = dataclasses.field(repr=False)
    """To connect to it with; they may hold secrets."""
    name: str
    """Name of the table."""
    branch: str | None
    read_consistency_interval: datetime.timedelta | None = None
    """Of the connection."""

    @classmethod
    def of(cls, table: LanceTable) -> "TablePlace":
        """Where `table` is. Raises TableError where that cannot be told."""
        return cls(
            database=databases.folder_of(table),
            storage_options=table.initial_storage_options() or databases.storage_options(table),
            name=table.name,
            branch=table.current_branch(),
            read_consistency_interval=databases.read_consistency_interval(table),
        )

    def connected(self) -> DBConnection:
        """A connection of this process to the database."""
        options = None if self.storage_options is None else dict(self.storage_options)
        return lancedb.connect(
            self.database,
            storage_options=options,
            read_consistency_interval=self.read_consistency_interval,
        )

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for tables that are reached in the same way, and are read as fresh as each other."""
        options = tuple(sorted((self.storage_options or {}).items()))
        # Zero means what None does.
        return self.database, options, self.name, self.branch, self.read_consistency_interval or None
