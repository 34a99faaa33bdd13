"""`rqmoe bench rows`, run in this process."""

import json
from pathlib import Path

import pytest
from failed_commands import message_of
from small_searches import small_codec
from typer.testing import CliRunner

from rqmoe_store import cli_bench_tables
from rqmoe_store.cli import app


def rows(*options: object):
    arguments = ["bench", "rows", "--repeats", 1, "--dim", 8, "--bytes", 2, *options]
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_prints_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_bench_tables, "_TRAINING_ROWS", 2_000)
    run = rows("--rows", 10_000, "--json", tmp_path / "out.json")
    assert run.exit_code == 0, run.output
    assert "Row operations: 10,000 rows" in run.stdout and "merge_insert of new rows" in run.stdout
    assert "update, 1 rows:" in run.stderr
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["settings"]["rows"] == 10_000 and written["settings"]["dim"] == 8
    assert {result["indexed"] for result in written["results"]} == {False, True}


def test_a_trained_codec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_codec().save(tmp_path / "codec")
    seen = []
    monkeypatch.setattr("rqmoe_store.evaluation.row_benchmark.operations", lambda: [])
    monkeypatch.setattr(cli_bench_tables, "_codec", lambda *settings: seen.append(settings) or small_codec())
    run = rows("--rows", 10_000, "--codec", tmp_path / "codec")
    assert run.exit_code == 0, run.output
    assert seen == [(tmp_path / "codec", 8, 2, 0)]


def test_mistakes_are_found_before_measuring(tmp_path: Path) -> None:
    assert "at least 10,000 and 1" in message_of(rows("--rows", 9_999), before="Making")
    assert "at least 10,000 and 1" in message_of(rows("--repeats", 0), before="Making")
    assert "Cannot write --json" in message_of(rows("--json", tmp_path), before="Making")
