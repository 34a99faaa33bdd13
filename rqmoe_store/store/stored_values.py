"""Values that come back from the metadata of tables."""

import json
from collections.abc import Mapping
from types import NoneType
from typing import Any, TypeVar, get_type_hints

Record = TypeVar("Record")

_LARGEST = 2**63 - 1  # of rows, versions and sums
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


def require_types(record: Record) -> Record:
    """A dataclass or named tuple, once its fields hold what they are declared to hold, and no number that is
    negative or beyond all counts; the same for records in a mapping that it has.

    Raises:
        ValueError: a field holds something else.
    """
    for name, declared in get_type_hints(type(record)).items():
        value, accepted = getattr(record, name), _ACCEPTED.get(declared)
        if accepted is not None and not _is_one(value, accepted):
            raise ValueError(f"{name} is {value!r}")
        if isinstance(value, Mapping):
            for each in value.values():
                require_types(each)
    return record


def _is_one(value: object, accepted: tuple[type, ...]) -> bool:
    if type(value) not in accepted:
        return False
    return not isinstance(value, int | float) or 0 <= value <= _LARGEST
