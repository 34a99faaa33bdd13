"""Measurement of a codec: a perfect codec has perfect figures, and figures follow their definitions."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from small_codecs import vectors

from rqmoe_store.evaluation.codec_measurement import Workbench, relative_error
from rqmoe_store.evaluation.contenders import Contender

pytestmark = pytest.mark.usefixtures("brief_timing")

ROWS, QUERIES = vectors(600), vectors(25, seed=1)
HELD_OUT = 150


class Shrinking:
    """A codec whose codes are the vectors, and whose reconstructions are nearer to 0."""

    artifact_bytes, epochs, settings = 77, 2.5, {"factor": 1}

    def __init__(self, factor: float) -> None:
        self.factor, self.largest = factor, 0
        self.saved: list[Path] = []

    def encode(self, vectors_ND):
        self.largest = max(self.largest, len(vectors_ND))
        return vectors_ND

    def decode(self, codes):
        return self.factor * codes

    def save(self, path: Path) -> None:
        self.saved.append(path)


def contender(codec, *, is_trained: bool = True, seen: list | None = None) -> Contender:
    def prepare(training_ND):
        if seen is not None:
            seen.append(training_ND)
        return codec

    return Contender("shrinking", 3, is_trained, torch.device("cpu"), prepare)


@pytest.fixture
def output() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def workbench(output) -> Workbench:
    return Workbench(ROWS, QUERIES, held_out=HELD_OUT, metric="l2", console=Console(file=output))


def test_a_perfect_codec_is_perfect(workbench) -> None:
    codec, result = workbench.measure(contender(Shrinking(1.0)), reference_mse=2.0, save=None)
    assert isinstance(codec, Shrinking)
    assert result.mse == 0 and result.relative_to_rq == 0
    for recall in (result.recall, result.unseen_recall):
        assert recall.one_recall_1 == recall.one_recall_100 == recall.ten_recall_10 == 1


def test_error_is_that_of_the_held_out_vectors(workbench) -> None:
    _, result = workbench.measure(contender(Shrinking(0.5)), reference_mse=2.0, save=None)
    wanted = (0.25 * ROWS[-HELD_OUT:] ** 2).sum(axis=1).mean()
    assert result.mse == pytest.approx(wanted, rel=1e-5)
    assert result.relative_to_rq == pytest.approx(wanted / 2, rel=1e-5)
    assert 0 < result.recall.ten_recall_10 < 1
    assert result.recall != result.unseen_recall
    assert (result.codec, result.code_bytes, result.artifact_bytes) == ("shrinking", 3, 77)
    assert (result.epochs, result.settings) == (2.5, {"factor": 1})
    assert result.peak_memory_bytes >= 0 and result.peak_cuda_bytes is None


def test_training_sees_everything_but_the_held_out_vectors(workbench, output) -> None:
    seen: list = []
    _, result = workbench.measure(contender(Shrinking(1.0), seen=seen), reference_mse=None, save=None)
    np.testing.assert_array_equal(seen[0], ROWS[:-HELD_OUT])
    assert result.training_seconds >= 0
    assert "Training shrinking, 3 bytes" in output.getvalue()


def test_a_loaded_codec_is_neither_trained_nor_saved(workbench, output, tmp_path) -> None:
    codec = Shrinking(1.0)
    _, result = workbench.measure(contender(codec, is_trained=False), reference_mse=1.0, save=tmp_path)
    assert result.training_seconds is None
    assert "Training" not in output.getvalue()
    assert codec.saved == []


def test_a_trained_codec_is_saved_under_its_name(workbench, tmp_path) -> None:
    codec = Shrinking(1.0)
    workbench.measure(contender(codec), reference_mse=1.0, save=tmp_path)
    assert codec.saved == [tmp_path / "shrinking-3"]


def test_memory_of_training_counts(workbench) -> None:
    def prepare(training_ND):
        np.ones(2**26, dtype=np.uint8)
        held = np.ones(2**26, dtype=np.uint8)
        for _ in range(100):  # long enough to be seen
            held += 1
        return Shrinking(1.0)

    hungry = Contender("hungry", 3, True, torch.device("cpu"), prepare)
    _, result = workbench.measure(hungry, reference_mse=1.0, save=None)
    assert result.peak_memory_bytes > 2**25


def test_stages_are_shown_on_a_terminal_only() -> None:
    for terminal in (True, False):
        shown = io.StringIO()
        console = Console(file=shown, force_terminal=terminal, width=80)
        bench = Workbench(ROWS, QUERIES, held_out=HELD_OUT, metric="l2", console=console)
        with bench.stage("encoding something") as show_share:
            show_share(0.5)
        assert ("encoding something" in shown.getvalue()) == terminal


def test_relative_error() -> None:
    assert relative_error(1.0, 4.0) == 0.25
    assert relative_error(1.0, 0.0) is None
