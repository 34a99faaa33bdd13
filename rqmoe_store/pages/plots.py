"""Plots that several reports have: size of the table as it grows, and error by partition.

Shape legend: P partitions.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rqmoe_store.pages.figures import INK, QUIET, Figure, Style, draw_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LISTED = 50
"""Partitions whose numbers are listed below a plot; there may be thousands."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredSize:
    """How the size of one way to store vectors grows with the number of rows."""

    name: str
    bytes_per_row: float
    fixed_bytes: int = 0
    """What is stored once, such as a codec."""

    def at(self, rows: float) -> float:
        """Size in bytes for a number of rows."""
        return self.fixed_bytes + rows * self.bytes_per_row


def growth_figure(sizes: Sequence[StoredSize], *, rows: int, break_even: int | None) -> Figure:
    """Plot how a table grows: its raw vectors, and what may take their place.

    Args:
        sizes: raw vectors first.
        rows: number of rows at present.
        break_even: number of rows from which the second size is the smaller one; None for never.
    """
    marks = sorted({10**power for power in range(3, 10)} | ({rows} if rows else set()) | {break_even or 1000})
    tens = [mark for mark in marks if mark >= 1000]

    def draw(axes: "Axes") -> None:
        for place, size in enumerate(sizes):
            style = Style.of(place)
            axes.plot(
                tens,
                [size.at(each) for each in tens],
                color=style.color,
                marker=style.marker,
                markevery=[tens.index(each) for each in tens if math.log10(each).is_integer()],
                label=size.name,
            )
        if rows >= 1000:
            axes.axvline(rows, color=INK, linestyle="--", label=f"now: {rows:,} rows")
        if break_even is not None and 1000 <= break_even <= tens[-1]:
            axes.axvline(break_even, color=QUIET, linestyle=":", label=f"break-even: {break_even:,} rows")
        axes.set(xscale="log", yscale="log", xlabel="rows", ylabel="bytes")
        axes.xaxis.set_major_formatter(lambda value, _: short_number(value))
        axes.yaxis.set_major_formatter(lambda value, _: short_bytes(value))
        axes.minorticks_off()

    return draw_figure(
        draw,
        name="growth",
        title="Size of the table as it grows",
        description=_growth_words(sizes, rows, break_even),
        columns=["rows", *(size.name for size in sizes)],
        rows=[[f"{mark:,}", *(short_bytes(size.at(mark)) for size in sizes)] for mark in marks],
    )


def _growth_words(sizes: Sequence[StoredSize], rows: int, break_even: int | None) -> str:
    words = [
        "Bytes against rows, both on logarithmic scales: "
        + "; ".join(f"{size.name} take {short_bytes(size.at(10**6))} for a million rows" for size in sizes)
        + "."
    ]
    if rows:
        now = ", ".join(f"{size.name} {short_bytes(size.at(rows))}" for size in sizes)
        words.append(f"At the present {rows:,} rows: {now}.")
    if break_even is not None:
        words.append(f"From {break_even:,} rows on, codes and codec together are smaller than raw vectors.")
    else:
        words.append("Codes and codec together are at no number of rows smaller than raw vectors.")
    return " ".join(words)


def short_number(value: float) -> str:
    """A number with few digits, such as 10 k or 2.5 M."""
    for unit, scale in ((" bn", 10**9), (" M", 10**6), (" k", 10**3)):
        if value >= scale:
            return f"{value / scale:g}{unit}"
    return f"{value:g}"


def short_bytes(size: float) -> str:
    """A number of bytes with few digits and a unit that suits it."""
    for unit, scale in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}" if size < 1000 * scale else f"{size / scale:,.0f} {unit}"
    return f"{size:,.0f} bytes"


def partition_errors_figure(
    mse_P: npt.NDArray[np.float64], sampled_P: npt.NDArray[np.int64], *, name: str, what: str, label: str
) -> Figure:
    """Plot the error of every partition of which rows were sampled, the largest first.

    Args:
        mse_P: mean error of the sampled rows.
        sampled_P: number of these rows, above zero for at least one partition.
        name: name of the figure, unique on the page.
        what: the error in words; begins a sentence.
        label: label of the axis.
    """
    known_P = np.flatnonzero(sampled_P)
    order_P = known_P[np.argsort(-mse_P[known_P], kind="stable")]
    mean = float(np.average(mse_P[known_P], weights=sampled_P[known_P]))

    def draw(axes: "Axes") -> None:
        line: dict[str, Any] = {"color": Style.of(0).color, "marker": Style.of(0).marker, "markersize": 4}
        axes.plot(np.arange(1, len(order_P) + 1), mse_P[order_P], label="one partition", **line)
        axes.axhline(mean, color=INK, linestyle="--", label="all rows")
        axes.set(xlabel="partitions, largest error first", ylabel=label)
        axes.set_ylim(0, None)

    worst, listed = order_P[0], order_P[:LISTED]
    return draw_figure(
        draw,
        name=name,
        title="Error by partition",
        description=(
            f"{what}, from a sample of {int(sampled_P.sum()):,} rows: {mean:.4g} over all of them, "
            f"{mse_P[worst]:.4g} in the worst partition, {int(worst):,}, and {mse_P[order_P[-1]]:.4g} in the "
            f"best. {listing(len(listed), len(order_P), 'have the largest errors')}"
        ),
        columns=["partition", label, "times the mean", "rows sampled"],
        rows=[
            [
                f"{each:,}",
                f"{mse_P[each]:.4g}",
                f"{mse_P[each] / mean:.3g}" if mean else "1",
                f"{sampled_P[each]:,}",
            ]
            for each in listed
        ],
    )


def listing(listed: int, count: int, what: str) -> str:
    """Which partitions have their numbers below a plot, as a sentence."""
    if listed == count:
        return "The numbers of the plot are those of all partitions."
    return f"The numbers of the plot are those of the {listed} partitions that {what}."
