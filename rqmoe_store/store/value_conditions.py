"""SQL conditions built from Python values, escaped: on plain columns and on fields of JSON columns.

Conditions on JSON fields use Lance's functions as follows. `json_get` finds a field whose name has any
characters. `json_extract(..., '$')` returns the compact JSON text of a field, which shows its type. Functions
that return values of one type fail on fields of other types, so they only get fields of their type, selected
by a CASE that returns JSON. A CASE that returns conditions would not do: the planner turns it into AND and
OR, which evaluate both sides.
"""

import dataclasses
import datetime
import json
import math
import uuid
from collections.abc import Iterable
from typing import Any

import numpy as np

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.storage_errors import TranslatesErrors, translates_errors
from rqmoe_store.store.sql import literal, quoted

Value = str | bool | int | float

ALWAYS = "(true)"
"""Condition that every row meets."""
NEVER = "(false)"
"""Condition that no row meets."""
_EXACT = 2**53
"""Integers from this on may have no exact double."""


@translates_errors
def column_condition(column: str, values: Iterable[Value]) -> str:
    """SQL condition that a column of texts, numbers or bools has one of these values.

    The condition is in parentheses, and false where the column is null, so that `f"NOT {condition}"` and
    `f"{a} AND {b}"` are correct. It can use scalar indexes.

    Args:
        column: name of the column, with any characters.
        values: texts (with any characters), numbers or bools, all of one kind; an empty list gives a
            condition that no row meets. Dates, times and UUIDs count as texts, see `as_json_value`.

    Raises:
        InvalidInputError: the name is not a text; the values are of several kinds or of another kind, or
            include None, NaN, infinity or integers beyond 64 bits.
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


@translates_errors
def all_of(conditions: Iterable[str]) -> str:
    """SQL condition that all of these conditions hold, in parentheses.

    For an empty list, or if every row meets each of the conditions, it is a fixed condition that every row
    meets. A filter that restricts nothing can thus be recognized before rows are deleted by it:

        if condition == rqmoe_store.all_of([]): ...  # would delete everything

    Raises:
        InvalidInputError: `conditions` is not a list of SQL texts.
    """
    terms = [condition for condition in _texts(conditions) if condition != ALWAYS]
    if NEVER in terms:
        return NEVER
    return f"({' AND '.join(terms)})" if terms else ALWAYS


@translates_errors
def any_of(conditions: Iterable[str]) -> str:
    """SQL condition that at least one of these conditions holds, as `all_of`; never for an empty list."""
    terms = [condition for condition in _texts(conditions) if condition != NEVER]
    if ALWAYS in terms:
        return ALWAYS
    return f"({' OR '.join(terms)})" if terms else NEVER


@translates_errors
def none_of(conditions: Iterable[str]) -> str:
    """SQL condition that none of these conditions holds, as `all_of`; always for an empty list.

    Where one of the conditions is null and none is true, the result is null, too, and does not match the row.
    Conditions of `json_field` and `column_condition` are never null.
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


@translates_errors
def as_json_value(value: Any) -> Any:
    """A single value as JSON represents it, in rows and in conditions alike.

    Numbers, bools and texts of NumPy become the same values of Python. A date, time, datetime (including
    `datetime64` and pandas' `Timestamp`) or UUID becomes its text: `isoformat()` or `str(value)`. Any other
    value is returned as it is, including those that JSON cannot represent, such as NaN, NaT or a Decimal.
    """
    if isinstance(value, np.generic):
        value = _python_value(value)
    if isinstance(value, datetime.date | datetime.time):
        text = value.isoformat()
        return value if text == "NaT" else text
    return str(value) if isinstance(value, uuid.UUID) else value


def _python_value(value: np.generic) -> Any:
    """The Python value that equals a NumPy value; `value` itself if there is none."""
    if isinstance(value, np.datetime64):
        moment = value.astype("datetime64[us]")  # the precision of Python's; more would be truncated
        same = bool(moment.astype(value.dtype) == value) and not isinstance(value.item(), datetime.date)
        plain = moment.item() if same else value.item()
        return plain if isinstance(plain, datetime.date) else value
    if isinstance(value, np.longdouble | np.timedelta64):
        return value  # wider than a float, and not integers
    return value.item() if isinstance(value, np.integer | np.floating | np.bool_ | np.str_) else value


def plain_values(values: Iterable[Any], called: str) -> list[Value]:
    """All values, checked by `plain_value`; raises for a single text, too."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise InvalidInputError(f"Got {values!r} as the values of {called}; expected a list of values.")
    return [plain_value(value, called) for value in values]


def plain_value(value: Any, called: str) -> Value:
    """A value, converted by `as_json_value`, as exactly one of Python's str, bool, int and float.

    Args:
        value: value from the user.
        called: what the value is for, in messages.

    Raises:
        InvalidInputError: the value is None, NaN or infinite, an integer beyond 64 bits, text that is not
            valid Unicode, or of another type.
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
    """Return the name of a column or field; raise InvalidInputError unless it is a text."""
    if not isinstance(name, str) or not _is_unicode(name):
        raise InvalidInputError(f"Got {name!r} as the name of a column or field; expected a text.")
    return name


