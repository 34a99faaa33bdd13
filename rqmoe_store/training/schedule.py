"""How far a run has come, and the learning rate that goes with it."""

import math
import time
from typing import Any

from rqmoe_store.config import TrainConfig

_DEFAULT_EPOCHS = 30
_FIRST_RATE = 0.005  # of the peak learning rate; not zero, since the first step should move
_FINAL_RATE = 0.02  # of the peak learning rate


class Schedule:
    """Warm-up and cosine decay over the share of the run that is done, by epochs or by the clock."""

    def __init__(
        self, settings: TrainConfig, *, steps_per_epoch: int, started: float, reserved: float = 0.0
    ) -> None:
        """`started`: when the run began, as `time.monotonic` tells it; the loop begins now. `reserved`:
        seconds of the budget that are needed after it."""
        self.settings, self.steps_per_epoch, self.reserved = settings, steps_per_epoch, reserved
        self.started, self.loop_started = started, time.monotonic()
        self.rate_factor = 1.0

    @property
    def peak_rate(self) -> float:
        """The highest learning rate, lowered where training had to go back."""
        return self.settings.learning_rate * self.rate_factor

    def share_done(self, step: int) -> float:
        """Share of the run done after `step` steps, 0 to 1: by epochs, by the clock, or the further."""
        shares = []
        epochs = self.settings.epochs
        if epochs is None and self.settings.max_minutes is None:
            epochs = _DEFAULT_EPOCHS
        if epochs is not None:
            shares.append(step / self.steps_per_epoch / epochs if epochs else 1.0)
        if self.settings.max_minutes is not None:
            # Of the time that was left when the loop began: warm-up and decay belong to the loop.
            deadline = self.started + 60 * self.settings.max_minutes - self.reserved
            left = deadline - self.loop_started
            shares.append((time.monotonic() - self.loop_started) / left if left > 0 else 1.0)
        return max(shares)

    def learning_rate(self, share: float) -> float:
        """The rate when `share` of the run is done."""
        warmup = self.settings.warmup_fraction
        if share < warmup:
            return self.peak_rate * max(share / warmup, _FIRST_RATE)
        cosine = 0.5 * (1 + math.cos(math.pi * min((share - warmup) / (1 - warmup), 1.0)))
        return self.peak_rate * (_FINAL_RATE + (1 - _FINAL_RATE) * cosine)

    def counters(self) -> dict[str, Any]:
        """What `restore` needs, as JSON values."""
        now = time.monotonic()
        return {
            "elapsed_seconds": now - self.started,
            "loop_seconds": now - self.loop_started,
            "rate_factor": self.rate_factor,
        }

    def restore(self, counters: dict[str, Any]) -> None:
        """Go on as if the time since `counters` had not passed."""
        now = time.monotonic()
        self.started = now - counters["elapsed_seconds"]
        self.loop_started = now - counters["loop_seconds"]
        self.rate_factor = counters["rate_factor"]
