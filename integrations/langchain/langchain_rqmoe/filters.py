"""Filters as SQL conditions.

A filter is an SQL condition over the columns, or a dict over the metadata:

    {"author": "Ann"}                        the field is this text, number or bool; None: missing or null
    {"year": {"$gte": 2000, "$lt": 2010}}    operators, all of which must hold
    {"$or": [{"author": "Ann"}, {"$not": {"draft": True}}]}

Several fields must all match. Types are told apart as `rqmoe_store.json_field` does. Dates, times and UUIDs
match the text that is stored of them (in ISO format, in which dates of one format are in order).
"""

import enum
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import rqmoe_store as rqs
from rqmoe_store import InvalidInputError, JsonField

Filter: TypeAlias = str | Mapping[str, Any] | None

_Operator: TypeAlias = Callable[[JsonField, Any], str]


def _equal(field: JsonField, value: Any) -> str:
    return field.is_null() if value is None else field.eq(value)


def _exists(field: JsonField, value: Any) -> str:
    if not isinstance(value, bool):
        raise InvalidInputError(f"Got {{'$exists': {value!r}}}; expected True or False.")
    return field.exists() if value else rqs.none_of([field.exists()])


class NotGiven(enum.Enum):
    """Tells a filter that was left out from None, which code that builds filters returns for no choice."""

    NOT_GIVEN = "not given"


OPERATORS: dict[str, _Operator] = {
    "$eq": _equal,
    "$ne": lambda field, value: rqs.none_of([_equal(field, value)]),
    "$gt": lambda field, value: field.gt(value),
    "$gte": lambda field, value: field.gte(value),
    "$lt": lambda field, value: field.lt(value),
    "$lte": lambda field, value: field.lte(value),
    "$in": lambda field, value: field.isin(value),
    "$nin": lambda field, value: rqs.none_of([field.isin(value)]),
    "$exists": _exists,
    "$contains": lambda field, value: field.contains(value),
}
"""What a field may be compared by. `$contains`: the field is a list that has the value."""

LOGICAL = ("$and", "$or", "$not")


def condition_of(given: Filter, metadata_column: str) -> str | None:
    """A filter as an SQL condition; None where it lets everything through.

    Args:
        given: an SQL condition over the columns, which the store checks; a dict as described above; None or
            an empty dict for no filter.
        metadata_column: the JSON column that the fields of a dict are in.

    Raises:
        InvalidInputError: a filter of another type, an unknown operator, or a value that the operator does
            not take.
    """
    if given is None or isinstance(given, str):
        return given
    if not isinstance(given, Mapping):
        raise InvalidInputError(
            f"Got a filter of type {type(given).__name__}; expected an SQL condition as text, or a dict such "
            f"as "
            '{"author": "Ann"}.'
        )
    return _all_of(given, metadata_column) if given else None


def _all_of(given: Mapping[str, Any], column: str) -> str:
    """All members of a dict, which must not be empty."""
    if not isinstance(given, Mapping) or not given:
        raise InvalidInputError(f'Got {given!r} in a filter; expected a dict such as {{"author": "Ann"}}.')
    return rqs.all_of([_member(key, value, column) for key, value in given.items()])


def _member(key: Any, value: Any, column: str) -> str:
    if key == "$not":
        return rqs.none_of([_all_of(value, column)])
    if key in ("$and", "$or"):
        if not isinstance(value, list | tuple) or not value:
            raise InvalidInputError(f"Got {{{key!r}: {value!r}}} in a filter; expected a list of filters.")
        joined = rqs.all_of if key == "$and" else rqs.any_of
        return joined([_all_of(part, column) for part in value])
    if not isinstance(key, str) or key.startswith("$"):
        raise InvalidInputError(
            f"Got {key!r} in a filter, in place of a metadata field; expected a field's name or one of "
            f"{', '.join(LOGICAL)}. For a field whose name begins with '$' use an SQL filter made by "
            "rqmoe_store.json_field."
        )
    return _field(key, value, column)


def _field(name: str, value: Any, column: str) -> str:
    field = rqs.json_field(column, name)
    if not isinstance(value, Mapping):
        return _equal(field, value)
    unknown = [operator for operator in value if operator not in OPERATORS]
    if unknown or not value:
        raise InvalidInputError(
            f"Got {value!r} for the metadata field {name!r}, with {unknown[0] if unknown else 'nothing'!r} "
            f"as operator; expected a value, or some of {', '.join(OPERATORS)}. For fields of nested "
            f"objects, or parts of texts, use an SQL filter made by rqmoe_store.json_field."
        )
    return rqs.all_of([OPERATORS[operator](field, operand) for operator, operand in value.items()])


def condition_to_delete_by(given: Filter, metadata_column: str) -> str:
    """As `condition_of`, but not for filters that say nothing.

    Raises:
        InvalidInputError: as `condition_of`, and for None, an empty filter, or one that all documents match
            whatever they hold, such as {"year": {"$nin": []}}.
    """
    condition = condition_of(given, metadata_column)
    if not condition or condition == rqs.all_of([]):
        raise InvalidInputError(
            f"Got filter={given!r} for delete, which says nothing about documents; expected ids, or a filter "
            "that is not empty and that not every document matches, or neither of the two to delete "
            "everything. Nothing was deleted."
        )
    return condition
