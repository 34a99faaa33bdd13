"""Benchmark of a GPU: scan, decoding, shortlists, encoding and training, in a few minutes of one machine.

    python -m rqmoe_store.evaluation.gpu_benchmark --minutes 5 --json gpu.json
    python -m rqmoe_store.evaluation.gpu_benchmark --parts train --minutes 8.9 --train-minutes 8
    python -m rqmoe_store.evaluation.gpu_benchmark --table gpu.json

It needs neither LanceDB nor a network. Parts run in a process of their own, in the order of what one would
want first. Every figure is printed when it is there. A part that fails, or takes longer than it may, ends its
process; the parts after it run in a new one.
"""

import argparse
import dataclasses
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.records import Record, markdown_table, run_facts

SECONDS = {
    "machine": 20,
    "scan": 130,
    "decode": 120,
    "shortlist": 40,
    "exhaustive": 30,
    "encode": 50,
    "train": 600,
}
"""Parts in their order, and most seconds of each."""

_LEAST_SECONDS = 10
"""A part is left out where less time is left."""

_START_SECONDS = 40
"""Most seconds until a process has loaded what it needs."""

_TRAINING_SHARE, _AROUND_TRAINING = 0.2, 20.0

Figures = dict[str, Any]
"""Figures by name, such as "decode.128.float32.us"; an error is a dictionary with the key "error"."""


@dataclasses.dataclass(frozen=True)
class GPUSettings:
    """What to measure, and for how long."""

    minutes: float = 5.0
    parts: tuple[str, ...] = tuple(SECONDS)
    device: str = "cuda"
    vectors: str | None = None
    """A .npy file of vectors to train on; made-up ones without it."""
    train_minutes: float | None = None
    """Time for training; None for a fifth of all minutes."""
    tiny: bool = False
    """Whether sizes are just large enough to try all parts."""

    def __post_init__(self) -> None:
        unknown = [part for part in self.parts if part not in SECONDS]
        if unknown or not self.parts:
            raise InvalidInputError(f"Got parts {list(self.parts)}; expected some of {', '.join(SECONDS)}.")
        if not self.minutes > 0:
            raise InvalidInputError(f"Got {self.minutes} minutes; expected more than 0.")
        if self.train_minutes is not None and not 0 < self.train_minutes < self.minutes:
            raise InvalidInputError(
                f"Got {self.train_minutes} minutes of training; expected more than 0, and fewer than the "
                f"{self.minutes} of all parts."
            )


def benchmark_gpu(settings: GPUSettings, on_figure: Callable[[str, Any], None]) -> Figures:
    """Run all parts for which there is time.

    Args:
        settings: what to measure.
        on_figure: called with the name and the value of every figure.

    Returns:
        All figures; "parts" has how each part ended.
    """
    figures: Figures = {"settings": dataclasses.asdict(settings)}
    ended: dict[str, str] = {}
    deadline = time.monotonic() + 60 * settings.minutes
    left = list(settings.parts)
    while left:
        for part, name, value in _run_parts(left, settings, deadline):
            if name is None:
                ended[part] = value
                on_figure(f"{part} ended", value)
                left.remove(part)
            else:
                figures[name] = value
                on_figure(name, value)
    return {**figures, "parts": ended}


def _run_parts(
    parts: list[str], settings: GPUSettings, deadline: float
) -> Iterator[tuple[str, str | None, Any]]:
    """Run parts in a new process, up to the first that ends it; yields figures, and how parts ended."""
    if deadline - time.monotonic() < _LEAST_SECONDS:
        yield from ((part, None, "left out: no time was left") for part in list(parts))
        return
    ends = time.time() + deadline - time.monotonic()
    given = json.dumps({**dataclasses.asdict(settings), "parts": list(parts), "ends": ends})
    command = [sys.executable, "-m", "rqmoe_store.evaluation.gpu_benchmark", "--child", given]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_read_lines, args=(process, lines), daemon=True).start()
        try:
            yield from _follow(list(parts), process, lines, settings, deadline)
        finally:
            process.kill()


