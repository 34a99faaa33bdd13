"""Result columns: which ones a query returns, and taking them for the rows it found.

Shape suffixes: H hits of all queries, in result order.
"""

from collections.abc import Sequence
from typing import Any

import lance
import numpy as np
import pyarrow as pa

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.search.filters import row_id_filter
from rqmoe_store.search.rerank import Hits

DISTANCE = "_distance"
SCORE = "_score"
RELEVANCE = "_relevance_score"
ROW_ID = "_rowid"
QUERY_INDEX = "query_index"


def check_selection(columns: Any) -> list[str] | None:
    """`columns` as a list of names; None, like an empty list, stands for all user columns.

    Raises:
        InvalidInputError: not a list of names, or a name given twice.
    """
    if columns is None:
        return None
    if not isinstance(columns, (list, tuple)) or not all(isinstance(name, str) for name in columns):
        raise InvalidInputError(
            f"Got select({columns!r}); expected a list of column names, such as select(['id', 'text'])."
        )
    doubled = sorted({name for name in columns if columns.count(name) > 1})
    if doubled:
        raise InvalidInputError(f"Got column {doubled[0]!r} twice in select; expected every name once.")
    return list(columns) or None


def require_known(names: Sequence[str], available: Sequence[str]) -> None:
    """Raise InvalidInputError, naming the available columns, unless all of `names` are among them."""
    unknown = [name for name in names if name not in available]
    if unknown:
        raise InvalidInputError(
            f"Got unknown column {unknown[0]!r} in select; available are {', '.join(available)}."
        )


def without(table: pa.Table, name: str) -> pa.Table:
    """`table` less its column `name`, should it have one."""
    return table.drop_columns([name]) if name in table.column_names else table


def output_names(
    selected: list[str] | None,
    *,
    user_columns: Sequence[str],
    hidden_columns: Sequence[str],
    with_row_id: bool,
    batched: bool,
) -> list[str]:
    """Names of the result columns in LanceDB's order.

    That is `query_index` (several queries), the selected columns, `_distance` unless it is selected
    at another place, and `_rowid` if asked for. Code columns are returned only when selected by name.

    Raises:
        InvalidInputError: an unknown column; the available ones are named.
    """
    names = list(user_columns) if selected is None else list(selected)
    own = [DISTANCE, ROW_ID] + ([QUERY_INDEX] if batched else [])
    require_known(names, [*user_columns, *hidden_columns, *own])
    if batched:
        names = [QUERY_INDEX] + [name for name in names if name != QUERY_INDEX]
    if DISTANCE not in names:
        names.append(DISTANCE)
    if with_row_id:
        names = [name for name in names if name != ROW_ID] + [ROW_ID]
    return names


def take(dataset: lance.LanceDataset, hits_of_queries: Sequence[Hits], names: Sequence[str]) -> pa.Table:
    """The result table: columns `names` of every hit, query after query, nearest first.

    Rows that are no longer in the table are left out.
    """
    row_ids_H = np.concatenate([hits.row_ids_S for hits in hits_of_queries])
    distances_H = np.concatenate([hits.distances_S for hits in hits_of_queries])
    queries_H = np.repeat(
        np.arange(len(hits_of_queries), dtype=np.int32), [len(hits) for hits in hits_of_queries]
    )
    stored = [name for name in names if name not in (DISTANCE, ROW_ID, QUERY_INDEX)]
    # Taken even without stored columns: the row ids say which rows still exist.
    wanted = np.unique(row_ids_H)
    condition = row_id_filter(wanted) if len(wanted) else "false"
    taken = dataset.scanner(columns=stored, filter=condition, with_row_id=True).to_table()
    taken_ids = taken[ROW_ID].to_numpy().astype(np.uint64, copy=False)
    # Lance returns each row once and sorted by its own order; put rows where the hits want them.
    order = np.argsort(taken_ids)
    exists_H = np.isin(row_ids_H, taken_ids)
    places_H = order[np.searchsorted(taken_ids, row_ids_H[exists_H], sorter=order)]
    rows = taken.take(pa.array(places_H))
    own = {
        QUERY_INDEX: (pa.field(QUERY_INDEX, pa.int32(), nullable=False), queries_H),
        DISTANCE: (pa.field(DISTANCE, pa.float32()), distances_H),
        ROW_ID: (pa.field(ROW_ID, pa.uint64()), row_ids_H),
    }
    fields = [own[name][0] if name in own else taken.schema.field(name) for name in names]
    arrays = [pa.array(own[name][1][exists_H]) if name in own else rows[name] for name in names]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))
