"""Printed tables of searches: complete figures, and no empty tables."""

import re

from small_searches import small_search_report

from rqmoe_store.evaluation.tables import print_search_report, search_done_line


def printed(report, capsys) -> list[list[str]]:
    print_search_report(report)
    lines = capsys.readouterr().out.splitlines()
    return [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] or [line.strip()] for line in lines]


def test_every_figure_is_there(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    rows = printed(small_search_report(), capsys)
    assert ["rqmoe", "8", "20", "200", "-", "0.500", "0.980", "2.00", "4.00", "2,500"] in rows
    assert ["rqmoe", "8", "-", "1,000", "-", "0.530", "0.980", "10.00", "20.00", "500"] in rows
    assert ["lancedb-ivf-pq", "8", "20", "-", "10", "0.700", "-", "3.50", "7.00", "1,429"] in rows
    assert ["rqmoe", "8", "64", "12 s", "0.540", "9.2", "1,234.5", "16.0"] in rows
    assert ["lancedb-ivf-pq", "8", "64", "12 s", "-", "9.2", "1,234.5", "-"] in rows
    assert ["faiss-ivf-pq", "8", "2", "10%", "34.6"] in rows
    scaled = ["rqmoe", "8", "1,000,000", "20", "8.1", "97", "51", "12.35", "30.00", "250", "12"]
    assert scaled in rows or [cell.replace("12.35", "12.34") for cell in scaled] in rows
    assert ["rqmoe", "8", "10,000,000", "-", *scaled[4:7], "45.68", *scaled[8:]] in rows
    assert "…" not in str(rows)


def test_empty_tables_are_left_out(capsys) -> None:
    report = small_search_report()
    report.scans, report.synthetic = [], []
    assert "Scan" not in str(printed(report, capsys)) and "Scaling" not in str(printed(report, capsys))
    report = small_search_report()
    report.indexes, report.results, report.scans = [], [], []
    assert "Search" not in str(printed(report, capsys)) and "Scaling" in str(printed(report, capsys))


def test_a_line_when_done() -> None:
    report = small_search_report()
    assert search_done_line(report) == "rqmoe, 8 bytes, 10,000,000 rows: 45.7 ms"
    report.synthetic.pop()
    assert search_done_line(report) == "rqmoe, 8 bytes, 1,000,000 rows, nprobes 20: 12.3 ms"
    report.synthetic.pop()
    expected = "lancedb-ivf-pq, 8 bytes: indexed in 12 s, 10-recall@10 0.700 at 3.5 ms"
    assert search_done_line(report) == expected
