"""No value changes on the way into a column: it is the same there, or it is refused."""

import datetime
import decimal
import math
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rqmoe_store.store.casts import UnfitError, array_of, cast_array, cast_column

UTC = datetime.UTC
MOMENT = datetime.datetime(2024, 1, 2, 3, 4, 5, 678901)

SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-300, 300),
    st.floats(),
    st.integers(-50, 50).map(float),
    st.decimals(-999, 999, places=3),
    st.integers(-99, 99).map(decimal.Decimal),
    st.datetimes(datetime.datetime(1700, 1, 1), datetime.datetime(2200, 1, 1)),
    st.datetimes(datetime.datetime(1700, 1, 1), datetime.datetime(2200, 1, 1), timezones=st.just(UTC)),
    st.dates(datetime.date(1700, 1, 1), datetime.date(2200, 1, 1)),
    st.times(),
    st.timedeltas(datetime.timedelta(-1000), datetime.timedelta(1000)),
    st.sampled_from(
        [MOMENT.replace(microsecond=0), MOMENT.replace(hour=0, minute=0, second=0, microsecond=0)]
    ),
    st.sampled_from(["", "5", "007", "1.5", "1e400", "true", "2024-01-02", "Ann"]),
    st.sampled_from([b"", b"ab", b"\xff", np.int16(7), np.float32(0.5), np.float64(5.5), np.bool_(True)]),
    st.sampled_from(
        [np.datetime64("2024-01-02T03:04:05.678"), pd.Timestamp("2024-01-02 00:00:00.000000001")]
    ),
)
TYPES = st.sampled_from(
    [
        *(
            pa.int8(),
            pa.int64(),
            pa.uint8(),
            pa.uint64(),
            pa.float16(),
            pa.float32(),
            pa.float64(),
            pa.bool_(),
        ),
        *(pa.decimal128(6, 2), pa.decimal128(38, 0), pa.decimal256(50, 3), pa.string(), pa.large_string()),
        *(pa.binary(), pa.binary(2), pa.date32(), pa.date64(), pa.time32("s"), pa.time64("us")),
        *(pa.timestamp("s"), pa.timestamp("us"), pa.timestamp("ns"), pa.timestamp("ms", tz="UTC")),
        *(pa.duration("s"), pa.duration("us"), pa.dictionary(pa.int32(), pa.string())),
    ]
)
WRAPPED = {
    "bare": (lambda value: value, lambda each: each, lambda stored: stored),
    "list": (lambda value: [value], pa.list_, lambda stored: stored[0]),
    "array of one": (lambda value: (value,), lambda each: pa.list_(each, 1), lambda stored: stored[0]),
    "large list": (lambda value: [value], pa.large_list, lambda stored: stored[0]),
    "struct": (lambda value: {"a": value}, lambda each: pa.struct([("a", each)]), lambda stored: stored["a"]),
    "map": (lambda value: {"k": value}, lambda each: pa.map_(pa.string(), each), lambda stored: stored[0][1]),
    "deep": (
        lambda value: [{"a": [{"b": value}]}],
        lambda each: pa.list_(pa.struct([("a", pa.list_(pa.struct([("b", each)])))])),
        lambda stored: stored[0]["a"][0]["b"],
    ),
}


def is_same(given: Any, stored: Any, target: pa.DataType) -> bool:
    """Whether a value means what was given, but for the rounding of floats."""
    if isinstance(given, np.generic) and not isinstance(given, (np.datetime64, np.timedelta64)):
        given = given.item()
    if isinstance(given, str) and not pa.types.is_dictionary(target) and not isinstance(stored, (str, bytes)):
        if isinstance(stored, (int, float, decimal.Decimal)):  # truth values among them
            return str(stored).lower() == given or float(stored) == float(given)
        return str(stored).lower() == given or stored == pd.Timestamp(given)
    if isinstance(given, str) and isinstance(stored, bytes):
        return stored == given.encode()
    if isinstance(given, bytes) and isinstance(stored, str):
        return stored.encode() == given
    if pa.types.is_floating(target):
        if not math.isfinite(given):
            return stored == given or (math.isnan(given) and math.isnan(stored))
        tolerance = {16: 1e-3, 32: 1e-7, 64: 1e-15}[target.bit_width]
        return math.isclose(stored, float(given), rel_tol=tolerance, abs_tol=1e-7)
    if isinstance(given, float) and pa.types.is_decimal(target):
        return float(stored) == given
    if isinstance(given, (datetime.date, np.datetime64)):
        given_at, stored_at = pd.Timestamp(given), pd.Timestamp(stored)
        return given_at.tz_localize(None) == stored_at.tz_localize(None) and (
            given_at.tz is None or stored_at.tz is not None
        )
    return bool(given == stored and isinstance(given, bool) == isinstance(stored, bool))


