"""SQL filters of a query: the user's `where`, checked before anything is read, and the probed partitions."""

import re
from collections.abc import Iterable
from typing import Any

import lance
import numpy as np
import numpy.typing as npt

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.store.sql import quoted

_QUOTED_OR_COMMENT = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`|--[^\n]*")


def checked_filter(table: Any, where: str) -> str:
    """`where` in parentheses, safe to combine with other filters by AND.

    Nothing is read: LanceDB only plans the filter.

    Raises:
        InvalidInputError: LanceDB cannot parse the filter, it names an unknown column or is not a
            condition (LanceDB's reason is quoted), or it would change the meaning of a filter
            combined with it.
    """
    _check_structure(where)
    # The line break ends a trailing `--` comment, which would swallow the parenthesis.
    enclosed = f"({where}\n)"
    try:
        table.search().where(enclosed).output_schema()
    except Exception as error:  # LanceDB panics on some, with an exception of no other class
        raise InvalidInputError(
            f"Got where={where!r}, which LanceDB refuses: {error}\n"
            "Expected an SQL condition over the table's columns, such as \"lang = 'en' AND year > 2000\"."
        ) from error
    return enclosed


def combined(conditions: Iterable[str]) -> str | None:
    """The conditions joined by AND; None when there are none."""
    return " AND ".join(conditions) or None


def partition_filter(column: str, partitions: Iterable[int]) -> str:
    """Condition that keeps the rows of the given partitions."""
    return f"{quoted(column)} IN ({', '.join(str(int(partition)) for partition in partitions)})"


def row_id_filter(row_ids: npt.NDArray[np.uint64]) -> str:
    """Condition that keeps the rows of the given ids, of which there must be one."""
    return f"_rowid IN ({', '.join(map(str, row_ids.tolist()))})"


def matching_row_ids(dataset: lance.LanceDataset, where: str) -> npt.NDArray[np.uint64]:
    """Ids of the rows that match a checked filter, ascending; scalar indexes are used where they help."""
    found = dataset.scanner(columns=[], with_row_id=True, filter=where).to_table()
    return np.sort(found["_rowid"].to_numpy())


def _check_structure(where: str) -> None:
    """Refuse what LanceDB's parser skips over in silence: it stops reading where a condition ends."""
    bare = _QUOTED_OR_COMMENT.sub(" ", where)
    if not bare.strip() and bare == where:
        raise InvalidInputError("Got an empty where; expected an SQL condition, or no where at all.")
    for fragment in (";", "$", "/*"):
        if fragment in bare:
            raise InvalidInputError(
                f"Got where={where!r} with {fragment!r}; expected one SQL condition without statement "
                "ends, $ parameters or block comments. Put such characters in quotes if they are text."
            )
    depth = 0
    for character in bare:
        depth += (character == "(") - (character == ")")
        if depth < 0:
            break
    if depth != 0:
        raise InvalidInputError(
            f"Got where={where!r} with unbalanced parentheses; expected every '(' to have its ')'."
        )
