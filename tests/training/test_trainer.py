"""Training end to end on small data: it learns, repeats, stops and resumes."""

import dataclasses
import functools
import signal
import time
from collections.abc import Callable
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import torch
from small_codecs import DIM, curved, vectors

from rqmoe_store.codecs.artifact import TrainingReport
from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.quantizer import ResidualQuantizer
from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.errors import ArtifactError, InvalidInputError, TableError
from rqmoe_store.training import trainer
from rqmoe_store.training.loop import TrainingLoop
from rqmoe_store.training.loss import validation_mse
from rqmoe_store.training.trainer import train

ROWS = vectors(1250)
SMALL = {"code_bytes": 3, "codebook_size": 16, "num_experts": 2, "hidden_dim": 16, "beam": 2, "preselect": 8}


def config(**changes: object) -> CodecConfig:
    return CodecConfig(**{**SMALL, **changes})


def quick(**changes: object) -> TrainConfig:
    settings = {"epochs": 3, "batch_size": 125, "progress": False, "device": "cpu", "learning_rate": 3e-3}
    return TrainConfig(**{**settings, **changes})


def weights(codec: Codec) -> bytes:
    return codec.to_artifact().weights


def outcome(codec: Codec) -> tuple[bytes, TrainingReport]:
    """All of a codec that a seed decides: everything but the time it took."""
    return weights(codec), dataclasses.replace(codec.report, seconds=0.0)


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"num_partitions": 4}, {"kind": "qinco"}, {"metric": "cosine"}, {"kind": "rq"},
        pytest.param({"num_layers": 2}, marks=pytest.mark.slow),
        pytest.param({"network_dim": 6}, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_training_lowers_the_validation_error(changes: dict[str, object]) -> None:
    codec = train(curved(1200), config=config(**changes), training=quick(epochs=10, batch_size=100))
    held_out = curved(500, seed=77)
    decoded = codec.decode(codec.encode(held_out))
    if codec.config.metric == "cosine":
        held_out = held_out / np.linalg.norm(held_out, axis=1, keepdims=True)
    error = np.square(held_out - decoded).sum(axis=1).mean()
    assert error == pytest.approx(codec.report.validation_mse, rel=0.25)
    if codec.config.kind == "rq":
        assert codec.report.validation_mse == codec.report.rq_validation_mse
    else:
        assert codec.report.validation_mse < 0.99 * codec.report.rq_validation_mse
    assert codec.report.prefix_mse[0] > codec.report.prefix_mse[-1]
    assert 0.9 < codec.report.utilisation <= 1


def test_a_seed_repeats_bit_for_bit() -> None:
    first, second, other = (
        train(ROWS, config=config(num_partitions=3), training=quick(seed=seed)) for seed in (1, 1, 2)
    )
    assert outcome(first) == outcome(second)
    assert weights(first) != weights(other)


@pytest.mark.parametrize("kind", ["rqmoe", "rq"])
def test_figures_are_those_of_the_weights_that_are_stored(kind: str) -> None:
    started = time.monotonic()
    rows = vectors(300, seed=5)
    codec = train(ROWS, config=config(kind=kind), training=quick(), validation=rows)
    took = time.monotonic() - started
    assert 0 < codec.report.seconds <= took
    assert codec.truncate(2).report.seconds == codec.report.seconds
    stored = safetensors.torch.load(weights(codec))
    assert stored["quantizer.codebooks_MKD.exponents"].dtype == torch.int8  # stored packed
    loaded = Codec.from_artifact(codec.to_artifact(), device="cpu")
    error = np.square(rows - loaded.decode(loaded.encode(rows))).sum(axis=1).mean()
    assert codec.report.validation_mse == pytest.approx(error, rel=1e-5)


@pytest.mark.parametrize("kind", ["rqmoe", "qinco"])
def test_rounding_the_weights_costs_next_to_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ResidualQuantizer, "round_weights", lambda quantizer: None)
        quantizer = train(
            curved(1200), config=config(kind=kind, num_partitions=4), training=quick(batch_size=100)
        )._coder.quantizer
    held_out_nD = torch.from_numpy(curved(1000, seed=77))
    exact = validation_mse(quantizer, held_out_nD)
    quantizer.round_weights()
    rounded = validation_mse(quantizer, held_out_nD)
    assert rounded != exact
    assert rounded[-1] < 1.01 * exact[-1]


