"""Resident codes: those of a table held in memory, brought up to date when it changes.

Shape suffixes: N some rows.

Shape suffixes: N rows of a batch.
"""

import copy
import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence

import lance
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rqmoe_store.search.segments import CodeBatch, RowIds, Segment, Selection, concatenated, grouped, no_rows
from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.snapshot import Snapshot
from rqmoe_store.store.sql import quoted

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


_CHANGING = re.compile(r"\b(now|today|random|uuid|current_\w+|local\w*)\b", re.IGNORECASE)
"""Functions that return something else every time."""


def combined(conditions: Iterable[str]) -> str | None:
    """The conditions joined by AND; None when there are none."""
    return " AND ".join(conditions) or None


def is_lasting(where: str) -> bool:
    """Whether a condition is met by the same rows of a version whenever it is asked."""
    return _CHANGING.search(where) is None


def partition_filter(column: str, partitions: Iterable[int]) -> str:
    """Condition that keeps the rows of the given partitions."""
    return f"{quoted(column)} IN ({', '.join(str(int(partition)) for partition in partitions)})"


def row_id_filter(row_ids: npt.NDArray[np.uint64]) -> str:
    """Condition that keeps the rows of the given ids, of which there must be one."""
    return f"_rowid IN ({', '.join(map(str, row_ids.tolist()))})"


def matching_row_ids(
    dataset: lance.LanceDataset, where: str, fragments: Sequence[lance.LanceFragment] | None = None
) -> npt.NDArray[np.uint64]:
    """Ids of the rows that match a checked filter, ascending; scalar indexes are used where they help.

    Of all rows, or of those in some fragments.
    """
    chosen = None if fragments is None else list(fragments)
    found = dataset.scanner(columns=[], with_row_id=True, filter=where, fragments=chosen).to_table()
    return np.sort(found["_rowid"].to_numpy())


_FILTERS_KEPT = 8


class FilterCache:
    """The rows of one version that match a condition, for the conditions asked for last."""

    def __init__(self) -> None:
        self._selections: dict[str, list[Selection]] = {}

    def __contains__(self, where: str) -> bool:
        return where in self._selections

    def matching(
        self,
        where: str,
        dataset: lance.LanceDataset,
        selections: Sequence[Selection],
        fragments: Sequence[lance.LanceFragment] | None = None,
    ) -> list[Selection]:
        """Those of the rows that match.

        Args:
            where: a checked condition.
            dataset: at the version.
            selections: the rows, always the same ones.
            fragments: where they are; None for all.
        """
        matching = self._selections.get(where)
        if matching is None:
            row_ids_N = matching_row_ids(dataset, where, fragments)
            matching = [selection.only(row_ids_N) for selection in selections]
            if is_lasting(where):
                for forgotten in list(self._selections)[: 1 - _FILTERS_KEPT]:
                    self._selections.pop(forgotten, None)
                self._selections[where] = matching
        return matching

    def clear(self) -> None:
        """Forget everything: the version is another one."""
        self._selections.clear()


_SMALL_ROWS, _SMALL_SHARE = 65_536, 0.125
"""Rows that came or went since the codes were loaded are kept apart up to this many or this share."""

_FOLLOWED = (
    lance.LanceOperation.Append,
    lance.LanceOperation.Delete,
    lance.LanceOperation.Update,
    lance.LanceOperation.Rewrite,
    lance.LanceOperation.CreateIndex,
    lance.LanceOperation.UpdateConfig,  # metadata, such as the setting that the table was tuned to
)
"""Changes after which the rows that differ can be asked for. Others, Restore and Overwrite among them,
change rows without a trace."""


@dataclasses.dataclass(frozen=True)
class Resident:
    """The codes of one version of a table; never changed once made."""

    snapshot: Snapshot
    base: Selection
    """What was loaded together."""
    tail: Segment
    """What was added or updated since."""
    filtered: FilterCache = dataclasses.field(default_factory=FilterCache, compare=False)
    """The rows that match a condition, for the conditions asked for last."""

    @property
    def selections(self) -> list[Selection]:
        """All rows that have a code."""
        return [self.base, Selection(self.tail)] if len(self.tail) else [self.base]

    def matching(self, where: str) -> list[Selection]:
        """The rows that match a checked condition."""
        return self.filtered.matching(where, self.snapshot.dataset, self.selections)

    def has_rows(self, partitions: slice) -> bool:
        """Whether any rows were read that are in one of these partitions."""
        return any(
            segment.starts_P[partitions.stop] > segment.starts_P[partitions.start]
            for segment in (self.base.segment, self.tail)
        )

    def __len__(self) -> int:
        return len(self.base) + len(self.tail)

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        mask = 0 if self.base.allowed_N is None else self.base.allowed_N.nbytes
        return self.base.segment.nbytes + mask + self.tail.nbytes


def bytes_needed(rows: int, code_bytes: int) -> int:
    """Memory that codes and row ids of this many rows take."""
    return rows * (code_bytes + np.dtype(np.uint64).itemsize)


def refresh(snapshot: Snapshot, resident: Resident | None, columns: CodeColumns) -> Resident:
    """The codes of a version, of which only rows that differ from an earlier one are read where possible.

    Raises as `read_codes`.
    """
    deleted_N = None if resident is None else _deleted_since(resident.snapshot, snapshot)
    if resident is None or deleted_N is None:
        return load(snapshot, columns)
    gone, added = [deleted_N], []
    changed = f"_row_last_updated_at_version > {resident.snapshot.version}"
    for batch, row_ids_N in read_rows(snapshot, columns, changed):
        gone.append(row_ids_N)  # of an updated row, the code that it had
        added.append(batch)
    gone_N = np.concatenate(gone)
    base = resident.base.without(gone_N)
    later = concatenated([Selection(resident.tail).without(gone_N).rows(), *added])
    small = max(_SMALL_ROWS, _SMALL_SHARE * len(base.segment))
    if len(later) > small or len(base.segment) - len(base) > small:
        base, later = Selection(_grouped(concatenated([base.rows(), later]), snapshot)), later[:0]
    return Resident(snapshot, base, _grouped(later, snapshot))


def load(snapshot: Snapshot, columns: CodeColumns) -> Resident:
    """All codes of a version. Raises as `read_codes`."""
    none = no_rows(snapshot.codecs.code_bytes)
    rows = concatenated([none, *read_codes(snapshot, columns)])
    return Resident(snapshot, Selection(_grouped(rows, snapshot)), _grouped(none, snapshot))


def _grouped(rows: CodeBatch, snapshot: Snapshot) -> Segment:
    return grouped(rows, snapshot.codecs.num_partitions)


def _deleted_since(earlier: Snapshot, snapshot: Snapshot) -> RowIds | None:
    """Ids of the rows deleted since; None when what changed cannot be told."""
    # A dataset of its own: while one looks for transactions, no other thread may use it.
    dataset, steps = copy.copy(snapshot.dataset), snapshot.version - earlier.version
    if steps < 0 or not dataset.has_stable_row_ids or earlier.codecs is not snapshot.codecs:
        return None
    known = [transaction for transaction in dataset.get_transactions(steps + 1) if transaction is not None]
    if len(known) <= steps:  # old versions were cleaned up
        return None
    *later, first = known  # newest first
    if first.uuid != earlier.transaction:
        return None
    if not all(isinstance(transaction.operation, _FOLLOWED) for transaction in later):
        return None
    deleted = dataset.delta(compared_against=earlier.version).get_deleted_row_ids()
    return np.concatenate([np.empty(0, np.uint64), *(batch["_rowid"].to_numpy() for batch in deleted)])
