"""Pictures of figures: what is drawn is what was measured, and files are what their names say."""

from pathlib import Path

import pytest
from small_reports import codec_result, small_report
from small_searches import search_result, small_search_report

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.codec_results import BenchmarkReport
from rqmoe_store.evaluation.plots import (
    KINDS,
    check_plot_kind,
    plot_report,
    plot_searches,
    save_plot,
    save_search_plot,
)

STARTS = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


def lines(axes) -> dict:
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()}


def test_lines_are_the_figures_of_the_report() -> None:
    figure = plot_report(small_report())
    recall_axes, error_axes = figure.axes
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
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(lines(error_axes))


def test_sizes_of_a_codec_with_bits_are_one_line() -> None:
    report = small_report()
    for bits, recall in ((3, 0.9), (1, 0.6)):
        report.results.append(codec_result(f"faiss-eden-{bits}", 10 * bits, 0.3 / bits, recall))
        report.results.append(codec_result(f"faiss-rabitq-{bits}", 11 * bits, None, recall))
    figure = plot_report(report)
    recalls, errors = (lines(axes) for axes in figure.axes)
    assert recalls["faiss-eden"] == ([10, 30], [0.6, 0.9])
    assert errors["faiss-eden"] == ([10, 30], [0.3, pytest.approx(0.1)])
    assert recalls["faiss-rabitq"] == ([11, 33], [0.6, 0.9])
    assert "faiss-rabitq" not in errors
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [*recalls, "Gaussian bound"]


@pytest.mark.parametrize(
    ("sizes", "ticks"),
    [
        (range(5, 15), list(range(5, 15))),
        (range(40, 440, 20), [64, 128, 256]),
        (range(33, 48), [33]),
    ],
)
def test_many_sizes_are_labeled_by_powers_of_two(sizes, ticks) -> None:
    results = [codec_result("faiss-eden-1", size, 1 / size, 0.5) for size in sizes]
    figure = plot_report(BenchmarkReport(settings={}, machine={}, results=results))
    figure.draw_without_rendering()
    assert [axes.get_xticks().tolist() for axes in figure.axes] == [ticks, ticks]


def test_without_any_error() -> None:
    results = [codec_result("lancedb-ivf-rq-1", 8, None, 0.5)]
    figure = plot_report(BenchmarkReport(settings={}, machine={}, results=results))
    figure.draw_without_rendering()
    recall_axes, error_axes = figure.axes
    assert lines(recall_axes) == {"lancedb-ivf-rq": ([8], [0.5])} and lines(error_axes) == {}
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["lancedb-ivf-rq"]


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


def lines_of_searches(figure) -> dict:
    (axes,) = figure.axes
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()}


def test_lines_are_the_unbeaten_settings() -> None:
    figure = plot_searches(small_search_report())
    assert lines_of_searches(figure) == {
        "rqmoe, 8 bytes": ([2.0, 10.0], [0.5, 0.53]),
        "lancedb-ivf-pq, 8 bytes": ([2.5], [0.3]),
        "lancedb-ivf-pq, refine 10, 8 bytes": ([3.5], [0.7]),
    }
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(lines_of_searches(figure))


def test_systems_differ_by_color_and_sizes_by_marker() -> None:
    report = small_search_report()
    report.results.append(search_result("rqmoe", 16, 0.6, 2.0))
    drawn = {line.get_label(): line for line in plot_searches(report).axes[0].get_lines()}
    small, large = drawn["rqmoe, 8 bytes"], drawn["rqmoe, 16 bytes"]
    assert small.get_color() == large.get_color() and small.get_marker() != large.get_marker()
    other = drawn["lancedb-ivf-pq, 8 bytes"]
    assert small.get_color() != other.get_color() and small.get_marker() == other.get_marker()


def test_a_file_is_written(tmp_path) -> None:
    save_search_plot(small_search_report(), tmp_path / "searches.svg")
    text = (tmp_path / "searches.svg").read_text()
    assert text.startswith("<?xml") and "lancedb-ivf-pq, refine 10, 8 bytes" in text
