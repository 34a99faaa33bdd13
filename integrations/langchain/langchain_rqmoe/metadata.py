"""Metadata as JSON texts that come back exactly, but for numpy's numbers, dates, times and UUIDs.

What JSON would change otherwise is refused before anything is written.
"""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from rqmoe_store import InvalidInputError, as_json_value

MAX_DEPTH = 100
"""Levels of objects and lists in one another."""


def json_text(metadata: Mapping[Any, Any] | None, position: int) -> str:
    """The JSON text of one document's metadata; `json.loads` reads an equal dict, with each value as
    `as_json_value` has it.

    Args:
        metadata: None for none.
        position: of the document in the call, for messages.

    Raises:
        InvalidInputError: not a dict, or one with something that JSON does not have: keys that are no texts,
            tuples, sets, arrays, NaN or infinite floats, integers beyond 64 bits, text that is not Unicode;
            or with more than MAX_DEPTH levels.
    """
    if metadata is None:
        return "{}"
    if not isinstance(metadata, dict):
        raise InvalidInputError(
            f"The metadata of document {position} is {type(metadata).__name__}; expected a dict. Nothing was "
            "written."
        )
    level: list[tuple[str, Any]] = [("metadata", metadata)]
    for _ in range(MAX_DEPTH):
        level = [inner for path, value in level for inner in _members(path, value, position)]
        if not level:
            return json.dumps(metadata, ensure_ascii=False, allow_nan=False, default=as_json_value)
    raise InvalidInputError(
        f"The metadata of document {position} has more than {MAX_DEPTH} levels; expected flatter ones. "
        f"Nothing was written."
    )


def _members(path: str, value: Any, position: int) -> Iterator[tuple[str, Any]]:
    """The members of an object or list, each with its place. Raises unless `value` itself can be JSON."""
    value = as_json_value(value)
    if type(value) is dict:
        for key in value:
            if type(key) is not str or not is_unicode(key):
                raise _not_json(f"a key {key!r} in {path}", position, "use texts as keys")
        yield from ((f"{path}[{key!r}]", member) for key, member in value.items())
    elif type(value) is list:
        yield from ((f"{path}[{index}]", member) for index, member in enumerate(value))
    elif isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**64:
        raise _not_json(f"{path} = {value!r}", position, "keep integers beyond 64 bits as text")
    elif isinstance(value, float) and not math.isfinite(value):
        raise _not_json(f"{path} = {value!r}", position, "use None, or leave it out")
    elif isinstance(value, str) and not is_unicode(value):
        raise _not_json(f"{path} = {value!r}", position, "remove lone surrogates")
    elif value is not None and type(value) not in (str, int, float, bool):
        advice = (
            "convert it: arrays by .tolist(), sets and tuples by list(), enums by .value, others by str()"
        )
        raise _not_json(f"{path} of type {type(value).__name__}", position, advice)


def is_unicode(text: str) -> bool:
    """Whether `text` can be stored: it has no lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _not_json(found: str, position: int, advice: str) -> InvalidInputError:
    return InvalidInputError(
        f"The metadata of document {position} has {found}, which JSON cannot give back as it is; expected "
        f"dicts, lists, texts, finite numbers of 64 bits, bools, None, dates, times and UUIDs. Nothing was "
        f"written; {advice}."
    )
