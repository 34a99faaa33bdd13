"""The comparison of codecs as tables for a terminal, and as lines while it runs."""

from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rqmoe_store.evaluation.codec_results import BenchmarkReport, CodecResult, Recalls
from rqmoe_store.evaluation.codec_timing import BATCHES

_UNLIMITED = 10_000
_NAME_WIDTHS = len("Gaussian bound"), 32

_BOUND_NOTE = (
    "Gaussian bound: what the best possible code of as many bits would leave of a Gaussian with the training "
    "vectors' covariance. No source of that covariance is harder, so clustered vectors can beat it."
)


def print_report(report: BenchmarkReport) -> None:
    """Print all tables to standard output."""
    console = Console()
    tables = list(_tables(report))
    unlimited = console.options.update(width=_UNLIMITED)
    widest = max(console.measure(table, options=unlimited).maximum for table in tables)
    # A pipe has no width of its own, and a terminal may be narrow; cut figures are of no use.
    console.width = max(console.width, widest)
    for table in tables:
        console.print(table)
        console.print()


def done_line(result: CodecResult) -> str:
    """A codec's key figures in one line."""
    training = "" if result.training_seconds is None else f", trained in {result.training_seconds:.0f} s"
    relative = _optional(result.relative_to_rq, "{:.3f}")
    return (
        f"{result.codec}, {result.code_bytes} bytes: MSE {result.mse:.4g} ({relative} x RQ), "
        f"10-recall@10 {result.recall.ten_recall_10:.3f}{training}"
    )


def _tables(report: BenchmarkReport) -> Iterator[Table]:
    yield _distortion(report)
    yield _recall(report)
    yield _cost(report)
    yield _speed(report)
    if report.scaling:
        yield _scaling(report)


def _table(title: str, columns: str, *, caption: str | None = None) -> Table:
    """A table with a column for each of the names, which are separated by semicolons."""
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    name, *figures = columns.split("; ")
    least, most = _NAME_WIDTHS
    # A codec's name may be a long path, which is folded; figures are never cut.
    table.add_column(name, overflow="fold", min_width=least, max_width=most)
    for figure in figures:
        table.add_column(figure, justify="right", no_wrap=True)
    return table


def _distortion(report: BenchmarkReport) -> Table:
    caption = _BOUND_NOTE
    if any(result.settings.get("num_partitions") for result in report.results):
        caption += " Codecs with partitions also need the number of a vector's partition."
    shown = _table(
        "Distortion: MSE on vectors never trained on",
        "codec; bytes; training; epochs; MSE; x RQ",
        caption=caption,
    )
    bounds = {bound.code_bytes: bound for bound in report.bounds}
    for place, result in enumerate(report.results):
        shown.add_row(
            escape(result.codec),
            str(result.code_bytes),
            _optional(result.training_seconds, "{:.0f} s"),
            _optional(result.epochs, "{:.1f}"),
            f"{result.mse:.4g}",
            _optional(result.relative_to_rq, "{:.3f}"),
        )
        later = report.results[place + 1 :]
        if not any(other.code_bytes == result.code_bytes for other in later):
            bound = bounds[result.code_bytes]
            figures = (f"{bound.mse:.4g}", _optional(bound.relative_to_rq, "{:.3f}"))
            shown.add_row("Gaussian bound", str(bound.code_bytes), "", "", *figures, end_section=True)
    return shown


def _recall(report: BenchmarkReport) -> Table:
    measures = ("1-R@1", "1-R@10", "1-R@100", "10-R@10")
    columns = "; ".join(["codec", "bytes", *measures, *(f"{measure}\nunseen" for measure in measures)])
    shown = _table(
        "Recall: exhaustive search over reconstructions of all vectors, and of those never trained on",
        columns,
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
    shown = _table(
        "Cost: microseconds per vector by vectors at a time, size of the codec, peak growth of memory",
        "; ".join(columns),
    )
    for result in report.results:
        times = [*result.encode_microseconds.values(), *result.decode_microseconds.values()]
        sizes = [result.artefact_bytes, result.peak_memory_bytes]
        figures = [*(_short(time) for time in times), *(f"{size / 1e6:.1f}" for size in sizes)]
        if on_gpu:
            gpu_bytes = result.peak_cuda_bytes
            figures.append(_optional(None if gpu_bytes is None else gpu_bytes / 1e6, "{:.1f}"))
        shown.add_row(escape(result.codec), str(result.code_bytes), *figures)
    return shown


def _speed(report: BenchmarkReport) -> Table:
    shown = _table(
        "Speed: forms of our codecs, each against the default in the same run",
        "codec; bytes; form; vectors; us per vector; x default; MSE; multiply-adds; of matmul",
        caption="MSE on the same few held-out vectors. Of matmul: multiply-adds per second of decoding, "
        "as a share of what a large float32 matrix product reaches on this device.",
    )
    for row in report.speed:
        shown.add_row(
            escape(row.codec),
            str(row.code_bytes),
            f"{row.work}, {row.form}",
            str(row.vectors),
            _short(row.microseconds),
            f"{row.times_default:.2f}",
            f"{row.mse:.4g}",
            _optional(row.multiply_adds, "{:,}"),
            _optional(row.matmul_share, "{:.1%}"),
        )
    return shown


def _scaling(report: BenchmarkReport) -> Table:
    shown = _table(
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


def _optional(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _short(microseconds: float) -> str:
    """Three digits that matter, and no more than that."""
    return f"{microseconds:,.0f}" if microseconds >= 100 else f"{microseconds:.3g}"
