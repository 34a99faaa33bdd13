"""Searching a table whose codes several processes hold: all are asked, and what they find is merged.

What comes out is what one process would have found: which rows are scanned, and how they score, does not
depend on who has them. Shapes: Q queries, P partitions.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rqmoe_store.codecs.additive import LookupTables
from rqmoe_store.search.raw_rows import by_stage
from rqmoe_store.search.request import SearchRequest
from rqmoe_store.search.rerank import Hits
from rqmoe_store.search.segments import Mask, no_rows
from rqmoe_store.search.shards import ShardPart
from rqmoe_store.search.shortlist import Shortlist, sides_of
from rqmoe_store.search.source import CodeSource, TableState
from rqmoe_store.store.snapshot import Snapshot
from rqmoe_store.store.table import StoredTable

Ask = Callable[[str, Mapping[int, ShardPart], tuple[Any, ...]], list[Any]]
"""Calls a method of some shards, by number, each with its part and all with the same further arguments.

Returns what they return, in any order; raises what they raise, or an error derived from that."""


@dataclasses.dataclass(frozen=True)
class Shards:
    """The codes and the raw rows of one version, wherever they are."""

    snapshot: Snapshot
    parts: Mapping[int, ShardPart]
    """What every shard has that has anything."""
    ask: Ask

    def scan(
        self,
        where: str | None,
        lower: float | None,
        tables: Mapping[int, LookupTables],
        probed_QP: Mask,
        size: int,
    ) -> list[list[Shortlist]]:
        """As `scan_sides`, of the rows that match a checked condition."""
        found = self.ask("scan", self.parts, (where, lower, tables, probed_QP, size))
        none = Shortlist(np.empty(0, np.float32), no_rows(self.snapshot.codecs.code_bytes))
        merged = [[none for _ in sides_of(lower)] for _ in probed_QP]
        for of_shard in found:
            for best, of_query in zip(merged, of_shard, strict=True):
                best[:] = [each.joined(more).best(size) for each, more in zip(best, of_query, strict=True)]
        return merged

    def __bool__(self) -> bool:
        return any(part.raw for part in self.parts.values())

    def nearest(self, request: SearchRequest) -> list[Hits]:
        """As `RawRows.nearest`."""
        parts = {shard: part for shard, part in self.parts.items() if part.raw}
        found = self.ask("nearest_raw", parts, (request,))
        return [
            by_stage(functools.reduce(Hits.joined, of_query), request)
            for of_query in zip(*found, strict=True)
        ]


class ShardedSource(CodeSource):
    """The newest version of a table, or one that is checked out, with its codes in shards."""

    def __init__(self, store: StoredTable, shards: int, ask: Ask) -> None:
        """Prepare; nothing is asked before there is a query.

        Args:
            store: the table.
            shards: how many there are, at least 1.
            ask: reaches them.
        """
        super().__init__(store.snapshots, store.columns)
        self._shards, self._ask = shards, ask
        self._owners: dict[int, int] = {}
        self._spread: Shards | None = None

    def current(self, memory_budget: int) -> TableState:
        """The version that is read now; the shards need what memory they need. Raises TableError when the
        table was dropped."""
        with self._lock:
            snapshot = self._snapshots.current()
            if self._spread is None or self._spread.snapshot is not snapshot:
                self._spread = Shards(snapshot, self._parts(snapshot), self._ask)
            return TableState(snapshot, None, raw=self._spread, elsewhere=self._spread)

    def _parts(self, snapshot: Snapshot) -> dict[int, ShardPart]:
        """What every shard has: fragments stay where they are, new ones go where fewest rows are."""
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