def _read_lines(process: "subprocess.Popen[str]", lines: "queue.Queue[str | None]") -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put(None)


def _follow(
    parts: list[str],
    process: "subprocess.Popen[str]",
    lines: "queue.Queue[str | None]",
    settings: GPUSettings,
    deadline: float,
) -> Iterator[tuple[str, str | None, Any]]:
    """What the process of some parts finds, until all are done, or one has failed or has no time left."""
    allowance = float(_START_SECONDS)
    for part in parts:
        until = min(deadline, time.monotonic() + allowance + SECONDS[part])
        allowance = 0.0
        while True:
            try:
                line = lines.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                yield part, None, "stopped: it took longer than it may"
                return
            if line is None:
                yield part, None, f"failed: its process ended with code {process.wait()}"
                return
            if not line.startswith("{"):  # a library's own output
                continue
            found = json.loads(line)
            if found["name"] == "done":
                yield part, None, "done"
                break
            yield part, found["name"], found["value"]


def run_child(given: str) -> None:
    """Measure parts in this process, and print a line of JSON for every figure."""
    from rqmoe_store.evaluation.gpu_measurement import PARTS
    from rqmoe_store.evaluation.gpu_workbench import TINY, Bench, Sizes
    from rqmoe_store.search.device_copies import device_of

    settings = json.loads(given)

    def note(name: str, value: Any) -> None:
        print(json.dumps({"name": name, "value": value}), flush=True)

    for part in settings["parts"]:
        bench = Bench(
            device=device_of(settings["device"]),
            sizes=TINY if settings["tiny"] else Sizes(),
            note=note,
            vectors=settings["vectors"],
            train_seconds=2 if settings["tiny"] else _train_seconds(**settings),
        )
        PARTS[part](bench)
        note("done", part)


def _train_seconds(minutes: float, train_minutes: float | None, ends: float, **others: object) -> float:
    """The time asked for, or what is left but for the start and the last validation."""
    wanted = minutes * _TRAINING_SHARE if train_minutes is None else train_minutes
    return max(5.0, min(60 * wanted, ends - time.time() - _AROUND_TRAINING))


@dataclasses.dataclass(frozen=True)
class _Row:
    """A row of the table: a figure, what is wanted of it, and figures beside it."""

    label: str
    figure: str
    aim: str
    beside: tuple[tuple[str, str], ...] = ()


_ROWS = (
    _Row(
        "Scan of 100 million 16-byte codes, 64 queries, exhaustive, 100 kept; queries/s",
        "scan.100000000.64.100.queries_per_s",
        "",
        (("array operations", "scan.100000000.fallback.queries_per_s"),),
    ),
    _Row(
        "The same, ordered by refine codes of 48 bytes; queries/s",
        "scan.100000000.refined.queries_per_s",
        "at least 2,000",
        (("1,000 kept", "scan.100000000.refined.1000.queries_per_s"),),
    ),
    _Row(
        "Decode, 128-d, 8 steps, batches of 2^20; us a vector",
        "decode.128.kernel.us",
        "at most 0.03",
        (("array operations, bfloat16", "decode.128.bfloat16.us"), ("float32", "decode.128.float32.us")),
    ),
    _Row(
        "Decode, 384-d, 16 steps, batches of 2^18; us a vector",
        "decode.384.kernel.us",
        "at most 0.15",
        (("array operations, bfloat16", "decode.384.bfloat16.us"), ("float32", "decode.384.float32.us")),
    ),
    _Row(
        "Decode 1,000 codes, 128-d, 8 steps, one launch; us a vector",
        "decode.128.kernel.shortlist_us",
        "14 times as fast as QINCo",
        (("QINCo, step by step, one launch, as many multiply-adds", "decode.qinco.1000.us"),),
    ),
    _Row(
        "A shortlist of 1,000, 128-d: decoded, distances, best 10; us",
        "shortlist.128.us",
        "at most 100",
        (("decoding it with `Codec.decode`, float32", "shortlist.128.decode.float32.us"),),
    ),
    _Row(
        "Exhaustive search, 128-d: codes decoded and compared with 64 queries; codes/s",
        "exhaustive.128.codes_per_s",
        "",
    ),
    _Row(
        "Encode one vector, 128-d, 8 steps, beam 3, one launch; us",
        "encode.128.1.us",
        "",
        (("launched kernel by kernel", "encode.128.1.launched.us"),),
    ),
    _Row("Encode, 128-d, 8 steps, beam 3; us a vector", "encode.128.65536.us", "at most 3"),
    _Row("Encode, 384-d, 16 steps, beam 3; us a vector", "encode.384.65536.us", "at most 6"),
    _Row("Training at 8 bytes; error beside plain RQ's", "train", "at most 0.80 in 8 minutes"),
    _Row(
        "Training steps of 1,024 vectors; steps/s",
        "train.recorded.steps_per_s",
        "",
        (("launched kernel by kernel", "train.launched.steps_per_s"),),
    ),
)


