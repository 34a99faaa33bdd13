"""Several processes train the same codec as one process.

`make test` trains one codec in two processes that were forked; `make test-slow` all others, in two that
`accelerate launch` starts.
"""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from launched import ROWS, main_as, train_small
from other_processes import processes
from small_codecs import DIM, curved

from rqmoe_store.codecs.base import Codec, load_codec

pytest.importorskip("accelerate")

ROOT = Path(__file__).parents[2]
LAUNCH = [
    *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
    *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
    *("--main_process_port", "0"),
]


def launch(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The finished run of two processes."""
    paths = os.pathsep.join(str(path) for path in (ROOT, ROOT / "tests"))
    # No GPU: two processes on one would be refused. No configuration of accelerate's from elsewhere.
    environment = {**os.environ, "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": "", "HF_HOME": os.devnull}
    done = subprocess.run(
        [*LAUNCH, *(str(argument) for argument in arguments)],
        env=environment, capture_output=True, text=True, timeout=1800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def start_two(folder: Path, group: str) -> None:
    """Run a group of trainings in two processes that need not import anything."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [processes.Process(target=main_as, args=(rank, port, folder, group)) for rank in (0, 1)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    assert [process.exitcode for process in started] == [0, 0]


def make_table(folder: Path) -> None:
    rows = pa.FixedSizeListArray.from_arrays(pa.array(curved(ROWS).ravel()), DIM)
    lancedb.connect(folder).create_table("docs", pa.table({"vector": rows}))


def of_both(folder: Path, name: str) -> Codec:
    """The codec of that name, once it is clear that both processes returned the same."""
    first, second = (load_codec(folder / f"{name}-{rank}", device="cpu") for rank in (0, 1))
    assert first.fingerprint == second.fingerprint
    return first


def weights(codec: Codec) -> np.ndarray:
    """All that training changes, one after the other."""
    tensors = codec.coder.quantizer.state_dict()
    return np.concatenate([tensors[name].double().numpy().ravel() for name in sorted(tensors)])


def assert_close(codec: Codec, other: Codec, untrained: Codec, *, share: float = 0.1) -> None:
    """Trained alike: the weights are apart by no more than a small share of the way they came.

    Sums over a batch in another order are rounded otherwise, a vector here and there gets another
    code for it, and its gradient with it. In float32 that mostly shows in no digit; bfloat16 rounds
    to 2**-9, a sixteenth of the way or so after a few steps. Processes that disagree on the batch
    or leave a gradient out end up apart by as much as the way itself.
    """
    assert codec.report.epochs == other.report.epochs
    np.testing.assert_allclose(codec.report.prefix_mse, other.report.prefix_mse, rtol=share / 5)
    way = np.linalg.norm(weights(other) - weights(untrained))
    assert way > 0
    assert np.linalg.norm(weights(codec) - weights(other)) < share * way


def test_two_processes_train_the_codec_of_one(tmp_path: Path) -> None:
    make_table(tmp_path)
    start_two(tmp_path, "straight")
    alone, untrained = train_small(tmp_path), train_small(tmp_path, epochs=0)
    assert alone.report.validation_mse < alone.report.rq_validation_mse
    assert_close(of_both(tmp_path, "straight"), alone, untrained)


@pytest.mark.slow
def test_in_bfloat16_interrupted_resumed_and_by_command(tmp_path: Path) -> None:
    make_table(tmp_path)
    done = launch(ROOT / "tests/launched.py", tmp_path, "interrupted")
    alone, untrained = train_small(tmp_path), train_small(tmp_path, epochs=0)
    rounded = train_small(tmp_path, precision="bfloat16")
    assert_close(of_both(tmp_path, "bfloat16"), rounded, untrained, share=0.3)
    # 13 steps of 9 an epoch: Ctrl-C in process 1 stopped both of them after the same step.
    assert of_both(tmp_path, "interrupted").report.epochs == pytest.approx(13 / 9)
    assert_close(of_both(tmp_path, "resumed"), alone, untrained)
    # What two processes left, one goes on with.
    assert_close(train_small(tmp_path, checkpoint_dir=str(tmp_path / "checkpoint")), alone, untrained)
    # The command: process 0 alone speaks, and writes.
    assert done.stdout.count("Codec saved") == 1
    assert load_codec(tmp_path / "command", device="cpu").config.code_bytes == 2


@pytest.mark.slow
def test_decisions_of_the_main_process_are_those_of_all(tmp_path: Path) -> None:
    """By the clock, out of patience, back from NaN: nobody is left waiting, and all have one codec."""
    make_table(tmp_path)
    done = launch(ROOT / "tests/launched.py", tmp_path, "decisions")
    recoveries = [line for line in done.stderr.splitlines() if "went back to the weights of" in line]
    assert recoveries
    assert len(set(recoveries)) == len(recoveries), "only the main process speaks"
    for name, changes in {
        "long": {"epochs": 40, "learning_rate": 1e-3},
        "qinco": {"kind": "qinco", "epochs": 10},
    }.items():
        untrained = train_small(tmp_path, **{**changes, "epochs": 0})
        # The longer the training, the further apart two of them get that are rounded otherwise.
        assert_close(of_both(tmp_path, name), train_small(tmp_path, **changes), untrained, share=0.3)
    assert of_both(tmp_path, "clock").report.epochs < 10_000
    assert of_both(tmp_path, "diverged").report.epochs == 1
    assert of_both(tmp_path, "impatient").report.epochs == pytest.approx(50 / 9)
    assert of_both(tmp_path, "rq").config.kind == "rq"


@pytest.mark.slow
def test_the_command_of_the_readme(tmp_path: Path) -> None:
    make_table(tmp_path)
    command = ("-m", "rqmoe_store", "train", tmp_path, "docs", "--out", tmp_path / "codec", "--epochs", 1)
    done = launch(*command, "--checkpoint-dir", tmp_path / "checkpoint")
    assert done.stdout.count("Codec saved") == 1
    assert load_codec(tmp_path / "codec").report.epochs == 1
    shutil.rmtree(tmp_path / "codec")
    assert launch(*command, "--checkpoint-dir", tmp_path / "checkpoint").stdout.count("Codec saved") == 1
