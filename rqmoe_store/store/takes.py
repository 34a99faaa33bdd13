"""Rows of a table by row id, in the order asked for.

Shapes: B row ids.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lancedb.table import Table

from rqmoe_store.errors import TableError


def take_rows(table: Table, names: Sequence[str], row_ids_B: npt.NDArray[np.uint64]) -> list[pa.ChunkedArray]:
    """Columns `names` of the rows with these distinct ids, in this order.

    Raises:
        TableError: a row is not in the table.
    """
    if not names:
        return []
    taken = table.take_row_ids(row_ids_B.tolist()).select(list(names)).with_row_id().to_arrow()
    taken_ids = taken["_rowid"].to_numpy()
    if len(taken_ids) != len(row_ids_B):
        raise TableError(f"Took {len(taken_ids)} of {len(row_ids_B)} rows of {table.name!r}. Try again.")
    # LanceDB returns the rows sorted by id; put them back into the order asked for.
    places_B = np.empty(len(row_ids_B), dtype=np.int64)
    places_B[np.argsort(row_ids_B)] = np.argsort(taken_ids)
    return list(taken.select(list(names)).take(places_B).columns)
