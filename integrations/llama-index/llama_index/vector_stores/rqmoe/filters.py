"""LlamaIndex's metadata filters as SQL, with the meaning that they have to its SimpleVectorStore.

A field that a node does not have, or has as None, matches `!=`, `nin` and `is_empty`, and nothing else.
Unlike in that store, filters may be nested, and a comparison of a text with a number matches nothing instead
of failing.
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

_ORDERS: dict[FilterOperator, tuple[str, Callable[[Any, Any], bool]]] = {
    FilterOperator.GT: ("gt", operator.gt),
    FilterOperator.GTE: ("gte", operator.ge),
    FilterOperator.LT: ("lt", operator.lt),
    FilterOperator.LTE: ("lte", operator.le),
}
_PASSED_IF_EMPTY = (
    FilterOperator.NIN,
    FilterOperator.ALL,
    FilterOperator.CONTAINS,
    FilterOperator.TEXT_MATCH,
    FilterOperator.TEXT_MATCH_INSENSITIVE,
)
"""Operators whose empty list or text any value passes."""


def filters_sql(filters: MetadataFilters) -> str:
    """The SQL condition that a row's metadata match `filters`; in parentheses, and never null.

    Raises:
        InvalidInputError: a value that the operator cannot be given, or an unknown operator or condition.
    """
    terms = [
        filters_sql(part) if isinstance(part, MetadataFilters) else _filter_sql(part)
        for part in _parts(filters)
    ]
    if not terms or filters.condition in (FilterCondition.AND, None):
        return rqs.all_of(terms)
    if filters.condition == FilterCondition.OR:
        return rqs.any_of(terms)
    if filters.condition == FilterCondition.NOT:
        return rqs.none_of(terms)
    raise InvalidInputError(f"Got the condition {filters.condition!r}; expected and, or, or not.")


def filters_to_delete_by(filters: MetadataFilters) -> str:
    """As `filters_sql`, but not for filters that say nothing, which would delete more than is meant.

    Raises:
        InvalidInputError: as `filters_sql`; no filters, or none in a part of them; a filter with an empty
            list or text that every value passes; filters that all nodes match whatever they hold.
    """
    condition, says_nothing = filters_sql(filters), _saying_nothing(filters)
    if says_nothing is None and condition == rqs.all_of([]):
        says_nothing = filters
    if says_nothing is not None:
        raise InvalidInputError(
            f"Got {says_nothing!r} in the filters to delete by, which says nothing about nodes; expected "
            "filters that not every node passes. Nothing was deleted. To delete all nodes, use clear()."
        )
    return condition


def _saying_nothing(filters: MetadataFilters) -> MetadataFilters | MetadataFilter | None:
    """The first part that everything passes, or has no parts; None where there is none."""
    if not filters.filters:
        return filters
    for part in filters.filters:
        if isinstance(part, MetadataFilters):
            found = _saying_nothing(part)
        else:
            found = part if part.operator in _PASSED_IF_EMPTY and part.value in ("", []) else None
        if found is not None:
            return found
    return None


def _parts(filters: MetadataFilters) -> Sequence[MetadataFilters | MetadataFilter]:
    parts = filters.filters if isinstance(filters, MetadataFilters) else None
    if parts is None or not all(isinstance(part, MetadataFilters | MetadataFilter) for part in parts):
        raise InvalidInputError(
            f"Got {filters!r} ({type(filters).__name__}) as filters; expected LlamaIndex's MetadataFilters, "
            "with MetadataFilter or more of them inside."
        )
    return parts


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
    return rqs.any_of([compared, field.isin([truth for truth in (False, True) if holds(truth, value)])])


def _in(field: JsonField, given: MetadataFilter) -> str:
    return field.isin([alike for value in _several(given) for alike in _alike(value)])


def _contains(field: JsonField, given: MetadataFilter) -> str:
    return _has(field, _single(given))


def _has_any(field: JsonField, given: MetadataFilter) -> str:
    return rqs.any_of([_has(field, value) for value in _several(given)])


def _has_all(field: JsonField, given: MetadataFilter) -> str:
    return rqs.all_of([rqs.none_of([field.is_null()]), *(_has(field, value) for value in _several(given))])


def _has_text(field: JsonField, given: MetadataFilter) -> str:
    value = _single(given)
    if not isinstance(value, str):
        raise _refused(given, "a text")
    return field.has_text(value, ignore_case=given.operator == FilterOperator.TEXT_MATCH_INSENSITIVE)


_TRANSLATIONS: dict[FilterOperator, Callable[[JsonField, MetadataFilter], str]] = {
    FilterOperator.EQ: _equal,
    FilterOperator.NE: lambda field, given: rqs.none_of([_equal(field, given)]),
    **dict.fromkeys(_ORDERS, _ordered),
    FilterOperator.IN: _in,
    FilterOperator.NIN: lambda field, given: rqs.none_of([_in(field, given)]),
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
    return rqs.any_of([*terms, field.has_text(value)] if isinstance(value, str) else terms)


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
