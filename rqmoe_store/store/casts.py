"""Lossless casts of Python and Arrow values to the types of a table.

`array_of` converts Python values to Arrow, and `cast_column` casts Arrow values to the type of a column. Both
raise `UnfitError` instead of dropping anything that the type cannot hold: fractions, digits, times of day,
time zones, fields of structs. Only floats are rounded to narrower floats. Values of one kind (numbers, text,
bytes, truth values, dates, times of day, durations) are not cast to another kind, with two exceptions: text
that spells a value of the column, and integers that count dates, times or durations.

Shape legend: N values, V values in lists that are not null.
"""

import datetime
import decimal
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


class UnfitError(ValueError):
    """Values cannot be cast without change; says which, and why."""


_KINDS: dict[str, tuple[Callable[[pa.DataType], bool], ...]] = {
    "truth values": (pa.types.is_boolean,),
    "numbers": (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal),
    "text": (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
    "bytes": (
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_binary_view,
        pa.types.is_fixed_size_binary,
    ),
    "dates": (pa.types.is_timestamp, pa.types.is_date),
    "times of day": (pa.types.is_time,),
    "durations": (pa.types.is_duration,),
}
_CASTABLE = {("bytes", "text"), *(("text", kind) for kind in ("bytes", "numbers", "truth values", "dates"))}
_CASTABLE |= {("numbers", kind) for kind in ("dates", "times of day", "durations")}
"""Pairs of different kinds of which the first can be cast to the second."""
_ANY_INTEGER = pa.decimal128(20, 0)


def cast_column(column: pa.ChunkedArray | pa.Array, field: pa.Field) -> pa.ChunkedArray:
    """Cast a column to the type of `field`.

    Nullable nested fields are null where values lack them.

    Raises:
        UnfitError: a value would change; a nested field is unknown, repeated, or missing and not nullable; a
            nested field that is not nullable has nulls. A column without values raises, too, if no value of
            its type can be cast.
    """
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    chunks = chunks or [pa.array([], type=column.type)]
    return pa.chunked_array([cast_array(chunk, field.type, field.name) for chunk in chunks], type=field.type)


def cast_array(array: pa.Array, target: pa.DataType, path: str) -> pa.Array:
    """Cast one array as `cast_column` does; `path` names it in messages, from the column on."""
    if array.type == target and not _demands_values(target):
        return array
    if pa.types.is_null(array.type):
        return pa.nulls(len(array), type=target)
    array = _unencoded(array)
    if isinstance(target, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(target, cast_array(array, target.storage_type, path))
    if pa.types.is_dictionary(target):
        return cast_array(array, target.value_type, path).dictionary_encode().cast(target)
    if pa.types.is_struct(target):
        return _as_struct(array, target, path)
    if pa.types.is_map(target):
        return _as_map(array, target, path)
    if is_list(target):
        return _as_list(array, target, path)
    return _as_value(array, target, path)


def is_list(data_type: pa.DataType) -> bool:
    """Whether values of this type are lists of any kind; False for extension types of lists."""
    return bool(
        pa.types.is_list(data_type)
        or pa.types.is_large_list(data_type)
        or pa.types.is_fixed_size_list(data_type)
        or pa.types.is_list_view(data_type)
        or pa.types.is_large_list_view(data_type)
    )


def unknown_fields(source: pa.DataType, target: pa.DataType, path: str) -> list[str]:
    """Paths of the fields of structs, at any depth, that `source` has and `target` lacks."""
    if pa.types.is_struct(source) and pa.types.is_struct(target):
        known = {field.name: field.type for field in target}
        return [
            unknown
            for field in source
            for unknown in (
                unknown_fields(field.type, known[field.name], f"{path}.{field.name}")
                if field.name in known
                else [f"{path}.{field.name}"]
            )
        ]
    if pa.types.is_map(source) and pa.types.is_map(target):
        return unknown_fields(source.item_type, target.item_type, f"{path}.value")
    if is_list(source) and is_list(target):
        return unknown_fields(source.value_type, target.value_type, f"{path}[]")
    return []


def _demands_values(data_type: pa.DataType) -> bool:
    """Whether a nested field of this type may not be null."""
    fields = [data_type.field(place) for place in range(data_type.num_fields)]
    if pa.types.is_map(data_type):  # keys are never null
        fields = [data_type.item_field]
    return any(not field.nullable or _demands_values(field.type) for field in fields)


def _unencoded(array: pa.Array) -> pa.Array:
    """The values without extension type, dictionary or run-end encoding."""
    if isinstance(array.type, pa.BaseExtensionType):
        return _unencoded(array.storage)
    if pa.types.is_dictionary(array.type):
        return _unencoded(array.dictionary_decode())
    if pa.types.is_run_end_encoded(array.type):
        return _unencoded(pc.run_end_decode(array))
    return array


def _as_struct(array: pa.Array, target: pa.DataType, path: str) -> pa.Array:
    if not pa.types.is_struct(array.type):
        raise UnfitError(f"{path} is {array.type}; expected {target}")
    names = [array.type.field(place).name for place in range(array.type.num_fields)]
    _require_fields(names, list(target), path)
    parts, children = array.flatten(), []
    for field in target:
        inner = f"{path}.{field.name}"
        if field.name in names:
            child = cast_array(parts[names.index(field.name)], field.type, inner)
        else:
            child = pa.nulls(len(array), type=field.type)
        _require_values(child, field, inner, array.is_valid())
        children.append(child)
    return pa.StructArray.from_arrays(children, fields=list(target), mask=array.is_null())


def _require_fields(names: list[str], known: list[pa.Field], path: str) -> None:
    expected = [field.name for field in known]
    problems = {
        "unknown": sorted({name for name in names if name not in expected}),
        "repeated": sorted({name for name in names if names.count(name) > 1}),
        "missing": [field.name for field in known if field.name not in names and not field.nullable],
    }
    found = [
        f"{problem}: {', '.join(f'{path}.{name}' for name in which)}"
        for problem, which in problems.items()
        if which
    ]
    if found:
        paths = ", ".join(f"{path}.{name}" for name in expected)
        raise UnfitError(f"fields {'; '.join(found)}; expected {paths}")


def _require_values(child: pa.Array, field: pa.Field, path: str, needed_N: pa.Array | None) -> None:
    if field.nullable or not child.null_count:
        return
    nulls_N = child.is_null() if needed_N is None else pc.and_(child.is_null(), needed_N)
    if count := pc.sum(nulls_N).as_py():
        raise UnfitError(f"{path} is null {count} times but allows none")


def _as_list(array: pa.Array, target: pa.DataType, path: str) -> pa.Array:
    if not is_list(array.type):
        raise UnfitError(f"{path} is {array.type}; expected {target}")
    inner = f"{path}[]"
    values_V = cast_array(array.flatten(), target.value_type, inner)
    _require_values(values_V, target.value_field, inner, None)
    lengths_N = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    missing_N = array.is_null()
    if pa.types.is_fixed_size_list(target):
        return _as_fixed_list(values_V, lengths_N, missing_N, target, path)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths_N)]), type=pa.int64())
    large = pa.large_list(target.value_field)
    lists = pa.LargeListArray.from_arrays(offsets, values_V, type=large, mask=missing_N)
    try:
        return lists if target == large else lists.cast(target)
    except pa.ArrowException as error:  # more values than 32-bit offsets can count
        raise UnfitError(f"{path}: {error}") from error


