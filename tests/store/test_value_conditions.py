"""Conditions made of values, on plain and on JSON columns: no row but those that have them."""

import datetime
import decimal
import enum
import itertools
import json
import operator
import uuid
from collections.abc import Callable
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lancedb.index import BTree

import rqmoe_store as rqs
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.conditions import Conditions
from rqmoe_store.store.value_conditions import (
    ALWAYS,
    NEVER,
    all_of,
    any_of,
    as_json_value,
    column_condition,
    json_field,
    none_of,
)

CONDITIONS = Conditions(CodeColumns("vector"), kept=False)

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6) | st.sampled_from(
    ["'", "''", '"', "a' OR 'a' = 'a", "; --", "$1", "/*", "\\'", "", "null"]
)


def matches(table: Any, condition: str) -> list[int]:
    found = table.search().where(CONDITIONS.checked(table, condition)).select(["row"]).limit(None).to_arrow()
    return sorted(found["row"].to_pylist())


@settings(max_examples=30, deadline=None)
@given(
    texts=st.lists(TEXTS, min_size=3, max_size=8), wanted=st.lists(TEXTS, max_size=3), take=st.integers(0, 3)
)
def test_texts(tmp_path_factory, texts: list[str], wanted: list[str], take: int) -> None:
    wanted, values = [*wanted, *texts[:take]], [*texts, None]
    rows = pa.table({"row": range(len(values)), "it's": values})
    table = lancedb.connect(tmp_path_factory.mktemp("db")).create_table("docs", rows)
    condition = column_condition("it's", wanted)
    expected = [row for row, value in enumerate(values) if value in wanted]
    assert matches(table, condition) == expected
    assert matches(table, f"NOT {condition}") == sorted(set(range(len(values))) - set(expected))


@pytest.mark.parametrize(
    ("column", "wanted", "expected"),
    [
        ("row", [1, 2, 99], [1, 2]),
        ("row", [], []),
        ("number", [0.1, 1e300], [0, 1]),
        ("large", [2**63, 2**64 - 1], [0, 1]),
        ("flag", [True], [0]),
        ("flag", [False, True], [0, 1]),
        ("row", range(1), [0]),
    ],
)
@pytest.mark.parametrize("indexed", [False, True])
def test_other_columns(tmp_path, column: str, wanted: Any, expected: list[int], indexed: bool) -> None:
    columns = {
        "row": range(3),
        "number": [0.1, 1e300, None],
        "large": pa.array([2**63, 2**64 - 1, None], pa.uint64()),
        "flag": [True, False, None],
    }
    table = lancedb.connect(tmp_path).create_table("docs", pa.table(columns))
    if indexed:
        table.create_index("row", config=BTree())
    assert matches(table, column_condition(column, wanted)) == expected


@pytest.mark.parametrize(
    ("column", "values", "reason"),
    [
        ("id", "text", "expected a list"),
        ("id", 5, "expected a list"),
        ("id", [None], "IS NULL"),
        ("id", [1, "1"], "numbers and texts"),
        ("id", [True, 1], "bools and numbers"),
        ("id", [float("nan")], "finite"),
        (5, ["a"], "expected a text"),
    ],
)
def test_unusable_values(column: Any, values: Any, reason: str) -> None:
    with pytest.raises(InvalidInputError, match=reason):
        column_condition(column, values)


def test_an_index_is_used(tmp_path) -> None:
    table = lancedb.connect(tmp_path).create_table(
        "docs", pa.table({"id": [f"{row}" for row in range(1000)]})
    )
    table.create_index("id", config=BTree())
    assert "ScalarIndexQuery" in table.search().where(column_condition("id", ["7", "8"])).explain_plan()


JOINED = st.recursive(
    st.sampled_from([ALWAYS, NEVER, "(a)", "(b)"]),
    lambda inner: st.tuples(st.sampled_from([all_of, any_of, none_of]), st.lists(inner, max_size=3)),
    max_leaves=6,
)


