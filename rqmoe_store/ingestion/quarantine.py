"""Quarantine: the table of rows that could not be ingested, each with its source and the reason."""

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
from rqmoe_store.store.ingest_log import Claim, NoClaim, PieceProgress, claim

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
    """Name of the piece that has the row."""
    position: int
    """Number of the row in the piece, from 0."""
    reason: str
    """What is wrong with the row."""
    row: str
    """The row as a JSON object."""


class Quarantine:
    """The table of bad rows that belongs to another table; created with its first row.

    It keeps an ingestion log of its own, so that every bad row is added once.
    """

    def __init__(self, db: DBConnection, table_name: str, job: str | None, round: int) -> None:
        """Open the table of bad rows if it exists.

        Args:
            db: the database.
            table_name: name of the table that the rows were meant for.
            job: the ingestion job; None if it is not logged.
            round: current round of the job in that table.
        """
        self.name = f"{table_name}{SUFFIX}"
        """Name of the table of bad rows."""
        self._db, self._job, self._round = db, job, round
        self._claimed: tuple[LanceTable, Claim] | None = None
        table = databases.open_if_exists(db, self.name)
        if table is not None:
            self._claim(table)

    @property
    def pieces(self) -> Mapping[str, PieceProgress]:
        """Key of a piece -> up to which row its bad rows were in quarantine when the job was claimed."""
        return {} if self._claimed is None else self._claimed[1].state.pieces

    def add(self, rows: Sequence[BadRow], pieces: Mapping[str, PieceProgress]) -> None:
        """Add bad rows, and log in the same commit how far `pieces` have been read.

        Raises:
            TableError: another process ingests the same source.
        """
        if not rows:
            return
        if self._claimed is None:
            self._claim(databases.create_if_absent(self._db, self.name, _SCHEMA))
        assert self._claimed is not None, "claimed just above"
        table, held = self._claimed
        held.require_held()
        batch = pa.RecordBatch.from_pylist([dataclasses.asdict(row) for row in rows], schema=_SCHEMA)
        reader = pa.RecordBatchReader.from_batches(_SCHEMA, [batch])
        held.record_commit(append_rows(table, reader, held.properties(pieces)))

    def fold_notes(self) -> None:
        """Move the ingestion log into the table's metadata, where it outlives old versions."""
        if self._claimed is not None:
            self._claimed[1].fold_notes()

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
    """A row as a JSON object: bytes as base64, other values that JSON lacks as text."""
    return json.dumps(_json_value(row), default=str)


def _json_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _json_value(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_value(each) for each in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
