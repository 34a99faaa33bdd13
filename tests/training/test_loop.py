"""The loop's schedule and checkpoints, without training for long."""

import time
from pathlib import Path

import pytest
import torch
from small_codecs import curved, small_config, untrained

from rqmoe_store.config import TrainConfig
from rqmoe_store.training import loop as loop_module
from rqmoe_store.training.checkpoint import read_checkpoint, write_checkpoint
from rqmoe_store.training.loop import TrainingLoop
from rqmoe_store.training.progress import Progress


def loop_for(*, began: float = 0.0, mixing: bool = False, **settings: object) -> TrainingLoop:
    """A loop whose run began `began` seconds before the loop did."""
    quantizer = untrained(small_config()).requires_grad_(True)
    rows = quantizer.normalize(torch.from_numpy(curved(400)))
    return TrainingLoop(
        quantizer,
        rows[:300],
        rows[300:],
        TrainConfig(**{"batch_size": 100, "progress": False, **settings}),
        rq_prefix_mse=(1.0,),
        rq_mse=1.0,
        mixing=mixing,
        started=time.monotonic() - began,
        progress=Progress(visible=False),
    )


def test_rate_climbs_then_falls_to_a_small_rest() -> None:
    loop = loop_for(epochs=100, warmup_fraction=0.1, learning_rate=1.0)
    rates = []
    for step in range(0, 301, 3):
        loop.step = step
        rates.append(loop._learning_rate())
    peak = rates.index(max(rates))
    assert rates[peak] == pytest.approx(1.0, rel=0.01)
    assert 5 <= peak <= 15
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[0] < 0.01
    assert rates[-1] == pytest.approx(0.02)


def test_by_the_clock_the_schedule_covers_what_is_left_of_the_budget() -> None:
    loop = loop_for(max_minutes=1.0, began=30.0)
    assert loop.share_done < 0.2
    loop.loop_started -= 15
    assert loop.share_done == pytest.approx(15 / 45, abs=0.1)
    assert loop_for(max_minutes=1.0, began=61.0).share_done == 1


def test_whichever_limit_is_nearer_ends_the_run() -> None:
    loop = loop_for(max_minutes=1.0, epochs=10)
    loop.step = 15
    assert loop.share_done == pytest.approx(0.5)
    loop.started -= 54
    loop.loop_started -= 54
    assert loop.share_done > 0.85


@pytest.mark.parametrize("mixing", [False, True])
def test_a_checkpoint_goes_on_with_the_same_batches(mixing: bool, tmp_path: Path) -> None:
    first = loop_for(epochs=4, mixing=mixing)
    for _ in range(4):
        first._train_step()
        first._after_step()
    write_checkpoint(first.snapshot({}), str(tmp_path))
    saved = read_checkpoint(str(tmp_path), {})
    assert saved is not None
    second = loop_for(epochs=4, mixing=mixing)
    second.quantizer.load_state_dict(saved.group("weights"))
    second.restore(saved)
    assert torch.equal(first._batch(), second._batch())
    for loop in (first, second):
        loop._train_step()
        loop._after_step()
    for name, value in first.quantizer.state_dict().items():
        assert torch.equal(value, second.quantizer.state_dict()[name]), name


def test_an_epoch_visits_every_vector_once() -> None:
    loop = loop_for(epochs=4)
    seen = []
    for step in range(3):
        loop.step = step
        seen.append(loop._batch())
    everything = torch.cat(seen)
    assert torch.equal(everything.sort(dim=0).values, loop.training_nD.sort(dim=0).values)
    assert not torch.equal(everything, loop.training_nD)


def test_bf16_steps_follow_float32_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mixed-precision path itself, also where the hardware would not choose it."""
    losses = {}
    for enabled in (False, True):
        monkeypatch.setattr(
            loop_module,
            "mixed_precision",
            lambda device, enabled=enabled: torch.autocast("cpu", torch.bfloat16, enabled=enabled),
        )
        loop = loop_for(epochs=4)
        for _ in range(6):
            loop._train_step()
            loop._after_step()
        losses[enabled] = loop.loss
        assert all(value.dtype == torch.float32 for value in loop.quantizer.parameters())
    assert losses[True] == pytest.approx(losses[False], rel=0.02)