def stored(value: Any, target: pa.DataType) -> Any:
    return cast_array(array_of([value, None], target, "x"), target, "x").to_pylist()[0]


@given(value=SCALARS, target=TYPES, wrapped=st.sampled_from(sorted(WRAPPED)))
def test_a_value_is_the_same_or_refused(value, target, wrapped):
    wrap, type_of, unwrap = WRAPPED[wrapped]
    if isinstance(value, (int, np.integer)) and pa.types.is_temporal(target):
        return  # counts of the unit
    try:
        found = unwrap(stored(wrap(value), type_of(target)))
    except UnfitError:
        return
    assert is_same(value, found, target), (value, found)


@given(values=st.lists(st.one_of(st.none(), SCALARS), max_size=6), target=TYPES)
def test_a_column_is_refused_as_its_values_are(values, target):
    """Together they are refused if one of them is, or if they are of several kinds."""
    if pa.types.is_temporal(target):  # numbers count units, up to times that Python does not have
        values = [value for value in values if not isinstance(value, (int, np.integer))]
    alone = []
    for value in values:
        try:
            alone.append(stored(value, target))
        except UnfitError:
            alone.append(UnfitError)
    try:
        together = cast_array(array_of(values, target, "x"), target, "x").to_pylist()
    except UnfitError:
        return
    assert UnfitError not in alone
    assert list(map(repr, together)) == list(map(repr, alone))


@pytest.mark.parametrize(
    ("value", "target"),
    [
        (5.5, pa.int64()),
        (np.float32(5.5), pa.int32()),
        (decimal.Decimal("1.25"), pa.int64()),
        (decimal.Decimal("1.25"), pa.decimal128(5, 1)),
        (1.25, pa.decimal128(5, 1)),
        (1e300, pa.float32()),
        (2**53 + 1, pa.float64()),
        (2049, pa.float16()),
        (2**63, pa.int64()),
        (1, pa.bool_()),
        (True, pa.int64()),
        (5, pa.string()),
        ("007", pa.int64()),
        (MOMENT, pa.timestamp("s")),
        (MOMENT, pa.date32()),
        (MOMENT.replace(tzinfo=UTC), pa.timestamp("us")),
        (MOMENT.replace(tzinfo=UTC), pa.date32()),
        (MOMENT.time(), pa.time32("s")),
        (MOMENT.time().replace(tzinfo=UTC), pa.time64("us")),
        (MOMENT, pa.time64("us")),
        (datetime.timedelta(microseconds=5), pa.duration("s")),
        (pd.Timestamp(1, unit="ns"), pa.timestamp("us")),
        (pd.Timestamp(1, unit="ns", tz="UTC"), pa.timestamp("us", tz="UTC")),
        (pd.Timedelta(1, unit="ns"), pa.duration("us")),
        (np.timedelta64(1, "ns"), pa.duration("us")),
        (np.datetime64("2024-01-01T00:00:00.5"), pa.timestamp("s")),
    ],
)
@pytest.mark.parametrize("wrapped", WRAPPED)
def test_what_would_be_lost_is_refused(value, target, wrapped):
    wrap, type_of, _ = WRAPPED[wrapped]
    with pytest.raises(UnfitError, match="x"):
        stored(wrap(value), type_of(target))


@pytest.mark.parametrize(
    ("values", "target", "expected"),
    [
        ([5.0, 6], pa.int64(), [5, 6]),
        ([pd.NA, pd.NaT, 1], pa.int64(), [None, None, 1]),
        ([pd.NaT, MOMENT], pa.timestamp("us"), [None, MOMENT]),
        ([datetime.date(2024, 1, 2), MOMENT], pa.timestamp("us"), [datetime.datetime(2024, 1, 2), MOMENT]),
        ([5], pa.decimal128(5, 2), [decimal.Decimal("5.00")]),
        ([10**25], pa.decimal128(38, 0), [decimal.Decimal(10**25)]),
        ([2**63], pa.uint64(), [2**63]),
        ([{"a": 1}, None, "[]"], pa.json_(), ['{"a": 1}', None, "[]"]),
        ([[("a", 1)], {"b": 2}], pa.map_(pa.string(), pa.int8()), [[("a", 1)], [("b", 2)]]),
        ([np.array([1.0, 2.0]), [3]], pa.list_(pa.int64()), [[1, 2], [3]]),
        ([range(2), (1,), None], pa.list_(pa.int64()), [[0, 1], [1], None]),
        ([[1, 2], None], pa.list_(pa.int8(), 2), [[1, 2], None]),
        ([None, None], pa.list_(pa.int8(), 2), [None, None]),
        ([{}, None], pa.struct([("a", pa.int8())]), [{"a": None}, None]),
    ],
)
def test_what_is_taken(values, target, expected):
    assert cast_array(array_of(values, target, "x"), target, "x").to_pylist() == expected


# Fields of structs.

