"""`rqmoe ingest`."""

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import rqmoe_store as rqs
from rqmoe_store.cli import app
from rqmoe_store.ingestion import writer

ROWS, DIM = 300, 8
VECTORS = np.random.default_rng(0).normal(size=(ROWS, DIM)).astype(np.float32)


def invoke(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert "Traceback" not in result.output
    return result


@pytest.fixture
def folders(tmp_path):
    """A folder of Parquet files with one bad row, a codec, and an empty database."""
    (tmp_path / "files").mkdir()
    (tmp_path / "db").mkdir()
    vectors = VECTORS.copy()
    vectors[7] = np.nan
    for start in range(0, ROWS, 100):
        part = pa.FixedSizeListArray.from_arrays(pa.array(vectors[start : start + 100].ravel()), DIM)
        rows = pa.table({"id": np.arange(start, start + 100), "vector": part})
        pq.write_table(rows, tmp_path / "files" / f"{start}.parquet")
    config = rqs.CodecConfig(kind="rq", code_bytes=4, codebook_size=16)
    rqs.train(VECTORS, config=config, training=rqs.TrainConfig(epochs=0, progress=False)).save(
        tmp_path / "codec"
    )
    return tmp_path


def test_files_are_ingested_once(folders):
    command = ("ingest", folders / "files", folders / "db", "docs")
    result = invoke(*command)
    assert result.exit_code == 1 and "Pass codec=" in result.stderr
    result = invoke(*command, "--codec", folders / "codec", "--commit-rows", 50)
    assert result.exit_code == 0, result.output
    assert "299 rows added to 'docs'" in result.stdout
    assert "1 rows cannot be encoded; 'docs_quarantine' has them" in result.stdout
    db = lancedb.connect(folders / "db")
    store = rqs.open_table(db, "docs")
    assert sorted(store.table.to_arrow()["id"].to_pylist()) == [row for row in range(ROWS) if row != 7]
    assert db.open_table("docs_quarantine").count_rows() == 1
    assert "0 rows added" in invoke(*command).stdout
    assert "299 rows added" in invoke(*command, "--again", "--raw").stdout
    store.refresh()
    assert (len(store), store.stats().raw_rows) == (598, 299)


@pytest.mark.parametrize("names", [["*.parquet"], ["0.parquet", "100.parquet", "200.parquet"]])
def test_patterns_and_several_files(folders, names):
    command = ("ingest", *(folders / "files" / name for name in names), folders / "db", "docs")
    result = invoke(*command, "--codec", folders / "codec")
    assert "299 rows added to 'docs'" in result.stdout, result.output
    assert "0 rows added" in invoke("ingest", folders / "files", folders / "db", "docs").stdout


def test_bad_rows_can_be_errors(folders):
    command = ("ingest", folders / "files", folders / "db", "docs", "--codec", folders / "codec")
    result = invoke(*command, "--on-bad-rows", "error")
    assert result.exit_code == 1 and "NaN" in result.stderr
    result = invoke(*command, "--on-bad-rows", "ignore")
    assert result.exit_code == 1 and "expected 'quarantine' or 'error'" in result.stderr


def test_options_are_passed_on(folders):
    vectors = VECTORS.astype(np.float64)
    np.save(folders / "v.npy", vectors)
    pq.write_table(pa.table({"id": range(ROWS), "more": range(ROWS)}), folders / "rows.parquet")
    command = ("ingest", folders / "v.npy", folders / "db", "docs", "--codec", folders / "codec")
    chosen = ("--metadata", folders / "rows.parquet", "--vector-column", "embedding", "--columns", "id")
    done = invoke(*command, *chosen, "--keep-vectors", "float16")
    assert done.exit_code == 0, done.output
    table = lancedb.connect(folders / "db").open_table("docs").to_arrow()
    assert set(table.schema.names) == {"id", "embedding", "embedding_code", "embedding_partition"}
    assert table["embedding"].null_count == 0


def test_options_of_buckets(folders):
    command = ("ingest", folders / "files", folders / "db", "docs", "--codec", folders / "codec")
    assert "KEY=VALUE" in invoke(*command, "--storage-option", "region").stderr
    assert "storage_options={'region': 'x=y'}" in invoke(*command, "--storage-option", "region=x=y").stderr


def test_ctrl_c_says_how_to_go_on(folders, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    command = ("ingest", folders / "files", folders / "db", "docs", "--codec", folders / "codec")
    monkeypatch.setattr(writer, "commit_rows", interrupted)
    done = invoke(*command)
    assert done.exit_code == 130
    assert "goes on from there" in done.stderr
    monkeypatch.undo()
    assert "299 rows added" in invoke(*command).stdout
