"""`rqmoe bench gpu`, on the CPU."""

import inspect
import json
from pathlib import Path

from failed_commands import message_of
from typer.testing import CliRunner

from rqmoe_store.cli import app
from rqmoe_store.cli_bench_codecs import bench_gpu
from rqmoe_store.evaluation.gpu_benchmark import SECONDS


def gpu(*options: object):
    return CliRunner().invoke(app, [str(argument) for argument in ("bench", "gpu", *options)])


def test_prints_and_writes(tmp_path: Path) -> None:
    options = ("--parts", "machine", "--device", "cpu", "--tiny", "--json", tmp_path / "gpu.json")
    run = gpu(*options)
    assert run.exit_code == 0, run.output
    assert "| measured | aim | result |" in run.stdout and "machine.torch" in run.stderr
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert written["parts"] == {"machine": "done"} and written["machine.device"] == "cpu"
    assert written.keys() >= {"command", "date", "machine", "columns", "rows"}


def test_all_parts_are_run_unless_some_are_chosen() -> None:
    assert inspect.signature(bench_gpu).parameters["parts"].default.split(",") == list(SECONDS)


def test_mistakes_are_found_before_measuring(tmp_path: Path) -> None:
    assert "expected some of machine, scan" in message_of(gpu("--parts", "gpus"), before="machine.")
    assert "more than 0" in message_of(gpu("--minutes", 0), before="machine.")
    assert "Cannot write --json" in message_of(gpu("--json", tmp_path), before="machine.")
