"""Result tables for a terminal, and one-line results while a benchmark runs."""

from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rqmoe_store.evaluation.best_by_bytes import verdict
from rqmoe_store.evaluation.codec_results import BenchmarkReport, CodecResult, FoundBy, Recalls
from rqmoe_store.evaluation.contenders import BATCHES
from rqmoe_store.evaluation.peer_names import describe_missing
from rqmoe_store.evaluation.search_measurement import IndexResult, SearchReport, SearchResult

_UNLIMITED = 10_000
_NAME_WIDTHS = len("Gaussian bound"), 32

_BOUND_NOTE = (
    "Gaussian bound: error of the best possible code of as many bits for a Gaussian with the training "
    "vectors' covariance. No source of that covariance is harder, so codes of clustered vectors can beat it."
)

_RECALL_NOTE = (
    "Bytes are all that is kept per vector. Reconstructions are compared with queries, or else codes by the "
    "library that they are from (RaBitQ, LanceDB, turbovec, USearch, Qdrant)."
)

_BEST_NOTE = (
    "Others: all codecs of other libraries, and scalar ones, that were measured. Where any of them finds "
    "more, of all vectors or of those never trained on, the last column names it and says by how much."
)

_COST_NOTE = (
    "Bytes per vector. Index, raw and total are on disk. Raw: vectors that are kept beside the index "
    "(LanceDB and Qdrant). The total includes them, and the codec (ours). Resident: codes and row ids in "
    "memory."
)


def codec_done_line(result: CodecResult) -> str:
    """The key figures of a codec in one line."""
    training = "" if result.training_seconds is None else f", trained in {result.training_seconds:.0f} s"
    relative = "" if result.relative_to_rq is None else f" ({result.relative_to_rq:.3f} x RQ)"
    error = "" if result.mse is None else f"MSE {result.mse:.4g}{relative}, "
    return (
        f"{result.codec}, {result.code_bytes} bytes: {error}"
        f"10-recall@10 {result.recall.ten_recall_10:.3f}{training}"
    )


def search_done_line(report: SearchReport) -> str:
    """The key figures of the newest result in one line."""
    if report.synthetic:
        row = report.synthetic[-1]
        probes = "" if row.nprobes is None else f", nprobes {row.nprobes}"
        rows = f"{row.rows:,} rows, {row.cache}{probes}"
        return f"{row.system}, {row.code_bytes} bytes, {rows}: {row.p50_ms:.1f} ms"
    index = report.indexes[-1]
    best = max(results_of(report, index), key=lambda result: result.recall)
    return (
        f"{index.system}, {index.code_bytes} bytes: indexed in {index.build_seconds:.0f} s, 10-recall@10 "
        f"{best.recall:.3f} at {best.p50_ms:.1f} ms"
    )


def results_of(report: SearchReport, index: IndexResult) -> list[SearchResult]:
    """The results of all settings of one system at one size."""
    wanted = index.system, index.code_bytes
    return [result for result in report.results if (result.system, result.code_bytes) == wanted]


def print_tables(tables: Sequence[Table], skipped: Mapping[str, str] | None = None) -> None:
    """Print tables, at least one, to standard output, all of them at the same width, and what is missing.

    Args:
        tables: the tables.
        skipped: what was left out, as it is not installed -> the command that installs it.
    """
    console = Console()
    unlimited = console.options.update(width=_UNLIMITED)
    widest = max(console.measure(table, options=unlimited).maximum for table in tables)
    # A pipe has no width and a terminal may be narrow, but figures must not be cut.
    console.width = max(console.width, widest)
    for table in tables:
        console.print(table)
        console.print()
    for line in describe_missing(skipped or {}):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def table_of(title: str, columns: str, *, caption: str | None = None) -> Table:
    """A table with a column per name; `columns` has the names, separated by semicolons."""
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    name, *figures = columns.split("; ")
    least, most = _NAME_WIDTHS
    # A codec's name may be a long path, which is folded. Figures are never cut.
    table.add_column(name, overflow="fold", min_width=least, max_width=most)
    for figure in figures:
        table.add_column(figure, justify="right", no_wrap=True)
    return table


def format_optional(value: float | None, form: str) -> str:
    """A formatted figure, or "-" if there is none."""
    return "-" if value is None else form.format(value)


def short(microseconds: float) -> str:
    """A time rounded to about three significant digits."""
    return f"{microseconds:,.0f}" if microseconds >= 100 else f"{microseconds:.3g}"


