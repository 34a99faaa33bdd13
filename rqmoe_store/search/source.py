"""Sources of queries: which version of a table they read, and its codes in memory, on disk or in shards."""

import dataclasses
import os
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, TypeVar

from rqmoe_store.codecs.additive import LookupTables
from rqmoe_store.codecs.parallel import Lock
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.search import resident as residents
from rqmoe_store.search.raw_rows import RawFragments, RawRows
from rqmoe_store.search.request import SearchRequest
from rqmoe_store.search.rerank import Hits
from rqmoe_store.search.resident import Resident
from rqmoe_store.search.segments import Mask
from rqmoe_store.search.shortlist import Shortlist
from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.handle import Handle
from rqmoe_store.store.snapshot import Snapshot, Snapshots

Cache = Literal["memory", "disk"]
Result = TypeVar("Result")

_SHARE_OF_MEMORY = 4
"""Codes of a table may by default take one part in this many of the machine's memory."""

_MEMORY_UNKNOWN = 2**32
"""Bytes allowed where the system does not tell how much memory there is."""


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


@dataclasses.dataclass(frozen=True)
class CacheSetting:
    """Whether searches keep codes in memory, and how much of it these may take."""

    cache: Cache = "memory"
    """"memory", or "disk" to read the probed partitions for every query."""
    memory_budget: int | None = None
    """Bytes; codes that would take more are read from disk. None for a quarter of the machine's memory, or 4
    GiB on Windows, which does not say."""

    def __post_init__(self) -> None:
        """Raises InvalidInputError for another word, or a budget that is not a number of bytes."""
        cache, budget = self.cache, self.memory_budget
        if cache not in ("memory", "disk"):
            raise InvalidInputError(f"Got cache={cache!r}; expected 'memory' or 'disk'.")
        if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int) or budget < 0):
            raise InvalidInputError(f"Got memory_budget={budget!r}; expected a number of bytes, or None.")

    def allows(self, needed: int) -> bool:
        """Whether codes that take `needed` bytes may be in memory."""
        return self.cache == "memory" and needed <= self._allowed

    @property
    def _allowed(self) -> int:
        if self.memory_budget is not None:
            return self.memory_budget
        if not hasattr(os, "sysconf"):
            return _MEMORY_UNKNOWN
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // _SHARE_OF_MEMORY


class CodeSource(Protocol):
    """Gives the version of a table that is read, with its codes."""

    def state(self, cache: CacheSetting) -> TableState:
        """The version that is read now.

        Args:
            cache: where its codes may be.

        Raises:
            TableError: the table was dropped, or has a code or partition id that none of its codecs has.
        """

    @property
    def resident_bytes(self) -> int:
        """Memory of this process that codes take now, of whichever version."""


class LocalCodes:
    """The codes of one table for all queries of this process: in memory where allowed, otherwise on disk."""

    def __init__(self, snapshots: Snapshots, columns: CodeColumns) -> None:
        """Prepare; nothing is read before there is a query. `shared_codes` gives one that others use, too.

        Args:
            snapshots: give the version to read.
            columns: of the table.
        """
        self._snapshots = snapshots
        self._columns = columns
        self._raw_fragments = RawFragments(columns)
        self._lock = Lock()
        self._raw: RawRows | None = None
        self.resident: Resident | None = None
        """The codes that are in memory now, of whichever version."""

    def state(self, cache: CacheSetting) -> TableState:
        """The version that is read now; its codes are loaded, or brought up to date, where `cache` allows."""
        with self._lock:  # several queries that find a new version have its codes read once
            snapshot = self._snapshots.current()
            if self._raw is None or self._raw.snapshot is not snapshot:
                self._raw = self._raw_fragments.of(snapshot)
            if not cache.allows(residents.bytes_needed(snapshot.rows, snapshot.codecs.code_bytes)):
                return TableState(snapshot, None, self._raw)
            if self.resident is None or self.resident.snapshot is not snapshot:
                self.resident = residents.refresh(snapshot, self.resident, self._columns)
            return TableState(snapshot, self.resident, self._raw)

    @property
    def resident_bytes(self) -> int:
        """Memory of this process that codes take now, of whichever version."""
        return 0 if self.resident is None else self.resident.nbytes


