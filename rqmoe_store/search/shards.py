"""One of several processes that search a table together: it has the codes of some fragments.

Shapes: Q queries, P partitions.
"""

import dataclasses
from collections.abc import Mapping
from typing import cast

import lance
from lancedb.table import LanceTable

from rqmoe_store.codecs.additive import LookupTables
from rqmoe_store.search.filters import is_lasting, matching_row_ids
from rqmoe_store.search.raw_rows import RawRows
from rqmoe_store.search.request import SearchRequest
from rqmoe_store.search.rerank import Hits
from rqmoe_store.search.scan import scan_sides
from rqmoe_store.search.segments import Mask, Segment, Selection, grouped
from rqmoe_store.search.shortlist import Shortlist
from rqmoe_store.search.stored_codes import fragment_codes
from rqmoe_store.store import databases
from rqmoe_store.store.snapshot import Snapshot
from rqmoe_store.store.table import StoredTable
from rqmoe_store.store.table_place import TablePlace

_FILTERS_KEPT = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardPart:
    """What a shard is to scan: fragments of one version of a table."""

    version: int
    transaction: str
    """Which write made the version."""
    fragments: tuple[int, ...]
    """Their ids."""
    raw: tuple[int, ...]
    """Those of them that have rows without a code."""


class Shard:
    """Scans some fragments; their codes are read once and kept in memory."""

    def __init__(self, place: TablePlace, *, device: str = "auto") -> None:
        """Open the table.

        Args:
            place: of the table.
            device: where to scan, as in `Codec.to`.

        Raises as `open_table`.
        """
        self._database, self._place = place.connected(), place
        store = StoredTable.open(self._database, place.name)
        self._device, self._columns, self._codecs = device, store.columns, store.codecs
        self._part: ShardPart | None = None
        self._snapshot: Snapshot | None = None
        self._segments: dict[object, Segment] = {}
        self._filtered: dict[str, list[Selection]] = {}
        self._extreme: dict[tuple[str, ...], bool] = {}

    def scan(
        self,
        part: ShardPart,
        where: str | None,
        lower: float | None,
        tables: Mapping[int, LookupTables],
        probed_QP: Mask,
        size: int,
    ) -> list[list[Shortlist]]:
        """As `scan_sides`, of the rows of a part that match a checked condition.

        Raises:
            OSError: the version is gone.
            TableError: it has codes that none of its codecs wrote.
        """
        snapshot = self._at(part)
        selections = self._selections(snapshot, part, where)
        return scan_sides(selections, tables, probed_QP, size, lower, snapshot.codecs.device)

    def nearest_raw(self, part: ShardPart, request: SearchRequest) -> list[Hits]:
        """The rows of a part that have no code and are nearest to every query. Raises as `scan`."""
        snapshot = self._at(part)
        return RawRows(snapshot, self._columns, _fragments(snapshot, part.raw), self._extreme).nearest(
            request
        )

    def _at(self, part: ShardPart) -> Snapshot:
        """The version of the part, with its codes in memory."""
        if self._snapshot is None or part != self._part:
            snapshot = self._opened(part)
            known, self._segments = self._segments, {}
            for fragment in _fragments(snapshot, part.fragments):
                # What is in a file never changes; which of its rows are deleted may.
                metadata, partitions = fragment.metadata, snapshot.codecs.num_partitions
                key = (*(file.path for file in metadata.files), repr(metadata.deletion_file), partitions)
                codes = known.get(key)
                if codes is None:
                    codes = grouped(fragment_codes(snapshot, self._columns, fragment), partitions)
                self._segments[key] = codes
            self._filtered.clear()
            self._snapshot, self._part = snapshot, part
        return self._snapshot

    def _opened(self, part: ShardPart) -> Snapshot:
        name, branch = self._place.name, self._place.branch
        table = databases.open_if_exists(self._database, name, branch=branch, version=part.version)
        if table is None:
            raise FileNotFoundError(f"Version {part.version} of table {name!r} is gone.")
        dataset = cast(LanceTable, table).to_lance()
        snapshot = Snapshot.of(dataset, self._database, self._place, self._codecs)
        if snapshot.transaction != part.transaction:
            raise FileNotFoundError(f"Version {part.version} of table {name!r} is another one now.")
        self._codecs = snapshot.codecs
        if self._codecs.newest is not None:
            self._codecs.newest.to(self._device)
        return snapshot

    def _selections(self, snapshot: Snapshot, part: ShardPart, where: str | None) -> list[Selection]:
        everything = [Selection(segment) for segment in self._segments.values()]
        if where is None:
            return everything
        if where in self._filtered:
            return self._filtered[where]
        row_ids_N = matching_row_ids(snapshot.dataset, where, _fragments(snapshot, part.fragments))
        matching = [selection.only(row_ids_N) for selection in everything]
        if is_lasting(where):
            for forgotten in list(self._filtered)[: 1 - _FILTERS_KEPT]:
                self._filtered.pop(forgotten)
            self._filtered[where] = matching
        return matching


def _fragments(snapshot: Snapshot, ids: tuple[int, ...]) -> list[lance.LanceFragment]:
    return [cast(lance.LanceFragment, snapshot.dataset.get_fragment(fragment)) for fragment in ids]
