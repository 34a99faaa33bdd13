"""Resident codes: the codes of a table in memory, with refine codes and cached columns if these fit too,
refreshed row by row when the table changes.

Shape legend: N rows of a batch.
"""

import copy
import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence

import lance
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rqmoe_store.search.cached_columns import CachedColumns
from rqmoe_store.search.loading import load_segment, merged, row_ids_of
from rqmoe_store.search.scan import norm_bytes
from rqmoe_store.search.segments import CodeBatch, RowIds, Segment, Selection, concatenated, grouped, no_rows
from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.snapshot import Snapshot
from rqmoe_store.store.sql import quoted

_SCAN_ROWS = 131_072
"""Rows of a batch when codes are read: large enough to be fast, with a few MB of codes in memory."""

_FILTERS_KEPT = 8
"""Most conditions whose rows a `FilterCache` keeps."""

_SMALL_ROWS, _SMALL_SHARE = 65_536, 0.125
"""Added and removed rows are kept apart from the loaded codes up to this number or this share; beyond it, the
codes are regrouped."""

_TRACEABLE = (
    lance.LanceOperation.Append,
    lance.LanceOperation.Delete,
    lance.LanceOperation.Update,
    lance.LanceOperation.Rewrite,
    lance.LanceOperation.CreateIndex,
    lance.LanceOperation.UpdateConfig,  # metadata, such as tuned search parameters
)
"""Operations whose changed rows Lance can list. Others, including Restore and Overwrite, change rows without
a trace."""


def read_codes(
    snapshot: Snapshot, columns: CodeColumns, where: str | None = None, *, refine: bool = False
) -> Iterator[CodeBatch]:
    """Yield the codes and row ids of the rows that match `where`; rows without a code are skipped.

    With `refine`, refine codes are read, too, if the table has any.

    Raises:
        TableError: the code columns are missing or have another type, or have a code or partition id that no
            codec of the table has.
    """
    for batch in _read_rows(snapshot, columns, where, refine=refine):
        codes = _as_codes(snapshot, batch)
        if len(codes):
            yield codes


def _read_rows(
    snapshot: Snapshot, columns: CodeColumns, where: str | None, *, refine: bool, others: Sequence[str] = ()
) -> Iterator[pa.RecordBatch]:
    """Yield code columns, other columns and row ids of all rows that match, with or without a code."""
    names = snapshot.codecs.columns.names if refine else columns.scanned
    rows = snapshot.table.search().select([*names, *others]).with_row_id(True)
    if where is not None:
        rows = rows.where(where)
    yield from rows.to_batches(_SCAN_ROWS)


def fragment_codes(snapshot: Snapshot, columns: CodeColumns, fragment: lance.LanceFragment) -> CodeBatch:
    """Read the codes and row ids of one fragment. Raises as `read_codes`."""
    scanner = snapshot.dataset.scanner(
        columns=list(columns.scanned), fragments=[fragment], with_row_id=True, batch_size=_SCAN_ROWS
    )
    none = no_rows(snapshot.codecs.code_bytes)
    return concatenated([none, *(_as_codes(snapshot, each) for each in scanner.to_batches())])


def _as_codes(snapshot: Snapshot, batch: pa.RecordBatch) -> CodeBatch:
    """The codes of the rows that have one."""
    codes, valid_N = snapshot.codecs.read(batch)
    return CodeBatch(row_ids_of(batch)[valid_N], codes)


_NONDETERMINISTIC = re.compile(r"\b(now|today|random|uuid|current_\w+|local\w*)\b", re.IGNORECASE)
"""Functions that return another value every time."""


def conjunction(conditions: Iterable[str]) -> str | None:
    """The conditions joined by AND; None if there are none."""
    return " AND ".join(conditions) or None


def is_deterministic(where: str) -> bool:
    """Whether the same rows of a version match a condition every time."""
    return _NONDETERMINISTIC.search(where) is None


def partition_filter(column: str, partitions: Iterable[int]) -> str:
    """SQL condition for the rows of the given partitions."""
    return f"{quoted(column)} IN ({', '.join(str(int(partition)) for partition in partitions)})"


def row_id_filter(row_ids: npt.NDArray[np.uint64]) -> str:
    """SQL condition for the rows with the given ids, of which there must be at least one."""
    return f"_rowid IN ({', '.join(map(str, row_ids.tolist()))})"


def matching_row_ids(
    dataset: lance.LanceDataset, where: str, fragments: Sequence[lance.LanceFragment] | None = None
) -> npt.NDArray[np.uint64]:
    """Ids, ascending, of the rows that match a checked condition, in the given fragments or in all.

    LanceDB uses scalar indexes for it where they help.
    """
    chosen = None if fragments is None else list(fragments)
    found = dataset.scanner(columns=[], with_row_id=True, filter=where, fragments=chosen).to_table()
    return np.sort(found["_rowid"].to_numpy())


class FilterCache:
    """Keeps the rows of one version that match, for the conditions used last."""

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
        """The rows that match, from the cache or by evaluating the condition.

        Args:
            where: a checked condition.
            dataset: the version.
            selections: the rows to filter; the same ones in every call.
            fragments: fragments that have the rows; None for all.
        """
        matching = self._selections.get(where)
        if matching is None:
            row_ids_N = matching_row_ids(dataset, where, fragments)
            matching = [selection.only(row_ids_N) for selection in selections]
            if is_deterministic(where):
                for oldest in list(self._selections)[: 1 - _FILTERS_KEPT]:
                    self._selections.pop(oldest, None)
                self._selections[where] = matching
        return matching

    def clear(self) -> None:
        """Empty the cache, to be called for another version."""
        self._selections.clear()


