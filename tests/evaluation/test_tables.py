"""Parts of printed tables."""

import pytest

from rqmoe_store.evaluation.tables import format_optional, print_tables, short, table_of


@pytest.mark.parametrize(
    ("microseconds", "shown"), [(0.01234, "0.0123"), (7.8912, "7.89"), (99.95, "100"), (81234.5, "81,234")]
)
def test_short_figures(microseconds, shown) -> None:
    assert short(microseconds) == shown


def test_optional_figures() -> None:
    assert format_optional(None, "{:.1f}") == "-"
    assert format_optional(0, "{:.1f}") == "0.0"


def test_tables_are_as_wide_as_they_need(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "10")
    table = table_of("A title", "name; figure; another", caption="A caption.")
    table.add_row("n" * 70, "1" * 50, "2")
    print_tables([table])
    out = capsys.readouterr().out
    assert "1" * 50 in out and "A title" in out and "A caption." in out
    assert out.count("n" * 32) >= 2 and "n" * 33 not in out  # names fold
