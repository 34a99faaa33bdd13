"""Sources of queries: the version of a table that they read, with codes in memory, on disk or in shards."""

import dataclasses
import functools
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar

from rqmoe_store.codecs.additive import LookupTables
from rqmoe_store.codecs.parallel import Lock
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.search import resident as residents
from rqmoe_store.search.cached_columns import CachedColumns, cacheable, require_cacheable
from rqmoe_store.search.raw_rows import RawFragments, RawRows
from rqmoe_store.search.request import SearchRequest
from rqmoe_store.search.rerank import Hits
from rqmoe_store.search.resident import Resident
from rqmoe_store.search.segments import Mask
from rqmoe_store.search.shortlists import Shortlists
from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.handle import Handle
from rqmoe_store.store.snapshot import Snapshot, Snapshots
from rqmoe_store.store.table_codec import Generation

Cache = Literal["memory", "disk"]
Result = TypeVar("Result")

_SHARE_OF_MEMORY = 4
"""By default, codes of a table may take one part in this many of the machine's memory."""

_MEMORY_UNKNOWN = 2**32
"""Bytes that codes may take where the size of the machine's memory is unknown."""


class RemoteCodes(Protocol):
    """The codes of a version in other processes."""

    def scan(
        self,
        where: str | None,
        lower: float | None,
        tables: Mapping[int, LookupTables],
        probed_QP: Mask,
        size: int,
    ) -> list[Shortlists]:
        """Scan the rows that match a checked condition, as `scan.scan` does."""


class RawSearch(Protocol):
    """Searches the raw rows of a version: those with a vector and no code."""

    def __bool__(self) -> bool:
        """Whether there are raw rows."""

    def nearest(self, request: SearchRequest) -> list[Hits]:
        """Find the nearest raw rows, as `RawRows.nearest` does."""


@dataclasses.dataclass(frozen=True)
class TableState:
    """One version of a table, with its codes and raw rows."""

    snapshot: Snapshot
    resident: Resident | None
    """The codes, if they are in memory."""
    raw: RawSearch
    """The raw rows."""
    remote: RemoteCodes | None = None
    """The codes, if other processes have them."""
    cached: CachedColumns | None = None
    """Columns whose values are taken from memory, if any are wanted there."""

    @functools.cached_property
    def generations(self) -> list[Generation]:
        """The generations of codecs of which any row has a code."""
        generations, resident = self.snapshot.codecs.generations, self.resident
        if resident is None:
            return [generations[place] for place in self.snapshot.places_in_use]
        return [each for each in generations if resident.has_rows(each.partitions)]

    @functools.cached_property
    def refine_codes_in(self) -> str:
        """Where searches read refine codes: "memory", "disk", or "none" if the table has none."""
        if not self.snapshot.codecs.columns.refine_bytes:
            return "none"
        return "memory" if self.resident is not None and self.resident.has_refine else "disk"


@dataclasses.dataclass(frozen=True)
class CacheSetting:
    """Whether searches keep codes in memory, and how much memory these may take."""

    cache: Cache = "memory"
    """"memory", or "disk" to read the probed partitions for every query."""
    memory_budget: int | None = None
    """Bytes; codes that would take more are read from disk. If only refine codes do not fit, these are read
    from disk, of shortlisted rows alone. None for a quarter of the machine's memory, or 4 GiB on Windows,
    where the size of the memory is unknown."""
    columns: tuple[str, ...] = ()
    """Columns whose values are kept in memory along with the codes, if all of them fit the budget, too."""

    def __post_init__(self) -> None:
        """Raise InvalidInputError for another cache, for one on disk with columns in memory, or for a budget
        that is not a number of bytes."""
        cache, budget = self.cache, self.memory_budget
        if cache not in ("memory", "disk"):
            raise InvalidInputError(f"Got cache={cache!r}; expected 'memory' or 'disk'.")
        if cache == "disk" and self.columns:
            raise InvalidInputError(
                f"Got cache_columns={list(self.columns)} with cache='disk'; columns are kept in memory along "
                "with codes alone. Leave one of them out."
            )
        if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int) or budget < 0):
            raise InvalidInputError(f"Got memory_budget={budget!r}; expected a number of bytes, or None.")

    def allows(self, needed: int) -> bool:
        """Whether codes that take `needed` bytes may be in memory."""
        return self.cache == "memory" and needed <= self.most_bytes

    @property
    def most_bytes(self) -> int:
        """Most bytes that may be in memory."""
        if self.memory_budget is not None:
            return self.memory_budget
        if not hasattr(os, "sysconf"):
            return _MEMORY_UNKNOWN
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // _SHARE_OF_MEMORY


@dataclasses.dataclass(frozen=True)
class _TooLarge:
    """An attempt to load columns that did not fit, which is not made again before it can succeed."""

    names: frozenset[str]
    rows: int
    room: int

    def exceeds(self, other: "_TooLarge") -> bool:
        """Whether these columns cannot fit either: as many, of as many rows, in as little room."""
        return self.names >= other.names and self.rows >= other.rows and self.room <= other.room


