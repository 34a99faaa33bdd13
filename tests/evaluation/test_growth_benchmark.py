"""Recall as a table grows: what is measured at every number of rows, and mistakes."""

import json
from pathlib import Path

import numpy as np
import pytest
from failed_commands import message_of
from rich.console import Console
from typer.testing import CliRunner

from rqmoe_store.cli import app
from rqmoe_store.codecs.base import Codec
from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.evaluation.growth_benchmark import GrowthSettings, benchmark_growth
from rqmoe_store.evaluation.recall import exact_neighbors, k_recall_at_k
from rqmoe_store.training.trainer import train

CONFIG = CodecConfig(kind="rq", code_bytes=4, codebook_size=16, num_partitions=0)
ROWS = (300, 305, 900)


@pytest.fixture(scope="module")
def vectors_ND() -> np.ndarray:
    """Rows of which the last 595 are unlike those before."""
    random = np.random.default_rng(0)
    known, other = random.normal(size=(2, 20, 8))
    rows = np.concatenate([known[random.integers(20, size=305)], 3 * other[random.integers(20, size=595)]])
    return (rows + random.normal(scale=0.2, size=rows.shape)).astype(np.float32)


@pytest.fixture(scope="module")
def queries_QD(vectors_ND) -> np.ndarray:
    random = np.random.default_rng(1)
    chosen_QD = vectors_ND[random.integers(len(vectors_ND), size=30)]
    return (chosen_QD + random.normal(scale=0.1, size=chosen_QD.shape)).astype(np.float32)


@pytest.fixture(scope="module")
def codec(vectors_ND) -> Codec:
    training = TrainConfig(epochs=0, progress=False)
    return train(vectors_ND[: ROWS[0]], config=CONFIG, training=training)


@pytest.fixture
def folder(tmp_path, vectors_ND, queries_QD, codec) -> Path:
    np.save(tmp_path / "base.npy", vectors_ND)
    np.save(tmp_path / "queries.npy", queries_QD)
    codec.save(tmp_path / "codec")
    return tmp_path


@pytest.mark.parametrize("chunk_rows", [7, 8192])
def test_every_number_of_rows_is_measured_alone(
    folder, vectors_ND, queries_QD, codec, chunk_rows, monkeypatch
):
    monkeypatch.setattr("rqmoe_store.evaluation.growth_benchmark._CHUNK_ROWS", chunk_rows)
    settings = GrowthSettings(codecs=(str(folder / "codec"),), rows=ROWS, config=CONFIG)
    mapped_ND = np.load(folder / "base.npy", mmap_mode="r", allow_pickle=False)
    report = benchmark_growth(mapped_ND, queries_QD, settings=settings, console=Console(quiet=True))
    assert [result.rows for result in report.results] == list(ROWS)
    decoded_ND = codec.decode(codec.encode(vectors_ND))
    squared_N = np.square(vectors_ND - decoded_ND).sum(axis=1)
    for result, first in zip(report.results, (0, *ROWS), strict=False):
        truth_QK, _ = exact_neighbors(queries_QD, vectors_ND[: result.rows])
        found_QK, _ = exact_neighbors(queries_QD, decoded_ND[: result.rows])
        assert result.recall == pytest.approx(k_recall_at_k(found_QK, truth_QK, 10), abs=0.02)
        assert result.mse == pytest.approx(squared_N[first : result.rows].mean(), rel=1e-3)
    # What the codec has not been trained for has a larger error.
    assert report.results[-1].mse > 2 * report.results[0].mse


def test_prints_and_writes(folder) -> None:
    options = ["--rows", "300,900", "--codecs", f"{folder / 'codec'},faiss-eden-1"]
    options += ["--refine-bytes", "4", "--json", str(folder / "out.json")]
    files = ["--vectors", str(folder / "base.npy"), "--queries", str(folder / "queries.npy")]
    run = CliRunner().invoke(app, ["bench", "growth", *files, *options])
    assert run.exit_code == 0, run.output
    assert "10-recall@10 as the table grows" in run.stdout and "900 rows" in run.stdout
    record = json.loads((folder / "out.json").read_text())
    measured = [(result["codec"], result["code_bytes"], result["rows"]) for result in record["results"]]
    codecs = [(str(folder / "codec"), 4), (f"{folder / 'codec'}-4+pq", 8), ("faiss-eden-1", 9)]
    assert measured == [(*codec, rows) for codec in codecs for rows in (300, 900)]
    assert [len(table["rows"]) for table in record["tables"].values()] == [3, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rows", "300,901"], "Got 900 vectors and 30 queries; expected at least 901"),
        (["--rows", "300,200"], "expected ascending numbers"),
        (["--rows", "5,200"], "expected ascending numbers from 10"),
        (["--rows", "300", "--codecs", "faiss-rabitq-1"], "only its own library searches"),
        (["--rows", "300", "--codecs", "no-such"], "is unknown"),
        (["--rows", "300", "--vectors", "missing.npy"], "Cannot read --vectors"),
        (["--rows", "300", "--json", "."], "Cannot write --json"),
    ],
)
def test_mistakes_are_found_before_training(folder, options, message) -> None:
    files = ["--vectors", str(folder / "base.npy"), "--queries", str(folder / "queries.npy")]
    run = CliRunner().invoke(app, ["bench", "growth", *files, *options])
    assert message in message_of(run, before="Training")