def written(joined) -> str:
    return joined if isinstance(joined, str) else joined[0](map(written, joined[1]))


def means(joined, values: dict[str, bool]) -> bool:
    if isinstance(joined, str):
        return values[joined]
    terms = [means(inner, values) for inner in joined[1]]
    return {all_of: all(terms), any_of: any(terms), none_of: not any(terms)}[joined[0]]


def ors_and_ands(condition: str, values: dict[str, bool]) -> bool:
    for name, value in values.items():
        condition = condition.replace(name, str(value))
    return eval(condition.replace("AND", "and").replace("OR", "or").replace("NOT", "not"))


@settings(max_examples=200)
@given(joined=JOINED)
def test_joined_conditions_tell_what_is_always_or_never_so(joined) -> None:
    outcomes = set()
    for a, b in itertools.product([False, True], repeat=2):
        values = {ALWAYS: True, NEVER: False, "(a)": a, "(b)": b}
        outcomes.add(means(joined, values))
        assert ors_and_ands(written(joined), values) == means(joined, values)
    condition = written(joined)
    if ("(a)" in condition) or ("(b)" in condition):
        assert ALWAYS not in condition and NEVER not in condition
    else:
        assert condition == (ALWAYS if outcomes == {True} else NEVER)


MISSING = object()

PIECES = [
    "'",
    '"',
    "`",
    "''",
    "\\",
    ";",
    "--",
    "/*",
    "$",
    "$.a",
    ") OR (1=1",
    "null",
    "true",
    "10",
    "\n",
    "\0",
]

STRINGS = st.lists(st.sampled_from([*PIECES, "é", "日本", "\U0001f600", "\u2028", "a", "A"]), max_size=4).map(
    "".join
) | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)

AROUND = [sign * 2**power + step for power in (53, 60, 62) for sign in (1, -1) for step in (-1, 0, 1, 3)]

INTEGERS = st.sampled_from([0, 1, 10, -3, *AROUND, -(2**63), 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 1])

FLOATS = st.sampled_from([0.0, -0.0, 10.0, 0.1, -10.5, 1.5e-7, 1e16, 1e20, 1e300, 5e-324]) | st.floats(
    allow_nan=False, allow_infinity=False
)


FLOATS |= st.sampled_from([2.0**53, 2.0**60, 2.0**63, -(2.0**63), 2.0**53 + 2])


PLAIN = STRINGS | INTEGERS | FLOATS | st.booleans()

LISTS = st.lists(PLAIN | st.none() | st.lists(PLAIN, max_size=2), max_size=3)

NAMES = STRINGS | st.sampled_from(["a", "0", "1", "-1", "+1"])

FIELDS = PLAIN | st.none() | LISTS | st.dictionaries(NAMES, PLAIN | LISTS, max_size=2)

CORNERS: list[Any] = [
    *(
        10,
        10.0,
        "10",
        [10],
        [10.0],
        ["10"],
        [[10]],
        ["10", [10]],
        [[10], 10],
        [[10, 10.0]],
        [10, 10.0],
        [],
        [[]],
    ),
    *(
        None,
        True,
        False,
        "true",
        [True],
        ["true"],
        [1],
        [[True]],
        {"0": 1},
        {"b": 10},
        "",
        [""],
        ["null"],
        [None],
    ),
    *([2**53 + 1], [2.0**53], [2**53], [2**64 - 1], [2.0**64], 2**53, 2**53 + 1, 2.0**53, 2.0**64, 2**64 - 1),
]


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_same(one: Any, other: Any) -> bool:
    """Equal, and of one type, where all numbers are of one."""
    return one == other and (type(one) is type(other) or (is_number(one) and is_number(other)))


def comparable(one: Any, other: Any) -> bool:
    return is_number(other) if is_number(one) else isinstance(one, str) and isinstance(other, str)


