"""Haystack's filters as SQL conditions.

They have the meaning of `haystack.utils.filters.document_matches_filter`, with two exceptions: types are told
apart (True is not 1), and a document whose value cannot be compared does not match, where Haystack raises.
"""

import abc
import dataclasses
from typing import Any

from haystack.errors import FilterError
from haystack_integrations.document_stores.rqmoe._dates import LOCAL, UTC, Instant, instant_of
from haystack_integrations.document_stores.rqmoe._rows import CONTENT, DATES, ID, META, NULL_WHERE

import rqmoe_store as rqs

_LOGIC = ("AND", "OR", "NOT")
_ORDER = {">": "gt", ">=": "gte", "<": "lt", "<=": "lte"}
_COMPARISONS = ("==", "!=", *_ORDER, "in", "not in")


def condition_of(filters: dict[str, Any] | None) -> str | None:
    """The SQL condition that documents match, true or false for every one; None for no filter.

    Args:
        filters: as Haystack documents them; {} for no filter. Fields are `id`, `content`, and `meta.` with a
            name, or several for what is in nested objects; other names without a period are taken for names
            of metadata. Of `blob`, `score`, `embedding` and `sparse_embedding` one can ask whether they are
            None.

    Raises:
        FilterError: missing keys; unknown operators or fields, or values that an operator does not take.
    """
    return None if filters is None or filters == {} else _condition(filters)


def condition_to_change_by(filters: dict[str, Any]) -> str:
    """As `condition_of`, but not for filters that say nothing, which would change more than anyone means.

    Raises:
        FilterError: as `condition_of`; no filter, or none in a part of it; filters that all documents match
            whatever they hold, such as 'not in' of an empty list.
    """
    condition = condition_of(filters)
    if condition is None or condition == rqs.all_of([]) or _has_empty_part(filters):
        raise FilterError(
            f"Got {filters!r} as the filter of documents to change, which says nothing about them or has a "
            "part without conditions; expected a filter that not every document matches. Nothing was "
            "changed. To delete all documents use delete_all_documents()."
        )
    return condition


def _has_empty_part(filters: dict[str, Any]) -> bool:
    if "field" in filters:
        return False
    return not filters["conditions"] or any(map(_has_empty_part, filters["conditions"]))


def _condition(filters: Any) -> str:
    if not isinstance(filters, dict):
        raise FilterError(
            f"Got {filters!r} as a filter; expected a dict with 'field', 'operator' and 'value', or with "
            "'operator' and 'conditions'."
        )
    if "field" in filters:
        return _comparison(filters)
    operator, conditions = _required(filters, "operator"), _required(filters, "conditions")
    if operator not in _LOGIC:
        raise FilterError(
            f"Got {operator!r} as an operator of conditions; expected one of {', '.join(_LOGIC)}."
        )
    if not isinstance(conditions, list):
        raise FilterError(f"Got {conditions!r} as the conditions of {operator}; expected a list of filters.")
    parts = [_condition(condition) for condition in conditions]
    if operator == "OR":
        return rqs.any_of(parts)
    every = rqs.all_of(parts)
    return rqs.none_of([every]) if operator == "NOT" else every


def _comparison(filters: dict[str, Any]) -> str:
    operator, value = _required(filters, "operator"), _required(filters, "value")
    if operator not in _COMPARISONS:
        raise FilterError(
            f"Got {operator!r} as an operator of a field; expected one of {', '.join(_COMPARISONS)}."
        )
    field, value = _field(filters["field"]), rqs.as_json_value(value)
    try:
        if operator in _ORDER:
            return rqs.any_of([]) if value is None else field.ordered(operator, value)
        matches = field.one_of(_listed(value) if operator in ("in", "not in") else [value])
    except rqs.InvalidInputError as error:
        raise FilterError(f"Got {filters!r}, a filter with a value that is not supported: {error}") from error
    return rqs.none_of([matches]) if operator in ("!=", "not in") else matches


def _required(filters: dict[str, Any], key: str) -> Any:
    if key not in filters:
        raise FilterError(f"Got {filters!r} as a filter; expected it to have {key!r}, too.")
    return filters[key]


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise FilterError(
            f"Got {value!r} ({type(value).__name__}) as the value of 'in' or 'not in'; expected a list."
        )
    return [rqs.as_json_value(one) for one in value]


