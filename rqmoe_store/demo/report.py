"""What the demo measures, and how it prints it."""

import dataclasses
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoResult:
    """Everything the demo measured."""

    rows: int
    dim: int
    bytes_per_vector_before: float
    """Bytes of the vector column in the raw table's data files, per row."""
    bytes_per_vector_after: float
    """Bytes of the code columns in the compressed table's data files, per row."""
    disk_bytes_before: int
    """Every file of the raw table."""
    disk_bytes_after: int
    """Every file of the database once the raw table is gone: rows, codes and codec."""
    codec_bytes: int
    break_even_rows: int | None
    """Rows from which codes and codec together take less than the raw vectors; None for never."""
    queries: int
    recall: float
    """Share of the 10 exact nearest neighbours that compressed search finds among its first 10."""
    latency_ms: float
    """Median over the queries, one at a time, texts of the hits included."""
    validation_mse: float
    rq_validation_mse: float
    seconds: dict[str, float]
    """Time of each phase."""

    @property
    def break_even(self) -> str:
        """`break_even_rows` in words."""
        return "never" if self.break_even_rows is None else f"from about {self.break_even_rows:,} rows"


def print_hits(console: Console, question: str, hits: list[dict[str, Any]]) -> None:
    """One question and its nearest texts."""
    table = Table(title=f"[bold]{escape(question)}[/bold]", title_justify="left", expand=True)
    table.add_column("distance", justify="right", no_wrap=True)
    table.add_column("name", overflow="fold", ratio=2)
    table.add_column("docstring", ratio=3)
    for hit in hits:
        table.add_row(f"{hit['_distance']:.3f}", escape(hit["name"]), escape(hit["text"]))
    console.print()
    console.print(table)


def print_result(console: Console, result: DemoResult, directory: Path) -> None:
    """Everything measured, and what to try next."""
    table = Table(title="Measured on this machine, just now", title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("value", justify="right")
    for name, value in _lines(result):
        table.add_row(name, value)
    table.add_section()
    for name, seconds in result.seconds.items():
        table.add_row(f"time: {name}", f"{seconds:.1f} s")
    table.add_row("time: all phases", f"{sum(result.seconds.values()):.1f} s")
    console.print()
    console.print(table)
    if result.validation_mse >= result.rq_validation_mse:
        console.print(
            "[yellow]In this time training found nothing better than plain RQ, so the codec is plain RQ. "
            "Try --minutes 3, or a machine that is less busy.[/yellow]"
        )
    if result.disk_bytes_after > result.disk_bytes_before:
        console.print(
            f"[yellow]With {result.rows:,} rows the codec outweighs what the codes save. "
            f"It pays for itself: {result.break_even}.[/yellow]"
        )
    console.print(f"The table is in {directory}; look at it with: rqmoe stats {directory} docs_compressed")


def _lines(result: DemoResult) -> list[tuple[str, str]]:
    before, after = result.bytes_per_vector_before, result.bytes_per_vector_after
    ratio = result.validation_mse / result.rq_validation_mse
    return [
        ("rows", f"{result.rows:,} of dimension {result.dim}"),
        ("bytes per vector on disk, before", f"{before:,.1f}"),
        ("bytes per vector on disk, after", f"{after:,.1f} ({before / after:.0f} times less)"),
        ("whole table on disk, before", _megabytes(result.disk_bytes_before)),
        ("whole database on disk, after", _megabytes(result.disk_bytes_after)),
        ("  of which the codec (one for all rows)", _megabytes(result.codec_bytes)),
        ("the codec pays for itself", result.break_even),
        ("recall@10 against exact raw search", f"{result.recall:.3f} ({result.queries} held-out queries)"),
        ("median query latency", f"{result.latency_ms:.1f} ms"),
        ("validation MSE", f"{result.validation_mse:.4f} ({ratio:.3f} of plain RQ's)"),
        ("  of plain RQ, same bytes and beam", f"{result.rq_validation_mse:.4f}"),
    ]


def _megabytes(size: int) -> str:
    return f"{size / 10**6:,.1f} MB"
