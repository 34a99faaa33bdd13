"""Checkpoints on disk, and the run that they belong to."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_codecs import small_config
from small_damage import damaged

from rqmoe_store.config import TrainConfig
from rqmoe_store.errors import ArtifactError
from rqmoe_store.training.checkpoint import Checkpoint, read_checkpoint, run_identity, write_checkpoint

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
