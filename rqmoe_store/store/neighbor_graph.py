"""Neighbor graph (kNN graph): the nearest rows of each row, kept in a side table in the table's own folder.

The side table has a row per row of the graph: its row id, the version of the table that its neighbors were
searched in, and their row ids, nearest first. It is dropped with the table, and has versions of its own. The
metadata of the table names the version of the side table that searches read, so that each version of the
table has the graph that it had when it was committed, also after a checkout or a restore.

Whoever builds or updates the graph opens a session, and writes its name into both tables. Rows that were
written and not published are taken up by the next session if both still have the same name. They do not if
the table was restored meanwhile, after which row ids may stand for other rows.

Shape legend: B rows, G rows of the graph, K neighbors, E neighbors of several rows.
"""

import dataclasses
import datetime
import json
import uuid
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import lance
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lancedb.db import LanceDBConnection
from lancedb.table import LanceTable

from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.storage_errors import is_gone
from rqmoe_store.store import databases
from rqmoe_store.store.lance import retry_on_conflict
from rqmoe_store.store.metadata import PREFIX, json_object, readable_text, require_types
from rqmoe_store.store.sql import quoted

RowIds = npt.NDArray[np.uint64]

GRAPH_FOLDER = "_neighbor_graph.lance"
"""Name of the side table in the folder of the table."""

MOST_NEIGHBORS = 1_000
"""Most neighbors of a row."""

_KEY = PREFIX + "neighbor_graph"
_ROW_ID, _VERSION, _NEIGHBORS, _SESSION = "row_id", "version", "neighbors", "session"
_SCHEMA = pa.schema(
    [
        pa.field(_ROW_ID, pa.uint64(), nullable=False),
        pa.field(_VERSION, pa.uint64(), nullable=False),
        pa.field(_NEIGHBORS, pa.list_(pa.uint64()), nullable=False),
    ]
)
_BATCH_ROWS = 65_536
_CHANGED = "_row_last_updated_at_version"


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphState:
    """What the metadata of a table says of its graph, as JSON."""

    session: str
    """Name of the last session that wrote to the graph."""
    neighbors: int
    """Neighbors of a row that this session searches for."""
    published: int | None
    """Version of the side table that searches read; None until the first session has ended."""
    covers: int
    """Version of the table whose rows that version has; 0 if there is none."""

    @classmethod
    def read(cls, dataset: lance.LanceDataset, name: str) -> "GraphState | None":
        """Read the state at a version of table `name`; None if it has no graph.

        Raises:
            TableError: it cannot be read.
        """
        text = dataset.metadata.get(_KEY)
        try:
            return None if text is None else _parsed(text)
        except (TypeError, ValueError) as error:
            raise TableError(
                f"Metadata {_KEY!r} of table {name!r} is {text!r}; expected what build_neighbor_graph() "
                "wrote. Restore an earlier version of the table."
            ) from error


class _Session(NamedTuple):
    """What the metadata of the side table says."""

    name: str
    """Name of the session that began last."""
    neighbors: int
    """Most neighbors of a row."""


def _parsed(text: str) -> GraphState:
    return require_types(GraphState(**json_object(text)))


class NeighborLists(NamedTuple):
    """Rows of a graph."""

    row_ids_B: RowIds
    versions_B: npt.NDArray[np.uint64]
    """Version of the table that the neighbors of a row were searched in."""
    starts_B: npt.NDArray[np.int64]
    """B + 1 positions: the neighbors of row b are neighbors_E[starts_B[b] : starts_B[b + 1]]."""
    neighbors_E: RowIds
    """Row ids, nearest first."""

    @classmethod
    def of(cls, batch: pa.RecordBatch) -> "NeighborLists":
        """Read rows of the side table."""
        lists = batch[_NEIGHBORS]
        offsets_B = lists.offsets.to_numpy().astype(np.int64)
        return cls(
            batch[_ROW_ID].to_numpy(),
            batch[_VERSION].to_numpy(),
            offsets_B - offsets_B[0],
            lists.flatten().to_numpy(),
        )

    def to_arrow(self) -> pa.Table:
        """The rows as the side table keeps them."""
        lists = pa.ListArray.from_arrays(pa.array(self.starts_B.astype(np.int32)), pa.array(self.neighbors_E))
        return pa.table([pa.array(self.row_ids_B), pa.array(self.versions_B), lists], schema=_SCHEMA)


