"""Where a table is, in words that another process understands."""

import dataclasses
from collections.abc import Mapping

import lancedb
from lancedb.db import DBConnection

from rqmoe_store.store import databases
from rqmoe_store.store.open_table import OpenTable


@dataclasses.dataclass(frozen=True, kw_only=True)
class TablePlace:
    """Where a table is; can be sent to another process."""

    database: str
    """URI of the database."""
    storage_options: Mapping[str, str] | None
    """To connect to it with."""
    name: str
    """Name of the table."""
    branch: str | None

    @classmethod
    def of(cls, store: OpenTable) -> "TablePlace":
        """Where `store` is."""
        return cls(
            database=databases.database_of(store.table).uri,
            storage_options=store.table.initial_storage_options(),
            name=store.name,
            branch=store.table.current_branch(),
        )

    def connected(self) -> DBConnection:
        """A connection of this process to the database."""
        options = None if self.storage_options is None else dict(self.storage_options)
        return lancedb.connect(self.database, storage_options=options)
