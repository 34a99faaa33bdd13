"""`rqmoe optimize`, `rqmoe graph`, `rqmoe health` and `rqmoe compress --in-place`."""

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from rqmoe_store.cli import app
from rqmoe_store.codecs.base import load_codec
from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.tables import create_table, open_table
from rqmoe_store.training.trainer import train

ROWS, DIM = 400, 8
VECTORS = np.random.default_rng(0).normal(size=(ROWS, DIM)).astype(np.float32)
CONFIG = CodecConfig(kind="rq", code_bytes=4, codebook_size=16)


def invoke(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert "Traceback" not in result.output
    return result


def rows_of(vectors):
    return [{"id": row, "vector": vector} for row, vector in enumerate(vectors)]


@pytest.fixture
def db(tmp_path):
    return lancedb.connect(tmp_path)


def test_a_table_is_trained_and_encoded(db):
    create_table(db, "docs", rows_of(VECTORS), config=CONFIG)
    result = invoke("health", db.uri, "docs")
    assert result.exit_code == 0 and "no codec yet" in result.stdout
    for never in (0, ROWS + 1):
        result = invoke("optimize", db.uri, "docs", "--train-from", never)
        assert result.exit_code == 0 and "400 rows are raw" in result.stdout
    result = invoke("optimize", db.uri, "docs", "--train-from", ROWS, "--minutes", 0.01, "--cleanup-days", 0)
    assert result.exit_code == 0, result.output
    assert "encoded 400 rows" in result.stdout and "by a new codec" in result.stdout
    assert len(open_table(db, "docs").table.list_versions()) == 1


def test_a_codec_that_does_not_fit_any_more_is_an_exit_code(db):
    store = create_table(db, "docs", rows_of(VECTORS), config=CONFIG)
    store.train(TrainConfig(epochs=0, progress=False), progress=False)
    with pytest.warns(UserWarning, match="does not fit"):
        store.add(rows_of(5 + 9 * VECTORS))
    result = invoke("health", db.uri, "docs")
    assert result.exit_code == 1 and "retrain()" in result.stdout


def test_a_neighbor_graph_is_built_and_kept_up_to_date(db):
    store = create_table(db, "docs", rows_of(VECTORS), config=CONFIG)
    result = invoke("graph", db.uri, "docs")
    assert result.exit_code == 1 and "no codec yet" in result.stderr
    store.train(TrainConfig(epochs=0, progress=False), progress=False)
    result = invoke("graph", db.uri, "docs", "--neighbors", 3)
    assert result.exit_code == 0 and "3 neighbors of each of 400 rows" in result.stdout
    assert (
        "searched for those of 400 rows"
        in invoke("graph", db.uri, "docs", "--neighbors", 3, "--rebuild").stdout
    )
    store.delete("id < 10")
    assert "neighbor graph: 3 neighbors of each of 390 rows" in invoke("optimize", db.uri, "docs").stdout


def test_compressing_in_place(db, tmp_path):
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(VECTORS.ravel()), DIM)
    db.create_table("plain", pa.table({"id": np.arange(ROWS), "vector": vectors}))
    train(VECTORS, config=CONFIG, training=TrainConfig(epochs=0, progress=False)).save(tmp_path / "codec")
    result = invoke("compress", db.uri, "plain", "--codec", tmp_path / "codec", "--in-place")
    assert result.exit_code == 0, result.output
    assert "encoded 400 rows" in result.stdout and "400" in result.stdout
    assert open_table(db, "plain").stats().raw_rows == 0
    result = invoke("compress", db.uri, "plain", "--codec", tmp_path / "codec")
    assert result.exit_code == 1 and "the name of a new table, or in_place" in result.stderr


def test_training_goes_on_from_a_codec(db, tmp_path):
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(VECTORS.ravel()), DIM)
    db.create_table("plain", pa.table({"id": np.arange(ROWS), "vector": vectors}))
    config = CodecConfig(kind="rqmoe", metric="cosine", code_bytes=2, codebook_size=16, hidden_dim=8)
    start = train(VECTORS, config=config, training=TrainConfig(epochs=20, progress=False))
    start.save(tmp_path / "start")
    base = ["train", db.uri, "plain", "--start", tmp_path / "start", "--epochs", 0]
    result = invoke(*base, "--out", tmp_path / "further", "--refine-bytes", 4)
    assert result.exit_code == 0, result.output
    assert f"Training went on from codec {start.fingerprint[:12]}." in result.stdout
    further = load_codec(tmp_path / "further")
    assert (further.config.metric, further.config.code_bytes, further.config.hidden_dim) == ("cosine", 2, 8)
    assert further.config.refine_bytes == 4
    result = invoke(*base, "--out", tmp_path / "other", "--bytes", 16)
    assert result.exit_code == 1 and "code_bytes=2 instead of 16" in result.output.replace("\n", " ")
