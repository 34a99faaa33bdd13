"""One version of a table for all reads of a query, and the codes it holds.

Shape suffixes: N rows of a batch, V of them with a vector.
"""

from collections.abc import Iterator

import numpy as np
from lancedb.table import LanceTable, Table

from rqmoe_store.codecs.codes import Codes, check_codes
from rqmoe_store.config import CodecConfig
from rqmoe_store.search.scan import CodeBatch
from rqmoe_store.store import databases
from rqmoe_store.store.columns import CodeColumns

_SCAN_ROWS = 131_072
"""Rows per batch of the code scan: large enough for speed, a few MB of codes in memory."""


class Snapshots:
    """Handles on a table that stay at the version it had when they were asked for."""

    def __init__(self, table: LanceTable) -> None:
        self._table = table
        self._pinned: tuple[int, Table] | None = None

    def current(self) -> Table:
        """A handle pinned to the present version; writes to the table do not move it."""
        version = self._table.version
        if self._pinned is None or self._pinned[0] != version:
            self._pinned = version, self._open(version)
        return self._pinned[1]

    def _open(self, version: int) -> Table:
        database = databases.database_of(self._table)
        return database.open_table(self._table.name, branch=self._table.current_branch(), version=version)


def read_codes(
    snapshot: Table, columns: CodeColumns, config: CodecConfig, where: str | None
) -> Iterator[CodeBatch]:
    """Stream the codes and row ids of the rows that match `where`; rows without a vector are skipped.

    Raises:
        InvalidInputError: a code or partition id that the codec does not have.
        TableError: the code columns are missing or of another type.
    """
    rows = snapshot.search().select(list(columns.names)).with_row_id(True)
    if where is not None:
        rows = rows.where(where)
    for batch in rows.to_batches(_SCAN_ROWS):
        codes, valid_N = columns.from_arrow(batch)
        if len(codes) == 0:
            continue
        _require_codes(codes, config)
        row_ids_N = batch["_rowid"].to_numpy(zero_copy_only=False).astype(np.uint64, copy=False)
        yield CodeBatch(row_ids_N[valid_N], codes)


def _require_codes(codes: Codes, config: CodecConfig) -> None:
    """Raise when a code is out of range: it would score with the row of another codeword."""
    num_partitions = config.num_partitions or 0
    highest_partition = max(1, num_partitions) - 1
    if (
        codes.codes.max() >= config.codebook_size
        or codes.partitions.max() > highest_partition
        or codes.partitions.min() < 0
    ):
        check_codes(
            codes,
            num_steps=config.code_bytes,
            codebook_size=config.codebook_size,
            num_partitions=num_partitions,
        )
