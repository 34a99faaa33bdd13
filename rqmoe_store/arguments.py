"""Argument checks: values given to public calls against the annotations of their parameters.

The error names the argument. Arguments that a call would use late, or never, are checked before the call. All
others are checked only after the call has failed, because the call's own checks say more and come first.
"""

import datetime
import functools
import inspect
import math
import operator
import reprlib
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

import numpy as np

from rqmoe_store.errors import InvalidInputError

_shown = reprlib.Repr()
_shown.maxstring = _shown.maxother = 80

LARGEST = 2**32 - 1
"""Largest number of rows that LanceDB takes."""

_WORDS = {
    "CodecConfig": "a CodecConfig, such as CodecConfig(code_bytes=16)",
    "TrainConfig": "a TrainConfig, such as TrainConfig(max_minutes=5)",
    "Codec": "a codec, as train() or load_codec() returns it",
    "DBConnection": "a database, as lancedb.connect() returns it",
    "Table": "a LanceDB table",
    "OpenTable": "a table of rqmoe_store",
    "CompressedTable": "a table of rqmoe_store",
    "Mapping": "a mapping, such as a dict",
    "PathLike": "a path",
    "Iterable": "a list",
    "Sequence": "a list",
    "Callable": "a function",
}
_EARLY = {"CodecConfig", "TrainConfig", "Codec", "Mapping", "Callable"}
"""Classes whose misuse calls would notice late, or never."""


class _Kind(NamedTuple):
    """The values that an annotation allows."""

    fits: Callable[[Any], bool]
    words: str
    """Completes "expected ..." in messages."""
    late: bool
    """Whether to check only after the call has failed, because its own checks say more."""


def check_arguments(
    call: Callable[..., Any], arguments: Sequence[Any], settings: Mapping[str, Any], *, early: bool = False
) -> None:
    """Raise InvalidInputError for the first argument of a call that does not fit its annotation.

    Args:
        call: a function or method.
        arguments, settings: its positional and keyword arguments.
        early: whether to check only the arguments that are checked before the call.
    """
    kinds, positions = _kinds(call)
    given = [*zip(positions, arguments, strict=False), *settings.items()]
    for name, value in given:
        kind = kinds.get(name)
        if kind is not None and not (early and kind.late) and not kind.fits(value):
            called = call.__qualname__.rpartition(".__init__")[0] or call.__name__
            raise InvalidInputError(f"Got {name}={_shown.repr(value)} for {called}(); expected {kind.words}.")


@functools.cache
def _kinds(call: Callable[..., Any]) -> tuple[dict[str, _Kind], tuple[str, ...]]:
    """The kinds of a call's parameters by name, and the names of those that can be given by position."""
    parameters = inspect.signature(call).parameters.values()
    named = [each for each in parameters if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)]
    kinds = {each.name: kind for each in named if (kind := _kind(each.annotation)) is not None}
    return kinds, tuple(each.name for each in named if each.kind is not each.KEYWORD_ONLY)


def has_early_checks(call: Callable[..., Any]) -> bool:
    """Whether any argument must be checked before the call."""
    return any(not kind.late for kind in _kinds(call)[0].values())


def _kind(annotation: Any) -> _Kind | None:
    """The values that an annotation allows; None if it allows everything, or is not supported here."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        kinds = [_kind(each) for each in get_args(annotation)]
        if None in kinds:
            return None
        known = [kind for kind in kinds if kind is not None]
        return _Kind(
            lambda value: any(kind.fits(value) for kind in known),
            " or ".join(dict.fromkeys(kind.words for kind in known)),
            any(kind.late for kind in known),
        )
    if origin is Literal:
        choices = get_args(annotation)
        return _Kind(
            lambda value: isinstance(value, str) and value in choices, " or ".join(map(repr, choices)), True
        )
    cls = annotation if origin is None else origin
    if cls is None or (isinstance(cls, type) and cls in _SIMPLE):
        return _SIMPLE[cls]
    is_known = isinstance(cls, type) and cls not in (object, Any, inspect.Parameter.empty)
    if not is_known:
        return None
    elements = [] if cls is tuple else get_args(annotation)[:1]  # each element of a tuple has its own kind
    return _of_class(cls, [_kind(each) for each in elements])


def _of_class(cls: Any, elements: Sequence[_Kind | None]) -> _Kind:
    """The values that a class allows, or the origin of a generic class with the kinds of its elements."""
    name = cls.__name__
    element = elements[0] if elements else None
    is_list = issubclass(cls, Iterable) and not issubclass(cls, str | bytes)
    return _Kind(
        lambda value: (
            isinstance(value, cls)
            and not (is_list and isinstance(value, str | bytes))
            and (
                element is None
                or not isinstance(value, list | tuple | set | np.ndarray)
                or all(map(element.fits, value))
            )
        ),
        _WORDS.get(name, f"a {name}") + (f" of {element.words}" if element and is_list else ""),
        name not in _EARLY,
    )


def is_text(value: Any) -> bool:
    """Whether a value is text without lone surrogates, which no storage accepts."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _is_time(value: Any) -> bool:
    return isinstance(value, datetime.timedelta) and abs(value.days) <= 365_000


def _is_whole(value: Any) -> bool:
    try:
        operator.index(value)
    except TypeError:
        return False
    return not isinstance(value, bool | np.bool_)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def whole_number(name: str, value: Any, low: int, high: int = LARGEST) -> int:
    """`value` as an int; raises InvalidInputError unless it is a whole number from `low` to `high`."""
    number = value if type(value) is int else operator.index(value) if _is_whole(value) else None
    if number is None or number < low:
        raise InvalidInputError(
            f"Got {name}={_shown.repr(value)}; expected a whole number of at least {low}."
        )
    if number > high:
        raise InvalidInputError(
            f"Got {name}={_shown.repr(value)}; expected a whole number from {low} to {high}."
        )
    return number


def real_number(name: str, value: Any, fits: Callable[[float], bool], words: str) -> float:
    """`value` as a float; raises InvalidInputError unless it is a number that fits.

    Args:
        name: of the argument.
        value: what was given.
        fits: whether a number is one of those expected. NaN, which stands for what is no number or beyond
            the range of floats, must not fit.
        words: complete "expected ..." in the message.
    """
    try:
        number = float(value) if _is_number(value) else math.nan
    except OverflowError:
        number = math.nan
    if not fits(number):
        raise InvalidInputError(f"Got {name}={_shown.repr(value)}; expected {words}.")
    return number


def share(name: str, value: Any) -> float:
    """`value` as a float from 0 to 1. Raises InvalidInputError for other values."""
    return real_number(name, value, lambda number: 0 <= number <= 1, "a number from 0 to 1")


def open_share(name: str, value: Any) -> float:
    """`value` as a float above 0 and below 1. Raises InvalidInputError for other values."""
    return real_number(name, value, lambda number: 0 < number < 1, "a number above 0 and below 1")


_SIMPLE: dict[Any, _Kind] = {
    None: _Kind(lambda value: value is None, "None", False),
    types.NoneType: _Kind(lambda value: value is None, "None", False),
    str: _Kind(is_text, "text of valid Unicode", True),
    # 0, 1 and None are understood as switches.
    bool: _Kind(lambda value: value is None or isinstance(value, int | np.bool_), "True or False", True),
    int: _Kind(_is_whole, "a whole number", True),
    float: _Kind(_is_number, "a number", True),
    datetime.timedelta: _Kind(_is_time, "a datetime.timedelta of at most a thousand years", False),
}