def test_no_epochs_gives_the_untrained_rq() -> None:
    codec = train(ROWS, config=config(), training=quick(epochs=0))
    # Mixtures may have given better codebooks than the plain RQ it is compared with.
    assert codec.report.validation_mse <= codec.report.rq_validation_mse * (1 + 1e-6)
    plain = train(curved(2500), config=config(), training=quick(epochs=0))
    assert plain.report.validation_mse == pytest.approx(plain.report.rq_validation_mse, rel=1e-6)


def test_wide_vectors_train() -> None:
    """D = 4096 trains in its narrower network."""
    wide = np.random.default_rng(0).standard_normal((300, 4096)).astype(np.float32)
    wide[:, :8] *= 30
    codec = train(
        wide,
        config=config(code_bytes=2, num_experts=1, hidden_dim=8, expert_dim=8, network_dim=32),
        training=quick(epochs=2, batch_size=100),
    )
    assert codec.decode(codec.encode(wide[:3])).shape == (3, 4096)


def test_max_minutes_ends_training() -> None:
    codec = train(ROWS, config=config(), training=quick(epochs=None, max_minutes=0.02))
    assert codec.report.epochs < 10_000  # none at all, if this machine needs all the time for k-means


def test_arrays_tensors_and_tables_are_sampled_alike(tmp_path: Path) -> None:
    table = lancedb.connect(tmp_path).create_table(
        "docs", pa.table({"embedding": pa.FixedSizeListArray.from_arrays(pa.array(ROWS.ravel()), DIM)})
    )
    from_array = train(ROWS, config=config(), training=quick(epochs=1))
    from_tensor = train(torch.from_numpy(ROWS), config=config(), training=quick(epochs=1))
    from_table = train(table, "embedding", config=config(), training=quick(epochs=1))
    assert outcome(from_array) == outcome(from_tensor)
    assert from_table.report.validation_mse == pytest.approx(from_array.report.validation_mse, rel=0.2)


def test_validation_vectors_of_the_caller() -> None:
    codec = train(ROWS, config=config(), training=quick(epochs=1), validation=vectors(40, seed=5))
    assert codec.report.validation_rows == 40
    assert codec.report.rows == len(ROWS)


def do_before_step(
    monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[TrainingLoop], None]
) -> None:
    """Have trainings do something when they begin a given optimizer step."""
    real_step = TrainingLoop._train_step

    def stepping(loop: TrainingLoop, share: float) -> None:
        if loop.step == step:
            action(loop)
        real_step(loop, share)

    monkeypatch.setattr(TrainingLoop, "_train_step", stepping)


def press_ctrl_c(loop: TrainingLoop) -> None:
    signal.raise_signal(signal.SIGINT)


@functools.cache
def uninterrupted() -> tuple[bytes, TrainingReport]:
    return outcome(train(ROWS, config=config(), training=quick()))


@pytest.mark.parametrize("step", [0, 4, 9, 13])
def test_interrupted_and_resumed_equals_uninterrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    straight = uninterrupted()
    with monkeypatch.context() as patch:
        do_before_step(patch, step, press_ctrl_c)
        partial = train(ROWS, config=config(), training=quick(checkpoint_dir=str(tmp_path)))
    assert partial.report.epochs == pytest.approx((step + 1) / 9)
    resumed = train(ROWS, config=config(), training=quick(checkpoint_dir=str(tmp_path)))
    assert outcome(resumed) == straight


