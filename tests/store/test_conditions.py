"""Conditions: refused before anything is read, and unable to change what they are combined with."""

from typing import Any

import lancedb
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from lancedb.expr import col

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.conditions import Conditions, as_text

CONDITIONS = Conditions(CodeColumns("vector"), kept=False)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Any:
    rows = [{"id": row, "lang": ("en", "de")[row % 2], "text": f"row {row}"} for row in range(500)]
    return lancedb.connect(tmp_path_factory.mktemp("db")).create_table("docs", rows)


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("id <", "sql parser error"),
        ("nope = 1", "No field named nope"),
        ("text", "does not return a boolean"),
        ("id = 'x'", "could not convert"),
        ("", "empty"),
        ("  ", "empty"),
        ("-- only a comment", "sql parser error"),
        ("id > 0) OR (1 = 1", "parentheses"),
        ("(id > 0", "parentheses"),
        ("id = 1; DROP TABLE docs", "';'"),
        ("text = $$a$$", "'\\$'"),
        ("id = ?", "'\\?'"),
        ("id = :x", "':'"),
        ("id > 0 /* open", "multi-line comment"),
        ("id > 5 LIMIT 3", "sql parser error"),
        ("id > 5 garbage", "sql parser error"),
        ("id = 'open", "sql parser error|Unterminated"),
    ],
)
def test_unusable_conditions_are_refused(table, where: str, reason: str) -> None:
    with pytest.raises(InvalidInputError, match=reason):
        CONDITIONS.checked(table, where)


@pytest.mark.parametrize(
    "where",
    [
        "id > 400 -- the rest",
        "id > 400 /* ) /* of */ them */",
        "text = 'a) OR (b'",
        "text = 'it''s; (fine' OR id = 7",
        "(id < 3 OR id > 490) AND lang = 'en'",
        "`id` BETWEEN 3 AND 9",
        "text = '-- no comment' OR id = 1",
    ],
)
def test_a_checked_condition_matches_the_same_rows(table, where: str) -> None:
    checked = CONDITIONS.checked(table, where)
    rows, none = table.count_rows(where), f"{checked} AND id < 0"
    assert table.count_rows(checked) == rows
    assert table.count_rows(none) == 0
    assert table.count_rows(f"id >= 0 AND {checked}") == rows


@given(where=st.text(alphabet="id>0()'\"`-/*;$ORAND \n", max_size=20))
@example(where="N''")
def test_no_condition_escapes_its_combination(table, where: str) -> None:
    try:
        checked = CONDITIONS.checked(table, where)
    except InvalidInputError:
        return
    assert table.count_rows(f"id < 0 AND {checked}") == 0
    assert table.count_rows(f"{checked} AND id < 0") == 0


def test_expressions_are_written_as_text(table) -> None:
    checked = CONDITIONS.checked(table, (col("id") < 7) & (col("lang") == "it's"))
    assert table.count_rows(checked) == 0
    assert table.count_rows(CONDITIONS.checked(table, col("id") < 7)) == 7


@pytest.mark.parametrize("condition", [None, 5, b"id = 3", ["id = 3"]])
def test_what_is_no_text(condition) -> None:
    with pytest.raises(InvalidInputError, match=r"Got filter=.*expected an SQL condition"):
        as_text(condition, called="filter")