def _is_unicode(text: str) -> bool:
    """Whether `text` has no lone surrogates, which SQL cannot have."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _kind(value: Value) -> str:
    if isinstance(value, bool):
        return "bools"
    return "texts" if isinstance(value, str) else "numbers"


@translates_errors
def json_field(column: str, *path: str) -> "JsonField":
    """A field of a JSON column, to build conditions on.

        author = json_field("metadata", "author")
        store.search(vector).where(f"{author.eq('Ann')} AND NOT {author.is_null()}")

    Args:
        column: name of a column of Arrow type `pa.json_()`; the type is checked when the condition is used.
        path: name of the field; several names for a field of nested objects. Names may have any characters,
            which have no special meaning.

    Raises:
        InvalidInputError: there is no name, or a name is not a text.
    """
    if not path:
        raise InvalidInputError(
            f"Got json_field({column!r}) without a field; expected its name, as in "
            f'json_field({column!r}, "author").'
        )
    return JsonField(require_name(column), tuple(map(require_name, path)))


@dataclasses.dataclass(frozen=True)
class JsonField(TranslatesErrors):
    """A field of a JSON column; created by `json_field`.

    Every method returns an SQL condition in parentheses that is true or false for every row, and never null,
    so that `f"NOT {a}"`, `f"{a} AND {b}"` and `f"{a} OR {b}"` are correct. Where the field is missing, or has
    another type than the value, all conditions are false except those of `ne`, `is_null` and `is_empty`.
    Values of different types are different: "10" is not 10, and 1 is not true; but 10 and 10.0 are the same
    number.

    Values are texts, bools, 64-bit integers and finite floats, of Python or NumPy, and dates, times and
    UUIDs, which stand for their text (`as_json_value`). Other values raise InvalidInputError.
    """

    column: str
    path: tuple[str, ...]

    def eq(self, value: Value) -> str:
        """The field equals this text, number or bool."""
        return _two_valued(self._equals(plain_value(value, "eq")))

    def ne(self, value: Value) -> str:
        """The field is missing, or does not equal this text, number or bool."""
        return f"(NOT {_two_valued(self._equals(plain_value(value, 'ne')))})"

    def lt(self, value: str | int | float) -> str:
        """The field is a smaller number, or a text that precedes this one in the order of code points."""
        return self._compared("<", value)

    def lte(self, value: str | int | float) -> str:
        """As `lt`, or the field equals the value."""
        return self._compared("<=", value)

    def gt(self, value: str | int | float) -> str:
        """The field is a larger number, or a text that follows this one in the order of code points."""
        return self._compared(">", value)

    def gte(self, value: str | int | float) -> str:
        """As `gt`, or the field equals the value."""
        return self._compared(">=", value)

    def isin(self, values: Iterable[Value]) -> str:
        """The field equals one of these texts, numbers and bools; never for an empty list."""
        listed = list(dict.fromkeys(_typed(value) for value in plain_values(values, "isin")))
        # One list per kind of comparison: with a condition per value, time would grow with their number.
        groups: dict[str, list[Any]] = {"text": [], "bool": [], "double": [], "integer": []}
        for kind, value in listed:
            groups[kind].append(value)
        return any_of(_two_valued(self._one_of(kind, group)) for kind, group in groups.items() if group)

    def contains(self, value: Value) -> str:
        """The field is a list that has this text, number or bool as an element.

        One value is inexact: 2.0**64 is also found in lists with integers less than 1024 below it.
        """
        value = plain_value(value, "contains")
        elements = f"CASE WHEN {self._text} LIKE '[%' THEN {self._json} END"
        if isinstance(value, str):
            element = literal(json.dumps(value, ensure_ascii=False))
            return _two_valued(f"json_array_contains({elements}, '$', {element})")
        # The path also finds nested lists that have the value, so compare with what it finds among lists.
        found = _element_condition(value)
        any_kind, lists = (literal(f"$[*] ? ({found}{more})") for more in ("", " && exists(@[0])"))
        return _two_valued(
            f"json_extract({elements}, {any_kind}) IS DISTINCT FROM json_extract({elements}, {lists})"
        )

    def has_text(self, part: str, *, ignore_case: bool = False) -> str:
        """The field is a text that contains this one; in any case of letters with `ignore_case`."""
        text = plain_value(part, "has_text")
        if not isinstance(text, str):
            raise InvalidInputError(f"Got has_text({part!r}); expected a text.")
        sides = [self._string, literal(text)]
        searched, found = [f"lower({side})" for side in sides] if ignore_case else sides
        return _two_valued(f"strpos({searched}, {found}) > 0")

    def exists(self) -> str:
        """The field exists; its value may be null."""
        return f"({self._json} IS NOT NULL)"

    def is_null(self) -> str:
        """The field is missing or null."""
        return f"(coalesce({self._text}, 'null') = 'null')"

    def is_empty(self) -> str:
        """The field is missing, null, an empty text or an empty list."""
        return f"(coalesce({self._text}, 'null') IN ('null', '\"\"', '[]'))"

    @property
    def _parent(self) -> str:
        """The object that has the field, in Lance's binary JSON."""
        found = quoted(self.column)
        for name in self.path[:-1]:
            found = f"json_get({_object(found, name)}, {literal(name)})"
        return _object(found, self.path[-1])

    @property
    def _json(self) -> str:
        """The field in Lance's binary JSON; null where it is missing."""
        return f"json_get({self._parent}, {literal(self.path[-1])})"

    @property
    def _text(self) -> str:
        """The compact JSON text of the field; null where it is missing."""
        return f"json_extract({self._json}, '$')"

    @property
    def _string(self) -> str:
        """The field where it is a text, else null."""
        parent = f"CASE WHEN {self._text} LIKE '\"%' THEN {self._parent} END"
        return f"json_get_string({parent}, {literal(self.path[-1])})"

    @property
    def _double(self) -> str:
        """The field as a double where it is a number, else null."""
        return f"try_cast({self._text} AS DOUBLE)"

    @property
    def _integer(self) -> str:
        """The field as an integer of any size where it is a number, else null."""
        digits = "AS DECIMAL(38, 0)"
        return f"coalesce(try_cast({self._text} {digits}), try_cast({self._double} {digits}))"

    def _compared(self, operator: str, value: str | int | float) -> str:
        value = plain_value(value, "an order")
        if isinstance(value, bool):
            raise InvalidInputError(f"Got {value!r} to compare by {operator}; expected a number or a text.")
        return _two_valued(self._comparison(operator, value))

    def _equals(self, value: Value) -> str:
        if isinstance(value, bool):
            return f"{self._text} = '{str(value).lower()}'"
        return self._comparison("=", value)

    def _one_of(self, kind: str, values: list[Any]) -> str:
        """Condition that the field is one of values of one kind of `_typed`; null for other types."""
        if kind == "text":
            return f"{self._string} IN ({', '.join(map(literal, values))})"
        if kind == "bool":
            return f"{self._text} IN ({', '.join(literal(str(value).lower()) for value in values)})"
        by_double = f"{self._double} IN ({', '.join(map(_double_literal, values))})"
        if kind == "double":
            return by_double
        return f"coalesce({self._integer} IN ({', '.join(map(_integer_literal, values))}), {by_double})"

    def _comparison(self, operator: str, value: str | int | float) -> str:
        if isinstance(value, str):
            return f"{self._string} {operator} {literal(value)}"
        by_double = f"{self._double} {operator} {_double_literal(value)}"
        if not _needs_digits(value):
            return by_double
        return f"coalesce({self._integer} {operator} {_integer_literal(value)}, {by_double})"