class NeighborGraph:
    """The graph of one version of a table, as it was published."""

    def __init__(self, side: lance.LanceDataset, *, covers: int, neighbors: int) -> None:
        self._side = side
        self.neighbors = neighbors
        """Most neighbors of a row."""
        self.covers = covers
        """Version of the table whose rows the graph has."""

    @classmethod
    def open(cls, dataset: lance.LanceDataset, database: Any, name: str) -> "NeighborGraph":
        """Open the graph that a version of table `name` has.

        Raises:
            TableError: it has none, or the graph is incomplete, or the version of it is gone.
        """
        state = GraphState.read(dataset, name)
        if state is None:
            raise TableError(
                f"Table {name!r} has no neighbor graph in version {dataset.version}, which expand() needs. "
                "Build it with build_neighbor_graph(), or `rqmoe graph`."
            )
        if state.published is None:
            raise TableError(
                f"The neighbor graph of table {name!r} is not complete: its building was interrupted, or is "
                f"under way. Go on with build_neighbor_graph()."
            )
        graph = cls.find(dataset, database, name)
        if graph is None:
            raise TableError(
                f"The neighbor graph that version {dataset.version} of table {name!r} had is gone: it was "
                "cleaned up, or its files were removed. In the newest version, call optimize() or "
                "build_neighbor_graph() to have one again."
            )
        return graph

    @classmethod
    def find(cls, dataset: lance.LanceDataset, database: Any, name: str) -> "NeighborGraph | None":
        """The graph as `open` opens it; None where that raises for want of one."""
        state = GraphState.read(dataset, name)
        if state is None or state.published is None:
            return None
        side = _open_side(database, name, state.published)
        if side is None:
            return None
        return cls(side, covers=state.covers, neighbors=_session_of(side).neighbors)

    def __len__(self) -> int:
        return int(self._side.count_rows())

    def batches(self) -> Iterator[NeighborLists]:
        """Yield all rows of the graph."""
        yield from map(NeighborLists.of, self._side.scanner(batch_size=_BATCH_ROWS).to_batches())

    def is_newest(self, database: Any, name: str) -> bool:
        """Whether no session has written anything since this graph of table `name` was published."""
        side = _open_side(database, name)
        return side is not None and int(side.version) == int(self._side.version)

    @property
    def nbytes(self) -> int:
        """Size in bytes of the files that this version of the graph needs."""
        fields: Any = self._side.stats.data_stats().fields
        return sum(int(field.bytes_on_disk) for field in fields)

    def require(self, neighbors: int) -> None:
        """Raise InvalidInputError if more neighbors are wanted than rows have."""
        if neighbors > self.neighbors:
            raise InvalidInputError(
                f"Got neighbors={neighbors} for expand(); the graph of the table has {self.neighbors} a row. "
                f"Ask for fewer, or call build_neighbor_graph(neighbors={neighbors})."
            )

    def neighbors_of(self, row_ids: RowIds) -> dict[int, RowIds]:
        """The neighbors of rows by row id, nearest first; rows that the graph does not know are left out."""
        if len(row_ids) == 0:
            return {}
        wanted = f"{_ROW_ID} IN ({', '.join(map(str, row_ids.tolist()))})"
        found = self._side.scanner(columns=[_ROW_ID, _NEIGHBORS], filter=wanted).to_table()
        lists = found[_NEIGHBORS].combine_chunks()
        starts, ids = lists.offsets.to_numpy(), lists.values.to_numpy()
        pairs = zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)
        return {
            row: ids[start:stop] for row, (start, stop) in zip(found[_ROW_ID].to_pylist(), pairs, strict=True)
        }


