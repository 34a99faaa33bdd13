"""Metadata of documents: checks, JSON, and statistics of fields."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from haystack.document_stores.errors import DocumentStoreError
from haystack_integrations.document_stores.rqmoe._dates import instant_of

import rqmoe_store as rqs

_SMALLEST, _LARGEST = -(2**63), 2**64 - 1
"""Integers that the store keeps exactly."""


def as_json(value: Any, name: str, document_id: str | None = None) -> str:
    """`value` as a JSON text that comes back as it was, but for tuples, which become lists, numbers of numpy,
    which become Python's, and dates, times and UUIDs, which become texts.

    Args:
        value: of dicts with text as keys, lists, tuples, text, finite numbers, booleans, None, dates, times
            and UUIDs.
        name: what it is called, for messages.
        document_id: whose it is, for messages.

    Raises:
        DocumentStoreError: other values, numbers that are not finite or beyond 64 bits, text that is no
            Unicode.
    """
    owner = "" if document_id is None else f" of document {document_id!r}"
    _require_json(value, name, owner)
    text = json.dumps(value, ensure_ascii=False, default=rqs.as_json_value)
    require_unicode(text, f"{name}{owner}")
    return text


def require_unicode(text: str, place: str) -> None:
    """Raise DocumentStoreError for text with lone surrogates, which no storage takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DocumentStoreError(
            f"Got text in {place} that is not valid Unicode ({error.reason} at character {error.start}). "
            "Nothing was written; replace such characters, e.g. with text.encode('utf-8', "
            "'replace').decode()."
        ) from error


def dates_of(meta: dict[str, Any]) -> dict[str, Any]:
    """The ISO dates of metadata, under the same names, nested objects included."""
    dates: dict[str, Any] = {}
    for name, value in meta.items():
        date = dates_of(value) if isinstance(value, dict) else instant_of(value)
        if date:
            dates[name] = date
    return dates


def without_prefix(field: str) -> str:
    """The name of a metadata field, given with or without Haystack's "meta."."""
    return field.removeprefix("meta.")


def fields_info(metas: Iterable[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """The type of every field that has a value: "boolean", "int", "float", or "keyword" for everything else,
    and for fields that have values of several types; "float" where these are numbers."""
    types: dict[str, set[str]] = {}
    for meta in metas:
        for name, value in meta.items():
            if value is not None:
                types.setdefault(name, set()).add(_type_name(value))
    return {name: {"type": _common_type(found)} for name, found in types.items()}


def min_max(metas: Iterable[dict[str, Any]], field: str) -> dict[str, Any]:
    """The least and the largest value of a field; None for both without any, or where they cannot be
    compared."""
    values = [value for value in values_of(metas, field) if isinstance(value, int | float | str)]
    if not values or len({isinstance(value, str) for value in values}) > 1:
        return {"min": None, "max": None}
    return {"min": min(values), "max": max(values)}


def unique_values(metas: Iterable[dict[str, Any]], field: str, search_term: str | None = None) -> list[Any]:
    """Different values of a field, ordered by their text; 1, 1.0, True and "1" are different.

    Args:
        search_term: part of the text of those to return, in upper or lower case.
    """
    different = {(type(value).__name__, _as_key(value)): value for value in values_of(metas, field)}
    term = (search_term or "").lower()
    found = [
        (str(value), kind, value) for (kind, _), value in different.items() if term in str(value).lower()
    ]
    return [value for _, _, value in sorted(found, key=lambda entry: entry[:2])]


def counts_of_unique(metas: Sequence[dict[str, Any]], fields: Iterable[str]) -> dict[str, int]:
    """How many different values each of some fields has, by its name without "meta."."""
    return {without_prefix(field): len(unique_values(metas, field)) for field in fields}


def values_of(metas: Iterable[dict[str, Any]], field: str) -> Iterator[Any]:
    """The values that a field has, other than None."""
    name = without_prefix(field)
    return (meta[name] for meta in metas if meta.get(name) is not None)


def _as_key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _type_name(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "int"
    return "float" if isinstance(value, float) else "keyword"


def _common_type(found: set[str]) -> str:
    if len(found) == 1:
        return next(iter(found))
    return "float" if found == {"int", "float"} else "keyword"


def _require_json(value: Any, name: str, owner: str) -> None:
    """Raise DocumentStoreError unless JSON can hold `value`, which is called `name` and belongs to
    `owner`."""
    value = rqs.as_json_value(value)
    if isinstance(value, dict):
        for key, part in value.items():
            if not isinstance(key, str):
                raise _refusal(key, f"a name in {name}{owner}", "text")
            _require_json(part, f"{name}.{key}", owner)
    elif isinstance(value, list | tuple):
        for part in value:
            _require_json(part, name, owner)
    elif isinstance(value, int):
        if not _SMALLEST <= value <= _LARGEST:
            raise _refusal(value, f"{name}{owner}", "an integer of 64 bits; write larger ones as text")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise _refusal(value, f"{name}{owner}", "a finite number, or None")
    elif not isinstance(value, str | None):
        expected = (
            "text, numbers, booleans, None, dates, times, UUIDs, lists and dicts; convert others, arrays by "
            "value.tolist(), sets by list(value), enums by value.value"
        )
        raise _refusal(value, f"{name}{owner}", expected)


def _refusal(value: Any, role: str, expected: str) -> DocumentStoreError:
    return DocumentStoreError(
        f"Got {value!r} ({type(value).__name__}) as {role}; expected {expected}. Nothing was written."
    )
