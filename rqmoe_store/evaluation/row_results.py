"""What row operations cost, and the table that says so."""

import dataclasses
from typing import Any

from rqmoe_store.evaluation.tables import print_tables, table_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowResult:
    """One operation on plain tables and on a compressed one; medians."""

    operation: str
    rows: int
    """Rows that it is about."""
    indexed: bool
    """Whether there is a scalar index on the column that the rows are found by."""
    plain_ms: float
    """On a LanceDB table of the same columns, without vectors."""
    stable_ms: float
    """On a plain table that was made with stable row ids, which compressed tables have."""
    compressed_ms: float
    """On the compressed table, encoding of vectors left out."""
    encoding_ms: float
    """What that took: encoding, and decoding a sample of the codes to see how the codec fits."""

    @property
    def times_plain(self) -> float:
        """How many times the plain one, encoding left out."""
        return self.compressed_ms / self.plain_ms

    @property
    def times_stable(self) -> float:
        """How many times the plain one with stable row ids."""
        return self.compressed_ms / self.stable_ms


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowReport:
    """All that was measured."""

    settings: dict[str, Any]
    machine: dict[str, Any]
    results: list[RowResult]

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        results = [
            {**dataclasses.asdict(each), "times_plain": each.times_plain, "times_stable": each.times_stable}
            for each in self.results
        ]
        return {"settings": self.settings, "machine": self.machine, "results": results}


def print_row_report(report: RowReport) -> None:
    """Print the table to standard output."""
    shown = table_of(
        f"Row operations on {report.settings['rows']:,} rows",
        "operation; rows; index; plain ms; with stable ids; compressed; times; times stable; encoding",
        caption=(
            "Median ms. Plain: a LanceDB table of the same columns without vectors; then one with stable "
            "row ids. Compressed: without the time of encoding, which is the last column."
        ),
    )
    for result in report.results:
        shown.add_row(
            result.operation,
            f"{result.rows:,}" if result.rows else "all",
            "yes" if result.indexed else "no",
            f"{result.plain_ms:,.1f}",
            f"{result.stable_ms:,.1f}",
            f"{result.compressed_ms:,.1f}",
            f"{result.times_plain:.2f}",
            f"{result.times_stable:.2f}",
            f"{result.encoding_ms:,.1f}" if result.encoding_ms else "-",
        )
    print_tables([shown])
