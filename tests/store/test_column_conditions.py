"""Conditions on plain columns: any value, and no row but those that have it."""

from typing import Any

import lancedb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lancedb.index import BTree

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.store.column_conditions import column_condition
from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.conditions import Conditions

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