class GraphWriter:
    """A session of building or updating the graph of a table."""

    def __init__(self, table: LanceTable, session: str, neighbors: int) -> None:
        """Use `begin` instead."""
        self._table, self._session, self.neighbors = table, session, neighbors
        self._database = databases.database_of(table)

    @classmethod
    def begin(cls, table: LanceTable, neighbors: int | None, *, rebuild: bool) -> "GraphWriter":
        """Begin a session: on what an interrupted one left, on the published graph, or on an empty one.

        Args:
            table: any handle on the table, whose newest version must have stable row ids.
            neighbors: neighbors of a row; None for as many as the last session searched for.
            rebuild: whether to begin with an empty graph in any case.
        """
        dataset = databases.reopen(table).to_lance()
        database, state = (
            databases.database_of(table),
            None if rebuild else GraphState.read(dataset, table.name),
        )
        if neighbors is None:
            assert state is not None, "there is a graph to be brought up to date"
            neighbors = state.neighbors
        side = _side_to_go_on_with(database, table.name, state)
        if side is None or _session_of(side).neighbors != neighbors:
            side = _empty_side(database, table.name, dataset)
        writer = cls(table, uuid.uuid4().hex, neighbors)
        side.update_metadata({_SESSION: writer._session, _NEIGHBORS: str(neighbors)})
        writer._write_state()
        return writer

    def graph(self) -> NeighborGraph:
        """The graph as it is now."""
        return NeighborGraph(self._side(), covers=0, neighbors=self.neighbors)

    def write(self, rows: NeighborLists) -> None:
        """Write rows, in place of those with the same ids. Raises TableError as `publish`."""
        merge = self._side().merge_insert(_ROW_ID)
        merge.when_matched_update_all().when_not_matched_insert_all().execute(rows.to_arrow())

    def remove(self, row_ids: RowIds) -> None:
        """Remove rows. Raises TableError as `publish`."""
        if len(row_ids):
            self._side().delete(f"{_ROW_ID} IN ({', '.join(map(str, row_ids.tolist()))})")

    def publish(self, covers: int) -> None:
        """Have searches read the graph as it is now.

        Args:
            covers: version of the table whose rows it has.

        Raises:
            TableError: another session has begun since, or the table was restored.
        """
        side = self._side()
        side.optimize.compact_files()
        if side.describe_indices():
            side.optimize.optimize_indices()
        else:
            side.create_scalar_index(_ROW_ID, "BTREE")
        self._write_state(published=int(self._side().version), covers=covers)

    def _side(self) -> lance.LanceDataset:
        """The newest version of the side table, if it is still this session's."""
        side = _open_side(self._database, self._table.name)
        if side is None or _session_of(side).name != self._session:
            raise self._lost()
        return side

    def _write_state(self, published: int | None = None, covers: int = 0) -> None:
        """Write the state of the graph into the table's metadata; keeps what is published if that is None."""

        def write() -> None:
            dataset = databases.reopen(self._table).to_lance()
            earlier = GraphState.read(dataset, self._table.name)
            if published is not None and (earlier is None or earlier.session != self._session):
                raise self._lost()
            state = GraphState(
                session=self._session, neighbors=self.neighbors, published=published, covers=covers
            )
            if published is None and earlier is not None:
                state = dataclasses.replace(state, published=earlier.published, covers=earlier.covers)
            text = readable_text(state, json.dumps(dataclasses.asdict(state)), _parsed)
            dataset.update_metadata({_KEY: text})

        retry_on_conflict(write)

    def _lost(self) -> TableError:
        return TableError(
            f"Another process builds the neighbor graph of table {self._table.name!r}, or the table was "
            "restored meanwhile. Searches go on with the graph that they had; call build_neighbor_graph() "
            "again when nothing else does."
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphReport:
    """What building or updating a neighbor graph did."""

    neighbors: int
    """Most neighbors of a row."""
    rows: int
    """Rows of the graph: those of the table that have a code."""
    searched: int
    """Rows whose neighbors were searched for."""
    removed: int
    """Rows of the graph that the table has no more."""
    version: int
    """Version of the table whose rows the graph has."""

    def __str__(self) -> str:
        return (
            f"{self.neighbors} neighbors of each of {self.rows:,} rows, as of version {self.version}; "
            f"searched for those of {self.searched:,} rows, removed {self.removed:,} rows"
        )


class CodedRows(NamedTuple):
    """The rows of a version of a table that have a code, by ascending row id."""

    row_ids_N: RowIds
    changed_N: npt.NDArray[np.uint64]
    """Version of the table that a row was changed in last."""

    @classmethod
    def of(cls, dataset: lance.LanceDataset, code_column: str) -> "CodedRows":
        """Read the ids of the rows, and when they were changed."""
        condition = f"{quoted(code_column)} IS NOT NULL"
        found = dataset.scanner(columns=[_CHANGED], filter=condition, with_row_id=True).to_table()
        order_N = np.argsort(found["_rowid"].to_numpy())
        return cls(found["_rowid"].to_numpy()[order_N], found[_CHANGED].to_numpy()[order_N])

    def places_of(self, row_ids_B: RowIds) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Positions of rows, any where there is none, and whether there is one."""
        if len(self.row_ids_N) == 0:
            return np.zeros(len(row_ids_B), np.int64), np.zeros(len(row_ids_B), bool)
        places_B = np.minimum(np.searchsorted(self.row_ids_N, row_ids_B), len(self.row_ids_N) - 1)
        return places_B, self.row_ids_N[places_B] == row_ids_B

    def searched_in(self, graph: NeighborGraph) -> tuple[npt.NDArray[np.uint64], RowIds]:
        """Version that the neighbors of each row were searched in (N,), 0 for rows that the graph does not
        have; and ids of the rows that only the graph has."""
        searched_N, gone = np.zeros(len(self.row_ids_N), np.uint64), [np.empty(0, np.uint64)]
        for batch in graph.batches():
            places_B, known_B = self.places_of(batch.row_ids_B)
            searched_N[places_B[known_B]] = batch.versions_B[known_B]
            gone.append(batch.row_ids_B[~known_B])
        return searched_N, np.concatenate(gone)


def has_graph(dataset: lance.LanceDataset, name: str) -> bool:
    """Whether a version of table `name` has a graph, complete or not. Raises as `GraphState.read`."""
    return GraphState.read(dataset, name) is not None


def remove_old_graphs(table: LanceTable, older_than: datetime.timedelta | None) -> None:
    """Remove old versions of the graph, which old versions of the table need to be expanded by.

    Args:
        table: any handle on the table.
        older_than: as for `databases.remove_old_versions`.
    """
    side = _open_side(databases.database_of(table), table.name)
    if side is not None:
        databases.clean_up(side, older_than)


def _open_side(database: Any, name: str, version: int | None = None) -> lance.LanceDataset | None:
    """The side table of table `name`, at its newest version or at an earlier one; None if that is gone."""
    try:
        return lance.dataset(_place(database, name), version=version, storage_options=_options(database))
    except (ValueError, OSError) as error:
        if not is_gone(error):
            raise
        return None


def _side_to_go_on_with(database: Any, name: str, state: GraphState | None) -> lance.LanceDataset | None:
    """The side table with rows of which the ids mean what they mean in the table; None if there is none."""
    side = None if state is None else _open_side(database, name)
    if state is None or side is None or _session_of(side).name == state.session:
        return side
    published = None if state.published is None else _open_side(database, name, state.published)
    if published is not None:
        published.restore()  # type: ignore[no-untyped-call]  # pylance leaves it unannotated
    return published


def _empty_side(database: Any, name: str, table: lance.LanceDataset) -> lance.LanceDataset:
    """The side table without rows; earlier versions of it stay."""
    return lance.write_dataset(
        _SCHEMA.empty_table(),
        _place(database, name),
        mode="overwrite",
        data_storage_version=cast(Any, table.data_storage_version),
        storage_options=_options(database),
    )


def _session_of(side: lance.LanceDataset) -> _Session:
    # A process that was killed as it created the side table has left it without these.
    return _Session(side.metadata.get(_SESSION, ""), int(side.metadata.get(_NEIGHBORS, "0")))


def _place(database: Any, name: str) -> str:
    return f"{databases.location(database, name)}/{GRAPH_FOLDER}"


def _options(database: Any) -> dict[str, str] | None:
    return cast(LanceDBConnection, database).storage_options