LEAF = st.just(("leaf",))
SHAPES = st.recursive(
    LEAF,
    lambda inner: st.one_of(
        st.tuples(st.just("struct"), inner),
        st.tuples(st.sampled_from(["list", "large", "fixed", "map"]), inner),
    ),
    max_leaves=4,
).map(lambda shape: ("struct", shape))


def typed(shape: Any, extra: bool) -> tuple[pa.DataType, Any, str, bool]:
    """A type, a value, the path to the innermost struct of it, and whether `extra` is in both."""
    kind, *inner = shape
    if kind == "leaf":
        return pa.int64(), 1, "", False
    each, value, path, done = typed(inner[0], extra)
    if kind == "struct":
        fields, row = [("a", each)], {"a": value}
        if not done:
            path = ".b"
            if extra:
                fields, row = [*fields, ("b", pa.int64())], row | {"b": 2}
            return pa.struct(fields), row, path, True
        return pa.struct(fields), row, f".a{path}", done
    if kind == "map":
        return pa.map_(pa.string(), each), {"k": value}, f".value{path}", done
    makes = {"list": pa.list_, "large": pa.large_list, "fixed": lambda each: pa.list_(each, 1)}
    return makes[kind](each), [value], f"[]{path}", done


@given(shape=SHAPES)
def test_unknown_fields_are_named_by_their_path(shape):
    known, row, _, _ = typed(shape, extra=False)
    wide, wide_row, path, _ = typed(shape, extra=True)
    assert cast_array(array_of([row], known, "x"), known, "x") == pa.array([row], type=known)
    for array in (array_of([wide_row], known, "x"), pa.array([wide_row], type=wide), pa.array([], type=wide)):
        with pytest.raises(UnfitError) as caught:
            cast_array(array, known, "x")
        assert f"unknown: x{path}" in str(caught.value)
    # The other way round it is null, unless it may not be.
    filled = cast_array(array_of([row, None], wide, "x"), wide, "x")
    assert filled.cast(wide).slice(0, 1) == pa.array([row], type=wide)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (pa.array([{"A": 1}]), "unknown: x.A; missing: x.a; expected x.a"),
        (
            pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]),
            "repeated: x.a",
        ),
        (pa.array([{"a": None}]), "x.a is null 1 times but allows none"),
        (pa.array([{}]), "missing: x.a"),
        (pa.array([5]), "x is int64; expected struct"),
    ],
)
def test_fields_that_may_not_be_null(array, message):
    target = pa.struct([pa.field("a", pa.int64(), nullable=False)])
    with pytest.raises(UnfitError, match=message):
        cast_array(array, target, "x")
    assert cast_array(pa.array([{"a": 1}, None]), target, "x").to_pylist() == [{"a": 1}, None]


def test_nulls_hidden_in_values_of_the_right_type():
    target = pa.list_(pa.field("item", pa.int64(), nullable=False))
    hidden = pa.ListArray.from_arrays(pa.array([0, 2], pa.int32()), pa.array([1, None]), type=target)
    with pytest.raises(UnfitError, match=r"x\[\] is null 1 times"):
        cast_column(pa.chunked_array([hidden]), pa.field("x", target))


@given(
    rows=st.lists(
        st.one_of(st.none(), st.lists(st.one_of(st.none(), st.integers(0, 9)), max_size=4)), max_size=8
    ),
    start=st.integers(0, 4),
)
def test_slices_of_lists_and_maps(rows, start):
    lists = pa.array(rows, type=pa.list_(pa.int64())).slice(start)
    maps = pa.array(
        [None if row is None else [(str(place), each) for place, each in enumerate(row)] for row in rows],
        type=pa.map_(pa.string(), pa.int64()),
    ).slice(start)
    for target in (pa.list_(pa.int8()), pa.large_list(pa.float64())):
        assert cast_array(lists, target, "x").to_pylist() == lists.to_pylist()
    cast = cast_array(maps, pa.map_(pa.large_string(), pa.int8()), "x")
    assert cast.to_pylist() == maps.to_pylist()
    views = pa.array(rows, type=pa.list_view(pa.int64())).slice(start)
    assert cast_array(views, pa.large_list(pa.int8()), "x").to_pylist() == lists.to_pylist()
    encoded = pa.array(["a", None, "b"]).dictionary_encode()
    assert cast_array(encoded, pa.string(), "x").to_pylist() == ["a", None, "b"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, "a"], r"several types \(int, str\)"),
        ([1.5, True], r"several types \(bool, float\)"),
        ([MOMENT, MOMENT.replace(tzinfo=UTC)], "some times have a time zone"),
        ([{1: 2}], "a field named 1"),
        ([object()], "x"),
        ([{"a": 1}, [1]], "several types"),
    ],
)
def test_values_of_no_single_type(values, message):
    with pytest.raises(UnfitError, match=message):
        array_of(values, None, "x")
