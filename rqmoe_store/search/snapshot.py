"""One version of a table for all reads of a query, and reading codes from it.

Shape suffixes: N rows of a batch.
"""

import dataclasses
import functools
from collections.abc import Iterator

import lance
import numpy as np
import pyarrow as pa
from lancedb.db import DBConnection
from lancedb.table import LanceTable

from rqmoe_store.errors import TableError
from rqmoe_store.search.segments import CodeBatch, RowIds, concatenated, no_rows
from rqmoe_store.store import databases
from rqmoe_store.store.codec_needs import places_in_use
from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.metadata import TableMarks
from rqmoe_store.store.table_codec import TableCodec
from rqmoe_store.store.tuning import TunedSearch

_SCAN_ROWS = 131_072
"""Rows per batch of the code scan: large enough for speed, a few MB of codes in memory."""


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A version of a table."""

    table: LanceTable
    """A handle that stays at this version, whatever is written to the table."""
    dataset: lance.LanceDataset
    """The same for pylance, which answers small requests sooner."""
    schema: pa.Schema
    transaction: str
    """Which write made the version. A table that was dropped and made again has the same version numbers."""
    codecs: TableCodec
    """Of the version's rows."""

    @classmethod
    def of(cls, table: LanceTable, database: DBConnection, known: TableCodec) -> "Snapshot":
        """The version that a pinned handle is at.

        Args:
            table: the handle.
            database: where its codecs are, but for those that `known` has.
            known: of another version.

        Raises as `TableMarks.read` and `TableCodec.load`.
        """
        dataset, schema = table.to_lance(), table.schema
        codecs = TableCodec.load(database, TableMarks.read(schema, table.name), known)
        return cls(table, dataset, schema, _transaction(dataset), codecs)

    @property
    def version(self) -> int:
        """Number of the version."""
        return int(self.dataset.version)

    @functools.cached_property
    def rows(self) -> int:
        """Rows of the table, with a vector or without."""
        return int(self.table.count_rows())

    @functools.cached_property
    def places_in_use(self) -> list[int]:
        """Which of the codecs any rows have codes of; the newest always counts."""
        return places_in_use(self.dataset, self.codecs.marks)

    @functools.cached_property
    def tuned(self) -> TunedSearch | None:
        """The setting that searches use by default; None in a table that was not tuned.

        Raises TableError when it cannot be read.
        """
        return TunedSearch.read(self.dataset.metadata, self.table.name)


class Snapshots:
    """The newest version of a table, again and again, or an earlier one that was checked out."""

    def __init__(self, table: LanceTable, codecs: TableCodec, checked_out: int | None) -> None:
        self._name, self._branch = table.name, table.current_branch()
        self._database = databases.database_of(table)
        self._checked_out = checked_out
        self._pinned = Snapshot.of(self._open(checked_out), self._database, codecs)

    def current(self) -> Snapshot:
        """The version that was checked out, or that the table has now, whichever process made it.

        Raises:
            TableError: the table was dropped.
        """
        if self._checked_out is not None:
            return self._pinned
        try:
            version = self._pinned.dataset.latest_version
        except (OSError, ValueError):
            version = self._open().version  # raises when the table is gone
        if version != self._pinned.version:
            self._pin(self._open(version))
        return self._pinned

    def is_lost(self, snapshot: Snapshot | None) -> bool:
        """Whether a version cannot be read any more: its files were cleaned up, or the table replaced.

        `current` is then another version. None stands for the one that `current` gave last. Raises
        TableError when the table was dropped, or the version was checked out.
        """
        snapshot, table = snapshot or self._pinned, self._open()
        kept = any(entry["version"] == snapshot.version for entry in table.list_versions())
        if kept and _transaction(self._open(snapshot.version).to_lance()) == snapshot.transaction:
            return False
        if self._checked_out is not None:
            raise TableError(
                f"Version {self._checked_out} of table {self._name!r}, which is checked out, was cleaned up. "
                "Call checkout_latest(); a version that has a tag is kept."
            )
        self._pin(self._open(table.version))
        return True

    def _pin(self, table: LanceTable) -> None:
        self._pinned = Snapshot.of(table, self._database, self._pinned.codecs)

    def _open(self, version: int | None = None) -> LanceTable:
        table = databases.open_if_exists(self._database, self._name, branch=self._branch, version=version)
        if table is None:
            raise TableError(
                f"Table {self._name!r} is no longer in {self._database.uri!r}: it was dropped or renamed "
                "after it was opened. Open another table."
            )
        assert isinstance(table, LanceTable), "a database on disk has tables on disk"
        return table


def _transaction(dataset: lance.LanceDataset) -> str:
    transaction = dataset.read_transaction(dataset.version)
    return "" if transaction is None else str(transaction.uuid)


def read_codes(snapshot: Snapshot, columns: CodeColumns, where: str | None = None) -> Iterator[CodeBatch]:
    """Stream the codes and row ids of the rows that match `where`; rows without a vector are skipped.

    Raises:
        TableError: the code columns are missing or of another type, or have a code or partition id that no
            codec of the table has.
    """
    for batch, _ in read_rows(snapshot, columns, where):
        if len(batch):
            yield batch


def read_rows(
    snapshot: Snapshot, columns: CodeColumns, where: str | None
) -> Iterator[tuple[CodeBatch, RowIds]]:
    """Stream what `read_codes` does, and beside it the ids (N,) of all rows, with a vector or without."""
    rows = snapshot.table.search().select(list(columns.names)).with_row_id(True)
    if where is not None:
        rows = rows.where(where)
    for batch in rows.to_batches(_SCAN_ROWS):
        yield _as_codes(snapshot, columns, batch)


def fragment_codes(snapshot: Snapshot, columns: CodeColumns, fragment: lance.LanceFragment) -> CodeBatch:
    """The codes and row ids of one fragment. Raises as `read_codes`."""
    scanner = snapshot.dataset.scanner(
        columns=list(columns.names), fragments=[fragment], with_row_id=True, batch_size=_SCAN_ROWS
    )
    none = no_rows(snapshot.codecs.code_bytes)
    return concatenated([none, *(_as_codes(snapshot, columns, each)[0] for each in scanner.to_batches())])


def _as_codes(snapshot: Snapshot, columns: CodeColumns, batch: pa.RecordBatch) -> tuple[CodeBatch, RowIds]:
    """The codes of those rows that have one, and the ids of all."""
    codes, valid_N = columns.from_arrow(batch)
    snapshot.codecs.check(codes)
    row_ids_N = batch["_rowid"].to_numpy(zero_copy_only=False).astype(np.uint64, copy=False)
    return CodeBatch(row_ids_N[valid_N], codes), row_ids_N
