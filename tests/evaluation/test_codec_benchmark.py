"""The codec comparison on small data."""

import json
from pathlib import Path

import numpy as np
import pytest
from small_codecs import curved
from typer.testing import CliRunner

from rqmoe_store.cli import app
from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.codec_benchmark import benchmark_codecs

ROWS, QUERIES = curved(1500), curved(40, seed=1)
CONFIG = CodecConfig(codebook_size=16, num_partitions=0, num_experts=2, hidden_dim=16)
TRAINING = TrainConfig(epochs=12, batch_size=200, learning_rate=3e-3, progress=False)


def test_more_bytes_and_experts_lower_the_error() -> None:
    results = benchmark_codecs(
        ROWS,
        QUERIES,
        kinds=["rq", "rqmoe"],
        code_bytes=[2, 4],
        config=CONFIG,
        training=TRAINING,
        held_out=300,
    )
    assert [(result.kind, result.code_bytes) for result in results] == [
        ("rq", 2),
        ("rqmoe", 2),
        ("rq", 4),
        ("rqmoe", 4),
    ]
    rq_2, rqmoe_2, rq_4, rqmoe_4 = results
    assert rq_2.relative_to_rq == pytest.approx(1, rel=1e-3)
    assert rqmoe_2.validation_mse < rq_2.validation_mse
    assert rqmoe_4.relative_to_rq < 1
    assert rq_4.validation_mse < rq_2.validation_mse
    assert rq_4.ten_recall_10 > rq_2.ten_recall_10
    for result in results:
        assert 0 <= result.one_recall_1 <= result.one_recall_10 <= result.one_recall_100 <= 1
        assert 0 < result.unseen_ten_recall_10 <= 1


def test_too_few_vectors() -> None:
    with pytest.raises(InvalidInputError, match="Got 150 vectors to hold 100 out of"):
        benchmark_codecs(
            ROWS[:150], QUERIES, kinds=["rq"], code_bytes=[2], config=CONFIG, training=TRAINING, held_out=100
        )


def test_command_prints_and_writes(tmp_path: Path) -> None:
    np.save(tmp_path / "base.npy", ROWS)
    np.save(tmp_path / "queries.npy", QUERIES)
    arguments = [
        "bench", "codec", "--vectors", str(tmp_path / "base.npy"), "--queries", str(tmp_path / "queries.npy"),
        "--bytes", "2", "--codecs", "rq", "--held-out", "200", "--json", str(tmp_path / "out.json"),
    ]  # fmt: skip
    run = CliRunner().invoke(app, arguments)
    assert run.exit_code == 0, run.output
    for heading in ("codec", "training", "MSE", "x RQ", "1-R@100", "10-R@10 unseen"):
        assert heading in run.output  # whole, also where there is no terminal to fit
    (written,) = json.loads((tmp_path / "out.json").read_text())
    assert (written["kind"], written["code_bytes"]) == ("rq", 2)
    wrong = CliRunner().invoke(app, [*arguments, "--bytes", "many"])
    assert wrong.exit_code == 1
    assert "whole numbers" in wrong.output