def field_of(document: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        document = document.get(name, MISSING) if isinstance(document, dict) else MISSING
    return document


def new_table(db: lancedb.DBConnection, documents: list[Any], name: str = "docs") -> Any:
    schema = pa.schema([("id", pa.int64()), ("meta data", pa.json_(pa.string()))])
    texts = [None if document is MISSING else json.dumps(document) for document in documents]
    columns = [pa.array(range(len(documents))), pa.array(texts, pa.string()).cast(schema.field(1).type)]
    return db.create_table(name, pa.Table.from_arrays(columns, schema=schema), mode="overwrite")


def json_matches(table: Any, condition: str) -> list[int]:
    found = table.search().where(CONDITIONS.checked(table, condition)).select(["id"]).limit(None).to_arrow()
    return sorted(found["id"].to_pylist())


def results(table: Any, conditions: list[str]) -> list[list[bool]]:
    """What every condition is, row by row."""
    columns = {f"c{place}": condition for place, condition in enumerate(conditions)}
    scanned = table.to_lance().scanner(columns=columns, scan_in_order=True).to_table()
    return [column.to_pylist() for column in scanned.columns]


def assert_all_conditions(
    table: Any, documents: list[Any], path: tuple[str, ...], value: Any, some: slice
) -> None:
    """What every condition on the field finds is what Python finds; some also as filters, and negated."""
    field, values = json_field("meta data", *path), [field_of(document, path) for document in documents]
    expected: dict[str, Callable[[Any], bool]] = {
        field.eq(value): lambda found: is_same(found, value),
        field.ne(value): lambda found: not is_same(found, value),
        field.isin([value, "10", 1]): lambda found: any(is_same(found, one) for one in (value, "10", 1)),
        field.contains(value): lambda found: (
            isinstance(found, list) and any(is_same(element, value) for element in found)
        ),
        field.exists(): lambda found: found is not MISSING,
        field.is_null(): lambda found: found is MISSING or found is None,
        field.is_empty(): lambda found: found is MISSING or found in (None, "", []),
    }
    if isinstance(value, str):
        expected[field.has_text(value)] = lambda found: isinstance(found, str) and value in found
        expected[field.has_text(value, ignore_case=True)] = lambda found: (
            isinstance(found, str) and value.lower() in found.lower()
        )
    for name, compare in {
        "lt": operator.lt,
        "lte": operator.le,
        "gt": operator.gt,
        "gte": operator.ge,
    }.items():
        if not isinstance(value, bool):
            expected[getattr(field, name)(value)] = lambda found, compare=compare: (
                comparable(found, value) and compare(found, value)
            )
    wanted = {condition: [holds(found) for found in values] for condition, holds in expected.items()}
    assert results(table, list(wanted)) == list(wanted.values()), list(wanted)
    for condition in list(wanted)[some]:
        rows = np.flatnonzero(wanted[condition]).tolist()
        assert json_matches(table, condition) == rows, condition
        others = sorted(set(range(len(documents))) - set(rows))
        assert json_matches(table, f"NOT {condition}") == others, condition
        assert json_matches(table, f"id >= 0 AND {condition}") == rows


@settings(max_examples=25, deadline=None)
@given(
    names=st.tuples(NAMES, NAMES),
    fields=st.lists(FIELDS, min_size=4, max_size=10),
    value=PLAIN,
    filtered=st.integers(0, 10),
)
@example(names=("a", "A"), fields=["it's", 'say "x"', "\n", "x' OR '1' = '1"], value='say "x"', filtered=0)
@example(names=("0", "1"), fields=[["10"], [10], {"1": 10}, [[7]]], value=10, filtered=0)
@example(names=("$", ""), fields=["\0", "a\0", "\u007f", "/"], value="\0", filtered=0)
def test_conditions_match_what_python_finds(tmp_path_factory, names, fields, value, filtered) -> None:
    name, nested = names
    documents = [{name: field} for field in fields] + [{name: {nested: field}} for field in fields]
    documents += [{name: value}, {name: [value]}, {name: {nested: value}}, {}, MISSING, fields, "text", None]
    table = new_table(lancedb.connect(tmp_path_factory.mktemp("db")), documents)
    assert_all_conditions(table, documents, (name,), value, slice(filtered, filtered + 1))
    assert_all_conditions(table, documents, (name, nested), value, slice(0))


@pytest.fixture(scope="module")
def corners(tmp_path_factory: pytest.TempPathFactory) -> Any:
    db = lancedb.connect(tmp_path_factory.mktemp("db"))
    return new_table(db, [{"a": field} for field in CORNERS])


@pytest.mark.parametrize(
    "value",
    [10, 10.0, "10", True, 1, "true", "", "null", 2**53, 2**53 + 1, 2.0**53, 2**64 - 1],
    ids=repr,
)
def test_values_of_other_types(corners: Any, value: Any) -> None:
    assert_all_conditions(corners, [{"a": field} for field in CORNERS], ("a",), value, slice(None))


@pytest.mark.parametrize("value", [np.int64(10), np.float32(10), np.str_("10"), np.bool_(True)])
def test_values_of_numpy(corners: Any, value: Any) -> None:
    field = json_field("meta data", "a")
    assert field.eq(value) == field.eq(value.item()) and field.contains(value) == field.contains(value.item())


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (np.int64(10), 10),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.float32(0.5), 0.5),
        (np.float16(0.5), 0.5),
        (np.bool_(True), True),
        (np.str_("10"), "10"),
        (datetime.date(2024, 1, 2), "2024-01-02"),
        (datetime.datetime(2024, 1, 2, 3, tzinfo=datetime.UTC), "2024-01-02T03:00:00+00:00"),
        (datetime.time(1, 2), "01:02:00"),
        (np.datetime64("2024-01-02"), "2024-01-02"),
        (np.datetime64("2024-01-02T03:00:00.5", "ns"), "2024-01-02T03:00:00.500000"),
        (uuid.UUID(int=7), "00000000-0000-0000-0000-000000000007"),
        (enum.StrEnum("Color", {"RED": "red"})("red"), "red"),
        (enum.IntEnum("Level", {"TOP": 10})(10), 10),
    ],
    ids=repr,
)
def test_values_that_stand_for_others(tmp_path, value: Any, kept: Any) -> None:
    assert json.loads(json.dumps(value, default=as_json_value)) == kept
    table = new_table(lancedb.connect(tmp_path), [{"a": kept}, {"a": [kept]}, {"a": "other"}])
    field = json_field("meta data", "a")
    assert json_matches(table, field.eq(value)) == json_matches(table, field.isin([value])) == [0]
    assert json_matches(table, field.contains(value)) == [1]
    assert column_condition("x", [value]) == column_condition("x", [kept])