def _typed(value: Value) -> tuple[str, Value]:
    """How a checked value is compared, and the value in the type of that comparison.

    Numbers that are equal have equal results.
    """
    if isinstance(value, str):
        return "text", value
    if isinstance(value, bool):
        return "bool", value
    return ("integer", int(value)) if _needs_digits(value) else ("double", float(value))


def _needs_digits(value: int | float) -> bool:
    """Whether other integers become the same double as this number."""
    return _EXACT <= abs(value) <= 2**64


def _double_literal(value: int | float) -> str:
    return f"{float(value):.17e}"


def _integer_literal(value: int | float) -> str:
    return f"CAST('{int(value)}' AS DECIMAL(38, 0))"


def _two_valued(condition: str) -> str:
    return f"(coalesce({condition}, false))"


def _object(found: str, name: str) -> str:
    """Binary JSON, or null for a list if `name` could be an index of it."""
    if not name.lstrip("+-").isdecimal():
        return found
    return f"CASE WHEN json_extract({found}, '$') LIKE '{{%' THEN {found} END"


def _element_condition(value: bool | int | float) -> str:
    """The condition of a JSON path that an element is this number or bool."""
    if isinstance(value, bool):
        return f"@ == {str(value).lower()}"
    if isinstance(value, float) and value.is_integer() and -(2**63) <= value < 2**64:
        value = int(value)
    if isinstance(value, float):
        return f"@ == {_path_number(value)}"
    if int(float(value)) == value:
        return f"@ == {value}"
    # Floats of the list are compared with the double nearest to this integer; the bounds exclude them.
    above = f" && @ < {value + 1}" if value + 1 < 2**64 else ""
    return f"@ == {value} && @ > {value - 1}{above}"


def _path_number(value: float) -> str:
    """A float as Lance's JSON paths can read it; there, numbers that begin with a digit are integers."""
    digits, exponent = f"{abs(value):.17e}".split("e")
    return f"{'-' if value < 0 else ''}.{digits.replace('.', '')}e{int(exponent) + 1}"
