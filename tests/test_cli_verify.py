"""`rqmoe verify`: what it prints, and its exit code."""

import json
from pathlib import Path

import lancedb
import numpy as np
import pytest
from typer.testing import CliRunner

from rqmoe_store.cli import app
from rqmoe_store.config import CodecConfig
from rqmoe_store.tables import create_table

VECTORS = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)


def invoke(*arguments):
    result = CliRunner().invoke(app, ["verify", *(str(argument) for argument in arguments)])
    assert "Traceback" not in result.output
    return result


@pytest.fixture
def store(tmp_path):
    rows = [{"id": row, "vector": vector} for row, vector in enumerate(VECTORS)]
    return create_table(lancedb.connect(tmp_path), "docs", rows, config=CodecConfig(code_bytes=4))


def test_a_healthy_table(store, tmp_path):
    result = invoke(tmp_path, "docs")
    assert result.exit_code == 0
    assert "table 'docs', version 1: no problems" in result.stdout and "5 rows (5 raw)" in result.stdout
    report = json.loads(invoke(tmp_path, "docs", "--json").stdout)
    assert report["ok"] and report["counts"]["raw"] == 5


def test_a_damaged_table_is_an_exit_code(store, tmp_path):
    for path in (Path(store.table.uri) / "data").iterdir():
        path.write_bytes(b"")
    result = invoke(tmp_path, "docs")
    assert result.exit_code == 1 and "problem: fragment 0" in result.stdout
    result = invoke(tmp_path, "docs", "--json")
    assert result.exit_code == 1 and not json.loads(result.stdout)["ok"]


def test_no_such_table(store, tmp_path):
    result = invoke(tmp_path, "dogs")
    assert result.exit_code == 1 and result.stderr.startswith("Error: ") and "'dogs'" in result.stderr
