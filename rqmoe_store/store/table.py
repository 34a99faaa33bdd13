"""A table whose vectors are kept as codes."""

from typing import Self, cast

from lancedb.db import DBConnection
from lancedb.table import LanceTable

from rqmoe_store.errors import RQMoEError
from rqmoe_store.store import databases
from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.health import HealthReport, measure_health
from rqmoe_store.store.metadata import TableMetadata
from rqmoe_store.store.row_operations import RowOperations
from rqmoe_store.store.statistics import TableStats, measure
from rqmoe_store.store.structure import TableStructure
from rqmoe_store.store.table_codec import TableCodec
from rqmoe_store.store.time_travel import TableVersions


class StoredTable(RowOperations, TableStructure, TableVersions):
    """A LanceDB table with a code column in place of a vector column, and the codec it was made with."""

    @classmethod
    def open(cls, db: DBConnection, name: str, *, branch: str | None = None) -> Self:
        """Open the compressed table `name`; its codecs are read from the same database.

        Raises:
            TableNotFoundError: no such table.
            TableError: not a compressed one, a column of ours is missing or of another
                type, or a newer release wrote it.
            ArtifactError: a codec is not in the database, is damaged, or is another one.
        """
        databases.require_table_name(name)
        table = databases.open_if_exists(db, name, branch=branch)
        if table is None:
            raise databases.no_such_table(db.uri, name)
        marks = TableMetadata.read(table.schema, name)
        CodeColumns(marks.vector_column).require_in(table.schema)
        return cls(cast(LanceTable, table), TableCodec.load(db, marks))

    def health(self) -> HealthReport:
        """Whether the newest codec still fits what is added, in numbers and in words."""
        return self.snapshots.read(lambda snapshot: measure_health(snapshot.table, snapshot.codecs))

    def stats(self) -> TableStats:
        """Rows, bytes and quality of this table, measured now."""
        return self.snapshots.read(lambda snapshot: measure(snapshot.table, snapshot.codecs, self.columns))

    def __len__(self) -> int:
        return self.count_rows()

    def __repr__(self) -> str:
        try:
            rows = f"{len(self)} rows"
        except RQMoEError as error:  # of a table that is gone one wants to see that, and which one it is
            rows = f"cannot be read: {error}"
        return f"{type(self).__name__}({self.name!r}, {rows}, {self._described})"

    @property
    def _described(self) -> str:
        """What its rows are, without looking at the table."""
        config = self.snapshots.known.metadata.config
        return f"dim {self.dim} as {config.code_bytes} code bytes, {config.kind}, metric {self.metric!r}"
