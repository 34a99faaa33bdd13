"""SQL filters of a query: the checked conditions of the user's, and the probed partitions."""

import re
from collections.abc import Iterable, Sequence

import lance
import numpy as np
import numpy.typing as npt

from rqmoe_store.store.sql import quoted

_CHANGING = re.compile(r"\b(now|today|random|uuid|current_\w+|local\w*)\b", re.IGNORECASE)
"""Functions that return something else every time."""


def combined(conditions: Iterable[str]) -> str | None:
    """The conditions joined by AND; None when there are none."""
    return " AND ".join(conditions) or None


def is_lasting(where: str) -> bool:
    """Whether a condition is met by the same rows of a version whenever it is asked."""
    return _CHANGING.search(where) is None


def partition_filter(column: str, partitions: Iterable[int]) -> str:
    """Condition that keeps the rows of the given partitions."""
    return f"{quoted(column)} IN ({', '.join(str(int(partition)) for partition in partitions)})"


def row_id_filter(row_ids: npt.NDArray[np.uint64]) -> str:
    """Condition that keeps the rows of the given ids, of which there must be one."""
    return f"_rowid IN ({', '.join(map(str, row_ids.tolist()))})"


def matching_row_ids(
    dataset: lance.LanceDataset, where: str, fragments: Sequence[lance.LanceFragment] | None = None
) -> npt.NDArray[np.uint64]:
    """Ids of the rows that match a checked filter, ascending; scalar indexes are used where they help.

    Of all rows, or of those in some fragments.
    """
    chosen = None if fragments is None else list(fragments)
    found = dataset.scanner(columns=[], with_row_id=True, filter=where, fragments=chosen).to_table()
    return np.sort(found["_rowid"].to_numpy())
