"""Report on the health of a table as an HTML page: drift, partitions, size, and the commands that follow.

Shape legend: P partitions of the newest codec.
"""

import dataclasses
import shlex
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from lancedb.table import LanceTable

from rqmoe_store.pages.figures import INK, Figure, Style, draw_figure
from rqmoe_store.pages.page import Block, Command, Facts, Page, Section, Text
from rqmoe_store.pages.plots import LISTED, StoredSize, growth_figure, listing, partition_errors_figure
from rqmoe_store.store.graph_health import GraphHealth
from rqmoe_store.store.health import (
    LEAST_ROWS,
    WORSE_BALANCE,
    WORSE_ERROR,
    CommitError,
    HealthReport,
    PartitionHealth,
    measure_health,
    measure_partitions,
    recent_errors,
)
from rqmoe_store.store.statistics import TableStats, measure, readable
from rqmoe_store.store.table_codec import TableCodec

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COMPARED = {
    "raw": "Mean squared error between raw vectors, which the table keeps, and decoded ones",
    "refined": "Mean squared error of codes without refine codes, against refined vectors, since the table "
    "keeps no raw ones",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasuredTable:
    """What the page on the health of a table shows."""

    name: str
    database: str
    """Path or URI to type in commands."""
    keeps_vectors: bool
    report: HealthReport
    stats: TableStats
    partitions: PartitionHealth | None
    """None in a table without a codec."""
    commits: tuple[CommitError, ...]


def measure_table(table: LanceTable, codecs: TableCodec, database: str) -> MeasuredTable:
    """Measure a version of a table: reads its codes twice, and decodes a sample of its rows."""
    has_codec = codecs.newest is not None
    return MeasuredTable(
        name=table.name,
        database=database,
        keeps_vectors=codecs.metadata.keep_vectors != "none",
        report=measure_health(table, codecs),
        stats=measure(table, codecs, codecs.columns),
        partitions=measure_partitions(table, codecs) if has_codec else None,
        commits=tuple(recent_errors(table.to_lance(), codecs)) if has_codec else (),
    )


def health_page(measured: MeasuredTable) -> Page:
    """The page on the health of a table."""
    sections = [Section("Health", [_health_facts(measured.report)])]
    if measured.partitions is not None:
        sections += [
            drift_section(measured.report, measured.commits),
            Section("Partitions", list(_partition_blocks(measured.partitions))),
        ]
    if measured.report.graph is not None:
        sections.append(Section("Neighbor graph", list(_graph_blocks(measured.report.graph))))
    sections += [
        Section("Size", _size_blocks(measured.stats)),
        Section("Commands", list(_commands(measured))),
    ]
    return Page(
        title=f"Health of table {measured.name}",
        verdict=_sentence(measured.report.verdict),
        act=measured.report.needs_retraining,
        sections=sections,
    )


def _health_facts(report: HealthReport) -> Facts:
    facts = [("rows added since the codec was trained", f"{report.rows:,}")]
    if report.trained_mse is not None:
        facts.append(("squared error in training", f"{report.trained_mse:.4g}"))
    if report.added_mse is not None:
        facts.append(("squared error of rows added", f"{report.added_mse:.4g}"))
    if report.error_ratio is not None:
        facts.append(
            ("ratio of the two", f"{report.error_ratio:,.3g} (retrain above {WORSE_ERROR})"),
        )
    if report.balance is not None:
        facts.append(
            ("stability index of partitions", f"{report.balance:.3f} (retrain above {WORSE_BALANCE})")
        )
    facts += [
        ("rows without a code yet", f"{report.raw_rows:,}"),
        ("rows of an older codec", f"{report.older_rows:,}"),
    ]
    return Facts(facts)


def drift_section(report: HealthReport, commits: Iterable[CommitError]) -> Section:
    """How well the codec of a table fits the rows added since it was trained, commit by commit."""
    # Ratios need the error of training; it is zero where all training vectors were decoded exactly.
    trained = report.trained_mse
    measured = [(each, each.mse / trained) for each in commits if trained and each.mse is not None]
    blocks: list[Block] = [
        Text(
            "A codec is fitted to the rows it was trained on. Where rows added later are of another kind, "
            "their error grows and they fill other partitions; searches then find less."
        )
    ]
    if report.rows < LEAST_ROWS:
        blocks.append(Text(f"There is no verdict on fewer than {LEAST_ROWS} added rows."))
    blocks += [Text(_sentence(note)) for note in report.notes]
    if measured:
        blocks.append(_drift_figure(measured))
    else:
        blocks.append(Text("No version that is still there has added rows whose error was measured."))
    return Section("Drift", blocks)


def _drift_figure(measured: list[tuple[CommitError, float]]) -> Figure:
    def draw(axes: "Axes") -> None:
        from matplotlib.ticker import MaxNLocator

        style, bound = Style.of(0), Style.of(1)
        versions, ratios = [each.version for each, _ in measured], [ratio for _, ratio in measured]
        axes.plot(
            versions, ratios, color=style.color, marker=style.marker, linestyle="", label="rows of one commit"
        )
        axes.axhline(1, color=INK, label="error in training")
        axes.axhline(WORSE_ERROR, color=bound.color, linestyle="--", label=f"retrain above {WORSE_ERROR}")
        axes.set(xlabel="version of the table", ylabel="error, times that of training")
        axes.set_ylim(0, 1.1 * max(WORSE_ERROR, *ratios))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    ratios = [ratio for _, ratio in measured]
    above = sum(ratio > WORSE_ERROR for ratio in ratios)
    return draw_figure(
        draw,
        name="drift",
        title="Error of added rows by commit",
        description=(
            f"Squared error of the rows that each of {len(measured):,} commits added, as a multiple of the "
            f"error in training: from {min(ratios):.3g} to {max(ratios):.3g}; {above:,} of them above "
            f"{WORSE_ERROR}. The last commit, version {measured[-1][0].version:,}, is at {ratios[-1]:.3g}."
        ),
        columns=["version", "rows added", "squared error", "times that of training"],
        rows=[
            [f"{each.version:,}", f"{each.rows:,}", f"{each.mse:.4g}", f"{ratio:.3g}"]
            for each, ratio in measured
        ],
    )


def _partition_blocks(partitions: PartitionHealth) -> Iterable[Block]:
    if len(partitions.rows_P) < 2:
        yield Text("The codec has no partitions: every search reads all codes.")
    elif partitions.rows_P.sum():
        yield _shares_figure(partitions)
    if partitions.against == "none":
        yield Text(
            "The error by partition cannot be measured: the table keeps neither raw vectors nor refine "
            "codes, so there is nothing to compare decoded vectors with. Errors of added rows, above, were "
            "measured as they were added."
        )
    elif partitions.sampled_P.sum():
        yield partition_errors_figure(
            partitions.mse_P,
            partitions.sampled_P,
            name="errors",
            what=_COMPARED[partitions.against],
            label="mean squared error",
        )


def _shares_figure(partitions: PartitionHealth) -> Figure:
    trained_P = partitions.trained_P / partitions.trained_P.sum()
    now_P = partitions.rows_P / partitions.rows_P.sum()
    order_P = np.argsort(-trained_P, kind="stable")

    def draw(axes: "Axes") -> None:
        for place, (share_P, label) in enumerate(((trained_P, "in training"), (now_P, "now"))):
            style = Style.of(place)
            axes.plot(
                np.arange(1, len(order_P) + 1),
                100 * share_P[order_P],
                color=style.color,
                marker=style.marker,
                markersize=4,
                linestyle="-" if place == 0 else "",
                label=label,
            )
        axes.set(xlabel="partitions, largest in training first", ylabel="% of rows")
        axes.set_ylim(0, None)

    change_P = now_P - trained_P
    grown = int(np.argmax(change_P))
    listed = np.argsort(-np.abs(change_P), kind="stable")[:LISTED]
    return draw_figure(
        draw,
        name="shares",
        title="Rows by partition, in training and now",
        description=(
            f"Share of rows in each of {len(order_P):,} partitions, in training and now. The largest has "
            f"{trained_P.max():.1%} of the training vectors and now {now_P[order_P[0]]:.1%} of the rows. "
            f"Partition {grown:,} grew most, from {trained_P[grown]:.1%} to {now_P[grown]:.1%}. "
            f"{int((now_P == 0).sum()):,} partitions are empty. "
            f"{listing(len(listed), len(order_P), 'changed most')}"
        ),
        columns=["partition", "in training", "now", "rows now"],
        rows=[
            [f"{each:,}", f"{trained_P[each]:.2%}", f"{now_P[each]:.2%}", f"{partitions.rows_P[each]:,}"]
            for each in listed
        ],
    )


def _graph_blocks(graph: GraphHealth) -> Iterable[Block]:
    if not graph.complete:
        yield Text(
            "The neighbor graph is not complete, or its files are gone: queries cannot be expanded until it "
            "has been built."
        )
    yield Facts(
        [
            ("neighbors of a row", f"{graph.neighbors:,}"),
            ("rows of the graph", f"{graph.rows:,}"),
            ("rows that lack their neighbors", f"{graph.unsearched:,}"),
            ("version of the table that it is of", f"{graph.version:,} (now {graph.table_version:,})"),
            ("graph on disk", readable(graph.disk_bytes)),
        ]
    )


def _size_blocks(stats: TableStats) -> list[Block]:
    facts = Facts(
        [
            ("rows", f"{stats.rows:,}"),
            ("vectors as float32", f"{readable(stats.raw_bytes)} ({4 * stats.dim:,} bytes each)"),
            ("codes on disk", f"{readable(stats.code_disk_bytes)} ({stats.bytes_per_vector:.2f} each)"),
            ("codec", readable(stats.codec_bytes)),
            ("raw vectors on disk", readable(stats.vector_disk_bytes)),
            ("whole table on disk", readable(stats.disk_bytes)),
            ("compression of vectors", f"{stats.compression_ratio:.1f} to 1"),
        ]
    )
    sizes = [StoredSize(name="raw vectors", bytes_per_row=4 * stats.dim)]
    if not stats.codec_bytes or not stats.rows:
        return [facts]
    sizes.append(
        StoredSize(
            name="codes and codec", bytes_per_row=stats.bytes_per_vector, fixed_bytes=stats.codec_bytes
        )
    )
    return [facts, growth_figure(sizes, rows=stats.rows, break_even=stats.break_even_rows)]


def _commands(measured: MeasuredTable) -> Iterable[Command]:
    report, place = measured.report, shlex.join([measured.database, measured.name])
    vectors = "" if measured.keeps_vectors else ', vectors="decoded"'
    if report.trained_mse is None:
        yield Command(
            purpose="Train a first codec and encode all rows:",
            command=f"rqmoe optimize {place} --train-from {max(1, report.raw_rows)}",
        )
        return
    if report.needs_retraining:
        yield Command(
            purpose=(
                "Train another codec, in Python."
                + ("" if measured.keeps_vectors else " Pass raw vectors in place of decoded ones if you can.")
            ),
            command=(
                f"import lancedb\nimport rqmoe_store as rqs\n\n"
                f"store = rqs.open_table(lancedb.connect({measured.database!r}), {measured.name!r})\n"
                f"store.retrain(rqs.TrainConfig(max_minutes=5){vectors})"
            ),
        )
    graph = report.graph
    if graph is not None and (graph.unsearched or not graph.complete):
        yield Command(
            purpose="Bring the neighbor graph up to date:",
            command=f"rqmoe graph {place} --neighbors {graph.neighbors}",
        )
    if report.raw_rows or report.older_rows or report.unreadable:
        yield Command(
            purpose="Encode the rows that have no code, or one of an older codec:",
            command=f"rqmoe optimize {place}",
        )
    yield Command(
        purpose="Choose search parameters again, which another codec or many new rows call for:",
        command=f"rqmoe tune {place} --target-recall 0.95",
    )
    yield Command(purpose="Read the whole table and look for damage:", command=f"rqmoe verify {place}")
    yield Command(purpose="Make this page again:", command=f"rqmoe health {place} --report health.html")


def _sentence(text: str) -> str:
    """A line of a report as a sentence."""
    return text[:1].upper() + text[1:] + "."