class CodeSource(Protocol):
    """Loads the version of a table that is to be read now, with its codes."""

    def state(self, cache: CacheSetting) -> TableState:
        """Load the version that is to be read now.

        Args:
            cache: where its codes may be.

        Raises:
            TableError: the table was dropped, or has a code or partition id that none of its codecs has.
        """

    @property
    def resident(self) -> Resident | None:
        """The codes that are in this process's memory now, of any version."""


class LocalCodes:
    """The codes of one table in this process: in memory if the cache allows that, else on disk.

    Use `shared_codes` to share them with other queries.
    """

    def __init__(self, snapshots: Snapshots, columns: CodeColumns) -> None:
        """Prepare; nothing is read before the first query.

        Args:
            snapshots: snapshots of the table.
            columns: code columns of the table.
        """
        self._snapshots = snapshots
        self._columns = columns
        self._raw_fragments = RawFragments(columns)
        self._lock = Lock()
        self._raw: RawRows | None = None
        self._too_large: _TooLarge | None = None
        self._states: dict[CacheSetting, TableState] = {}
        self.resident: Resident | None = None
        """The codes that are in memory now, of any version."""

    def state(self, cache: CacheSetting) -> TableState:
        """Load the version that is to be read now, and load or refresh its codes if `cache` allows that."""
        with self._lock:  # several queries that find a new version read its codes once
            snapshot, state = self._snapshots.current(), self._states.get(cache)
            if state is None or state.snapshot is not snapshot:
                state = self._new_state(snapshot, cache)
                self._states[cache] = state
            return state

    def _new_state(self, snapshot: Snapshot, cache: CacheSetting) -> TableState:
        """The state of a version that is new, or is read with this setting for the first time."""
        if self._raw is None or self._raw.snapshot is not snapshot:
            self._raw = self._raw_fragments.of(snapshot)
            self._states.clear()
        codecs, resident = snapshot.codecs, self.resident
        if not cache.allows(residents.bytes_needed(snapshot.rows, codecs.code_bytes)):
            return TableState(snapshot, None, self._raw)
        refine = _keeps_refine_codes(snapshot, cache)
        if resident is None or resident.snapshot is not snapshot or resident.has_refine < refine:
            resident = residents.refresh(snapshot, resident, self._columns, refine=refine)
        if cache.columns:
            resident = self._with_columns(resident, cache)
        if resident is not self.resident:  # states of other settings use the same codes from now on
            self._states.clear()
            self.resident = resident
        return TableState(snapshot, resident, self._raw, cached=resident.cached if cache.columns else None)

    def _with_columns(self, resident: Resident, cache: CacheSetting) -> Resident:
        """Codes of a version with the columns that `cache` names and the version has, if they fit."""
        snapshot, cached = resident.snapshot, resident.cached
        if resident is self.resident and cached.has(cache.columns):
            return resident
        codecs = snapshot.codecs
        refine_bytes = codecs.columns.refine_bytes if resident.has_refine else 0
        room = cache.most_bytes - residents.bytes_needed(snapshot.rows, codecs.code_bytes + refine_bytes)
        if resident is not self.resident and cached.nbytes > room:
            cached = CachedColumns.none()
        wanted = list(dict.fromkeys([*cached.names, *cacheable(cache.columns, snapshot.schema)]))
        tried = _TooLarge(frozenset(wanted), snapshot.rows, room)
        if wanted != cached.names and not (self._too_large and tried.exceeds(self._too_large)):
            loaded = CachedColumns.load(snapshot, wanted, room)
            self._too_large = tried if loaded is None else None
            cached = loaded or cached
        return resident if cached is resident.cached else dataclasses.replace(resident, cached=cached)

    def refine_in_memory(self, snapshot: Snapshot, cache: CacheSetting) -> bool:
        """Whether a search of a version would have refine codes in memory: those that another handle, or an
        earlier search, has loaded serve searches whose own budget they would exceed."""
        if not cache.allows(residents.bytes_needed(snapshot.rows, snapshot.codecs.code_bytes)):
            return False
        loaded = self.resident
        has_them = loaded is not None and loaded.snapshot is snapshot and loaded.has_refine
        return has_them or _keeps_refine_codes(snapshot, cache)


def _keeps_refine_codes(snapshot: Snapshot, cache: CacheSetting) -> bool:
    """Whether refine codes of a version are kept in memory along with its codes."""
    code_bytes, refine_bytes = snapshot.codecs.code_bytes, snapshot.codecs.columns.refine_bytes
    needed = residents.bytes_needed(snapshot.rows, code_bytes + refine_bytes)
    return bool(refine_bytes) and cache.allows(needed)


_shared: "weakref.WeakValueDictionary[Snapshots, LocalCodes]" = weakref.WeakValueDictionary()
_shared_lock = Lock()


