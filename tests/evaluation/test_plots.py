"""Plots of codecs show the measured figures, in files of the right format."""

from pathlib import Path

import pytest
from small_reports import codec_result, small_report

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.codec_results import BenchmarkReport
from rqmoe_store.evaluation.plots import KINDS, check_plot_kind, plot_report, save_plot

STARTS = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


def lines(axes) -> dict:
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()}


def test_lines_are_the_figures_of_the_report() -> None:
    recall_axes, error_axes = plot_report(small_report()).axes
    path = "a/long/path/to/the/folder/of/a/[codec]"
    assert lines(recall_axes) == {
        "rq": ([8, 16], [0.5, 0.7]),
        "opq": ([8, 16], [0.4, 0.6]),
        path: ([16], [0.75]),
    }
    assert lines(error_axes) == {
        "rq": ([8, 16], [0.4, 0.2]),
        "opq": ([8, 16], [0.5, 0.25]),
        path: ([16], [0.15]),
        "Gaussian bound": ([8, 16], [0.31, 0.11]),
    }
    looks = [(line.get_color(), line.get_marker()) for line in error_axes.get_lines()]
    assert len(set(looks)) == 4
    assert [line.get_color() for line in recall_axes.get_lines()] == [color for color, _ in looks[:3]]
    assert error_axes.get_lines()[-1].get_linestyle() == "--"
    assert [text.get_text() for text in error_axes.get_legend().get_texts()] == list(lines(error_axes))


@pytest.mark.parametrize("errors", [[0.5], [0.5, 0.4999], [0.9, 0.001], [1234.0, 1100.0], [0.3, 0.0]])
def test_errors_of_any_range_get_ticks(errors) -> None:
    results = [codec_result("rq", 4 * 2**place, error, 0.5) for place, error in enumerate(errors)]
    figure = plot_report(BenchmarkReport(settings={}, machine={}, results=results))
    figure.draw_without_rendering()
    _, axes = figure.axes
    low, high = axes.get_ylim()
    shown = [tick for tick in axes.get_yticks() if low <= tick <= high]
    assert 2 <= len(shown) <= 7
    assert [text.get_text() for text in axes.get_xticklabels()] == [str(4 * 2**n) for n in range(len(errors))]


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_of_the_kind_their_name_says(kind, tmp_path) -> None:
    save_plot(small_report(), tmp_path / f"codecs{kind}")
    assert (tmp_path / f"codecs{kind}").read_bytes().startswith(STARTS[kind])


@pytest.mark.parametrize("name", ["codecs", "codecs.txt", "codecs.png.old"])
def test_unknown_kinds_are_refused(name) -> None:
    with pytest.raises(InvalidInputError, match=r"\.png, \.svg, \.pdf"):
        check_plot_kind(Path(name))


def test_known_kinds_in_capitals_too() -> None:
    check_plot_kind(Path("codecs.PNG"))
