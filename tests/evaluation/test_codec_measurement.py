"""Measuring codecs: errors are those of their definitions, and counted work is what torch does."""

import io
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from small_codecs import SHAPES, as_codec, small_config, stirred, vectors
from torch.utils.flop_counter import FlopCounterMode

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.codec_measurement import (
    Workbench,
    cyclic_file,
    decode_multiply_adds,
    mean_squared_error,
    measure_matmul_rate,
    measure_scaling,
    measure_speed,
    relative_error,
    require_disk,
)
from rqmoe_store.evaluation.contenders import Contender, SearchedCodec
from rqmoe_store.evaluation.recall import exact_neighbors

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


def test_a_codec_that_is_searched_has_recall_alone(workbench, tmp_path) -> None:
    """It finds the neighbors among all vectors in the wrong order, and all those among held-out vectors."""
    searched: list[int] = []

    def search(vectors_ND, queries_QD, k):
        searched.append(len(vectors_ND))
        found_QK, _ = exact_neighbors(queries_QD, vectors_ND, k)
        return found_QK[:, ::-1] if len(vectors_ND) == len(ROWS) else found_QK

    codec = SearchedCodec(settings={"bits": 1}, search=search)
    made, result = workbench.measure(contender(codec), reference_mse=1.0, save=tmp_path)
    assert made is codec and searched == [len(ROWS), HELD_OUT]
    assert (result.codec, result.code_bytes, result.settings) == ("shrinking", 3, {"bits": 1})
    assert result.recall.one_recall_1 == result.recall.ten_recall_10 == 0
    assert result.recall.one_recall_100 == result.unseen_recall.ten_recall_10 == 1
    assert result.training_seconds >= 0 and result.peak_memory_bytes >= 0
    for name in ("mse", "relative_to_rq", "epochs", "encode_microseconds", "decode_microseconds"):
        assert getattr(result, name) is None
    assert result.artifact_bytes is None
    assert list(tmp_path.iterdir()) == []


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


SCALED_ROWS = vectors(70)


@pytest.mark.parametrize("rows", [5, 70, 20_000])
def test_the_file_repeats_the_vectors_and_is_removed(rows, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with cyclic_file(SCALED_ROWS, rows) as many:
        assert isinstance(many, np.memmap)
        np.testing.assert_array_equal(many, SCALED_ROWS[np.arange(rows) % 70])
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []


def test_counts_are_measured_from_small_to_large() -> None:
    codec = as_codec(stirred(small_config(beam=1)))
    with cyclic_file(SCALED_ROWS, 3000) as many:
        rows = list(measure_scaling(codec, "a name", many, [3000, 100]))
    assert [(row.codec, row.code_bytes, row.vectors) for row in rows] == [
        ("a name", 4, 100),
        ("a name", 4, 3000),
    ]
    assert all(row.vectors_per_second > 0 and row.memory_growth_bytes >= 0 for row in rows)


def test_no_room(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    require_disk(1000, 32)
    with pytest.raises(InvalidInputError, match="TMPDIR"):
        require_disk(10**15, 32)
    assert list(Path(tmp_path).iterdir()) == []


TIMED = vectors(300, seed=4)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_multiply_adds_are_those_of_torch(shape) -> None:
    quantizer = stirred(small_config(**shape))
    codes = torch.zeros(10, quantizer.num_steps, dtype=torch.long)
    partitions = torch.zeros(10, dtype=torch.long)
    folded = quantizer.fold()
    # In a format that is decoded by matrix products: the compiled loop is not torch's, and skips zeros.
    folded = None if folded is None else folded.to(torch.bfloat16)
    with FlopCounterMode(display=False) as counter:
        quantizer.decode(codes, partitions, folded)
    products = counter.get_total_flops() // 2 // 10  # it counts matrix products, two for a multiply-add
    additions = quantizer.num_steps * quantizer.dim
    assert decode_multiply_adds(quantizer.config, quantizer.dim) == products + additions


def test_one_step_without_partitions_has_no_experts() -> None:
    config = small_config(kind="rqmoe", code_bytes=1)
    assert decode_multiply_adds(config, 12) == 12


@pytest.mark.parametrize("name", ["rqmoe, partitions", "rq"])
def test_rows_compare_with_the_default_of_their_work(name) -> None:
    codec = as_codec(stirred(small_config(**SHAPES[name])))
    rows = measure_speed(codec, "a name", TIMED, matmul_rate=1e9)
    assert [(row.work, row.form, row.vectors) for row in rows] == [
        ("encode", "default (beam 4)", 4096),
        ("encode", "exhaustive (beam 1)", 256),
        ("decode", "default", 4096),
        ("decode", "step by step", 4096),
        ("decode", "bfloat16", 256),
    ]
    assert {(row.codec, row.code_bytes) for row in rows} == {("a name", 4)}
    beam, exhaustive, default, sequential, _ = rows
    assert default.times_default == beam.times_default == 1
    assert exhaustive.times_default == pytest.approx(exhaustive.microseconds / beam.microseconds)
    assert default.multiply_adds == decode_multiply_adds(codec.config, codec.dim)
    wanted_share = default.multiply_adds / (default.microseconds / 1e6) / 1e9
    assert default.matmul_share == pytest.approx(wanted_share)
    assert sequential.multiply_adds is None and exhaustive.matmul_share is None


def test_errors_are_those_of_the_forms_on_the_same_vectors() -> None:
    codec = as_codec(stirred(small_config()))
    beam, exhaustive, default, sequential, rounded = measure_speed(codec, "rqmoe", TIMED, matmul_rate=1e9)
    few = TIMED[:256]
    best = mean_squared_error(few, codec.decode(codec.encode(few)))
    alone = mean_squared_error(few, codec.decode(codec.encode(few, beam=1, preselect=None)))
    assert default.mse == beam.mse == pytest.approx(best)
    assert sequential.mse == pytest.approx(best, rel=1e-4)
    assert rounded.mse == pytest.approx(best, rel=1e-2)
    assert exhaustive.mse == pytest.approx(alone)
    assert alone != pytest.approx(best, rel=1e-3)


def test_fewer_vectors_than_are_timed() -> None:
    codec = as_codec(stirred(small_config()))
    (default, *_) = measure_speed(codec, "rqmoe", TIMED[:5], matmul_rate=1e9)
    assert default.mse == pytest.approx(mean_squared_error(TIMED[:5], codec.decode(codec.encode(TIMED[:5]))))


def test_mean_squared_error() -> None:
    decoded = np.array([[1.0, 2.0], [3.0, 0.0]], dtype=np.float32)
    assert mean_squared_error(np.zeros((2, 2), dtype=np.float32), decoded) == pytest.approx((5 + 9) / 2)


def test_matmul_rate_is_a_rate() -> None:
    assert 1e7 < measure_matmul_rate(torch.device("cpu")) < 1e14