@dataclasses.dataclass(frozen=True)
class Resident:
    """The codes of one version of a table in memory; immutable."""

    snapshot: Snapshot
    base: Selection
    """Rows that were loaded together, without those that were removed or updated since."""
    tail: Segment
    """Rows that were added or updated since."""
    has_refine: bool = False
    """Whether refine codes are in memory, too."""
    cached: CachedColumns = dataclasses.field(default_factory=CachedColumns.none)
    """Columns whose values are in memory, too."""
    filtered: FilterCache = dataclasses.field(default_factory=FilterCache, compare=False)

    @property
    def selections(self) -> list[Selection]:
        """All rows that have a code."""
        return [self.base, Selection(self.tail)] if len(self.tail) else [self.base]

    def matching(self, where: str) -> list[Selection]:
        """The rows that match a checked condition."""
        return self.filtered.matching(where, self.snapshot.dataset, self.selections)

    def has_rows(self, partitions: slice) -> bool:
        """Whether there are rows in any of these partitions."""
        return any(
            segment.starts_P[partitions.stop] > segment.starts_P[partitions.start]
            for segment in (self.base.segment, self.tail)
        )

    def __len__(self) -> int:
        return len(self.base) + len(self.tail)

    @property
    def nbytes(self) -> int:
        """Size in memory, in bytes."""
        mask = 0 if self.base.allowed_N is None else self.base.allowed_N.nbytes
        codes = self.base.segment.nbytes + mask + self.tail.nbytes
        return codes + self.norm_bytes + self.cached.nbytes

    @property
    def norm_bytes(self) -> int:
        """The part of it that lengths of codes take, which scans under cosine sum up."""
        return norm_bytes(self.base.segment) + norm_bytes(self.tail)


def bytes_needed(rows: int, code_bytes: int) -> int:
    """Most bytes of memory that this many rows take: codes (with or without refine codes), and for each row 4
    bytes of row id and 2 bytes of length under cosine."""
    return rows * (code_bytes + 6)


def refresh(
    snapshot: Snapshot, resident: Resident | None, columns: CodeColumns, *, refine: bool = False
) -> Resident:
    """Load the codes of a version; reads only the rows that differ from `resident` if that is possible.

    With `refine`, refine codes are loaded, too. Cached columns of `resident` are kept if their changes are
    known and few. Raises as `read_codes`.
    """
    deleted_N = None if resident is None else _deleted_since(resident.snapshot, snapshot)
    if resident is None or deleted_N is None or resident.has_refine != refine:
        return load(snapshot, columns, refine=refine)
    later_than = f"_row_last_updated_at_version > {resident.snapshot.version}"
    cached = resident.cached
    changed = list(_read_rows(snapshot, columns, later_than, refine=refine, others=cached.names))
    added = [_as_codes(snapshot, batch) for batch in changed]
    gone_N = np.concatenate([deleted_N, *map(row_ids_of, changed)])  # updated rows lose their old codes
    base = resident.base.without(gone_N)
    later = concatenated([Selection(resident.tail).without(gone_N).rows(), *added])
    small = max(_SMALL_ROWS, _SMALL_SHARE * len(base.segment))
    if len(later) > small or len(base.segment) - len(base) > small:
        segment = merged(
            [base, Selection(_grouped(later, snapshot))],
            num_partitions=snapshot.codecs.num_partitions,
            code_bytes=snapshot.codecs.code_bytes,
            refine_bytes=snapshot.codecs.columns.refine_bytes if refine else None,
        )
        base, later = Selection(segment), later[:0]
    up_to_date = cached.updated(snapshot, changed) or CachedColumns.none()
    return Resident(snapshot, base, _grouped(later, snapshot), refine, up_to_date)


def load(snapshot: Snapshot, columns: CodeColumns, *, refine: bool = False) -> Resident:
    """Load all codes of a version, with refine codes if asked. Raises as `read_codes`."""
    segment = load_segment(snapshot, columns, refine=refine)
    return Resident(
        snapshot, Selection(segment), _grouped(no_rows(snapshot.codecs.code_bytes), snapshot), refine
    )


def _grouped(rows: CodeBatch, snapshot: Snapshot) -> Segment:
    return grouped(rows, snapshot.codecs.num_partitions)


def _is_traceable(operation: lance.LanceOperation.BaseOperation) -> bool:
    """Whether Lance can list the rows that an operation changed."""
    rewrites_columns = isinstance(operation, lance.LanceOperation.Update) and operation.fields_modified
    return isinstance(operation, _TRACEABLE) and not rewrites_columns


def _deleted_since(earlier: Snapshot, snapshot: Snapshot) -> RowIds | None:
    """Ids of the rows deleted since an earlier version; None if the changes since then are unknown."""
    # A copy, because no other thread may use a dataset while its transactions are read.
    dataset, steps = copy.copy(snapshot.dataset), snapshot.version - earlier.version
    if steps < 0 or not dataset.has_stable_row_ids or earlier.codecs is not snapshot.codecs:
        return None
    known = [transaction for transaction in dataset.get_transactions(steps + 1) if transaction is not None]
    if len(known) <= steps:  # old versions were cleaned up
        return None
    *later, first = known  # newest first
    if first.uuid != earlier.transaction:
        return None
    if not all(_is_traceable(transaction.operation) for transaction in later):
        return None
    deleted = dataset.delta(compared_against=earlier.version).get_deleted_row_ids()
    return np.concatenate([np.empty(0, np.uint64), *(batch["_rowid"].to_numpy() for batch in deleted)])
