"""Learning rate schedule, and the share of the run that is done."""

import time

import pytest

from rqmoe_store.config import TrainConfig
from rqmoe_store.training.loop import Schedule


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