class _Field(abc.ABC):
    """A field of documents, and conditions on it."""

    @abc.abstractmethod
    def one_of(self, values: list[Any]) -> str:
        """That it is one of these values, or None if None is among them."""

    @abc.abstractmethod
    def ordered(self, operator: str, value: Any) -> str:
        """That it is before or after a value other than None, as `operator` says."""


@dataclasses.dataclass(frozen=True)
class _MetaField(_Field):
    """A field of metadata, by its names from the outermost object on."""

    path: tuple[str, ...]

    def one_of(self, values: list[Any]) -> str:
        field, dates = rqs.json_field(META, *self.path), [instant_of(value) for value in values]
        others = [
            value for value, date in zip(values, dates, strict=True) if value is not None and date is None
        ]
        parts = [field.is_null()] if None in values else []
        parts += [field.isin(others)] if others else []
        parts += self._at_one_of([date for date in dates if date is not None])
        return rqs.any_of(parts)

    def ordered(self, operator: str, value: Any) -> str:
        date = instant_of(value)
        if date is not None:
            return self._at(_ORDER[operator], date)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise FilterError(
                f"Got {value!r} ({type(value).__name__}) as the value of {operator!r}; expected a number or "
                "an ISO date such as '2000-01-31' or '2000-01-31T12:00:00'."
            )
        condition: str = getattr(rqs.json_field(META, *self.path), _ORDER[operator])(value)
        return condition

    def _at_one_of(self, dates: list[Instant]) -> list[str]:
        """That the field is at one of these dates, as a few conditions however many there are."""
        local, utc = (rqs.json_field(DATES, *self.path, name) for name in (LOCAL, UTC))
        by_clock = [date[LOCAL] for date in dates if UTC not in date]
        zoned = [date for date in dates if UTC in date]
        parts = [local.isin(by_clock)] if by_clock else []
        if zoned:
            parts.append(utc.isin([date[UTC] for date in zoned]))
            parts.append(rqs.all_of([utc.is_null(), local.isin([date[LOCAL] for date in zoned])]))
        return parts

    def _at(self, comparison: str, date: Instant) -> str:
        """That the field is a date before, after or at this one."""
        local, utc = (rqs.json_field(DATES, *self.path, name) for name in (LOCAL, UTC))
        by_clock: str = getattr(local, comparison)(date[LOCAL])
        if UTC not in date:
            return by_clock
        return rqs.any_of([getattr(utc, comparison)(date[UTC]), rqs.all_of([utc.is_null(), by_clock])])


@dataclasses.dataclass(frozen=True)
class _TextField(_Field):
    """A field of documents that is a text, or None."""

    name: str

    def one_of(self, values: list[Any]) -> str:
        texts = [value for value in values if isinstance(value, str)]
        parts = [f"({self.name} IS NULL)"] if None in values else []
        return rqs.any_of([*parts, rqs.column_condition(self.name, texts)])

    def ordered(self, operator: str, value: Any) -> str:
        raise FilterError(f"Got {operator!r} for {self.name!r}; expected '==', '!=', 'in' or 'not in'.")


@dataclasses.dataclass(frozen=True)
class _OtherField(_Field):
    """A field of documents whose values are not compared."""

    name: str

    def one_of(self, values: list[Any]) -> str:
        if values != [None]:
            raise FilterError(
                f"Got {values!r} to compare {self.name!r} with; it can be compared with None alone."
            )
        return NULL_WHERE[self.name]

    def ordered(self, operator: str, value: Any) -> str:
        raise FilterError(
            f"Got {operator!r} for {self.name!r}; expected '==' or '!=', and None as the value."
        )


def _field(name: Any) -> _Field:
    if name in (ID, CONTENT):
        return _TextField(name)
    if isinstance(name, str) and name in NULL_WHERE:
        return _OtherField(name)
    if not isinstance(name, str) or name == "meta" or ("." in name and not name.startswith("meta.")):
        raise FilterError(
            f"Got {name!r} as a field; expected 'id', 'content' or a name in the metadata such as "
            "'meta.year' or 'meta.author.name'."
        )
    return _MetaField(tuple(name.removeprefix("meta.").split(".")))
