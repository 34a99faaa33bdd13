"""`rqmoe bench ingest`, run in this process."""

import json
import sys

from failed_commands import message_of
from typer.testing import CliRunner

from rqmoe_store.cli import app

SMALL = ("--rows", 500, "--dim", 8, "--kind", "rq", "--bytes", 2, "--device", "cpu", "--commit-rows", 200)


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in ("bench", "ingest", *arguments)])


def test_figures_on_screen_and_in_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/rqmoe", "bench", "ingest", "--rows", "500"])
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    done = invoke(*SMALL, "--json", tmp_path / "found.json")
    assert done.exit_code == 0, done.output
    assert "500 rows of dimension 8" in done.stdout and "rows/s" in done.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["rows"], found["code_bytes"]) == (500, 2)
    assert found["command"] == "OMP_NUM_THREADS=2 rqmoe bench ingest --rows 500"
    shown = dict(found["tables"]["ingestion"]["rows"])
    assert shown["bytes per row on disk"] == f"{found['disk_bytes_per_row']:.2f}"


def test_mistakes_get_one_message(tmp_path):
    assert "rows=0" in message_of(invoke("--rows", 0), before="Writing")
    assert "'best' is unknown" in message_of(invoke("--metric", "best"), before="Writing")
    where = tmp_path / "nowhere" / "found.json"
    assert "--json" in message_of(invoke("--json", where), before="Writing")
