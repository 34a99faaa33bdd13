"""Health of a neighbor graph: whether it is there, and what it lacks of the rows of a table.

Shape legend: N rows of the table with a code.
"""

import dataclasses

from lancedb.table import LanceTable

from rqmoe_store.store import databases
from rqmoe_store.store.neighbor_graph import CodedRows, GraphState, NeighborGraph
from rqmoe_store.store.statistics import readable


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphHealth:
    """The neighbor graph of a version of a table, compared with its rows."""

    complete: bool
    """Whether searches can use it; False if its building was interrupted, or it is gone."""
    neighbors: int
    """Neighbors of a row."""
    rows: int = 0
    """Rows of the graph."""
    version: int = 0
    """Version of the table whose rows the graph has."""
    table_version: int
    """The table's own version."""
    unsearched: int
    """Rows with a code that have no neighbors in the graph, or were changed since."""
    disk_bytes: int = 0
    """Size of the graph in its data files."""

    def __str__(self) -> str:
        if not self.complete:
            return "neighbor graph: not complete, or gone; build_neighbor_graph() makes it"
        lacking = f"; {self.unsearched:,} rows lack theirs, optimize() finds them" if self.unsearched else ""
        return (
            f"neighbor graph: {self.neighbors} neighbors of each of {self.rows:,} rows, as of version "
            f"{self.version} of {self.table_version}, {readable(self.disk_bytes)}{lacking}"
        )


def measure_graph(table: LanceTable, code_column: str) -> GraphHealth | None:
    """Compare the graph of a version of a table with its rows; None if it has none."""
    dataset, database = table.to_lance(), databases.database_of(table)
    state = GraphState.read(dataset, table.name)
    if state is None:
        return None
    graph, rows = NeighborGraph.find(dataset, database, table.name), CodedRows.of(dataset, code_column)
    version = int(dataset.version)
    if graph is None:
        return GraphHealth(
            complete=False,
            neighbors=state.neighbors,
            table_version=version,
            unsearched=len(rows.row_ids_N),
        )
    searched_N, _ = rows.searched_in(graph)
    return GraphHealth(
        complete=True,
        neighbors=graph.neighbors,
        rows=len(graph),
        version=graph.covers,
        table_version=version,
        unsearched=int((rows.changed_N > searched_N).sum()),
        disk_bytes=graph.nbytes,
    )