_shared: "weakref.WeakValueDictionary[Snapshots, LocalCodes]" = weakref.WeakValueDictionary()
_shared_lock = Lock()


def shared_codes(snapshots: Snapshots, columns: CodeColumns) -> LocalCodes:
    """The codes that all handles of this process share which read the same version, most often the newest,
    in the same way, for as long as one of them is used."""
    with _shared_lock:
        codes = _shared.get(snapshots)
        if codes is None:
            codes = _shared[snapshots] = LocalCodes(snapshots, columns)
        return codes


@dataclasses.dataclass(frozen=True, eq=False)
class TableReader:
    """Reads a table for one query: the newest version, or the one that was checked out when it was begun.

    A query that needs no codes reads the snapshot alone.
    """

    handle: Handle
    snapshots: Snapshots
    """Those of the handle when the query was begun."""
    codes: CodeSource
    cache: CacheSetting

    def read_snapshot(self, action: Callable[[Snapshot], Result]) -> Result:
        """What `action` makes of the version that is read now, from a later one should this be lost; no codes
        are loaded. Raises as `action`, and TableError when the table was dropped."""
        return self.snapshots.read(action)

    def read(self, action: Callable[[TableState], Result]) -> Result:
        """As `read_snapshot`, of the version with its codes. Raises as `CodeSource.state`, too."""

        def current() -> tuple[Snapshot, TableState]:
            state = self.state()
            return state.snapshot, state

        return self.snapshots.read_state(current, action)

    def state(self) -> TableState:
        """The version that is read now, with its codes. Raises as `CodeSource.state`."""
        return self.codes.state(self.cache)

    def __reduce__(self) -> tuple[Any, ...]:
        _require_local(self.codes, self.handle)
        return _reader_of, (self.handle, self.cache)


class TableSource:
    """What the queries of an open table read: its codes are in memory, on disk, or held by shards."""

    def __init__(self, handle: Handle, cache: CacheSetting) -> None:
        """Read codes in this process.

        Args:
            handle: of the table.
            cache: where codes may be.
        """
        self._handle = handle
        self.cache = cache
        """Where the codes may be that this process reads."""
        self._codes_of: Callable[[Snapshots, CodeColumns], CodeSource] = shared_codes
        self._find()

    @property
    def codes(self) -> CodeSource:
        """The codes of what the handle reads now: the newest version, or the one that is checked out."""
        if self._found[0] is not self._handle.snapshots:
            self._find()
        return self._found[1]

    def use(self, codes_of: Callable[[Snapshots, CodeColumns], CodeSource]) -> None:
        """Have codes found in another way.

        Args:
            codes_of: the codes, given what says which version is read, and the columns of the table. It must
                not hold the table: codes in memory would outlive the last use of it.
        """
        self._codes_of = codes_of
        self._find()

    def reader(self) -> TableReader:
        """For a query that begins now."""
        codes = self.codes
        return TableReader(self._handle, self._found[0], codes, self.cache)

    def _find(self) -> None:
        snapshots = self._handle.snapshots
        self._found: tuple[Snapshots, CodeSource] = snapshots, self._codes_of(snapshots, self._handle.columns)

    def require_local(self) -> None:
        """Raise TableError if other processes hold the codes: no copy could reach them."""
        _require_local(self.codes, self._handle)


def _require_local(codes: CodeSource, handle: Handle) -> None:
    if not isinstance(codes, LocalCodes):
        raise TableError(
            f"The codes of table {handle.name!r} are held by other processes, which this handle alone "
            "reaches; it cannot be copied or pickled. Open the table in the other process."
        )


def _reader_of(handle: Handle, cache: CacheSetting) -> TableReader:
    """A reader like one that was copied or pickled."""
    return TableSource(handle, cache).reader()