def _as_fixed_list(
    values_V: pa.Array, lengths_N: Any, missing_N: pa.Array, target: pa.DataType, path: str
) -> pa.Array:
    missing = missing_N.to_numpy(zero_copy_only=False)
    other = lengths_N[~missing] != target.list_size
    if other.any():
        raise UnfitError(
            f"{path} has {lengths_N[~missing][other][0]} values in a list; expected {target.list_size}"
        )
    if missing.any():
        places = np.zeros((len(missing), target.list_size), dtype=np.int64)
        places[~missing] = np.arange(len(values_V)).reshape(-1, target.list_size)
        filler = pa.nulls(1, type=target.value_type) if len(values_V) == 0 else values_V
        values_V = filler.take(pa.array(places.ravel()))
    return pa.FixedSizeListArray.from_arrays(values_V, type=target, mask=missing_N)


def _as_map(array: pa.Array, target: pa.DataType, path: str) -> pa.Array:
    if not pa.types.is_map(array.type):
        raise UnfitError(f"{path} is {array.type}; expected {target}")
    array = array.take(pa.array(np.arange(len(array))))  # copies only what a slice has
    keys = cast_array(array.keys, target.key_type, f"{path}.key")
    items = cast_array(array.items, target.item_type, f"{path}.value")
    _require_values(items, target.item_field, f"{path}.value", None)
    return pa.MapArray.from_arrays(array.offsets, keys, items, type=target, mask=array.is_null())


def _as_value(array: pa.Array, target: pa.DataType, path: str) -> pa.Array:
    _require_kinds(array.type, target, path)
    try:
        result = _converted(array, target)
        changed_N = _changed(array, result)
    except pa.ArrowException as error:
        raise UnfitError(f"{path}: {error}") from error
    if changed_N is not None and pc.any(changed_N).as_py():
        place = pc.index(changed_N.fill_null(False), True).as_py()
        raise UnfitError(f"{path}: {array[place].as_py()!r} would become {result[place].as_py()!r}")
    return result


