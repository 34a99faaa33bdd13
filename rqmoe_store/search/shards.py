"""Sharded search: several processes (shards) hold the codes of a table, and their results are merged.

Results are the same as those of a single process: which rows are scanned, and their scores, do not depend on
which shard has them.

Shape legend: Q queries, P partitions.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

import lance
from lancedb.table import LanceTable

from rqmoe_store.codecs.additive import LookupTables
from rqmoe_store.codecs.parallel import Lock
from rqmoe_store.search.raw_rows import RawFragments, RawRows, with_stages
from rqmoe_store.search.request import SearchRequest
from rqmoe_store.search.rerank import Hits
from rqmoe_store.search.resident import FilterCache, fragment_codes
from rqmoe_store.search.scan import scan
from rqmoe_store.search.segments import Mask, Segment, Selection, grouped
from rqmoe_store.search.shortlists import Shortlists, sides_of
from rqmoe_store.search.source import CacheSetting, TableState
from rqmoe_store.store import databases
from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.databases import TablePlace
from rqmoe_store.store.handle import Handle
from rqmoe_store.store.snapshot import Snapshot, Snapshots


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardPart:
    """The fragments of one version of a table that a shard scans."""

    version: int
    transaction: str
    """Identifies the commit of the version."""
    fragments: tuple[int, ...]
    """Ids of the fragments."""
    raw: tuple[int, ...]
    """Ids of the fragments that have rows without a code."""


class Shard:
    """One shard: reads the codes of some fragments once, and scans them in memory."""

    def __init__(self, place: TablePlace, *, device: str = "auto") -> None:
        """Open the table.

        Args:
            place: where the table is.
            device: device to scan on, as in `Codec.to`.

        Raises as `open_table`.
        """
        self._database, self._place = place.connect(), place
        handle = Handle.open(self._database, place.name, device=device)
        self._columns, self._codecs = handle.columns, handle.codecs
        self._part: ShardPart | None = None
        self._snapshot: Snapshot | None = None
        self._segments: dict[object, Segment] = {}
        self._filtered = FilterCache()
        self._extreme: dict[tuple[str, ...], bool] = {}

    def scan(
        self,
        part: ShardPart,
        where: str | None,
        lower: float | None,
        tables: Mapping[int, LookupTables],
        probed_QP: Mask,
        size: int,
    ) -> list[Shortlists]:
        """Scan the rows of a part that match a checked condition, as `scan.scan` does.

        Raises:
            OSError: the version is gone.
            TableError: it has codes that none of its codecs wrote.
        """
        snapshot = self._at(part)
        selections = self._selections(snapshot, part, where)
        return scan(selections, tables, probed_QP, size, lower, snapshot.codecs.device)

    def nearest_raw(self, part: ShardPart, request: SearchRequest) -> list[Hits]:
        """Find the rows of a part that have no code and are nearest to every query. Raises as `scan`."""
        snapshot = self._at(part)
        return RawRows(snapshot, self._columns, _fragments(snapshot, part.raw), self._extreme).nearest(
            request
        )

    def _at(self, part: ShardPart) -> Snapshot:
        """Load the version and the fragments of a part, unless they are in memory."""
        if self._snapshot is None or part != self._part:
            snapshot = self._open(part)
            known, self._segments = self._segments, {}
            for fragment in _fragments(snapshot, part.fragments):
                # Files never change, but which of their rows are deleted may.
                metadata, partitions = fragment.metadata, snapshot.codecs.num_partitions
                key = (*(file.path for file in metadata.files), repr(metadata.deletion_file), partitions)
                codes = known.get(key)
                if codes is None:
                    codes = grouped(fragment_codes(snapshot, self._columns, fragment), partitions)
                self._segments[key] = codes
            self._filtered.clear()
            self._snapshot, self._part = snapshot, part
        return self._snapshot

    def _open(self, part: ShardPart) -> Snapshot:
        name, branch = self._place.name, self._place.branch
        table = databases.open_if_exists(self._database, name, branch=branch, version=part.version)
        if table is None:
            raise FileNotFoundError(f"Version {part.version} of table {name!r} is gone.")
        dataset = cast(LanceTable, table).to_lance()
        snapshot = Snapshot.of(dataset, self._database, self._place, self._codecs)
        if snapshot.transaction != part.transaction:
            raise FileNotFoundError(f"Version {part.version} of table {name!r} is another one now.")
        self._codecs = snapshot.codecs
        return snapshot

    def _selections(self, snapshot: Snapshot, part: ShardPart, where: str | None) -> list[Selection]:
        all_rows = [Selection(segment) for segment in self._segments.values()]
        if where is None:
            return all_rows
        fragments = _fragments(snapshot, part.fragments)
        return self._filtered.matching(where, snapshot.dataset, all_rows, fragments)


def _fragments(snapshot: Snapshot, ids: tuple[int, ...]) -> list[lance.LanceFragment]:
    return [cast(lance.LanceFragment, snapshot.dataset.get_fragment(fragment)) for fragment in ids]


ShardCall = Callable[[str, Mapping[int, ShardPart], tuple[Any, ...]], list[Any]]
"""RPC callable: calls a method of some shards, given by number, each with its part and all with the same
further arguments. Returns their results in any order; raises what they raise, or an exception derived from
it."""


@dataclasses.dataclass(frozen=True)
class Shards:
    """The codes and the raw rows of one version, distributed over shards."""

    snapshot: Snapshot
    parts: Mapping[int, ShardPart]
    """Number of a shard -> its part; without shards that have no rows."""
    call: ShardCall

    def scan(
        self,
        where: str | None,
        lower: float | None,
        tables: Mapping[int, LookupTables],
        probed_QP: Mask,
        size: int,
    ) -> list[Shortlists]:
        """Scan the rows that match a checked condition, as `scan.scan` does."""
        found = self.call("scan", self.parts, (where, lower, tables, probed_QP, size))
        none = [Shortlists.none(self.snapshot.codecs.code_bytes)] * len(sides_of(lower))
        return [Shortlists.joined(parts).best(size) for parts in zip(none, *found, strict=True)]

    def __bool__(self) -> bool:
        return any(part.raw for part in self.parts.values())

    def nearest(self, request: SearchRequest) -> list[Hits]:
        """Find the nearest raw rows, as `RawRows.nearest` does."""
        parts = {shard: part for shard, part in self.parts.items() if part.raw}
        found = self.call("nearest_raw", parts, (request,))
        return [
            with_stages(functools.reduce(Hits.joined, of_query), request)
            for of_query in zip(*found, strict=True)
        ]


class ShardedCodes:
    """The codes of a table in shards, of the newest version or of the one that is checked out."""

    def __init__(self, snapshots: Snapshots, columns: CodeColumns, *, shards: int, call: ShardCall) -> None:
        """Prepare; no shard is called before the first query.

        Args:
            snapshots: snapshots of the table.
            columns: code columns of the table.
            shards: number of shards, at least 1.
            call: calls the shards.
        """
        self._snapshots = snapshots
        self._raw_fragments = RawFragments(columns)
        self._lock = Lock()
        self._shards, self._call = shards, call
        self._owners: dict[int, int] = {}
        self._distributed: Shards | None = None

    def state(self, cache: CacheSetting) -> TableState:
        """The present version, distributed over the shards, whose memory `cache` does not limit.

        Raises:
            TableError: the table was dropped.
        """
        with self._lock:
            snapshot = self._snapshots.current()
            if self._distributed is None or self._distributed.snapshot is not snapshot:
                self._distributed = Shards(snapshot, self._parts(snapshot), self._call)
            return TableState(snapshot, None, raw=self._distributed, remote=self._distributed)

    @property
    def resident(self) -> None:
        """None, since no codes are in this process."""

    def _parts(self, snapshot: Snapshot) -> dict[int, ShardPart]:
        """Assign fragments to shards: old ones stay, new ones go to the shard with fewest rows."""
        rows = {each.fragment_id: each.count_rows() for each in snapshot.dataset.get_fragments()}
        raw = {each.fragment_id for each in self._raw_fragments.of(snapshot).fragments}
        self._owners = {fragment: owner for fragment, owner in self._owners.items() if fragment in rows}
        loads = [0] * self._shards
        for fragment, owner in self._owners.items():
            loads[owner] += rows[fragment]
        for fragment in sorted(rows, key=lambda each: (-rows[each], each)):
            if fragment not in self._owners:
                self._owners[fragment] = loads.index(min(loads))
                loads[self._owners[fragment]] += rows[fragment]
        owned: dict[int, list[int]] = {}
        for fragment in sorted(rows):
            owned.setdefault(self._owners[fragment], []).append(fragment)
        return {
            shard: ShardPart(
                version=snapshot.version,
                transaction=snapshot.transaction,
                fragments=tuple(fragments),
                raw=tuple(fragment for fragment in fragments if fragment in raw),
            )
            for shard, fragments in owned.items()
        }
