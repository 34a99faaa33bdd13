"""Tables of figures on the screen: their parts, and those of codecs and searches."""

import dataclasses
import re

import pytest
from small_reports import codec_result, small_report
from small_searches import small_search_report

from rqmoe_store.evaluation.best_by_bytes import best_by_bytes
from rqmoe_store.evaluation.codec_results import CodecResult
from rqmoe_store.evaluation.tables import (
    codec_done_line,
    codec_tables,
    format_optional,
    print_tables,
    search_done_line,
    search_tables,
    short,
    table_of,
)


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


def printed(report, capsys) -> str:
    print_tables(codec_tables(report))
    return capsys.readouterr().out


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split("[│┃]", line)[1:-1]]


def test_every_figure_is_there(capsys) -> None:
    rows = [cells(line) for line in printed(small_report(), capsys).splitlines()]
    assert ["rq", "8", "12 s", "4.5", "0.4", "1.000"] in rows
    assert ["opq", "8", "12 s", "-", "0.5", "1.250"] in rows
    assert ["Gaussian bound", "16", "", "", "0.11", "0.550"] in rows
    assert ["rq", "16", *["0.350", "0.800", "0.900", "0.700"] * 2] in rows
    costs = ["81,234", "321", "12.3", "457", "7.89", "0.123", "2.5", "34.5"]
    assert ["opq", "16", *costs] in rows
    speed = ["decode, step by step", "4096", "1.5", "7.25", "0.4", "1,234,567", "67.9%"]
    assert ["rq", "8", *speed] in rows
    assert ["rq", "8", "1,000,000", "4,321", "10.0"] in rows
    assert "…" not in str(rows)


def test_bound_closes_every_size(capsys) -> None:
    rows = [cells(line) for line in printed(small_report(), capsys).splitlines()]
    names = [(row[0], row[1]) for row in rows if len(row) == 6 and row[1].isdigit()]
    assert names[2] == ("Gaussian bound", "8")
    assert names[-1] == ("Gaussian bound", "16")
    assert len(names) == 7


def test_the_bound_is_explained(capsys) -> None:
    words = " ".join(printed(small_report(), capsys).split())
    assert "clustered vectors can beat it" in words
    assert "partitions" not in words


def test_long_names_are_folded_and_never_read_as_markup(capsys) -> None:
    folded = "".join(cells(line)[0] for line in printed(small_report(), capsys).splitlines() if cells(line))
    assert folded.count("a/long/path/to/the/folder/of/a/[codec]") == 3  # distortion, recall, cost


@pytest.mark.parametrize("columns", ["20", "80", "400"])
def test_figures_are_whole_in_any_terminal(capsys, monkeypatch, columns) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    report = small_report()
    report.results[0] = dataclasses.replace(report.results[0], peak_cuda_bytes=123_456_700_000)
    report.speed[0] = dataclasses.replace(report.speed[0], codec="a/path/to/some/codec", multiply_adds=10**10)
    rows = [cells(line) for line in printed(report, capsys).splitlines()]
    assert any(row[-1] == "123456.7" for row in rows if row)
    assert any(row[-2:] == ["10,000,000,000", "67.9%"] for row in rows if row)


def test_optional_parts(capsys) -> None:
    report = small_report()
    report.scaling = []
    report.results[0] = codec_result(
        "rq", 8, 0.4, 0.5, peak_cuda_bytes=7_000_000, settings={"num_partitions": 9}
    )
    text = printed(report, capsys)
    assert "Scaling" not in text
    assert "GPU" in text and "7.0" in text
    assert "number of a vector's partition" in " ".join(text.split())


def searched_result(code_bytes: int = 12) -> CodecResult:
    """That of a codec which only its own library searches."""
    absent = (
        "epochs",
        "encode_microseconds",
        "decode_microseconds",
        "artifact_bytes",
    )
    return codec_result("lancedb-ivf-rq-1", code_bytes, None, 0.65, **dict.fromkeys(absent))


def test_codecs_that_are_searched_have_recall_and_memory(capsys) -> None:
    report = small_report()
    report.results.insert(2, searched_result())
    rows = [cells(line) for line in printed(report, capsys).splitlines()]
    found = [row for row in rows if row and row[0] == "lancedb-ivf-rq-1"]
    assert found == [
        ["lancedb-ivf-rq-1", "12", *["0.325", "0.800", "0.900", "0.650"] * 2],
        ["lancedb-ivf-rq-1", "12", *["-"] * 7, "34.5"],
    ]
    names = [(row[0], row[1]) for row in rows if len(row) == 6 and row[1].isdigit()]
    assert ("lancedb-ivf-rq-1", "12") not in names and len(names) == 7


