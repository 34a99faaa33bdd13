"""Python's values as Arrow arrays of types of their own, none of them changed on the way.

Arrow tells types by itself, but cuts values off where they are of several: a time of day beside a date, a
nanosecond in a pandas Timestamp, a time zone beside none.
Shapes: N values.
"""

import datetime
import decimal
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from rqmoe_store.store.casts import UnfitError

_MISSING = {"NaTType", "NAType"}
_LISTS = (list, tuple, set, frozenset, range, np.ndarray)
_INTEGER_BITS = 64


def array_of(values: Sequence[Any], target: pa.DataType | None, path: str) -> pa.Array:
    """N values, of one kind but for None and what pandas has in its place.

    Args:
        values: dicts, lists of any kind, arrays (their first dimension), numbers and so on.
        target: what the array is for; dicts alone depend on it, as they may be structs, maps or JSON. None
            for structs.
        path: leads to them from the row.

    Raises:
        UnfitError: values of several kinds, or of one that Arrow does not know.
    """
    classes = set(map(type, values)) - {type(None)}
    if missing := {each for each in classes if each.__name__ in _MISSING}:
        values = [None if type(value) in missing else value for value in values]
        classes -= missing
    if any(hasattr(each, "__array__") and not issubclass(each, np.generic) for each in classes):
        values = [_unwrapped(value, path) for value in values]
        classes = set(map(type, values)) - {type(None)}
    if not classes:
        return pa.nulls(len(values))
    if isinstance(target, pa.JsonType) and any(issubclass(each, (Mapping, list)) for each in classes):
        return _json(values, path)
    is_map = target is not None and pa.types.is_map(target)
    if is_map and all(issubclass(each, (Mapping, *_LISTS)) for each in classes):
        return _map(values, target, path)
    if all(issubclass(each, Mapping) for each in classes):
        return _struct(values, target, path)
    if all(issubclass(each, _LISTS) for each in classes):
        return _list(values, target, path)
    return _scalars(values, classes, path)


def _unwrapped(value: Any, path: str) -> Any:
    """An array of numpy's for one of another library; a number for one without dimensions."""
    if value is None or isinstance(value, np.generic) or not hasattr(value, "__array__"):
        return value
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UnfitError(f"{path} has a {type(value).__name__} that cannot be read ({error})") from error
    return array[()] if array.ndim == 0 else array


def _json(values: Sequence[Any], path: str) -> pa.Array:
    try:
        texts = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
    except (TypeError, ValueError) as error:
        raise UnfitError(f"{path} cannot be written as JSON ({error})") from error
    return pa.array(texts, type=pa.string())


def _struct(values: Sequence[Any], target: pa.DataType | None, path: str) -> pa.Array:
    names = list(dict.fromkeys(itertools.chain.from_iterable(value for value in values if value is not None)))
    if odd := [name for name in names if not isinstance(name, str)]:
        raise UnfitError(f"{path} has a field named {odd[0]!r}; expected text")
    rows = [{} if value is None else value for value in values]
    known: dict[str, pa.DataType] = {}
    if target is not None and pa.types.is_struct(target):
        known = {field.name: field.type for field in target}
    if not names:
        return pa.array([None if value is None else {} for value in values], type=pa.struct([]))
    arrays = [array_of([row.get(name) for row in rows], known.get(name), f"{path}.{name}") for name in names]
    return pa.StructArray.from_arrays(arrays, names=names, mask=_is_none(values))


def _map(values: Sequence[Any], target: pa.DataType, path: str) -> pa.Array:
    pairs = [
        [] if value is None else list(value.items() if isinstance(value, Mapping) else value)
        for value in values
    ]
    together = list(itertools.chain.from_iterable(pairs))
    if not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in together):
        raise UnfitError(f"{path} has no keys and values; expected a dict or a list of pairs")
    keys = array_of([key for key, _ in together], target.key_type, f"{path}.key")
    if keys.null_count:
        raise UnfitError(f"{path} has a key that is None")
    items = array_of([item for _, item in together], target.item_type, f"{path}.value")
    offsets = pa.array(_offsets(pairs), type=pa.int32())
    return pa.MapArray.from_arrays(offsets, keys, items, mask=_is_none(values))


def _list(values: Sequence[Any], target: pa.DataType | None, path: str) -> pa.Array:
    inner = getattr(target, "storage_type", target)
    value_type = getattr(inner, "value_type", None)
    lists = [() if value is None else value for value in values]
    arrays = [value for value in lists if isinstance(value, np.ndarray)]
    plain = [value for value in arrays if value.ndim == 1 and value.dtype.kind in "biuf"]
    if (
        len(plain) + sum(value is None for value in values) == len(values)
        and len({value.dtype for value in plain}) == 1
    ):
        together = np.concatenate(plain)
        native = together.astype(together.dtype.newbyteorder("="), copy=False)
        items = pa.array(native)
    else:
        items = array_of(list(itertools.chain.from_iterable(lists)), value_type, f"{path}[]")
    offsets_N = _offsets(lists)
    kind = pa.ListArray if offsets_N[-1] < 2**31 else pa.LargeListArray
    offsets = pa.array(offsets_N, type=pa.int32() if kind is pa.ListArray else pa.int64())
    return kind.from_arrays(offsets, items, mask=_is_none(values))


