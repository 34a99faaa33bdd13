"""Training on a GPU: the same weights again for a seed, few waits, bounded memory."""

import collections
import contextlib
import functools
import time
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from small_codecs import DIM, curved, small_config, untrained
from torch.utils._python_dispatch import TorchDispatchMode

from rqmoe_store.codecs.artifact import TrainingReport
from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.grouped_sums import GroupedSums
from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.progress import TrainingProgress
from rqmoe_store.training import initialize as initialization
from rqmoe_store.training.initialize import Start
from rqmoe_store.training.loop import TrainingLoop
from rqmoe_store.training.trainer import train
from rqmoe_store.training.workers import LaunchedWorkers, Workers

ROWS = curved(600)
KINDS: dict[str, dict[str, Any]] = {
    "rqmoe": {"num_partitions": 0},
    "narrow, partitions": {"network_dim": 5, "num_layers": 2, "num_partitions": 3, "metric": "cosine"},
    "qinco": {"kind": "qinco", "num_partitions": 0},
    "rq": {"kind": "rq", "num_partitions": 3},
}


def trained(shape: str, device: str = "cuda", **settings: Any) -> Codec:
    config = {"code_bytes": 3, "codebook_size": 16, "num_experts": 2, "hidden_dim": 8, **KINDS[shape]}
    defaults = {"epochs": 3, "batch_size": 128, "precision": "float32"}
    training = TrainConfig(**{**defaults, **settings}, device=device, progress=False)  # type: ignore[arg-type]
    return train(ROWS, config=CodecConfig(**config), training=training)


@functools.cache
def usual(shape: str) -> tuple[bytes, TrainingReport]:
    """Weights and report of a training on the GPU that there is, with the usual settings."""
    codec = trained(shape)
    assert codec.device == torch.device("cuda:0")
    return codec.to_artifact().weights, codec.report


def loop_of(
    shape: str, *, mixing: bool = False, workers: Workers | None = None, **settings: Any
) -> TrainingLoop:
    """A loop of batches of 128, 128 and 44 vectors."""
    device = torch.device("cuda:0")
    quantizer = untrained(small_config(**KINDS[shape])).to(device).requires_grad_(True)
    rows = quantizer.normalize(torch.from_numpy(ROWS).to(device))
    defaults = {"epochs": 100, "batch_size": 128, "precision": "float32", "learning_rate": 3e-3}
    return TrainingLoop(
        Start(quantizer, rq_prefix_mse=(1.0,), rq_mse=1.0, mixing=mixing),
        rows[:300],
        rows[300:],
        TrainConfig(**{**defaults, **settings}, device="cuda", progress=False),
        started=time.monotonic(),
        workers=workers or Workers(device),
        progress=TrainingProgress(visible=False),
    )


def step(loop: TrainingLoop, count: int) -> TrainingLoop:
    for _ in range(count):
        loop._train_step(0.1)
        loop._finish_step()
    return loop


def require_same_state(found: TrainingLoop, expected: TrainingLoop, gpu: object) -> None:
    """Require the same weights, moments and numbers: on a real GPU up to its choice of kernels."""
    tolerance = 1e-4 if gpu is None else 0.0
    made, wanted = found.snapshot({}), expected.snapshot({})
    assert made.tensors.keys() == wanted.tensors.keys()
    for name, value in wanted.tensors.items():
        np.testing.assert_allclose(
            made.tensors[name].detach().cpu().numpy(),
            value.detach().cpu().numpy(),
            rtol=tolerance,
            atol=tolerance,
            err_msg=name,
        )
    assert made.counters["step"] == wanted.counters["step"]
    np.testing.assert_allclose(found.loss, expected.loss, rtol=tolerance)


@pytest.mark.parametrize("shape", ["rqmoe", "narrow, partitions", "qinco"])
def test_a_recorded_step_moves_weights_like_one_launched_kernel_by_kernel(gpu, shape: str) -> None:
    mixing = shape == "rqmoe"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recorded = step(loop_of(shape, mixing=mixing), 12)
    assert recorded.training_step.num_recordings == 2  # one for the last batch of an epoch
    launched = step(loop_of(shape, mixing=mixing, cuda_graphs=False), 12)
    assert launched.training_step.num_recordings == 0
    require_same_state(recorded, launched, gpu)


def test_a_recorded_step_that_fails_leaves_weights_to_be_rolled_back(gpu) -> None:
    loops = loop_of("rqmoe"), loop_of("rqmoe", cuda_graphs=False)
    for loop in loops:
        step(loop, 5)
        loop.schedule.rate_factor = 1e25
        step(loop, 1)
        with pytest.warns(
            UserWarning, match=r"became (nan|inf) at step 6; went back to the weights of step 0"
        ):
            step(loop, 1)
        assert not loop.optimizer.tensors()
        loop.schedule.rate_factor = 1.0
        step(loop, 6)
    assert loops[0].training_step.num_recordings == 1
    require_same_state(*loops, gpu)