def codec_tables(report: BenchmarkReport) -> list[Table]:
    """What `bench codec` shows."""
    tables = [_distortion(report), _recall(report), _cost(report)]
    for rows, table in ((report.best, _best), (report.speed, _speed), (report.scaling, _scaling)):
        if rows:
            tables.append(table(report))
    return tables


def _distortion(report: BenchmarkReport) -> Table:
    caption = _BOUND_NOTE
    if any(result.settings.get("num_partitions") for result in report.results):
        caption += " Codecs with partitions also need the number of a vector's partition."
    shown = table_of(
        "Distortion: MSE on vectors never trained on",
        "codec; bytes; training; epochs; MSE; x RQ",
        caption=caption,
    )
    bounds = {bound.code_bytes: bound for bound in report.bounds}
    decoded = _decoded(report)
    for place, result in enumerate(decoded):
        shown.add_row(
            escape(result.codec),
            str(result.code_bytes),
            format_optional(result.training_seconds, "{:.0f} s"),
            format_optional(result.epochs, "{:.1f}"),
            format_optional(result.mse, "{:.4g}"),
            format_optional(result.relative_to_rq, "{:.3f}"),
        )
        later = decoded[place + 1 :]
        if not any(other.code_bytes == result.code_bytes for other in later):
            bound = bounds.get(result.code_bytes)
            if bound is None:
                shown.add_section()
                continue
            figures = (f"{bound.mse:.4g}", format_optional(bound.relative_to_rq, "{:.3f}"))
            shown.add_row("Gaussian bound", str(bound.code_bytes), "", "", *figures, end_section=True)
    return shown


def _decoded(report: BenchmarkReport) -> list[CodecResult]:
    """The results of codecs that are decoded, and not searched by their own library alone."""
    return [result for result in report.results if result.mse is not None]


def _recall(report: BenchmarkReport) -> Table:
    measures = ("1-R@1", "1-R@10", "1-R@100", "10-R@10")
    columns = "; ".join(["codec", "bytes", *measures, *(f"{measure}\nunseen" for measure in measures)])
    shown = table_of(
        "Recall: exhaustive search over codes of all vectors, and of those never trained on",
        columns,
        caption=_RECALL_NOTE,
    )
    for result in report.results:
        figures = (*_shares(result.recall), *_shares(result.unseen_recall))
        shown.add_row(escape(result.codec), str(result.code_bytes), *figures)
    return shown


def _shares(recall: Recalls) -> Iterator[str]:
    for share in (recall.one_recall_1, recall.one_recall_10, recall.one_recall_100, recall.ten_recall_10):
        yield f"{share:.3f}"


def _cost(report: BenchmarkReport) -> Table:
    on_gpu = any(result.peak_cuda_bytes is not None for result in report.results)
    works = [f"{work}\n{batch}" for work in ("encode", "decode") for batch in BATCHES]
    columns = ["codec", "bytes", *works, "codec\nMB", "memory\nMB", *(["GPU\nMB"] if on_gpu else [])]
    shown = table_of(
        "Cost: microseconds per vector by vectors at a time, size of the codec, peak growth of memory",
        "; ".join(columns),
    )
    for result in report.results:
        figures = [*_times(result.encode_microseconds), *_times(result.decode_microseconds)]
        sizes = [
            result.artifact_bytes,
            result.peak_memory_bytes,
            *([result.peak_cuda_bytes] if on_gpu else []),
        ]
        figures += [format_optional(None if size is None else size / 1e6, "{:.1f}") for size in sizes]
        shown.add_row(escape(result.codec), str(result.code_bytes), *figures)
    return shown


def _times(microseconds: dict[int, float] | None) -> list[str]:
    return ["-"] * len(BATCHES) if microseconds is None else [short(time) for time in microseconds.values()]


def _best(report: BenchmarkReport) -> Table:
    shown = table_of(
        "Best by bytes: ours and the best of all others within so many bytes per vector",
        "bytes; ours; 10-R@10; unseen; best of others; its bytes; 10-R@10; unseen; is ours the best?",
        caption=_BEST_NOTE,
    )
    for row in report.best:
        peer_bytes = "-" if row.best_peer is None else str(row.best_peer.code_bytes)
        ours, (peer, *found) = _found_by(row.ours), _found_by(row.best_peer)
        shown.add_row(str(row.total_bytes), *ours, peer, peer_bytes, *found, verdict(row))
    return shown


