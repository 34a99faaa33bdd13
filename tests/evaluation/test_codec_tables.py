"""Printed tables of codecs: complete figures, even in a pipe, and names with markup unchanged."""

import dataclasses
import re

import pytest
from small_reports import codec_result, small_report

from rqmoe_store.evaluation.tables import codec_done_line, print_report


def printed(report, capsys) -> str:
    print_report(report)
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


def test_a_line_when_done() -> None:
    line = codec_done_line(codec_result("opq", 8, 0.5, 0.4))
    assert line == "opq, 8 bytes: MSE 0.5 (1.250 x RQ), 10-recall@10 0.400, trained in 12 s"
    assert "trained" not in codec_done_line(codec_result("codec/", 8, 0.5, 0.4, training_seconds=None))