def refuse(cuda: Any) -> None:
    cuda.refuse_recordings = 1


def have_no_memory(cuda: Any) -> None:
    def exhaust() -> None:
        cuda.while_recording = lambda: None
        raise torch.OutOfMemoryError("CUDA out of memory.")

    cuda.while_recording = exhaust


@pytest.mark.parametrize("hinder", [refuse, have_no_memory])
def test_training_goes_on_where_a_step_cannot_be_recorded(cuda, hinder: Any) -> None:
    hinder(cuda)
    with pytest.warns(UserWarning, match=r"step on 128 vectors could not be recorded.* CUDA.*goes on"):
        loop = step(loop_of("rqmoe"), 12)
    assert cuda.recorded == loop.training_step.num_recordings == 0
    require_same_state(loop, step(loop_of("rqmoe", cuda_graphs=False), 12), cuda)


def test_a_step_that_would_wait_cannot_be_recorded(cuda, monkeypatch) -> None:
    """The simulation notices what a real GPU would refuse."""
    loop = loop_of("rqmoe")
    norm_of = loop.optimizer.gradient_norm

    def waiting() -> torch.Tensor:
        norm = norm_of()
        float(norm)
        return norm

    monkeypatch.setattr(loop.optimizer, "gradient_norm", waiting)
    with pytest.warns(UserWarning, match="not permitted when stream is capturing"):
        step(loop, 6)


def test_several_processes_do_not_record(cuda, monkeypatch) -> None:
    monkeypatch.setattr(LaunchedWorkers, "sum_", lambda self, tensor: tensor)
    monkeypatch.setattr(LaunchedWorkers, "broadcast_", lambda self, tensors: None)
    monkeypatch.setattr(LaunchedWorkers, "broadcast_json", lambda self, value: value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop = step(loop_of("rqmoe", workers=LaunchedWorkers(torch.device("cuda:0"), 0, 2)), 8)
    assert cuda.recorded == loop.training_step.num_recordings == 0


def test_nothing_in_a_step_waits_for_a_real_gpu(real_gpu) -> None:
    loop = step(loop_of("rqmoe", mixing=True, cuda_graphs=False), 4)
    batch_BD = loop.batches.at(4)
    with waits_forbidden():
        outcome_2 = loop.training_step.launch(batch_BD, 1e-3)
        loop.batches.prepare(5)
    assert outcome_2.isfinite().all()


@contextlib.contextmanager
def waits_forbidden() -> Any:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("shape", ["narrow, partitions", "qinco"])
def test_a_seed_gives_the_same_codec_again(gpu, shape: str) -> None:
    weights, report = usual(shape)
    assert trained(shape).to_artifact().weights == weights
    assert report.validation_mse < report.variance / 2
    on_cpu = trained(shape, "cpu").report
    np.testing.assert_allclose(report.validation_mse, on_cpu.validation_mse, rtol=0.2)


def test_a_resumed_run_goes_on_where_it_stopped(gpu, tmp_path) -> None:
    settings = {"checkpoint_dir": tmp_path, "checkpoint_minutes": 1e-9}
    whole = trained("rqmoe", **settings)
    assert trained("rqmoe", **settings).to_artifact().weights == whole.to_artifact().weights


def test_a_step_decomposes_no_matrix(cuda, monkeypatch) -> None:
    def refused(matrix: torch.Tensor) -> None:
        raise AssertionError("a decomposition takes a GPU longer than the rest of a step")

    train_step = TrainingLoop._train_step

    def step(loop: TrainingLoop, share: float) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.linalg, "qr", refused)
            train_step(loop, share)

    monkeypatch.setattr(TrainingLoop, "_train_step", step)
    trained("narrow, partitions", epochs=1)


@pytest.mark.parametrize("shape", ["rqmoe", "narrow, partitions"])
def test_a_step_waits_once_for_the_gpu(cuda, monkeypatch, shape: str) -> None:
    waits: list[dict[str, int]] = []
    train_step = TrainingLoop._train_step

    def counted(loop: TrainingLoop, share: float) -> None:
        before = cuda.waits.copy()
        train_step(loop, share)
        waits.append(dict(collections.Counter(cuda.waits) - before))

    monkeypatch.setattr(TrainingLoop, "_train_step", counted)
    trained(shape)
    assert len(waits) > 8
    assert all(each == {"tolist in training/loop.py, _train_step": 1} for each in waits), waits


