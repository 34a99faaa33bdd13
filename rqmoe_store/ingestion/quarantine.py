"""Rows that cannot be encoded, kept in a table beside the one they were meant for, once each."""

import base64
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import pyarrow as pa
from lancedb.db import DBConnection
from lancedb.table import LanceTable, Table

from rqmoe_store.errors import TableError
from rqmoe_store.store import databases
from rqmoe_store.store.appends import append_rows
from rqmoe_store.store.ingest_log import Claim, Done, NoClaim, claim

SUFFIX = "_quarantine"

_SCHEMA = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("position", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("row", pa.string(), nullable=False),
    ]
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BadRow:
    """A row that cannot be encoded."""

    source: str
    """The piece that it comes from."""
    position: int
    """Its row in the piece, counted from 0."""
    reason: str
    """What is wrong with it."""
    row: str
    """The row as a JSON object."""


class Quarantine:
    """The table of bad rows beside a table, made when there is one to keep."""

    def __init__(self, db: DBConnection, table_name: str, job: str | None, round: int) -> None:
        """Prepare for the bad rows of a job.

        Args:
            db: the database.
            table_name: the table that they were meant for.
            job: of that table; None where nothing is remembered of it.
            round: the present one of the job in that table.
        """
        self.name = f"{table_name}{SUFFIX}"
        """Of the table of bad rows."""
        self._db, self._job, self._round = db, job, round
        self._claimed: tuple[LanceTable, Claim] | None = None
        table = databases.open_if_exists(db, self.name)
        if table is not None:
            self._claim(table)

    @property
    def pieces(self) -> Mapping[str, Done]:
        """Pieces whose bad rows were here when this was made, and up to which row."""
        return {} if self._claimed is None else self._claimed[1].ingested.pieces

    def add(self, rows: Sequence[BadRow], pieces: Mapping[str, Done]) -> None:
        """Keep `rows`, and that `pieces` have no more of them so far, in one commit.

        Raises:
            TableError: another process ingests the same source.
        """
        if not rows:
            return
        if self._claimed is None:
            self._claim(databases.create_if_absent(self._db, self.name, _SCHEMA))
        assert self._claimed is not None, "claimed just above"
        table, held = self._claimed
        held.require()
        batch = pa.RecordBatch.from_pylist([dataclasses.asdict(row) for row in rows], schema=_SCHEMA)
        reader = pa.RecordBatchReader.from_batches(_SCHEMA, [batch])
        held.committed(append_rows(table, reader, held.properties(pieces)))

    def fold(self) -> None:
        """Note what is here where it stays when old versions of the table are cleaned up."""
        if self._claimed is not None:
            self._claimed[1].fold()

    def _claim(self, table: Table) -> None:
        if table.schema != _SCHEMA:
            raise TableError(
                f"Table {self.name!r} has columns {table.schema.names}; expected {_SCHEMA.names}, as bad "
                "rows go there. Rename it, or pass on_bad_rows='error'."
            )
        table = cast(LanceTable, table)
        held = NoClaim() if self._job is None else claim(table, self._job, round=self._round)
        self._claimed = table, held


def as_json(row: Mapping[str, Any]) -> str:
    """A row as a JSON object: bytes in base64, other values that JSON lacks as text."""
    return json.dumps(_plain(row), default=str)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
