"""Advice as an HTML page: recall against bytes, size as the table grows, error by partition, costs, commands.

Shape legend: P partitions.
"""

import dataclasses
import functools
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from rqmoe_store.advice.result import FLOAT_BYTES, Advice, Candidate, duration
from rqmoe_store.config import CodecConfig
from rqmoe_store.pages.figures import INK, Figure, Style, draw_figure
from rqmoe_store.pages.page import Block, Command, Facts, Page, Section, Table, Text
from rqmoe_store.pages.plots import StoredSize, growth_figure, partition_errors_figure
from rqmoe_store.store.health_page import drift_section
from rqmoe_store.store.statistics import readable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_TICKS = 6
_COST_COLUMNS = (
    *("codec", "bytes", "recall", "by default", "error / variance", "vectors with codec"),
    *("smaller from", "query", "encoding", "training"),
)


_PURPOSES = {
    "train": "Train the codec:",
    "compress": "Compress the table with it:",
    "tune": "Choose search parameters for the compressed table:",
}


def advice_page(advice: Advice) -> Page:
    """The page of an advice."""
    shown = advice.recommendation or advice.closest
    sections = [
        Section("Recommendation", _recommendation_blocks(advice)),
        Section("Recall against bytes", _recall_blocks(advice)),
    ]
    if shown is not None:
        sections.append(Section("Size", [_growth_figure(advice, shown)]))
        if shown.partition_errors:
            sections.append(Section("Partitions", [_partitions_figure(shown)]))
    if advice.health is not None:
        sections.append(drift_section(advice.health, advice.commits))
    if advice.candidates:
        sections.append(Section("What each choice costs", [_costs(advice)]))
    sections.append(Section("Commands", list(_commands(advice))))
    return Page(
        title=f"Bytes per vector for {advice.source}",
        verdict=advice.sentence,
        act=advice.recommendation is None,
        sections=sections,
    )


def _recommendation_blocks(advice: Advice) -> list[Block]:
    queries = "given" if advice.own_queries else "rows of the source"
    facts = Facts(
        [
            (
                "vectors",
                f"{advice.rows:,} of dimension {advice.dim:,}, {readable(advice.raw_bytes)} as float32",
            ),
            ("metric", advice.metric),
            ("wanted", f"{advice.target_recall:g} of the {advice.k:,} nearest"),
            ("queries", f"{advice.num_queries:,}, {queries}"),
            ("trained on", f"{advice.training_rows:,} vectors"),
            ("measured on", f"{advice.encoded_rows:,} encoded vectors"),
            ("time", duration(advice.seconds) + ("" if advice.complete else ", interrupted")),
        ]
    )
    return [*(Text(note) for note in advice.notes), facts, Text(advice.method)]


def _recall_blocks(advice: Advice) -> list[Block]:
    if not advice.candidates:
        return [Text("No candidate was measured.")]
    return [_recall_figure(advice)]


def _recall_figure(advice: Advice) -> Figure:
    best = max(advice.candidates, key=lambda each: each.recall)
    least = min(advice.candidates, key=lambda each: each.total_bytes)
    return draw_figure(
        functools.partial(_draw_recalls, advice=advice),
        name="recall",
        title="Recall against bytes",
        description=(
            f"Share of the {advice.k:,} nearest vectors found, against bytes per vector, for "
            f"{len(advice.candidates)} candidates, with 95 % confidence intervals. It goes from "
            f"{least.recall:.3f} with {least.total_bytes:,} bytes ({least.name}) to {best.recall:.3f} with "
            f"{best.total_bytes:,} ({best.name}). {_enough(advice)}"
        ),
        columns=["codec", "bytes", "recall", "lower end", "upper end", "among the sample alone"],
        rows=[
            [
                each.name,
                f"{each.total_bytes:,}",
                *(f"{value:.3f}" for value in (each.recall, each.recall_low, each.recall_high)),
                f"{each.sample_recall:.3f}",
            ]
            for each in advice.candidates
        ],
    )


def _draw_recalls(axes: "Axes", advice: Advice) -> None:
    for place, kind in enumerate(dict.fromkeys(each.kind for each in advice.candidates)):
        _draw_kind(axes, [each for each in advice.candidates if each.kind == kind], Style.of(place))
    target, chosen = advice.target_recall, advice.recommendation
    axes.axhline(target, color=INK, linestyle="--", label=f"wanted: {target:g}")
    if chosen is not None:
        ring: dict[str, Any] = {"color": INK, "marker": "o", "markersize": 13, "fillstyle": "none"}
        label = f"recommended: {chosen.name}"
        axes.plot([chosen.total_bytes], [chosen.recall], linestyle="", label=label, **ring)
    axes.set(xscale="log", xlabel="bytes per vector", ylabel=f"found of the {advice.k:,} nearest")
    axes.minorticks_off()
    ticks = _byte_ticks([each.total_bytes for each in advice.candidates])
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])