@pytest.mark.parametrize("name", ["autocast", "default device"])
def test_settings_of_the_caller_do_not_change_training(gpu, name: str) -> None:
    expected, _ = usual("narrow, partitions")
    context = torch.autocast("cuda", torch.bfloat16) if name == "autocast" else torch.device("cuda")
    with context:
        found = trained("narrow, partitions")
    assert found.to_artifact().weights == expected


def test_another_default_device_changes_nothing_on_a_cpu() -> None:
    expected = {shape: trained(shape, "cpu") for shape in KINDS}
    with torch.device("meta"):
        found = {shape: trained(shape, "cpu") for shape in KINDS}
        codes = {shape: codec.encode(ROWS) for shape, codec in found.items()}
        decoded = {shape: codec.decode(codes[shape]) for shape, codec in found.items()}
    for shape, codec in expected.items():
        assert found[shape].to_artifact().weights == codec.to_artifact().weights
        np.testing.assert_array_equal(codes[shape].codes, codec.encode(ROWS).codes)
        np.testing.assert_array_equal(decoded[shape], codec.decode(codes[shape]))


def test_too_little_memory_is_told(cuda) -> None:
    cuda.largest_bytes = 4 * DIM * len(ROWS)  # for the vectors, but not for a step
    with pytest.raises(InvalidInputError, match=r"ran out of memory in training with batch_size=512 .*cpu"):
        trained("rqmoe", batch_size=512)


def test_a_device_that_is_not_there(cuda) -> None:
    with pytest.raises(InvalidInputError, match="device='cuda:2' is not there: 2 CUDA devices found"):
        trained("rqmoe", "cuda:2")


class _Additions(TorchDispatchMode):
    """Notes operations that add up floats on a GPU in an order that differs from run to run."""

    names = ("index_add", "scatter_add", "scatter_reduce", "put_", "cumsum", "histc")

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.seen = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += 1
        name = function._schema.name.removeprefix("aten::")
        # Torch sorts what index_put_ adds up.
        is_unordered = name.startswith(self.names) and args[0].is_floating_point()
        if is_unordered:
            self.found.add(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("shape", KINDS)
def test_sums_have_one_order(cuda, shape: str) -> None:
    """On a simulated device any order is repeated, so the operations are looked at."""
    with _Additions() as additions:
        trained(shape, epochs=1, cuda_graphs=False)
    assert additions.seen > 1000 and not additions.found
    sums_GX, groups_n = torch.zeros(3, 2), torch.zeros(4, dtype=torch.long)
    with _Additions() as additions:
        sums_GX.index_add_(0, groups_n, torch.ones(4, 2))
        torch.ones(3, requires_grad=True).gather(0, groups_n[:2]).sum().backward()
    assert additions.found == {"index_add_", "scatter_add"}


def test_codebooks_need_no_more_memory_than_there_is(cuda) -> None:
    vectors_nD, centroids_KD = torch.from_numpy(curved(600)), torch.from_numpy(curved(40, seed=1))
    expected = initialization.nearest(vectors_nD, centroids_KD)
    here_nD, there_KD = vectors_nD.to("cuda:0"), centroids_KD.to("cuda:0")
    cuda.largest_bytes = 8 * len(vectors_nD)
    np.testing.assert_array_equal(initialization.nearest(here_nD, there_KD).cpu().numpy(), expected.numpy())


def test_bfloat16_is_taken_only_where_there_are_units_for_it(cuda, monkeypatch) -> None:
    taken = set()

    def supported(including_emulation: bool = True) -> bool:
        taken.add(including_emulation)
        return including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    automatic = trained("rqmoe", precision="auto")
    assert taken == {False}
    assert automatic.to_artifact().weights == usual("rqmoe")[0]
    emulated = trained("rqmoe", precision="bfloat16")  # asked for, and computed without units
    np.testing.assert_allclose(emulated.report.validation_mse, automatic.report.validation_mse, rtol=0.3)


def test_sums_by_group_are_those_of_index_add(gpu) -> None:
    random = np.random.default_rng(0)
    values_nX = torch.from_numpy(random.standard_normal((400, 7), dtype=np.float32))
    groups_nM = torch.from_numpy(random.integers(0, 50, (400, 3))) * 2
    expected, grouped = GroupedSums(groups_nM, 101), GroupedSums(groups_nM.to("cuda"), 101)
    np.testing.assert_array_equal(grouped.sizes().cpu().numpy(), expected.sizes().numpy())
    sums_GX = grouped.of(values_nX.to("cuda"))
    np.testing.assert_allclose(sums_GX.cpu().numpy(), expected.of(values_nX).numpy(), atol=1e-4)
    np.testing.assert_array_equal(grouped.of(values_nX.to("cuda")).cpu().numpy(), sums_GX.cpu().numpy())
