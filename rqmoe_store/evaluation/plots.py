"""Plots of recall, error and latency. Needs matplotlib, from the extra `bench`."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.codec_results import BenchmarkReport, CodecResult
from rqmoe_store.evaluation.peer_names import family_of
from rqmoe_store.evaluation.search_measurement import SearchReport, SearchResult

KINDS = (".png", ".svg", ".pdf")
"""Supported suffixes of image files."""

# Colors that differ for any color vision (Okabe and Ito), and markers for print.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

_LEAST_TICKS, _MOST_TICKS = 3, 6

_MOST_SIZES = 10
"""Sizes that are all labeled. Powers of 2 stand for more."""


def check_plot_kind(path: Path) -> None:
    """Raise InvalidInputError unless the path has the suffix of a supported image format."""
    if path.suffix.lower() not in KINDS:
        raise InvalidInputError(
            f"Got the picture {str(path)!r}; expected a name that ends in one of {', '.join(KINDS)}."
        )


def plot_report(report: BenchmarkReport) -> Figure:
    """Plot 10-recall@10 and MSE against all bytes, a line per codec, with the Gaussian bound dashed.

    A line connects all sizes of a codec, also those that follow from bits per component. Codecs that only
    their own library searches have no MSE.

    Args:
        report: a report with at least one result.
    """
    figure = Figure(figsize=(13, 5), layout="constrained")
    recall_axes, error_axes = figure.subplots(1, 2)
    sizes = sorted({result.code_bytes for result in report.results})
    for place, family in enumerate(dict.fromkeys(family_of(result.codec) for result in report.results)):
        results = [result for result in report.results if family_of(result.codec) == family]
        _draw_codec(recall_axes, error_axes, sorted(results, key=lambda each: each.code_bytes), place)
    bounds = {
        bound.code_bytes: bound.mse for bound in sorted(report.bounds, key=lambda each: each.code_bytes)
    }
    handles = list(recall_axes.get_lines())
    if bounds:
        handles += error_axes.plot(
            [*bounds], [*bounds.values()], color="black", linestyle="--", marker="_", label="Gaussian bound"
        )
    for axes in (recall_axes, error_axes):
        _label_sizes(axes, sizes)
    recall_axes.set_ylabel("10-recall@10, all vectors")
    error_axes.set_ylabel("MSE, vectors never trained on")
    if any(result.mse is not None for result in report.results):
        _label_errors(error_axes)
    # One legend is enough, as both halves share colors.
    figure.legend(handles=handles, loc="outside right upper", frameon=False)
    return figure


def save_plot(report: BenchmarkReport, path: Path) -> None:
    """Write the plot in the format of the path's suffix."""
    # A Figure without pyplot needs no window and no global state.
    plot_report(report).savefig(path, dpi=150)


def plot_searches(report: SearchReport) -> Figure:
    """Plot 10-recall@10 against the median latency, a line per system and size.

    A line connects the Pareto-optimal settings of its system and size. LanceDB with and without refining by
    raw vectors are two lines. Systems differ by color, sizes by marker.

    Args:
        report: a report with at least one result.
    """
    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.subplots()
    lines = _lines(report.results)
    systems = list(dict.fromkeys(system for system, _ in lines))
    sizes = sorted({size for _, size in lines})
    for (system, size), results in lines.items():
        axes.plot(
            [result.p50_ms for result in results],
            [result.recall for result in results],
            color=COLORS[systems.index(system) % len(COLORS)],
            marker=MARKERS[sizes.index(size) % len(MARKERS)],
            label=f"{system}, {size} bytes",
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel("milliseconds per query, median")
    axes.set_ylabel("10-recall@10")
    axes.grid(color="0.9", which="both")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def save_search_plot(report: SearchReport, path: Path) -> None:
    """Write the plot in the format of the path's suffix."""
    plot_searches(report).savefig(path, dpi=150)


def _draw_codec(recall_axes: Axes, error_axes: Axes, results: list[CodecResult], place: int) -> None:
    color, marker = COLORS[place % len(COLORS)], MARKERS[place % len(MARKERS)]
    label = family_of(results[0].codec)
    recalls = {result.code_bytes: result.recall.ten_recall_10 for result in results}
    errors = {result.code_bytes: result.mse for result in results if result.mse is not None}
    for axes, values in ((recall_axes, recalls), (error_axes, errors)):
        if values:
            axes.plot([*values], [*values.values()], color=color, marker=marker, label=label)


def _label_sizes(axes: Axes, sizes: list[int]) -> None:
    # Sizes usually double from one to the next.
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(_size_ticks(sizes)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    axes.set_xlabel("bytes per vector")
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)


def _size_ticks(sizes: list[int]) -> list[int]:
    if len(sizes) <= _MOST_SIZES:
        return sizes
    powers = [2**exponent for exponent in range(sizes[-1].bit_length())]
    return [power for power in powers if power >= sizes[0]] or [sizes[0]]


def _label_errors(axes: Axes) -> None:
    # Equal factors in error are equal gains, and the bound is close to a straight line.
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(FixedLocator(_round_ticks(low, high)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_ylim(low, high)


def _round_ticks(low: float, high: float) -> list[float]:
    """Numbers with few digits between two positive ones, about equal factors apart.

    Matplotlib's own ticks of a logarithmic axis may leave a narrow range without any.
    """
    wanted = [low * (high / low) ** (step / _MOST_TICKS) for step in range(_MOST_TICKS + 1)]
    ticks: list[float] = []
    for digits in range(1, 8):
        ticks = sorted(
            {tick for tick in (float(f"{value:.{digits}g}") for value in wanted) if low <= tick <= high}
        )
        if len(ticks) >= _LEAST_TICKS:
            break
    return ticks


def _lines(results: Sequence[SearchResult]) -> dict[tuple[str, int], list[SearchResult]]:
    lines: dict[tuple[str, int], list[SearchResult]] = {}
    for result in results:
        factor = result.setting.refine_factor
        system = result.system if factor is None else f"{result.system}, refine {factor}"
        lines.setdefault((system, result.code_bytes), []).append(result)
    return {name: _pareto_front(line) for name, line in lines.items()}


def _pareto_front(results: Sequence[SearchResult]) -> list[SearchResult]:
    """The results that no other one beats in both latency and recall, by latency."""
    unbeaten: list[SearchResult] = []
    for result in sorted(results, key=lambda result: (result.p50_ms, -result.recall)):
        if not unbeaten or result.recall > unbeaten[-1].recall:
            unbeaten.append(result)
    return unbeaten
