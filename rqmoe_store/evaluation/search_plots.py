"""Recall against latency, as a picture. Needs matplotlib, from the extra `bench`."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from rqmoe_store.evaluation.plots import COLOURS, MARKERS
from rqmoe_store.evaluation.search_results import SearchReport, SearchResult


def plot_searches(report: SearchReport) -> Figure:
    """10-recall@10 against the median latency, a line per system and size.

    A line has the settings that no other of its own beats in both. LanceDB with and without raw vectors are
    two lines. Systems differ by colour, sizes by marker.

    Args:
        report: with at least one result.
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
            color=COLOURS[systems.index(system) % len(COLOURS)],
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
    """Write the picture in the format that the path's suffix names."""
    plot_searches(report).savefig(path, dpi=150)


def _lines(results: Sequence[SearchResult]) -> dict[tuple[str, int], list[SearchResult]]:
    lines: dict[tuple[str, int], list[SearchResult]] = {}
    for result in results:
        factor = result.setting.refine_factor
        system = result.system if factor is None else f"{result.system}, refine {factor}"
        lines.setdefault((system, result.code_bytes), []).append(result)
    return {name: _unbeaten(line) for name, line in lines.items()}


def _unbeaten(results: Sequence[SearchResult]) -> list[SearchResult]:
    """Those for which no other one is both quicker and better, by time."""
    unbeaten: list[SearchResult] = []
    for result in sorted(results, key=lambda result: (result.p50_ms, -result.recall)):
        if not unbeaten or result.recall > unbeaten[-1].recall:
            unbeaten.append(result)
    return unbeaten
