"""Checkpoints on disk and whose they are, and the best weights so far."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_codecs import small_config, stirred
from small_damage import damaged

from rqmoe_store.config import TrainConfig
from rqmoe_store.errors import ArtifactError
from rqmoe_store.training.checkpoint import (
    BestWeights,
    Checkpoint,
    read_checkpoint,
    run_identity,
    write_checkpoint,
)

VECTORS = torch.ones(4, 12)


def identity(vectors: torch.Tensor = VECTORS, **settings: object) -> dict[str, object]:
    return run_identity(vectors, small_config(), TrainConfig(**settings))


def write(folder: Path, **settings: object) -> None:
    tensors = {"weights.a": torch.arange(3), "weights.b": torch.zeros(()), "best.a": torch.ones(2, 2)}
    write_checkpoint(Checkpoint(identity(**settings), {"step": 3, "mse": float("inf")}, tensors), str(folder))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert read_checkpoint(str(tmp_path / "new"), identity()) is None
    write(tmp_path / "new")
    checkpoint = read_checkpoint(str(tmp_path / "new"), identity())
    assert checkpoint is not None
    assert checkpoint.counters == {"step": 3, "mse": float("inf")}
    assert checkpoint.group("weights")["a"].tolist() == [0, 1, 2]
    assert set(checkpoint.group("best")) == {"a"}
    assert checkpoint.group("optimizer") == {}


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (
            {"learning_rate": 1e-4},
            r"TrainConfig\.learning_rate is 0\.003 in the checkpoint and 0\.0001 now\. Give the settings",
        ),
        (
            {"patience": 4, "seed": 2},
            r"TrainConfig\.(seed|patience) is (0|None) .* and (2|4) now; TrainConfig\.(seed|patience)",
        ),
        (
            {"vectors": VECTORS * 2},
            r"training vectors is data with hash .*another checkpoint_dir to start anew",
        ),
    ],
)
def test_the_checkpoint_of_another_run(tmp_path: Path, now: dict[str, object], message: str) -> None:
    write(tmp_path, learning_rate=3e-3)
    with pytest.raises(ArtifactError, match=message):
        read_checkpoint(str(tmp_path), identity(**{"learning_rate": 3e-3, **now}))


def test_added_and_removed_settings_are_named(tmp_path: Path) -> None:
    write(tmp_path)
    newer = {**identity(), "TrainConfig.charm": 1}
    with pytest.raises(ArtifactError, match=r"TrainConfig\.charm is not there in the checkpoint and 1 now"):
        read_checkpoint(str(tmp_path), newer)
    older = identity()
    del older["TrainConfig.seed"]
    with pytest.raises(ArtifactError, match=r"TrainConfig\.seed is 0 in the checkpoint and not there now"):
        read_checkpoint(str(tmp_path), older)


def test_settings_that_change_no_figure_may_change(tmp_path: Path) -> None:
    write(tmp_path, checkpoint_minutes=3.0)
    assert read_checkpoint(str(tmp_path), identity(progress=False, device="cpu", checkpoint_dir="x"))


def test_a_damaged_checkpoint(tmp_path: Path) -> None:
    write(tmp_path)
    path = next(tmp_path.iterdir())
    whole, random = path.read_bytes(), np.random.default_rng(0)
    for content in (whole[:100], b"", *(damaged(whole, random) for _ in range(1000))):
        path.write_bytes(content)
        if content != whole:
            with pytest.raises(ArtifactError, match=r"is damaged .* Delete it"):
                read_checkpoint(str(tmp_path), identity())


QUANTIZER = stirred(small_config())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1) | st.just(math.nan) | st.just(math.inf), max_size=8))
def test_the_lowest_error_is_kept_and_stale_validations_are_counted(errors: list[float]) -> None:
    best = BestWeights(QUANTIZER, 0.5)
    for step, error in enumerate(errors, start=1):
        QUANTIZER.mean_D.fill_(step)
        best.offer(QUANTIZER, error, step)
    lowest = min([0.5, *(error for error in errors if not math.isnan(error))])
    first = 0 if lowest == 0.5 else errors.index(lowest) + 1
    assert (best.mse, best.step, best.stale) == (lowest, first, len(errors) - first)
    if first:
        assert float(best.weights["mean_D"][0]) == first


def test_kept_weights_are_a_copy() -> None:
    QUANTIZER.mean_D.fill_(1.0)
    best = BestWeights(QUANTIZER, 0.5)
    QUANTIZER.mean_D.fill_(2.0)
    assert torch.equal(best.weights["mean_D"], torch.ones_like(QUANTIZER.mean_D))
    other = BestWeights(QUANTIZER, 0.7)
    other.restore(best.counters(), best.weights)
    assert other.counters() == best.counters()
    assert torch.equal(other.weights["mean_D"], best.weights["mean_D"])
