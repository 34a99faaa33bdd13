"""What each process of training/test_distributed.py runs: trainings of one small table, one after the other.

Usage: python launched.py FOLDER [GROUP ...]. FOLDER holds the database; the codecs of each group of trainings
are saved beside it as NAME-RANK, so that they can be compared.
"""

import os
import signal
import sys
from pathlib import Path

import lancedb
from small_codecs import curved

from rqmoe_store.cli import app
from rqmoe_store.codecs.base import Codec
from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.training.loop import TrainingLoop
from rqmoe_store.training.trainer import train
from rqmoe_store.training.workers import leave_workers

ROWS = 801  # with batches of 100, the last one of an epoch is a single row: none for process 0 of 2
SMALL = {"code_bytes": 3, "codebook_size": 16, "num_experts": 2, "hidden_dim": 16, "beam": 2, "preselect": 8}


def train_small(folder: Path, *, kind: str = "rqmoe", **changes: object) -> Codec:
    """The codec of the table in `folder`, trained on the CPU with other settings than the defaults."""
    settings = {
        "epochs": 3, "batch_size": 100, "progress": False, "device": "cpu", "learning_rate": 3e-3,
        "precision": "float32",
    }  # fmt: skip
    return train(
        lancedb.connect(folder).open_table("docs"),
        config=CodecConfig(kind=kind, num_partitions=3, **SMALL),
        training=TrainConfig(**{**settings, **changes}),
        validation=curved(200, seed=5),
    )


def press_ctrl_c_at(step: int) -> None:
    """Interrupt the trainings to come during an optimizer step."""
    real_step = TrainingLoop._train_step

    def stepping(loop: TrainingLoop, share: float) -> None:
        if loop.step == step:
            signal.raise_signal(signal.SIGINT)
            TrainingLoop._train_step = real_step
        real_step(loop, share)

    TrainingLoop._train_step = stepping


def main(folder: Path, groups: list[str]) -> None:
    rank = os.environ["RANK"]

    def save(name: str, **changes: object) -> None:
        train_small(folder, **changes).save(folder / f"{name}-{rank}")

    if "straight" in groups:
        save("straight")
    if "decisions" in groups:
        save("long", epochs=40, learning_rate=1e-3)
        save("clock", epochs=None, max_minutes=0.05)
        save("qinco", kind="qinco", epochs=10)
        save("diverged", epochs=1, learning_rate=1e25)
        save("impatient", epochs=500, learning_rate=3.0, patience=1)
        save("rq", kind="rq")
    if "interrupted" in groups:
        save("bfloat16", precision="bfloat16")
        kept = {"checkpoint_dir": str(folder / "checkpoint")}
        if rank == "1":  # not the process that decides
            press_ctrl_c_at(12)
        save("interrupted", **kept)
        save("resumed", **kept)
        command = [
            "train",
            str(folder),
            "docs",
            "--out",
            str(folder / "command"),
            "--bytes",
            "2",
            "--epochs",
            "1",
        ]
        app(command, standalone_mode=False)  # last: it takes leave of the other process


def main_as(rank: int, port: int, folder: Path, group: str) -> None:
    """`main` in a process that is told what a launcher tells those that it starts, without the launcher."""
    os.environ |= {
        "WORLD_SIZE": "2",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "CUDA_VISIBLE_DEVICES": "",  # two processes on one GPU would be refused
    }
    main(folder, [group])
    leave_workers()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