@pytest.mark.parametrize(
    "value",
    [
        np.longdouble(1),
        np.complex64(1),
        np.timedelta64(5, "ns"),
        np.datetime64("NaT"),
        np.datetime64("2024-01-02T03:00:00.000000001", "ns"),
        np.array(1),
        datetime.timedelta(1),
        decimal.Decimal(1),
        b"x",
        {1},
    ],
    ids=repr,
)
def test_values_that_nothing_stands_for(value: Any) -> None:
    assert as_json_value(value) is value
    with pytest.raises(InvalidInputError, match=f"{type(value).__name__}.*Convert others"):
        json_field("meta", "a").eq(value)


@pytest.mark.parametrize("part", ["ÄRGER", "straße", "i", "ΣΊΣΥΦΟΣ", "ǅ", "k"])
def test_texts_in_any_case(tmp_path, part: str) -> None:
    texts = ["Ärger", "ärger", "Straße", "STRASSE", "I", "İ", "\u0131", "σίσυφος", "ǆ", "\N{KELVIN SIGN}"]
    table = new_table(lancedb.connect(tmp_path), [{"a": text} for text in texts])
    found = json_matches(table, json_field("meta data", "a").has_text(part, ignore_case=True))
    assert found == [row for row, text in enumerate(texts) if part.lower() in text.lower()]