def _kind(data_type: pa.DataType) -> str:
    return next(
        (kind for kind, tests in _KINDS.items() if any(test(data_type) for test in tests)), str(data_type)
    )


def _require_kinds(source: pa.DataType, target: pa.DataType, path: str) -> None:
    kinds = _kind(source), _kind(target)
    is_uuid = pa.types.is_fixed_size_binary(source) and kinds[1] == "text"  # or other bytes that are not text
    if (kinds[0] != kinds[1] and kinds not in _CASTABLE) or is_uuid:
        raise UnfitError(f"{path} is {source}; expected {kinds[1]}")
    counted = kinds[0] == "numbers" and kinds[1] != "numbers"
    if counted and not pa.types.is_integer(source):
        raise UnfitError(f"{path} is {source}; only integers count {target}")
    zone = getattr(source, "tz", None)
    if zone is not None and getattr(target, "tz", None) is None:
        raise UnfitError(f"{path} has time zone {zone}, which {target} would lose")


def _converted(array: pa.Array, target: pa.DataType) -> pa.Array:
    if pa.types.is_integer(array.type):
        if pa.types.is_decimal(target):  # Arrow requires room for the largest integer of the source type
            return array.cast(_ANY_INTEGER).cast(target)
        if pa.types.is_date32(target) or pa.types.is_time32(target):
            return array.cast(pa.int32()).cast(target)
    return array.cast(target)


def _changed(array: pa.Array, result: pa.Array) -> pa.Array | None:
    """Which of N values have changed in a cast that Arrow considers safe; None if none can have."""
    source, target = array.type, result.type
    if _kind(source) == "text":
        return _misread(array, result)
    if pa.types.is_floating(source) and pa.types.is_floating(target):
        if target.bit_width >= source.bit_width:
            return None
        return pc.and_(pc.is_inf(result), pc.invert(pc.is_inf(array)))
    dates = pa.types.is_date(target) and _kind(source) == "dates"
    halves = pa.types.is_float16(target) and pa.types.is_integer(source)
    decimals = pa.types.is_decimal(source) != pa.types.is_decimal(target) and (
        pa.types.is_floating(source) or pa.types.is_floating(target)
    )
    if not (dates or halves or decimals):
        return None
    if halves:
        result = result.cast(pa.float32())
    return pc.not_equal(result.cast(source, safe=not dates and not halves), array)


def _misread(texts: pa.Array, result: pa.Array) -> pa.Array | None:
    """Which of N texts do not spell the value read from them, such as "007" and "1e400"; None for none."""
    if pa.types.is_integer(result.type) or pa.types.is_boolean(result.type):
        return pc.not_equal(result.cast(texts.type), texts)
    if pa.types.is_floating(result.type):
        spelled = pc.match_substring(texts.cast(pa.large_string()), "inf", ignore_case=True)
        return pc.and_(pc.is_inf(result), pc.invert(spelled))
    return None


_MISSING = {"NaTType", "NAType"}
"""Classes of pandas' missing values."""
_LISTS = (list, tuple, set, frozenset, range, np.ndarray)
_INTEGER_BITS = 64


def array_of(values: Sequence[Any], target: pa.DataType | None, path: str) -> pa.Array:
    """Convert N Python values of one kind, None or pandas' missing values among them, to an Arrow array.

    Arrow infers types by itself, but drops parts of values where kinds are mixed: the time of day of some of
    several dates, nanoseconds of a pandas Timestamp, the time zone of some of several times.

    Args:
        values: dicts, lists of any kind, arrays (of which each is a list), numbers and so on.
        target: the type that the array will be cast to. It decides only what dicts become: structs, maps or
            JSON; None for structs.
        path: name of the values in messages, from the column on.

    Raises:
        UnfitError: the values are of several kinds, or of one that Arrow does not support.
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
    """A NumPy array for an array of another library, or a number for one without dimensions."""
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
    """The kind of values of a class; the order of the kinds matters, as some classes derive from others."""
    for kind, classes in _PYTHON_KINDS.items():
        if issubclass(each, classes):
            return kind
    return f"{each.__module__}.{each.__qualname__}"


_PYTHON_KINDS: dict[str, tuple[type, ...]] = {
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
    """Dates remain dates if there are only dates; among times they become midnight."""
    given = [value for value in values if value is not None]
    if all(isinstance(value, np.datetime64) for value in given):
        return _numpy_times(values, "M8")
    if not any(isinstance(value, (datetime.datetime, np.datetime64)) for value in given):
        return pa.array(values)
    import pandas as pd  # there are pandas Timestamps, which have nanoseconds, or NumPy times

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
    return _numpy_times(spans, "m8")


def _numpy_times(values: Sequence[Any], kind: str) -> pa.Array:
    """NumPy times or durations, in the finest unit among them."""
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
