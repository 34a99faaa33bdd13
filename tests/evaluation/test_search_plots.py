"""Plots of searches: a line of Pareto-optimal settings per system and size."""

from small_searches import search_result, small_search_report

from rqmoe_store.evaluation.plots import plot_searches, save_search_plot


def lines(figure) -> dict:
    (axes,) = figure.axes
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()}


def test_lines_are_the_unbeaten_settings() -> None:
    figure = plot_searches(small_search_report())
    assert lines(figure) == {
        "rqmoe, 8 bytes": ([2.0, 10.0], [0.5, 0.53]),
        "lancedb-ivf-pq, 8 bytes": ([2.5], [0.3]),
        "lancedb-ivf-pq, refine 10, 8 bytes": ([3.5], [0.7]),
    }
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(lines(figure))


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
