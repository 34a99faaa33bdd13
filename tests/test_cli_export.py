"""`rqmoe export`."""

import lancedb
import numpy as np
import pyarrow.parquet as pq
from typer.testing import CliRunner

from rqmoe_store.cli import app
from rqmoe_store.tables import create_table

VECTORS = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)


def invoke(*arguments):
    result = CliRunner().invoke(app, ["export", *(str(argument) for argument in arguments)])
    assert "Traceback" not in result.output
    return result


def test_formats(tmp_path):
    rows = [{"id": row, "vector": vector} for row, vector in enumerate(VECTORS)]
    create_table(lancedb.connect(tmp_path / "db"), "docs", rows)
    result = invoke(tmp_path / "db", "docs", tmp_path / "out.parquet")
    assert result.exit_code == 0 and "5 rows" in result.stdout
    assert np.array_equal(np.stack(pq.read_table(tmp_path / "out.parquet")["vector"].to_pylist()), VECTORS)
    result = invoke(tmp_path / "db", "docs", tmp_path / "out.npy", "--format", "npy", "--overwrite")
    assert result.exit_code == 0 and np.array_equal(np.load(tmp_path / "out.npy"), VECTORS)
    result = invoke(tmp_path / "db", "docs", tmp_path / "out.npy", "--format", "npy")
    assert result.exit_code == 1 and "exists already" in result.stderr
    result = invoke(tmp_path / "db", "docs", tmp_path / "out.csv", "--format", "csv")
    assert result.exit_code == 1 and "'csv'" in result.stderr
