"""SQL conditions on plain columns, made of values; the values that they are made of; conditions joined."""

import datetime
import math
import uuid
from collections.abc import Iterable
from typing import Any

import numpy as np

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.refusals import names_refusals
from rqmoe_store.store.sql import literal, quoted

Value = str | bool | int | float

ALWAYS = "(true)"
"""The condition that every row meets."""
NEVER = "(false)"
"""The condition that no row meets."""


@names_refusals
def column_condition(column: str, values: Iterable[Value]) -> str:
    """The SQL condition that a column of texts, numbers or bools is one of these values.

    It is in parentheses, and false where the column is null: `f"NOT {condition}"` and `f"{a} AND {b}"` mean
    what they say. Scalar indexes are used for it.

    Args:
        column: name of the column, with any characters.
        values: all texts, all numbers, or all bools, with any characters; none for a condition that no row
            meets. Dates, times and UUIDs are texts here, see `as_json_value`.

    Raises:
        InvalidInputError: a name that is no text; values of several kinds or another one, None, NaN or
            infinite ones, integers beyond 64 bits.
    """
    listed = plain_values(values, "column_condition")
    kinds = {_kind(value) for value in listed}
    if len(kinds) > 1:
        raise InvalidInputError(
            f"Got {' and '.join(sorted(kinds))} as values of column {column!r}; expected those of one kind, "
            "that of the column."
        )
    name = quoted(require_name(column))
    if not listed:
        return NEVER
    return f"({name} IS NOT NULL AND {name} IN ({', '.join(map(value_literal, listed))}))"


@names_refusals
def all_of(conditions: Iterable[str]) -> str:
    """The condition that all of these hold, in parentheses as those of `json_field` and `column_condition`.

    Of none it is one that every row meets, and the same where all of the conditions are such, as what is made
    of empty lists may be; so one can tell a filter that says nothing before deleting by it:

        if condition == rqmoe_store.all_of([]): ...  # would delete everything

    Raises:
        InvalidInputError: conditions that are no list of SQL texts.
    """
    terms = [condition for condition in _texts(conditions) if condition != ALWAYS]
    if NEVER in terms:
        return NEVER
    return f"({' AND '.join(terms)})" if terms else ALWAYS


@names_refusals
def any_of(conditions: Iterable[str]) -> str:
    """The condition that at least one of these holds, otherwise as `all_of`; of none, never."""
    terms = [condition for condition in _texts(conditions) if condition != NEVER]
    if ALWAYS in terms:
        return ALWAYS
    return f"({' OR '.join(terms)})" if terms else NEVER


@names_refusals
def none_of(conditions: Iterable[str]) -> str:
    """The condition that none of these holds, otherwise as `all_of`; of none, always.

    Of a condition that is null for a row it is null as well, which finds no row; those of `json_field` and
    `column_condition` never are.
    """
    found = any_of(conditions)
    return {ALWAYS: NEVER, NEVER: ALWAYS}.get(found, f"(NOT {found})")


def _texts(conditions: Iterable[str]) -> list[str]:
    listed = [] if isinstance(conditions, str) else list(conditions)
    if isinstance(conditions, str) or not all(isinstance(each, str) for each in listed):
        raise InvalidInputError(f"Got conditions={conditions!r}; expected a list of SQL conditions.")
    return listed


def value_literal(value: Value) -> str:
    """A checked value as an SQL literal."""
    if isinstance(value, bool):
        return str(value).lower()
    return literal(value) if isinstance(value, str) else repr(value)


@names_refusals
def as_json_value(value: Any) -> Any:
    """A single value as JSON keeps it, in rows and in conditions alike.

    Numbers, bools and texts of numpy become Python's, with the same value. A date, time, datetime
    (`datetime64` and pandas' `Timestamp` too) or UUID becomes its text: `isoformat()`, `str(value)`. Anything
    else comes back as it is, also what JSON has no words for, such as NaN, NaT or a Decimal.
    """
    if isinstance(value, np.generic):
        value = _of_numpy(value)
    if isinstance(value, datetime.date | datetime.time):
        text = value.isoformat()
        return value if text == "NaT" else text
    return str(value) if isinstance(value, uuid.UUID) else value


def _of_numpy(value: np.generic) -> Any:
    """Python's value that is the same; `value` itself where there is none."""
    if isinstance(value, np.datetime64):
        moment = value.astype("datetime64[us]")  # what Python's have; more would be cut off
        same = bool(moment.astype(value.dtype) == value) and not isinstance(value.item(), datetime.date)
        plain = moment.item() if same else value.item()
        return plain if isinstance(plain, datetime.date) else value
    if isinstance(value, np.longdouble | np.timedelta64):
        return value  # which are wider than a float, and no integers
    return value.item() if isinstance(value, np.integer | np.floating | np.bool_ | np.str_) else value


def plain_values(values: Iterable[Any], called: str) -> list[Value]:
    """All of the values, checked by `plain_value`; a single text is refused as well."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise InvalidInputError(f"Got {values!r} as the values of {called}; expected a list of values.")
    return [plain_value(value, called) for value in values]


def plain_value(value: Any, called: str) -> Value:
    """A text, bool, int or float as Python has it, by `as_json_value`; not one of a type derived from these.

    Args:
        value: from the user.
        called: what it is for, in messages.

    Raises:
        InvalidInputError: None, NaN or infinite, an integer beyond 64 bits, text that is not Unicode, or of
            another type.
    """
    value = as_json_value(value)
    if value is None:
        raise InvalidInputError(
            f"Got None as a value of {called}; expected a text, number or bool. For null use is_null(), or "
            "'<column> IS NULL' for a plain column."
        )
    if isinstance(value, str) and _is_unicode(value):
        return str.__str__(value)
    if isinstance(value, bool):
        return value
    if isinstance(value, int) and -(2**63) <= value < 2**64:
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    raise InvalidInputError(
        f"Got {value!r} ({type(value).__name__}) as a value of {called}; expected a text of valid Unicode, a "
        "bool, an integer of 64 bits, a finite float, a date, a time or a UUID. Convert others, such as to a "
        "text."
    )


def require_name(name: Any) -> str:
    """The name of a column or field; raises InvalidInputError unless it can be one."""
    if not isinstance(name, str) or not _is_unicode(name):
        raise InvalidInputError(f"Got {name!r} as the name of a column or field; expected a text.")
    return name


def _is_unicode(text: str) -> bool:
    """Whether `text` has no lone surrogates, which no SQL can hold."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _kind(value: Value) -> str:
    if isinstance(value, bool):
        return "bools"
    return "texts" if isinstance(value, str) else "numbers"