def _offsets(lists: Iterable[Any]) -> Any:
    return np.concatenate([[0], np.cumsum([len(each) for each in lists], dtype=np.int64)])


def _is_none(values: Sequence[Any]) -> pa.Array:
    return pa.array([value is None for value in values], type=pa.bool_())


def _scalars(values: Sequence[Any], classes: set[type], path: str) -> pa.Array:
    kinds = {_kind_of(each) for each in classes}
    if len(kinds) > 1 and kinds != {"text", "bytes"}:
        named = ", ".join(sorted(each.__name__ for each in classes))
        raise UnfitError(f"{path} has values of several types ({named})")
    read = _READ_AS.get(kinds.pop(), pa.array) if len(kinds) == 1 else pa.array
    try:
        return read(values)
    except (TypeError, ValueError, OverflowError, pa.ArrowException) as error:
        raise UnfitError(f"{path}: {error}") from error


def _kind_of(each: type) -> str:
    """What values of a class are; the order matters, as some of these are subclasses of others."""
    for kind, classes in _KINDS.items():
        if issubclass(each, classes):
            return kind
    return f"{each.__module__}.{each.__qualname__}"


_KINDS: dict[str, tuple[type, ...]] = {
    "truth value": (bool, np.bool_),
    "duration": (datetime.timedelta, np.timedelta64),
    "number": (int, float, np.integer, np.floating, decimal.Decimal),
    "text": (str,),
    "bytes": (bytes, bytearray, memoryview),
    "date": (datetime.date, np.datetime64),
    "time of day": (datetime.time,),
}


def _numbers(values: Sequence[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except OverflowError:
        whole = [value for value in values if value is not None]
        if all(isinstance(value, int) and 0 <= value < 2**_INTEGER_BITS for value in whole):
            return pa.array(values, type=pa.uint64())
        return pa.array([None if value is None else decimal.Decimal(value) for value in values])


def _dates(values: Sequence[Any]) -> pa.Array:
    """Dates alone stay dates; beside times they are midnights."""
    given = [value for value in values if value is not None]
    if all(isinstance(value, np.datetime64) for value in given):
        return _of_numpy(values, "M8")
    if not any(isinstance(value, (datetime.datetime, np.datetime64)) for value in given):
        return pa.array(values)
    import pandas as pd  # Timestamps, which have nanoseconds, are among them, or numpy's times

    zoned = {getattr(value, "tzinfo", None) is not None for value in given}
    if len(zoned) > 1:
        raise ValueError("some times have a time zone and others have none")
    if all(type(value) is datetime.datetime for value in given):
        return pa.array(values)
    stamps = [None if value is None else pd.Timestamp(value) for value in values]
    if not any(value is not None and value.nanosecond for value in stamps):
        return pa.array([None if value is None else value.to_pydatetime() for value in stamps])
    counts = pa.array([None if value is None else value.as_unit("ns").value for value in stamps], pa.int64())
    zone = next(value.tz for value in stamps if value is not None)
    return counts.cast(pa.timestamp("ns", tz=None if zone is None else str(zone)))


def _durations(values: Sequence[Any]) -> pa.Array:
    if all(value is None or type(value) is datetime.timedelta for value in values):
        return pa.array(values)
    import pandas as pd

    spans = [
        value if isinstance(value, np.timedelta64) or value is None else pd.Timedelta(value).to_timedelta64()
        for value in values
    ]
    return _of_numpy(spans, "m8")


def _of_numpy(values: Sequence[Any], kind: str) -> pa.Array:
    """Numpy's times or durations, in the finest unit of them."""
    array = np.array(
        [np.array("NaT", dtype=kind) if value is None else value for value in values], dtype=kind
    )
    unit = np.datetime_data(array.dtype)[0]
    if unit == "generic":
        return pa.nulls(len(array))
    if unit in ("Y", "M", "W", "D", "h", "m") and not (kind == "M8" and unit == "D"):
        array = array.astype(f"{kind}[s]")
    return pa.array(array)


def _times(values: Sequence[Any]) -> pa.Array:
    if any(value is not None and value.tzinfo is not None for value in values):
        raise ValueError("times of day with a time zone, which Arrow does not know")
    return pa.array(values)


_READ_AS: dict[str, Callable[[Sequence[Any]], pa.Array]] = {
    "number": _numbers,
    "date": _dates,
    "duration": _durations,
    "time of day": _times,
}
