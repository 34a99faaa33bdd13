"""The comparison of codecs as tables for a terminal, and as lines while it runs."""

from collections.abc import Iterator

from rich.markup import escape
from rich.table import Table

from rqmoe_store.evaluation.codec_results import BenchmarkReport, CodecResult, Recalls
from rqmoe_store.evaluation.codec_timing import BATCHES
from rqmoe_store.evaluation.tables import optional, print_tables, short, table_of

_BOUND_NOTE = (
    "Gaussian bound: what the best possible code of as many bits would leave of a Gaussian with the training "
    "vectors' covariance. No source of that covariance is harder, so clustered vectors can beat it."
)


def print_report(report: BenchmarkReport) -> None:
    """Print all tables to standard output."""
    print_tables(list(_tables(report)))


def done_line(result: CodecResult) -> str:
    """A codec's key figures in one line."""
    training = "" if result.training_seconds is None else f", trained in {result.training_seconds:.0f} s"
    relative = optional(result.relative_to_rq, "{:.3f}")
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
    for place, result in enumerate(report.results):
        shown.add_row(
            escape(result.codec),
            str(result.code_bytes),
            optional(result.training_seconds, "{:.0f} s"),
            optional(result.epochs, "{:.1f}"),
            f"{result.mse:.4g}",
            optional(result.relative_to_rq, "{:.3f}"),
        )
        later = report.results[place + 1 :]
        if not any(other.code_bytes == result.code_bytes for other in later):
            bound = bounds[result.code_bytes]
            figures = (f"{bound.mse:.4g}", optional(bound.relative_to_rq, "{:.3f}"))
            shown.add_row("Gaussian bound", str(bound.code_bytes), "", "", *figures, end_section=True)
    return shown


def _recall(report: BenchmarkReport) -> Table:
    measures = ("1-R@1", "1-R@10", "1-R@100", "10-R@10")
    columns = "; ".join(["codec", "bytes", *measures, *(f"{measure}\nunseen" for measure in measures)])
    shown = table_of(
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
    shown = table_of(
        "Cost: microseconds per vector by vectors at a time, size of the codec, peak growth of memory",
        "; ".join(columns),
    )
    for result in report.results:
        times = [*result.encode_microseconds.values(), *result.decode_microseconds.values()]
        sizes = [result.artefact_bytes, result.peak_memory_bytes]
        figures = [*(short(time) for time in times), *(f"{size / 1e6:.1f}" for size in sizes)]
        if on_gpu:
            gpu_bytes = result.peak_cuda_bytes
            figures.append(optional(None if gpu_bytes is None else gpu_bytes / 1e6, "{:.1f}"))
        shown.add_row(escape(result.codec), str(result.code_bytes), *figures)
    return shown


def _speed(report: BenchmarkReport) -> Table:
    shown = table_of(
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
            short(row.microseconds),
            f"{row.times_default:.2f}",
            f"{row.mse:.4g}",
            optional(row.multiply_adds, "{:,}"),
            optional(row.matmul_share, "{:.1%}"),
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
