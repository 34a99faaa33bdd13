"""Codes of a table held in memory, and brought up to date when it changes.

Shape suffixes: N some rows.
"""

import copy
import dataclasses

import lance
import numpy as np

from rqmoe_store.search.filters import is_lasting, matching_row_ids
from rqmoe_store.search.segments import (
    CodeBatch,
    RowIds,
    Segment,
    Selection,
    concatenated,
    grouped,
    no_rows,
)
from rqmoe_store.search.stored_codes import read_codes, read_rows
from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.snapshot import Snapshot

_SMALL_ROWS, _SMALL_SHARE = 65_536, 0.125
"""Rows that came or went since the codes were loaded are kept apart up to this many or this share."""

_FILTERS_KEPT = 8

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
    filtered: dict[str, list[Selection]] = dataclasses.field(default_factory=dict, compare=False)
    """The rows that match a condition, for the conditions asked for last."""

    @property
    def selections(self) -> list[Selection]:
        """All rows that have a code."""
        return [self.base, Selection(self.tail)] if len(self.tail) else [self.base]

    def matching(self, where: str) -> list[Selection]:
        """The rows that match a checked condition."""
        selections = self.filtered.get(where)
        if selections is None:
            row_ids_N = matching_row_ids(self.snapshot.dataset, where)
            selections = [selection.only(row_ids_N) for selection in self.selections]
            if is_lasting(where):
                for forgotten in list(self.filtered)[: 1 - _FILTERS_KEPT]:
                    self.filtered.pop(forgotten, None)
                self.filtered[where] = selections
        return selections

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


def brought_to(snapshot: Snapshot, resident: Resident | None, columns: CodeColumns) -> Resident:
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