def _draw_kind(axes: "Axes", candidates: list[Candidate], style: Style) -> None:
    ordered = sorted(candidates, key=lambda each: each.total_bytes)
    recalls = [each.recall for each in ordered]
    # A bootstrap's interval may end on either side of the mean.
    below = [max(0.0, each.recall - each.recall_low) for each in ordered]
    above = [max(0.0, each.recall_high - each.recall) for each in ordered]
    axes.errorbar(
        [each.total_bytes for each in ordered],
        recalls,
        yerr=[below, above],
        color=style.color,
        marker=style.marker,
        capsize=4,
        label=ordered[0].kind,
    )


def _enough(advice: Advice) -> str:
    enough = [each.name for each in advice.candidates if each.recall >= advice.target_recall]
    if not enough:
        return f"None reaches the wanted {advice.target_recall:g}."
    reached = f"The wanted {advice.target_recall:g} is reached by {', '.join(enough)}"
    chosen = advice.recommendation
    return f"{reached}." if chosen is None else f"{reached}; {chosen.name} is recommended."


def _byte_ticks(sizes: list[int]) -> list[int]:
    """At most six sizes to label, far enough apart on a logarithmic axis."""
    ascending = sorted(set(sizes))
    apart = (ascending[-1] / ascending[0]) ** (1 / _MOST_TICKS)
    ticks = ascending[:1]
    for size in ascending[1:]:
        if size >= apart * ticks[-1]:
            ticks.append(size)
    return ticks


def _growth_figure(advice: Advice, shown: Candidate) -> Figure:
    scalars = [each for each in advice.candidates if each.config is None]
    return growth_figure(
        [
            StoredSize(name="raw vectors", bytes_per_row=FLOAT_BYTES * advice.dim),
            *(
                StoredSize(name=each.name, bytes_per_row=each.bytes_per_vector, fixed_bytes=each.codec_bytes)
                for each in (shown, *scalars)
            ),
        ],
        rows=advice.rows,
        break_even=shown.break_even_rows,
    )


def _partitions_figure(shown: Candidate) -> Figure:
    size = 1 + max(each.partition for each in shown.partition_errors)
    mse_P, sampled_P = np.zeros(size), np.zeros(size, dtype=np.int64)
    for each in shown.partition_errors:
        mse_P[each.partition], sampled_P[each.partition] = each.relative_error, each.rows
    return partition_errors_figure(
        mse_P,
        sampled_P,
        name="errors",
        what=f"Mean squared error of {shown.name}, as a share of the variance of the vectors",
        label="error / variance",
    )


def _costs(advice: Advice) -> Table:
    size, size_of_all = FLOAT_BYTES * advice.dim, readable(advice.raw_bytes)
    raw = ["raw vectors", f"{size:,}", "1.000", "-", "0.000", size_of_all, "-", "-", "-", "-"]
    return Table(
        caption=(
            f"For all {advice.rows:,} rows, on the machine that measured. Recall has its 95 % confidence "
            "interval; by default: recall with default search parameters, before tuning."
        ),
        columns=_COST_COLUMNS,
        rows=[*(_cost(each) for each in advice.candidates), raw],
        chosen=advice.recommended,
    )


def _cost(candidate: Candidate) -> list[str]:
    default, query = candidate.default_search_recall, candidate.query_seconds
    interval = f"({candidate.recall_low:.3f} to {candidate.recall_high:.3f})"
    from_rows = candidate.break_even_rows
    return [
        candidate.name,
        f"{candidate.total_bytes:,}",
        f"{candidate.recall:.3f} {interval}",
        "-" if default is None else f"{default:.3f}",
        f"{candidate.relative_error:.3f}",
        readable(candidate.table_bytes),
        "never" if from_rows is None else f"{from_rows:,} rows",
        "-" if query is None else f"{1e3 * query:,.2f} ms",
        duration(candidate.encode_seconds),
        duration(candidate.training_seconds),
    ]


def _commands(advice: Advice) -> Iterator[Block]:
    for command in advice.commands:
        purpose = next((_PURPOSES[word] for word in shlex.split(command) if word in _PURPOSES), "Then:")
        yield Command(purpose=purpose, command=command)
    chosen = advice.recommendation
    if chosen is None or advice.config is None:
        yield Text("There is nothing to type: no candidate is recommended.")
        return
    minutes = "" if chosen.minutes is None else f"max_minutes={chosen.minutes:g}"
    yield Command(
        purpose="Train the same in Python, with a table or array of vectors:",
        command=(
            "import rqmoe_store as rqs\n\n"
            f"config = {config_code(advice.config)}\n"
            f"codec = rqs.train(vectors, config=config, training=rqs.TrainConfig({minutes}))"
        ),
    )


def config_code(config: CodecConfig) -> str:
    """Python code that makes a configuration: what matters most, and what is not by default."""
    default = CodecConfig()
    values: dict[str, Any] = {
        field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.init
    }
    shown = {"kind", "metric", "code_bytes"}
    given = (
        f"{name}={value!r}"
        for name, value in values.items()
        if name in shown or value != getattr(default, name)
    )
    return f"rqs.CodecConfig({', '.join(given)})"
