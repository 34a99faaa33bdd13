"""The training loop: steps, learning rate, checkpoints, recoveries and early stopping."""

import time
import warnings
from pathlib import Path

import pytest
import torch
from small_codecs import curved, small_config, untrained

from rqmoe_store.config import TrainConfig
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.progress import TrainingProgress
from rqmoe_store.training.checkpoint import read_checkpoint, write_checkpoint
from rqmoe_store.training.gradients import BatchGradient
from rqmoe_store.training.initialize import Start
from rqmoe_store.training.loop import Schedule, TrainingLoop
from rqmoe_store.training.workers import Workers


def loop_for(*, mixing: bool = False, **settings: object) -> TrainingLoop:
    """A loop of three steps an epoch."""
    quantizer = untrained(small_config()).requires_grad_(True)
    rows = quantizer.normalize(torch.from_numpy(curved(400)))
    return TrainingLoop(
        Start(quantizer, rq_prefix_mse=(1.0,), rq_mse=1.0, mixing=mixing),
        rows[:300],
        rows[300:],
        TrainConfig(**{"batch_size": 100, "progress": False, "learning_rate": 3e-3, **settings}),
        started=time.monotonic(),
        workers=Workers(torch.device("cpu")),
        progress=TrainingProgress(visible=False),
    )


def steps(loop: TrainingLoop, count: int, share: float = 0.1) -> None:
    for _ in range(count):
        loop._train_step(share)
        loop._finish_step()


def resumed(loop: TrainingLoop, folder: Path, **settings: object) -> TrainingLoop:
    """Another loop that goes on where this one is."""
    write_checkpoint(loop.snapshot({}), str(folder))
    saved = read_checkpoint(str(folder), {})
    assert saved is not None
    other = loop_for(mixing=loop.start.mixing, **settings)
    other.quantizer.load_state_dict(saved.group("weights"))
    other.restore(saved)
    return other


def assert_same(first: TrainingLoop, second: TrainingLoop) -> None:
    left, right = first.snapshot({}), second.snapshot({})
    assert left.tensors.keys() == right.tensors.keys()
    for name, value in left.tensors.items():
        assert torch.equal(value, right.tensors[name]), name
    for name, value in left.counters.items():
        if not name.endswith("seconds"):
            assert value == right.counters[name], name


@pytest.mark.parametrize("mixing", [False, True])
def test_a_checkpoint_goes_on_with_the_same_steps(mixing: bool, tmp_path: Path) -> None:
    settings = {"epochs": 40, "patience": 9}
    first = loop_for(mixing=mixing, **settings)
    steps(first, 55)
    second = resumed(first, tmp_path, **settings)
    assert_same(first, second)
    for loop in (first, second):
        steps(loop, 50)
    assert_same(first, second)
    assert first.best.step > 0


def test_training_returns_to_the_best_weights_after_nan() -> None:
    loop = loop_for(epochs=100)
    steps(loop, 52)
    assert loop.best.step == 50
    best = {name: value.clone() for name, value in loop.best.weights.items()}
    loop.schedule.rate_factor = 1e25
    steps(loop, 1)
    with pytest.warns(UserWarning, match=r"became (nan|inf) at step 53; went back to the weights of step 50"):
        steps(loop, 1)
    for name, value in loop.quantizer.state_dict().items():
        assert torch.equal(value, best[name]), name
    assert not loop.optimizer.tensors()
    assert loop.schedule.rate_factor == 0.5e25
    loop.schedule.rate_factor = 0.5
    error = loop.best.mse
    steps(loop, 100)
    assert loop.best.mse < error
    assert loop.recoveries == 1


def test_recoveries_outlive_a_checkpoint_and_end(tmp_path: Path) -> None:
    loop = loop_for(epochs=100, learning_rate=1e30)
    with pytest.warns(UserWarning) as caught:
        steps(loop, 6)
    assert len(caught) == 3
    assert "at step 5; went back to the weights of step 0, continuing with" in str(caught[2].message)
    assert str(caught[2].message).endswith("learning_rate=1.25e+29.")
    other = resumed(loop, tmp_path, epochs=100, learning_rate=1e30)
    assert (other.recoveries, other.schedule.rate_factor) == (3, 1 / 8)
    assert_same(loop, other)
    with (
        pytest.warns(UserWarning) as caught,
        pytest.raises(InvalidInputError, match=r"halved 5 times\. Train again with a lower learning_rate"),
    ):
        steps(other, 10)
    assert len(caught) == 2


