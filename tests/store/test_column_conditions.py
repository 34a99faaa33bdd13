"""Conditions on plain columns: any value, and no row but those that have it."""

import itertools
from typing import Any

import lancedb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lancedb.index import BTree

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.conditions import Conditions
from rqmoe_store.store.value_conditions import ALWAYS, NEVER, all_of, any_of, column_condition, none_of

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