def gpu_table(figures: Figures) -> str:
    """The figures as a table in Markdown; "not measured yet" where there is none."""
    table = gpu_record(figures)
    where = f"On {table['machine']}." if table["machine"] else "No GPU was at hand yet."
    return "\n".join([where, "", markdown_table(table["columns"], table["rows"])])


def gpu_record(figures: Figures) -> Record:
    """The figures with the machine in words and the table that shows them."""
    rows = []
    for row in _ROWS:
        beside = [f"{label} {_shown(figures[name])}" for label, name in row.beside if name in figures]
        result = _shown(figures[row.figure]) if row.figure in figures else "not measured yet"
        rows.append([row.label, row.aim, result, ", ".join(beside)])
    names = [("", "device"), ("torch ", "torch"), ("CUDA ", "cuda")]
    known = [f"{word}{figures[f'machine.{name}']}" for word, name in names if f"machine.{name}" in figures]
    table = {"columns": ["measured", "aim", "result", "beside it"], "rows": rows}
    return {"machine": ", ".join(known), **table, **figures}


def _shown(value: Any) -> str:
    if not isinstance(value, dict):
        return f"{value:,}"
    if "error" in value:
        return "failed"
    return f"{value['times_rq']} after {value['seconds']:.0f} s, {value['steps_per_s']} steps/s"


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark, or print the table of an earlier run."""
    parser = argparse.ArgumentParser(description="Measure what a GPU does, or print the table of a run.")
    parser.add_argument("--minutes", type=float, default=5.0, help="for all parts together")
    parser.add_argument("--parts", default=",".join(SECONDS), help="separated by commas")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--vectors", help="a .npy file (rows, dim) to train on")
    parser.add_argument("--train-minutes", type=float, help="of these, for training")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try all parts")
    parser.add_argument("--json", type=Path, help="file that gets all figures, after each of them")
    parser.add_argument("--table", type=Path, help="print the table of the figures in this file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.child is not None:
        run_child(given.child)
        return
    if given.table is not None:
        print(gpu_table(json.loads(given.table.read_text())))
        return
    settings = GPUSettings(
        given.minutes,
        tuple(given.parts.split(",")),
        given.device,
        given.vectors,
        given.train_minutes,
        given.tiny,
    )
    print(json.dumps(run_and_write(settings, given.json)))


def run_and_write(settings: GPUSettings, path: Path | None) -> Figures:
    """Run the benchmark, print every figure as it comes, and write all of them so far to a file."""
    so_far: Figures = {}

    def show(name: str, value: Any) -> None:
        so_far[name] = value
        print(f"{name}: {json.dumps(value)}", file=sys.stderr, flush=True)
        if path is not None:
            path.write_text(json.dumps(so_far, indent=1))

    figures = benchmark_gpu(settings, show)
    if path is not None:
        path.write_text(json.dumps({**run_facts(), **gpu_record(figures)}, indent=1))
    return figures


if __name__ == "__main__":
    main()
