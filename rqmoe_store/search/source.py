"""Where queries get the codes of a table from: memory, or the disk where memory is short."""

import dataclasses
import os
import weakref
from collections.abc import Callable, Mapping
from typing import Literal, Protocol, TypeVar

from rqmoe_store.codecs.additive import LookupTables
from rqmoe_store.codecs.parallel import Lock
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.search import resident as residents
from rqmoe_store.search.raw_rows import RawFragments, RawRows
from rqmoe_store.search.request import SearchRequest
from rqmoe_store.search.rerank import Hits
from rqmoe_store.search.resident import Resident
from rqmoe_store.search.segments import Mask
from rqmoe_store.search.shortlist import Shortlist
from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.snapshot import Snapshot, Snapshots
from rqmoe_store.store.table import StoredTable

Cache = Literal["memory", "disk"]
Result = TypeVar("Result")

_SHARE_OF_MEMORY = 4
"""Codes of a table may by default take one part in this many of the machine's memory."""

_WHERE_UNKNOWN = 2**32

_sources: "weakref.WeakValueDictionary[Snapshots, CodeSource]" = weakref.WeakValueDictionary()
_sources_lock = Lock()


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

    def __init__(self, snapshots: Snapshots, columns: CodeColumns) -> None:
        self._snapshots = snapshots
        self._columns = columns
        self._raw_fragments = RawFragments(columns)
        self._lock = Lock()
        self._resident: Resident | None = None
        self._raw: RawRows | None = None

    def current(self, memory_budget: int) -> TableState:
        """The version that is read now.

        Args:
            memory_budget: bytes that codes may take; above it none are loaded.

        Raises:
            TableError: the table was dropped, or has a code or partition id that none of its codecs has.
        """
        with self._lock:  # several queries that find a new version have its codes read once
            snapshot = self._snapshots.current()
            if self._raw is None or self._raw.snapshot is not snapshot:
                self._raw = self._raw_fragments.of(snapshot)
            if self._resident is None or self._resident.snapshot is not snapshot:
                if residents.bytes_needed(snapshot.rows, snapshot.codecs.code_bytes) > memory_budget:
                    return TableState(snapshot, None, self._raw)
                self._resident = residents.refresh(snapshot, self._resident, self._columns)
            return TableState(snapshot, self._resident if memory_budget else None, self._raw)

    def read(self, memory_budget: int, action: Callable[[TableState], Result]) -> Result:
        """What `action` makes of the version that is read now, from a later one should this be lost.

        Raises as `current` and `action`.
        """

        def current() -> tuple[Snapshot, TableState]:
            state = self.current(memory_budget)
            return state.snapshot, state

        return self._snapshots.read_state(current, action)

    @property
    def resident(self) -> Resident | None:
        """What is in memory now, of whichever version."""
        return self._resident


def source_of(store: StoredTable) -> CodeSource:
    """The source that all handles of this process share which read the same version, most often the newest,
    in the same way, for as long as one of them is used."""
    with _sources_lock:
        source = _sources.get(store.snapshots)
        if source is None:
            source = _sources[store.snapshots] = CodeSource(store.snapshots, store.columns)
        return source


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