def test_ctrl_c_without_checkpoints_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    do_before_step(monkeypatch, 2, press_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        train(ROWS, config=config(), training=quick())


def test_the_handler_of_ctrl_c_is_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    train(ROWS, config=config(), training=quick(epochs=1, checkpoint_dir=str(tmp_path)))
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("other_config", "other_training", "data", "named"),
    [
        ({"code_bytes": 2}, {}, ROWS, "CodecConfig.code_bytes is 3 in the checkpoint and 2 now"),
        ({}, {"learning_rate": 1e-4}, ROWS, "TrainConfig.learning_rate is 0.003 in the checkpoint and"),
        ({}, {}, ROWS[:-1], "training vectors is data with hash"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(
    tmp_path: Path,
    other_config: dict[str, object],
    other_training: dict[str, object],
    data: np.ndarray,
    named: str,
) -> None:
    train(ROWS, config=config(), training=quick(epochs=1, checkpoint_dir=str(tmp_path)))
    with pytest.raises(ArtifactError, match=f"belongs to another run: {named}"):
        train(
            data,
            config=config(**other_config),
            training=quick(**{"epochs": 1, "checkpoint_dir": str(tmp_path), **other_training}),
        )


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    settings = quick(epochs=1, checkpoint_dir=str(tmp_path))
    train(ROWS, config=config(), training=settings)
    path = next(tmp_path.iterdir())
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ArtifactError, match="is damaged"):
        train(ROWS, config=config(), training=settings)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (ROWS[:10], "Got 10 vectors to train on; expected at least 16"),
        (np.ones((100, DIM)), "vectors are the same"),
        (np.empty((0, DIM)), "no vectors"),
        (np.full((100, DIM), np.nan), "100 of 100 vectors contain NaN"),
        ([["text"] * DIM] * 100, "text"),
        ([[1.0] * DIM, [1.0]], "same length"),
        (ROWS[:, 0], "two dimensions"),
    ],
)
def test_unusable_training_vectors(data: object, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        train(data, config=config(), training=quick())


def test_zero_vectors_under_cosine() -> None:
    rows = ROWS.copy()
    rows[7] = 0
    with pytest.raises(InvalidInputError, match="rows 7 "):
        train(rows, config=config(metric="cosine"), training=quick())


def test_training_that_always_diverges_is_an_error() -> None:
    with (
        pytest.warns(UserWarning, match="went back to the weights of step 0"),
        pytest.raises(InvalidInputError, match="lower learning_rate"),
    ):
        train(ROWS, config=config(num_layers=3), training=quick(epochs=40, learning_rate=1e25))


def test_training_that_diverged_once_gives_a_usable_codec(monkeypatch: pytest.MonkeyPatch) -> None:
    def make_weights_huge(loop: TrainingLoop) -> None:
        with torch.no_grad():
            loop.quantizer.codebooks_MKD.mul_(1e30)  # squared, more than float32 and bfloat16 can hold

    do_before_step(monkeypatch, 30, make_weights_huge)
    with pytest.warns(
        UserWarning, match=r"became (nan|inf) at step 30; went back .* step 0, .*learning_rate=0\.0015"
    ):
        codec = train(curved(1500), config=config(), training=quick(epochs=12))
    assert codec.report.epochs == 12
    assert codec.report.validation_mse < codec.report.rq_validation_mse
    held_out = curved(200, seed=5)
    error = np.square(held_out - codec.decode(codec.encode(held_out))).sum(axis=1).mean()
    assert error == pytest.approx(codec.report.validation_mse, rel=0.25)


def test_patience_stops_early() -> None:
    settings = quick(epochs=500, learning_rate=3.0, patience=1)
    codec = train(ROWS, config=config(), training=settings)
    assert codec.report.epochs == pytest.approx(50 / 9)


def test_unknown_device() -> None:
    with pytest.raises(InvalidInputError, match="device='tpu'"):
        train(ROWS, config=config(), training=quick(device="tpu"))


def test_an_empty_table(tmp_path: Path) -> None:
    schema = pa.schema([("vector", pa.list_(pa.float32(), DIM))])
    table = lancedb.connect(tmp_path).create_table("docs", schema=schema)
    with pytest.raises(TableError, match="no vectors"):
        train(table, config=config(), training=quick())


def test_look_up_tables_are_fitted_on_as_many_vectors_as_there_is_time_for(monkeypatch) -> None:
    """Vectors are counted, not seconds."""
    vectors = np.random.default_rng(0).normal(size=(6000, 8)).astype(np.float32)
    config = CodecConfig(kind="rq", code_bytes=2, codebook_size=16, num_partitions=0)

    def slow(cls: type, *_: object) -> trainer.FinishingTime:
        return cls(per_row=60.0, measuring=1.0)  # type: ignore[no-any-return]

    monkeypatch.setattr(trainer.FinishingTime, "measured", classmethod(slow))
    codec = train(vectors, config=config, training=TrainConfig(max_minutes=0.5, progress=False))
    assert len(codec.calibration) == trainer._LEAST_CALIBRATION_ROWS
    refined = dataclasses.replace(config, refine_bytes=6)
    codec = train(vectors, config=refined, training=TrainConfig(max_minutes=0.5, progress=False))
    assert codec.report.refined_mse < 0.5 * codec.report.validation_mse
    codec = train(vectors, config=config, training=TrainConfig(epochs=0, progress=False))
    assert len(codec.calibration) == 5400
    time = trainer.FinishingTime(per_row=0.001, measuring=2.0)
    assert time.reserved(10**6, 10) == pytest.approx(2 + 0.001 * trainer.CALIBRATION_ROWS)
    assert time.reserved(10**6, 0.1) == pytest.approx(60 * 0.1 * trainer._MOST_RESERVED)
    assert time.rows_within(7.0) == 5000 and time.rows_within(1000.0) == trainer.CALIBRATION_ROWS
