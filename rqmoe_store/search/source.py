"""Where queries get the codes of a table from: memory, or the disk where memory is short."""

import dataclasses
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Literal, Protocol, TypeVar

import pyarrow as pa
from lancedb.table import LanceTable

from rqmoe_store.codecs.additive import LookupTables
from rqmoe_store.errors import InvalidInputError, RQMoEError
from rqmoe_store.search import resident as residents
from rqmoe_store.search.raw_rows import RawFragments, RawRows
from rqmoe_store.search.request import SearchRequest
from rqmoe_store.search.rerank import Hits
from rqmoe_store.search.resident import Resident
from rqmoe_store.search.segments import Mask
from rqmoe_store.search.shortlist import Shortlist
from rqmoe_store.search.snapshot import Snapshot, Snapshots
from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.table import StoredTable
from rqmoe_store.store.table_codec import TableCodec

Cache = Literal["memory", "disk"]
Result = TypeVar("Result")

_SHARE_OF_MEMORY = 4
"""Codes of a table may by default take one part in this many of the machine's memory."""

_WHERE_UNKNOWN = 2**32

_sources: "weakref.WeakValueDictionary[tuple[object, ...], CodeSource]" = weakref.WeakValueDictionary()
_sources_lock = threading.Lock()


class CodesElsewhere(Protocol):
    """The codes of a version, held by other processes."""

    def scan(
        self,
        where: str | None,
        lower: float | None,
        tables: Mapping[int, LookupTables],
        probed_QP: Mask,
        size: int,
    ) -> list[list[Shortlist]]:
        """As `scan.scan_sides`, of the rows that match a checked condition."""


class NearestRaw(Protocol):
    """The rows of a version that have a vector and no code."""

    def __bool__(self) -> bool:
        """Whether there are any."""

    def nearest(self, request: SearchRequest) -> list[Hits]:
        """As `RawRows.nearest`."""


@dataclasses.dataclass(frozen=True)
class TableState:
    """One version of a table."""

    snapshot: Snapshot
    resident: Resident | None
    """Its codes, if they are in memory."""
    raw: NearestRaw
    """Its rows without a code."""
    elsewhere: CodesElsewhere | None = None
    """Its codes, if other processes have them."""


class CodeSource:
    """The newest version of one table, or an earlier one, and its codes, for all queries of the process."""

    def __init__(
        self,
        table: LanceTable,
        columns: CodeColumns,
        codecs: TableCodec,
        checked_out: int | None = None,
    ) -> None:
        self._snapshots = Snapshots(table, codecs, checked_out)
        self._columns = columns
        self._raw_fragments = RawFragments(columns)
        self._lock = threading.Lock()
        self._resident: Resident | None = None
        self._raw: RawRows | None = None

    def current(self, memory_budget: int) -> TableState:
        """The version that the table has now.

        Args:
            memory_budget: bytes that codes may take; above it none are loaded.

        Raises:
            TableError: the table was dropped, or has a code or partition id that none of its codecs has.
        """
        with self._lock:  # several queries that find a new version have it read once
            snapshot = self._snapshots.current()
            if self._raw is None or self._raw.snapshot is not snapshot:
                self._raw = self._raw_fragments.of(snapshot)
            if self._resident is None or self._resident.snapshot is not snapshot:
                if residents.bytes_needed(snapshot.rows, snapshot.codecs.code_bytes) > memory_budget:
                    return TableState(snapshot, None, self._raw)
                self._resident = residents.brought_to(snapshot, self._resident, self._columns)
            return TableState(snapshot, self._resident if memory_budget else None, self._raw)

    def read(self, memory_budget: int, action: Callable[[TableState], Result]) -> Result:
        """What `action` makes of the version the table has now, from a later one should this be lost.

        Raises as `current` and `action`.
        """
        while True:
            state = None
            try:
                state = self.current(memory_budget)
                return action(state)
            except (OSError, RuntimeError, ValueError, pa.ArrowException) as error:
                # Old versions may be cleaned up, and tables replaced, while a query reads them.
                if isinstance(error, RQMoEError) or not self.is_lost(state):
                    raise

    def is_lost(self, state: TableState | None) -> bool:
        """Whether a version (None for the newest known one) cannot be read any more, and another must be
        asked for.

        Raises TableError when the table was dropped.
        """
        with self._lock:
            return self._snapshots.is_lost(None if state is None else state.snapshot)

    @property
    def resident(self) -> Resident | None:
        """What is in memory now, of whichever version."""
        return self._resident


def source_of(store: StoredTable) -> CodeSource:
    """The source that all handles on one version of a table, most often the newest, share in this process for
    as long as one of them is used; those that reach it by other credentials or at another server do not."""
    table, version = store.table, store.checked_out
    reached_by = tuple(sorted((table.initial_storage_options() or {}).items()))
    key = table.uri, reached_by, table.current_branch(), store.columns.vector_column, version
    with _sources_lock:
        source = _sources.get(key)
        if source is None:
            source = _sources[key] = CodeSource(store.table, store.columns, store.codecs, version)
        return source


def _renew_locks() -> None:
    global _sources_lock
    _sources_lock = threading.Lock()
    for source in list(_sources.values()):
        source._lock = threading.Lock()


if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
    os.register_at_fork(after_in_child=_renew_locks)  # a forked process lacks the threads that held them


def bytes_allowed(cache: Cache, limit: int | None) -> int:
    """Bytes that codes of a table may take in memory.

    Args:
        cache: "memory", or "disk" for none.
        limit: bytes; None for a quarter of the machine's memory, or 4 GiB on Windows, which does not say.

    Raises:
        InvalidInputError: another word, or a limit that is not a number of bytes.
    """
    if cache not in ("memory", "disk"):
        raise InvalidInputError(f"Got cache={cache!r}; expected 'memory' or 'disk'.")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
        raise InvalidInputError(f"Got memory_budget={limit!r}; expected a number of bytes, or None.")
    if cache == "disk":
        return 0
    if limit is not None:
        return limit
    if not hasattr(os, "sysconf"):
        return _WHERE_UNKNOWN
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // _SHARE_OF_MEMORY
