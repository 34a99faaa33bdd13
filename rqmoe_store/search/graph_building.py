"""Building the neighbor graph of a table: each row's nearest rows, by the table's own search, block by block.

A row is searched for in the version of the table that the session reads. It is searched for again when it,
or a row of its list, has changed or gone since, and when it is in the list of a row that has. So after a
session, a list lacks a nearer row only where the search did not find it, or where that row came later and
has not the owner of the list among its own neighbors.

Shape legend: N rows of the table with a code, B rows of a block, D vector dimension, E neighbors of a block.
"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.errors import TableError
from rqmoe_store.progress import progress_bar
from rqmoe_store.search.execution import Execution
from rqmoe_store.search.multivector import require_one_vector
from rqmoe_store.search.raw_rows import RawRows
from rqmoe_store.search.request import SearchRequest, Trace, VectorOptions
from rqmoe_store.search.rerank import Hits
from rqmoe_store.search.segments import RowIds
from rqmoe_store.search.source import TableSource, TableState
from rqmoe_store.store import databases
from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.handle import Handle
from rqmoe_store.store.lance import take_rows_of_version
from rqmoe_store.store.neighbor_graph import (
    CodedRows,
    GraphReport,
    GraphWriter,
    NeighborGraph,
    NeighborLists,
)

_BLOCK_ROWS = 1_024
"""Rows that are searched for together."""
_WRITTEN_ROWS = 16 * _BLOCK_ROWS
"""Rows that are written together: what an interrupted session loses at most."""

Advance = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class _Rows:
    """The rows of a table that have a code, and what a graph knows of them."""

    coded: CodedRows
    searched_N: npt.NDArray[np.uint64]
    """Version that the neighbors of a row were searched in; 0 for rows that the graph has not."""

    @classmethod
    def of(cls, state: TableState, columns: CodeColumns, graph: NeighborGraph) -> "tuple[_Rows, RowIds]":
        """The rows of a version of a table, and ids of the rows that only the graph has."""
        coded = CodedRows.of(state.snapshot.dataset, columns.code)
        searched_N, gone = coded.searched_in(graph)
        return cls(coded, searched_N), gone

    def __len__(self) -> int:
        return len(self.coded.row_ids_N)

    @property
    def unknown(self) -> RowIds:
        """Rows that the graph has not, or that were changed since their neighbors were searched for."""
        return self.coded.row_ids_N[self.coded.changed_N > self.searched_N]

    def outdated(self, graph: NeighborGraph) -> RowIds:
        """Rows with fewer neighbors than they can have, or with one that has changed or gone since, and the
        neighbors of rows that have changed since."""
        coded, outdated_N, most = self.coded, np.zeros(len(self), dtype=bool), len(self) - 1
        if most < 0:
            return coded.row_ids_N
        for batch in graph.batches():
            owners_B, known_B = coded.places_of(batch.row_ids_B)
            sizes_B = np.diff(batch.starts_B)
            outdated_N[owners_B[known_B & (sizes_B < min(graph.neighbors, most))]] = True
            owners_E, known_E = np.repeat(owners_B, sizes_B), np.repeat(known_B, sizes_B)
            others_E, exist_E = coded.places_of(batch.neighbors_E)
            both_E = known_E & exist_E
            lost_E = known_E & ~exist_E
            lost_E |= both_E & (coded.changed_N[others_E] > self.searched_N[owners_E])
            outdated_N[owners_E[lost_E]] = True
            new_E = both_E & (coded.changed_N[owners_E] > self.searched_N[others_E])
            outdated_N[others_E[new_E]] = True
        return coded.row_ids_N[outdated_N]


def build_graph(source: TableSource, neighbors: int | None, *, rebuild: bool, progress: bool) -> GraphReport:
    """Build the neighbor graph of the newest version of a table, or bring it up to date.

    Args:
        source: source of the table's queries.
        neighbors: as for `CompressedTable.build_neighbor_graph`; None for as many as the graph has.
        rebuild: as there.
        progress: show a progress bar.

    Raises as there.
    """
    handle = source.reader().handle
    snapshot = handle.refresh()
    require_one_vector(handle, "build_neighbor_graph", "Search it without expand().")
    handle.require_codec(snapshot)
    if not snapshot.dataset.has_stable_row_ids:
        raise TableError(
            f"Table {handle.name!r} has no stable row ids, by which a neighbor graph names rows: they would "
            "change when files are merged. Compress the table into a new one, which has them."
        )
    if not rebuild:
        current = source.reader().read(lambda state: _current(state, handle, neighbors))
        if current is not None:
            return current
    writer = GraphWriter.begin(handle.table, neighbors, rebuild=rebuild)
    handle.refresh()
    with progress_bar(progress) as bar:
        task = bar.add_task("Searching neighbors", total=None)

        def session(state: TableState) -> GraphReport:
            search = _Session(state, handle.columns, writer)
            return search.run(
                lambda total: bar.update(task, total=total), lambda rows: bar.advance(task, rows)
            )

        report = source.reader().read(session)
    writer.publish(report.version)
    handle.refresh()
    return report


def _current(state: TableState, handle: Handle, neighbors: int | None) -> GraphReport | None:
    """The report on a graph that needs no change, so that nothing is written; None if it needs any."""
    dataset, database = state.snapshot.dataset, databases.database_of(handle.table)
    graph = NeighborGraph.find(dataset, database, handle.name)
    if (
        graph is None
        or neighbors not in (None, graph.neighbors)
        or not graph.is_newest(database, handle.name)
    ):
        return None
    rows, gone = _Rows.of(state, handle.columns, graph)
    if len(gone) or len(rows.unknown) or len(rows.outdated(graph)):
        return None
    return GraphReport(neighbors=graph.neighbors, rows=len(rows), searched=0, removed=0, version=graph.covers)


class _Session:
    """Searches for the neighbors of the rows of one version of a table."""

    def __init__(self, state: TableState, columns: CodeColumns, writer: GraphWriter) -> None:
        # Rows without a code are searched for once they have one.
        self._state = dataclasses.replace(state, raw=RawRows(state.snapshot, columns, []))
        self._columns, self._writer = columns, writer

    def run(self, begin: Callable[[int], object], advance: Advance) -> GraphReport:
        """Search for the neighbors of all rows of which the graph has none, or outdated ones.

        Args:
            begin: called with the number of rows to search for, again when it grows.
            advance: called with the number of rows done since its last call.
        """
        rows, gone = _Rows.of(self._state, self._columns, self._writer.graph())
        unknown = rows.unknown
        begin(len(unknown))
        self._search(unknown, advance)
        again = dataclasses.replace(rows, searched_N=rows.searched_N.copy())
        again.searched_N[again.coded.places_of(unknown)[0]] = self._state.snapshot.version
        outdated = again.outdated(self._writer.graph())
        begin(len(unknown) + len(outdated))
        self._search(outdated, advance)
        for start in range(0, len(gone), _WRITTEN_ROWS):
            self._writer.remove(gone[start : start + _WRITTEN_ROWS])
        return GraphReport(
            neighbors=self._writer.neighbors,
            rows=len(rows),
            searched=len(unknown) + len(outdated),
            removed=len(gone),
            version=self._state.snapshot.version,
        )

    def _search(self, row_ids: RowIds, advance: Advance) -> None:
        """Search for the neighbors of rows, and write them."""
        for start in range(0, len(row_ids), _WRITTEN_ROWS):
            some = row_ids[start : start + _WRITTEN_ROWS]
            self._writer.write(self._lists(some, advance))

    def _lists(self, row_ids_B: RowIds, advance: Advance) -> NeighborLists:
        """The neighbors of rows."""
        lists = []
        for start in range(0, len(row_ids_B), _BLOCK_ROWS):
            block = row_ids_B[start : start + _BLOCK_ROWS]
            lists += list(self._neighbors(block))
            advance(len(block))
        versions_B = np.full(len(row_ids_B), self._state.snapshot.version, np.uint64)
        starts_B = np.cumsum([0, *map(len, lists)])
        return NeighborLists(row_ids_B, versions_B, starts_B, np.concatenate(lists))

    def _neighbors(self, row_ids_B: RowIds) -> Iterator[RowIds]:
        """Yield the neighbors of each row, nearest first; none for a vector that has no direction."""
        vectors_BD, wanted = self._vectors(row_ids_B), self._writer.neighbors
        is_cosine = self._state.snapshot.codecs.metric == "cosine"
        searchable_B = np.abs(vectors_BD).max(axis=1) > 0 if is_cosine else np.ones(len(row_ids_B), bool)
        found = iter(self._nearest(vectors_BD[searchable_B], wanted + 1) if searchable_B.any() else ())
        for row_id, searchable in zip(row_ids_B, searchable_B.tolist(), strict=True):
            near = next(found).row_ids_S if searchable else np.empty(0, np.uint64)
            yield near[near != row_id][:wanted]

    def _vectors(self, row_ids_B: RowIds) -> Float32Array:
        """The vectors that codes of rows stand for, with refine codes where there are any."""
        codecs = self._state.snapshot.codecs
        taken = take_rows_of_version(self._state.snapshot.dataset, list(codecs.columns.names), row_ids_B)
        return codecs.decode(codecs.read(taken)[0])

    def _nearest(self, queries_BD: Float32Array, limit: int) -> list[Hits]:
        snapshot = self._state.snapshot
        parameters = VectorOptions().parameters(snapshot.codecs, snapshot.tuned)
        request = SearchRequest(
            queries_QD=queries_BD, limit=limit, parameters=parameters, stages=parameters.stages(limit)
        )
        return Execution(request, self._state, self._columns, Trace()).run()
