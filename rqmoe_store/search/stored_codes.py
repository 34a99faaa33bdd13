"""Reading the codes of one version of a table.

Shape suffixes: N rows of a batch.
"""

from collections.abc import Iterator

import lance
import numpy as np
import pyarrow as pa

from rqmoe_store.search.segments import CodeBatch, RowIds, concatenated, no_rows
from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.snapshot import Snapshot

_SCAN_ROWS = 131_072
"""Rows per batch of the code scan: large enough for speed, a few MB of codes in memory."""


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
