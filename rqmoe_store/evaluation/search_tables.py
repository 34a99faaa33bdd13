"""The comparison of searches as tables for a terminal, and as lines while it runs."""

from collections.abc import Iterator

from rich.table import Table

from rqmoe_store.evaluation.search_results import IndexResult, SearchReport, SearchResult
from rqmoe_store.evaluation.tables import optional, print_tables, table_of

_COST_NOTE = (
    "Bytes per vector. Index and total are on disk: the total has the codec once (ours) or the raw vectors "
    "(LanceDB), without which there is no answer. Resident: codes and row ids in memory."
)


def print_search_report(report: SearchReport) -> None:
    """Print all tables that have rows to standard output; there is at least one."""
    print_tables([table for table in _tables(report) if table.row_count])


def done_line(report: SearchReport) -> str:
    """The key figures of what was measured last, in one line."""
    if report.synthetic:
        row = report.synthetic[-1]
        probes = "" if row.nprobes is None else f", nprobes {row.nprobes}"
        return f"{row.system}, {row.code_bytes} bytes, {row.rows:,} rows{probes}: {row.p50_ms:.1f} ms"
    index = report.indexes[-1]
    best = max(results_of(report, index), key=lambda result: result.recall)
    return (
        f"{index.system}, {index.code_bytes} bytes: indexed in {index.build_seconds:.0f} s, 10-recall@10 "
        f"{best.recall:.3f} at {best.p50_ms:.1f} ms"
    )


def results_of(report: SearchReport, index: IndexResult) -> list[SearchResult]:
    """All settings of one system of one size."""
    wanted = index.system, index.code_bytes
    return [result for result in report.results if (result.system, result.code_bytes) == wanted]


def _tables(report: SearchReport) -> Iterator[Table]:
    yield _searches(report)
    yield _costs(report)
    yield _scans(report)
    yield _synthetic(report)


def _searches(report: SearchReport) -> Table:
    shown = table_of(
        "Search: the 10 nearest raw vectors among the 10 found, one query at a time and in batches",
        "system; bytes; nprobes; shortlist; refine; 10-R@10; of exhaustive; p50 ms; p99 ms; queries/s",
        caption="Of exhaustive: the recall as a share of that of searching all reconstructions.",
    )
    for index in report.indexes:
        for result in results_of(report, index):
            setting = result.setting
            shown.add_row(
                result.system,
                str(result.code_bytes),
                optional(setting.nprobes, "{:,}"),
                optional(setting.shortlist, "{:,}"),
                optional(setting.refine_factor, "{}"),
                f"{result.recall:.3f}",
                optional(result.share_of_exhaustive, "{:.3f}"),
                f"{result.p50_ms:.2f}",
                f"{result.p99_ms:.2f}",
                f"{result.queries_per_second:,.0f}",
            )
        shown.add_section()
    return shown


def _costs(report: SearchReport) -> Table:
    shown = table_of(
        "Cost",
        "system; bytes; partitions; built in; exhaustive 10-R@10; index; total; resident",
        caption=_COST_NOTE,
    )
    for index in report.indexes:
        shown.add_row(
            index.system,
            str(index.code_bytes),
            f"{index.num_partitions:,}",
            f"{index.build_seconds:.0f} s",
            optional(index.exhaustive_recall, "{:.3f}"),
            f"{index.index_bytes:,.1f}",
            f"{index.total_bytes:,.1f}",
            optional(index.resident_bytes, "{:,.1f}"),
        )
    return shown


def _scans(report: SearchReport) -> Table:
    shown = table_of(
        "Scan: codes scored per second, look-up tables included",
        "system; bytes; threads; of partitions; million rows/s",
        caption="FAISS's residual quantizer makes its look-up tables again for every partition.",
    )
    for scan in report.scans:
        shown.add_row(
            scan.system,
            str(scan.code_bytes),
            str(scan.threads),
            f"{scan.share:.0%}",
            f"{scan.rows_per_second / 1e6:,.1f}",
        )
    return shown


def _synthetic(report: SearchReport) -> Table:
    shown = table_of(
        "Scaling: tables of random codes, each opened in a new process",
        "system; bytes; rows; nprobes; disk bytes/row; open ms; first query ms; p50 ms; p99 ms; process MB; "
        "growth MB",
        caption="Growth: memory of the process less what it was before the table was opened.",
    )
    for row in report.synthetic:
        shown.add_row(
            row.system,
            str(row.code_bytes),
            f"{row.rows:,}",
            optional(row.nprobes, "{:,}"),
            f"{row.table_bytes:.1f}",
            f"{row.open_ms:,.0f}",
            f"{row.first_query_ms:,.0f}",
            f"{row.p50_ms:,.2f}",
            f"{row.p99_ms:,.2f}",
            f"{row.memory_bytes / 1e6:,.0f}",
            f"{row.memory_growth_bytes / 1e6:,.0f}",
        )
    return shown