def _found_by(found: FoundBy | None) -> tuple[str, str, str]:
    if found is None:
        return "-", "-", "-"
    return escape(found.codec), f"{found.recall:.3f}", f"{found.unseen_recall:.3f}"


def _speed(report: BenchmarkReport) -> Table:
    shown = table_of(
        "Speed: ways to encode and decode with our codecs, each compared with the default in the same run",
        "codec; bytes; form; vectors; us per vector; x default; MSE; multiply-adds; of matmul",
        caption="MSE on the same few held-out vectors. Of matmul: multiply-adds per second of decoding, "
        "as a share of those of a large float32 matrix product on this device.",
    )
    for row in report.speed:
        shown.add_row(
            escape(row.codec),
            str(row.code_bytes),
            f"{row.work}, {row.form}",
            str(row.vectors),
            short(row.microseconds),
            f"{row.times_default:.2f}",
            f"{row.mse:.4g}",
            format_optional(row.multiply_adds, "{:,}"),
            format_optional(row.matmul_share, "{:.1%}"),
        )
    return shown


def _scaling(report: BenchmarkReport) -> Table:
    shown = table_of(
        "Scaling: encoding vectors from a memory-mapped file",
        "codec; bytes; vectors; vectors per second; memory MB",
    )
    for row in report.scaling:
        growth = f"{row.memory_growth_bytes / 1e6:.1f}"
        shown.add_row(
            escape(row.codec),
            str(row.code_bytes),
            f"{row.vectors:,}",
            f"{row.vectors_per_second:,.0f}",
            growth,
        )
    return shown


def search_tables(report: SearchReport) -> list[Table]:
    """What `bench search` shows: those tables that have rows, at least one."""
    tables = [_searches(report), _costs(report), _scans(report), _synthetic(report)]
    return [table for table in tables if table.row_count]


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
                format_optional(setting.nprobes, "{:,}"),
                format_optional(setting.shortlist, "{:,}"),
                format_optional(setting.refine_factor, "{}"),
                f"{result.recall:.3f}",
                format_optional(result.share_of_exhaustive, "{:.3f}"),
                f"{result.p50_ms:.2f}",
                f"{result.p99_ms:.2f}",
                f"{result.queries_per_second:,.0f}",
            )
        shown.add_section()
    return shown


def _costs(report: SearchReport) -> Table:
    shown = table_of(
        "Cost",
        "system; bytes; partitions; built in; exhaustive 10-R@10; index; raw; total; resident",
        caption=_COST_NOTE,
    )
    for index in report.indexes:
        shown.add_row(
            index.system,
            str(index.code_bytes),
            f"{index.num_partitions:,}",
            f"{index.build_seconds:.0f} s",
            format_optional(index.exhaustive_recall, "{:.3f}"),
            f"{index.index_bytes:,.1f}",
            f"{index.raw_bytes:,.1f}",
            f"{index.total_bytes:,.1f}",
            format_optional(index.resident_bytes, "{:,.1f}"),
        )
    return shown


def _scans(report: SearchReport) -> Table:
    shown = table_of(
        "Scan: codes scored per second, look-up tables included",
        "system; bytes; threads; of partitions; million rows/s",
        caption="FAISS's residual quantizer computes look-up tables anew for every partition.",
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
        "system; bytes; rows; codes in; nprobes; disk bytes/row; open ms; first query ms; p50 ms; p99 ms; "
        "refresh ms; process MB; growth MB; loading MB",
        caption="Refresh: first query after a row was added. Growth: memory of the process, less its memory "
        "before the table was opened. Loading: largest growth during the first query.",
    )
    for row in report.synthetic:
        shown.add_row(
            row.system,
            str(row.code_bytes),
            f"{row.rows:,}",
            row.cache,
            format_optional(row.nprobes, "{:,}"),
            f"{row.table_bytes:.1f}",
            f"{row.open_ms:,.0f}",
            f"{row.first_query_ms:,.0f}",
            f"{row.p50_ms:,.2f}",
            f"{row.p99_ms:,.2f}",
            f"{row.refresh_ms:,.1f}",
            f"{row.memory_bytes / 1e6:,.0f}",
            f"{row.memory_growth_bytes / 1e6:,.0f}",
            f"{row.load_growth_bytes / 1e6:,.0f}",
        )
    return shown
