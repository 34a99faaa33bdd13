"""LlamaIndex's metadata filters as SQL, with what they mean to its SimpleVectorStore.

A field that a node does not have, or has as None, matches `!=`, `nin` and `is_empty`, and nothing else.
Unlike there, filters may be nested, and a comparison of a text with a number matches nothing instead of
failing.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)
from llama_index.vector_stores.rqmoe.columns import METADATA

import rqmoe_store as rqs
from rqmoe_store import InvalidInputError, JsonField

_EVERY_ROW = "(true)"
_NO_ROW = "(false)"
_ORDERS: dict[FilterOperator, tuple[str, Callable[[Any, Any], bool]]] = {
    FilterOperator.GT: ("gt", operator.gt),
    FilterOperator.GTE: ("gte", operator.ge),
    FilterOperator.LT: ("lt", operator.lt),
    FilterOperator.LTE: ("lte", operator.le),
}


def filters_sql(filters: MetadataFilters) -> str:
    """The SQL condition that a row's metadata match `filters`; in parentheses, and never null.

    Raises:
        InvalidInputError: a value that the operator cannot be given, or an unknown operator or condition.
    """
    terms = [
        filters_sql(part) if isinstance(part, MetadataFilters) else _filter_sql(part)
        for part in filters.filters
    ]
    if not terms:
        return _EVERY_ROW
    if filters.condition in (FilterCondition.AND, None):
        return f"({' AND '.join(terms)})"
    if filters.condition == FilterCondition.OR:
        return _any_of(terms)
    if filters.condition == FilterCondition.NOT:
        return f"(NOT {_any_of(terms)})"
    raise InvalidInputError(f"Got the condition {filters.condition!r}; expected and, or, or not.")


def _filter_sql(given: MetadataFilter) -> str:
    if given.operator not in _TRANSLATIONS:
        raise InvalidInputError(
            f"Got the filter operator {given.operator!r} for {given.key!r}; expected one of "
            f"{', '.join(known.value for known in _TRANSLATIONS)}."
        )
    return _TRANSLATIONS[given.operator](rqs.json_field(METADATA, given.key), given)


def _equal(field: JsonField, given: MetadataFilter) -> str:
    return field.isin(_alike(_single(given)))


def _ordered(field: JsonField, given: MetadataFilter) -> str:
    value = _single(given)
    method, holds = _ORDERS[given.operator]
    compared = getattr(field, method)(value)
    if isinstance(value, str):
        return str(compared)
    return _any_of([compared, field.isin([truth for truth in (False, True) if holds(truth, value)])])


def _in(field: JsonField, given: MetadataFilter) -> str:
    return field.isin([alike for value in _several(given) for alike in _alike(value)])


def _contains(field: JsonField, given: MetadataFilter) -> str:
    return _has(field, _single(given))


def _has_any(field: JsonField, given: MetadataFilter) -> str:
    return _any_of([_has(field, value) for value in _several(given)])


def _has_all(field: JsonField, given: MetadataFilter) -> str:
    terms = [f"(NOT {field.is_null()})", *(_has(field, value) for value in _several(given))]
    return f"({' AND '.join(terms)})"


def _has_text(field: JsonField, given: MetadataFilter) -> str:
    value = _single(given)
    if not isinstance(value, str):
        raise _refused(given, "a text")
    return field.has_text(value, ignore_case=given.operator == FilterOperator.TEXT_MATCH_INSENSITIVE)


_TRANSLATIONS: dict[FilterOperator, Callable[[JsonField, MetadataFilter], str]] = {
    FilterOperator.EQ: _equal,
    FilterOperator.NE: lambda field, given: f"(NOT {_equal(field, given)})",
    **dict.fromkeys(_ORDERS, _ordered),
    FilterOperator.IN: _in,
    FilterOperator.NIN: lambda field, given: f"(NOT {_in(field, given)})",
    FilterOperator.CONTAINS: _contains,
    FilterOperator.ANY: _has_any,
    FilterOperator.ALL: _has_all,
    FilterOperator.TEXT_MATCH: _has_text,
    FilterOperator.TEXT_MATCH_INSENSITIVE: _has_text,
    FilterOperator.IS_EMPTY: lambda field, given: field.is_empty(),
}


def _has(field: JsonField, value: str | int | float) -> str:
    """A list that has the element or, as `in` is in Python, a text that has the part."""
    terms = [field.contains(alike) for alike in _alike(value)]
    return _any_of([*terms, field.has_text(value)] if isinstance(value, str) else terms)


def _alike(value: str | int | float) -> list[str | int | float | bool]:
    """What Python takes for the same: filters have no bools, and ask for them by 1 and 0."""
    return [value, bool(value)] if not isinstance(value, str) and value in (0, 1) else [value]


def _single(given: MetadataFilter) -> str | int | float:
    if given.value is None or isinstance(given.value, list):
        raise _refused(given, "a text or a number (is_empty finds missing values)")
    return given.value


def _several(given: MetadataFilter) -> Sequence[str | int | float]:
    if not isinstance(given.value, list):
        raise _refused(given, "a list of texts or numbers")
    return given.value


def _refused(given: MetadataFilter, expected: str) -> InvalidInputError:
    return InvalidInputError(
        f"Got {given.value!r} as the value of the filter {given.operator.value!r} on {given.key!r}; expected "
        f"{expected}."
    )


def _any_of(terms: Sequence[str]) -> str:
    return f"({' OR '.join(terms)})" if terms else _NO_ROW
