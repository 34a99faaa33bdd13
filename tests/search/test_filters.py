"""Filters: refused before anything is read, and unable to change what they are combined with."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.search.filters import checked_filter, combined, partition_filter, quoted


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
        ("id > 0 /* ) */", "block comments"),
        ("id = 1; DROP TABLE docs", "';'"),
        ("text = $$a$$", "'\\$'"),
        ("id > 5 LIMIT 3", "sql parser error"),
        ("id > 5 garbage", "sql parser error"),
        ("id = 'open", "sql parser error|Unterminated"),
    ],
)
def test_unusable_filters_are_refused(world, where: str, reason: str) -> None:
    with pytest.raises(InvalidInputError, match=reason):
        checked_filter(world.store.table, where)


@pytest.mark.parametrize(
    "where",
    [
        "id > 400 -- the rest",
        "text = 'a) OR (b'",
        "text = 'it''s; (fine' OR id = 7",
        "(id < 3 OR id > 490) AND lang = 'en'",
        "`id` BETWEEN 3 AND 9",
        "text = '-- no comment' OR id = 1",
    ],
)
def test_a_checked_filter_matches_the_same_rows(world, where: str) -> None:
    checked = checked_filter(world.store.table, where)
    rows, none = world.store.table.count_rows(where), combined([checked, "id < 0"])
    assert world.store.table.count_rows(checked) == rows
    assert world.store.table.count_rows(none) == 0
    assert world.store.table.count_rows(combined(["id >= 0", checked])) == rows


@given(where=st.text(alphabet="id>0()'\"`-/*;$ORAND \n", max_size=20))
@example(where="N''")
def test_no_filter_escapes_its_combination(worlds, where: str) -> None:
    table = worlds("l2", 4).store.table
    try:
        checked = checked_filter(table, where)
    except InvalidInputError:
        return
    assert table.count_rows(combined(["id < 0", checked])) == 0
    assert table.count_rows(combined([checked, "id < 0"])) == 0


def test_combined_and_quoted() -> None:
    assert combined([]) is None
    assert combined(["(a)", "(b)"]) == "(a) AND (b)"
    assert quoted("a`b") == "`a``b`"
    assert partition_filter("vector_partition", [1, 4]) == "`vector_partition` IN (1, 4)"