def test_a_line_when_done() -> None:
    line = codec_done_line(codec_result("opq", 8, 0.5, 0.4))
    assert line == "opq, 8 bytes: MSE 0.5 (1.250 x RQ), 10-recall@10 0.400, trained in 12 s"
    assert "trained" not in codec_done_line(codec_result("codec/", 8, 0.5, 0.4, training_seconds=None))
    assert "RQ" not in codec_done_line(codec_result("int8", 8, 0.5, 0.4, relative_to_rq=None))
    assert codec_done_line(searched_result()) == (
        "lancedb-ivf-rq-1, 12 bytes: 10-recall@10 0.650, trained in 12 s"
    )


def shown(report, capsys) -> list[list[str]]:
    print_tables(search_tables(report))
    lines = capsys.readouterr().out.splitlines()
    return [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] or [line.strip()] for line in lines]


def test_every_figure_of_a_search_is_there(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    rows = shown(small_search_report(), capsys)
    assert ["rqmoe", "8", "20", "200", "-", "0.500", "0.980", "2.00", "4.00", "2,500"] in rows
    assert ["rqmoe", "8", "-", "1,000", "-", "0.530", "0.980", "10.00", "20.00", "500"] in rows
    assert ["lancedb-ivf-pq", "8", "20", "-", "10", "0.700", "-", "3.50", "7.00", "1,429"] in rows
    assert ["rqmoe", "8", "64", "12 s", "0.540", "9.2", "0.0", "1,234.5", "16.0"] in rows
    assert ["lancedb-ivf-pq", "8", "64", "12 s", "-", "9.2", "0.0", "1,234.5", "-"] in rows
    assert ["faiss-ivf-pq", "8", "2", "10%", "34.6"] in rows
    scaled = ["rqmoe", "8", "1,000,000", "memory", "20", "8.1", "97", "51", "12.35", "30.00", "9.9"]
    scaled += ["250", "12", "15"]
    assert scaled in rows or [cell.replace("12.35", "12.34") for cell in scaled] in rows
    assert ["rqmoe", "8", "10,000,000", "memory", "-", *scaled[5:8], "45.68", *scaled[9:]] in rows
    assert "…" not in str(rows)


def test_the_best_at_every_size_and_what_is_missing(capsys) -> None:
    report = small_report()
    report.best = best_by_bytes(report.results, [4, 8, 16])
    report.best += best_by_bytes([*report.results, codec_result("opq", 16, 0.1, 0.8)], [17])
    print_tables(codec_tables(report), {"usearch-b1": "pip install usearch"})
    lines = capsys.readouterr().out.splitlines()
    rows = [cells(line) for line in lines]
    assert ["4", "-", "-", "-", "-", "-", "-", "-", "not measured"] in rows
    assert ["8", "rq", "0.500", "0.500", "opq", "8", "0.400", "0.400", "yes"] in rows
    assert any(row[-1:] == ["NO: opq +0.050, +0.050 unseen"] and row[4:6] == ["opq", "16"] for row in rows)
    assert lines[-1].startswith("usearch-b1 is not installed") and "pip install usearch" in lines[-1]
    assert "Best by bytes" not in "".join(str(table.title) for table in codec_tables(small_report()))


def test_empty_tables_are_left_out(capsys) -> None:
    report = small_search_report()
    report.scans, report.synthetic = [], []
    assert "Scan" not in str(shown(report, capsys)) and "Scaling" not in str(shown(report, capsys))
    report = small_search_report()
    report.indexes, report.results, report.scans = [], [], []
    assert "Search" not in str(shown(report, capsys)) and "Scaling" in str(shown(report, capsys))


def test_a_line_when_a_search_is_done() -> None:
    report = small_search_report()
    assert search_done_line(report) == "rqmoe, 8 bytes, 10,000,000 rows, memory: 45.7 ms"
    report.synthetic.pop()
    assert search_done_line(report) == "rqmoe, 8 bytes, 1,000,000 rows, memory, nprobes 20: 12.3 ms"
    report.synthetic.pop()
    expected = "lancedb-ivf-pq, 8 bytes: indexed in 12 s, 10-recall@10 0.700 at 3.5 ms"
    assert search_done_line(report) == expected