def shared_codes(snapshots: Snapshots, columns: CodeColumns) -> LocalCodes:
    """The codes that all handles of this process share if they have the same snapshots.

    Such handles read the same version, usually the newest. The codes are freed with the last of the handles.
    """
    with _shared_lock:
        codes = _shared.get(snapshots)
        if codes is None:
            codes = _shared[snapshots] = LocalCodes(snapshots, columns)
        return codes


@dataclasses.dataclass(frozen=True, eq=False)
class TableReader:
    """Reads a table for one query: the newest version, or the one checked out when the query was created.

    A query that needs no codes reads the snapshot alone.
    """

    handle: Handle
    snapshots: Snapshots
    """The snapshots of the handle when the query was created."""
    codes: CodeSource
    cache: CacheSetting

    def read_snapshot(self, action: Callable[[Snapshot], Result]) -> Result:
        """Call `action` with the version to read, and with a later one if that is removed meanwhile.

        Loads no codes. Raises as `action`, and TableError if the table was dropped.
        """
        return self.snapshots.read(action)

    def read(self, action: Callable[[TableState], Result]) -> Result:
        """Call `action` as `read_snapshot` does, with the version and its codes. Raises as `state`, too."""

        def current() -> tuple[Snapshot, TableState]:
            state = self.state()
            return state.snapshot, state

        return self.snapshots.read_state(current, action)

    def state(self) -> TableState:
        """Load the version that is to be read now, with its codes. Raises as `CodeSource.state`."""
        return self.codes.state(self.cache)

    def cached_columns(self, snapshot: Snapshot) -> CachedColumns | None:
        """The columns of a version that are in memory already, if this query takes values from there."""
        resident = self.codes.resident if self.cache.columns else None
        return resident.cached if resident is not None and resident.snapshot is snapshot else None

    def __reduce__(self) -> tuple[Any, ...]:
        _require_local(self.codes, self.handle)
        return _reader_of, (self.handle, self.cache)


class TableSource:
    """The source of an open table's queries: codes are in memory, on disk or in shards."""

    def __init__(self, handle: Handle, cache: CacheSetting) -> None:
        """Read codes in this process.

        Args:
            handle: handle on the table.
            cache: where codes may be.
        """
        self._handle = handle
        self.cache = cache
        """Where codes may be that this process reads."""
        self._codes_of: Callable[[Snapshots, CodeColumns], CodeSource] = shared_codes
        self._update()

    @property
    def codes(self) -> CodeSource:
        """The codes of the version that the handle reads now: the newest one, or the one checked out."""
        if self._current[0] is not self._handle.snapshots:
            self._update()
        return self._current[1]

    @property
    def refine_codes_in(self) -> str:
        """Where searches read refine codes: "memory", "disk", or "none" if the table has none."""
        snapshot = self._handle.snapshots.current()
        if not snapshot.codecs.columns.refine_bytes:
            return "none"
        is_local = isinstance(self.codes, LocalCodes) and self.codes.refine_in_memory(snapshot, self.cache)
        return "memory" if is_local else "disk"

    def require_cacheable(self, columns: Sequence[str]) -> None:
        """Raise InvalidInputError unless the table has these columns, and their values can be cached."""
        snapshots, hidden = self._handle.snapshots, self._handle.hidden_columns
        if len(cacheable(columns, snapshots.last.schema)) < len(columns):
            snapshots.current()  # others may have added them since
        require_cacheable(columns, snapshots.last.schema, hidden)

    def use(self, codes_of: Callable[[Snapshots, CodeColumns], CodeSource]) -> None:
        """Get codes in another way from now on.

        Args:
            codes_of: function from the snapshots and the code columns of a table to its codes. It must not
                reference the table, or codes in memory would outlive the last use of the table.
        """
        self._codes_of = codes_of
        self._update()

    def reader(self) -> TableReader:
        """A reader for a new query."""
        codes = self.codes
        return TableReader(self._handle, self._current[0], codes, self.cache)

    def _update(self) -> None:
        """Get the codes for the present snapshots of the handle."""
        snapshots = self._handle.snapshots
        codes = self._codes_of(snapshots, self._handle.columns)
        self._current: tuple[Snapshots, CodeSource] = snapshots, codes

    def require_local(self) -> None:
        """Raise TableError if other processes hold the codes, which a copy of the handle could not reach."""
        _require_local(self.codes, self._handle)


def _require_local(codes: CodeSource, handle: Handle) -> None:
    if not isinstance(codes, LocalCodes):
        raise TableError(
            f"The codes of table {handle.name!r} are held by other processes, which this handle alone "
            "reaches; it cannot be copied or pickled. Open the table in the other process."
        )


def _reader_of(handle: Handle, cache: CacheSetting) -> TableReader:
    """Recreate a reader that was copied or pickled."""
    return TableSource(handle, cache).reader()
