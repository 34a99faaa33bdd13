"""Values that are kept in the metadata of tables and of commits, and come back from there.

What was committed cannot be taken back, so that nothing may be written that the same release refuses to read.
"""

import json
import math
import sys
from collections.abc import Callable, Mapping
from types import NoneType
from typing import Any, TypeVar, get_type_hints

from rqmoe_store.errors import TableError

Record = TypeVar("Record")

LARGEST_COUNT = 2**63 - 1
"""Of rows and versions."""
LARGEST_SUM = sys.float_info.max
"""Of errors. JSON has no number for infinity."""
_ACCEPTED: dict[Any, tuple[type, ...]] = {
    str: (str,),
    int: (int,),
    int | None: (int, NoneType),
    float: (int, float),
}
"""What a field that is declared as the key may hold; a bool is no int here."""


def json_object(text: str) -> dict[str, Any]:
    """The object that `text` is in JSON.

    Raises:
        ValueError: it is none.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError(f"it is a JSON {type(value).__name__}, not an object")
    return value


def as_count(value: int) -> int:
    """The nearest number that can be kept as a count."""
    return min(max(0, value), LARGEST_COUNT)


def as_sum(value: float) -> float:
    """The nearest number that can be kept as a sum of errors; the largest for one that overflowed."""
    return LARGEST_SUM if math.isnan(value) else min(max(0.0, value), LARGEST_SUM)


def readable_text(record: Record, text: str, read: Callable[[str], Record]) -> str:
    """`text`, which a record is to be kept as, once `read` has made the same record of it.

    Raises:
        TableError: it is not what comes back; nothing must be written then.
    """
    try:
        again = read(text)
    except (ValueError, TypeError) as error:
        raise _not_readable(record, error) from error
    if again != record:
        raise _not_readable(record, f"it would come back as {again!r}")
    return text


def _not_readable(record: object, reason: object) -> TableError:
    return TableError(
        f"{record!r} cannot be kept in the table: it could not be read again ({reason}). Nothing was written."
    )


def require_types(record: Record) -> Record:
    """A dataclass or named tuple, once its fields hold what they are declared to hold, and no number that is
    negative or beyond all counts (or sums, for one that is no count); the same for records in a mapping that
    it has.

    Raises:
        ValueError: a field holds something else.
    """
    for name, declared in get_type_hints(type(record)).items():
        value, accepted = getattr(record, name), _ACCEPTED.get(declared)
        largest = LARGEST_SUM if declared is float else LARGEST_COUNT
        if accepted is not None and not _is_one(value, accepted, largest):
            raise ValueError(f"{name} is {value!r}")
        if isinstance(value, Mapping):
            for each in value.values():
                require_types(each)
    return record


def _is_one(value: object, accepted: tuple[type, ...], largest: float) -> bool:
    if type(value) not in accepted:
        return False
    return not isinstance(value, int | float) or 0 <= value <= largest