@settings(max_examples=25, deadline=None)
@given(
    fields=st.lists(FIELDS, min_size=4, max_size=10),
    values=st.lists(PLAIN, max_size=40),
    found=st.integers(0, 10),
)
def test_one_of_many_values(tmp_path_factory, fields, values, found) -> None:
    fields = [*fields, *values[:found], *[[value] for value in values[:2]]]
    documents = [*({"a": field} for field in fields), {}, MISSING]
    table = new_table(lancedb.connect(tmp_path_factory.mktemp("db")), documents)
    condition = json_field("meta data", "a").isin(values)
    expected = [row for row, field in enumerate(fields) if any(is_same(field, value) for value in values)]
    assert json_matches(table, condition) == expected
    assert json_matches(table, f"NOT {condition}") == sorted(set(range(len(documents))) - set(expected))


@pytest.mark.parametrize("kind", [int, float, str, lambda number: 2**53 + number])
def test_one_of_thousands(corners: Any, kind: Any) -> None:
    values = [kind(number) for number in range(10_000)]
    expected = [row for row, field in enumerate(CORNERS) if any(is_same(field, value) for value in values)]
    assert json_matches(corners, json_field("meta data", "a").isin(values)) == expected


def test_one_of_none_is_no_row(corners: Any) -> None:
    assert json_matches(corners, json_field("meta data", "a").isin([])) == []


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), {"a": 1}, [1], b"x", 2**64, -(2**63) - 1, "\ud800"]
)
@pytest.mark.parametrize("method", ["eq", "ne", "lt", "gte", "contains", "has_text"])
def test_unusable_json_values(method: str, value: Any) -> None:
    with pytest.raises(InvalidInputError, match="expected a text of valid Unicode"):
        getattr(json_field("meta", "a"), method)(value)
    with pytest.raises(InvalidInputError, match="expected a text of valid Unicode"):
        json_field("meta", "a").isin([1, value])


def test_values_that_other_methods_are_for() -> None:
    field = json_field("meta", "a")
    for unusable in (field.eq, field.ne, field.gt, field.contains):
        with pytest.raises(InvalidInputError, match=r"use is_null\(\)"):
            unusable(None)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="expected a list"):
        field.isin("text")
    with pytest.raises(InvalidInputError, match="expected a number or a text"):
        field.lt(True)
    with pytest.raises(InvalidInputError, match="expected a text"):
        field.has_text(5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("column", "path"), [("meta", ()), (5, ("a",)), ("meta", (5,)), ("meta", ("a", "\ud800"))]
)
def test_what_is_no_field(column: Any, path: Any) -> None:
    with pytest.raises(InvalidInputError, match="expected"):
        json_field(column, *path)


def test_columns_that_hold_no_json(corners: Any) -> None:
    for column in ("id", "nope"):
        field = json_field(column, "a")
        for condition in (field.eq("x"), field.gt(1), field.contains(1), field.exists(), field.is_null()):
            with pytest.raises(InvalidInputError, match="which LanceDB refuses"):
                CONDITIONS.checked(corners, condition)


def test_searches_of_a_store(tmp_path) -> None:
    schema = pa.schema(
        [("id", pa.string()), ("m", pa.json_(pa.string())), ("vector", pa.list_(pa.float32(), 4))]
    )
    store = rqs.create_table(lancedb.connect(tmp_path), "notes", schema=schema)
    author = "it's $1"
    rows = [
        {"id": f"n{row}", "m": json.dumps({"by": author, "row": row}), "vector": [row] * 4}
        for row in range(9)
    ]
    store.add(rows)
    by, row = rqs.json_field("m", "by"), rqs.json_field("m", "row")
    both = f"{by.eq(author)} AND {row.gte(4)}"
    found = store.search([0.0] * 4).where(both).limit(2).to_list()
    assert [hit["id"] for hit in found] == ["n4", "n5"]
    assert store.delete(f"NOT {row.isin([2, 3])}") == 7
    assert store.count_rows(by.has_text("$")) == 2