def test_training_returns_to_the_best_weights_after_an_infinite_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = loop_for(epochs=100)
    steps(loop, 1)
    real = loop.gradients.of_batch

    def overflow(batch_BD: torch.Tensor) -> BatchGradient:
        """Weights and loss are finite, but the gradient with respect to a codeword is not."""
        found = real(batch_BD)
        found.of_parameters[0] *= torch.inf
        return found

    monkeypatch.setattr(loop.gradients, "of_batch", overflow)
    with pytest.warns(UserWarning, match="norm of the gradient became"):
        steps(loop, 1)
    assert torch.equal(loop.quantizer.codebooks_MKD, loop.best.weights["codebooks_MKD"])


def test_patience_ends_a_run_that_gets_no_better(tmp_path: Path) -> None:
    settings = {"epochs": 1000, "learning_rate": 3.0, "patience": 2}
    loop = loop_for(**settings)
    loop.run({})
    assert loop.step == 100
    assert loop.best.step == 0
    again = resumed(loop, tmp_path, **settings)
    again.run({})
    assert again.step == 100


def test_without_patience_the_run_is_as_long_as_it_was_set() -> None:
    loop = loop_for(epochs=60, learning_rate=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop.run({})
    assert loop.step == 180


@pytest.fixture(autouse=True)
def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a test is kept waiting by others, no time passes in it."""
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)


def schedule_for(*, began: float = 0.0, **settings: object) -> Schedule:
    """The schedule of a loop of three steps an epoch, whose run began `began` seconds before it."""
    return Schedule(TrainConfig(**settings), steps_per_epoch=3, started=time.monotonic() - began)


def test_rate_climbs_then_falls_to_a_small_rest() -> None:
    schedule = schedule_for(warmup_fraction=0.1, learning_rate=1.0)
    rates = [schedule.learning_rate(percent / 100) for percent in range(101)]
    peak = rates.index(max(rates))
    assert rates[peak] == pytest.approx(1.0, rel=0.01)
    assert 5 <= peak <= 15
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert 0 < rates[0] < 0.01
    assert rates[-1] == pytest.approx(0.02)


def test_epochs_set_the_pace() -> None:
    schedule = schedule_for(epochs=100)
    assert [schedule.share_done(step) for step in (0, 150, 300)] == [0, 0.5, 1]
    assert schedule_for().share_done(90) == 1
    assert schedule_for(epochs=0).share_done(0) == 1


def test_by_the_clock_the_schedule_covers_what_is_left_of_the_budget() -> None:
    schedule = schedule_for(max_minutes=1.0, began=30.0)
    assert schedule.share_done(10**6) == 0
    schedule.loop_started -= 15
    assert schedule.share_done(0) == pytest.approx(15 / 45)
    assert schedule_for(max_minutes=1.0, began=61.0).share_done(0) == 1


def test_whichever_limit_is_nearer_ends_the_run() -> None:
    schedule = schedule_for(max_minutes=1.0, epochs=10)
    assert schedule.share_done(15) == pytest.approx(0.5)
    schedule.started -= 54
    schedule.loop_started -= 54
    assert schedule.share_done(15) == pytest.approx(0.9)


def test_a_restored_schedule_keeps_its_time_and_rate() -> None:
    schedule = schedule_for(max_minutes=1.0, learning_rate=1.0)
    schedule.started -= 30
    schedule.loop_started -= 30
    schedule.rate_factor = 0.25
    later = schedule_for(max_minutes=1.0, learning_rate=1.0)
    later.restore(schedule.counters())
    assert later.share_done(0) == pytest.approx(0.5)
    assert later.peak_rate == 0.25
    assert later.learning_rate(0.03) == pytest.approx(0.25)


def test_time_for_look_up_tables_is_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    plan = Schedule(TrainConfig(max_minutes=1), steps_per_epoch=10, started=100.0, reserved=20.0)
    assert plan.share_done(0) == 0
    now = 120.0
    assert plan.share_done(0) == pytest.approx(0.5)
    now = 140.0
    assert plan.share_done(0) == 1
