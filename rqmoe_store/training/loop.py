"""Training loop: steps, learning rate, validation, checkpoints, and when to stop.

Shape legend: n training vectors, B batch, M steps, K codewords, D dimension, X some codewords of a step.
"""

import dataclasses
import functools
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from rqmoe_store.codecs.device import run_on_device
from rqmoe_store.codecs.kinds import RQMoE
from rqmoe_store.codecs.quantizer import ResidualQuantizer
from rqmoe_store.config import TrainConfig
from rqmoe_store.errors import InvalidInputError, warn_caller
from rqmoe_store.progress import TrainingProgress
from rqmoe_store.training.checkpoint import BestWeights, Checkpoint, write_checkpoint
from rqmoe_store.training.gradients import GradientComputation
from rqmoe_store.training.initialize import Start
from rqmoe_store.training.loss import TrainingLoss, quick_mse
from rqmoe_store.training.optimizer import Optimizer
from rqmoe_store.training.sampler import Batches, derived_seed
from rqmoe_store.training.step import TrainingStep
from rqmoe_store.training.workers import Workers

_DEFAULT_EPOCHS = 30
_FIRST_RATE = 0.005  # of the peak learning rate; not zero, so that the first step moves
_FINAL_RATE = 0.02  # of the peak learning rate
_MIN_STEPS_BETWEEN_VALIDATIONS = 50
_MAX_RECOVERIES = 5  # by then the learning rate is down to a 32nd, and not the cause
_NOISE = 1e-2  # of the codebook's spread: enough to separate the two halves of a split
_COUNTERS = ("step", "newest_mse", "utilisation", "recoveries")


class Schedule:
    """Learning rate schedule: warm-up and cosine decay over the share done, by epochs or by the clock."""

    def __init__(
        self, settings: TrainConfig, *, steps_per_epoch: int, started: float, reserved: float = 0.0
    ) -> None:
        """Create the schedule at the start of the loop.

        Args:
            settings: epochs, budget, rate and warm-up.
            steps_per_epoch: steps in one pass over the vectors.
            started: the time at which the run started, of `time.monotonic`.
            reserved: seconds of the budget that are needed after the loop.
        """
        self.settings, self.steps_per_epoch, self.reserved = settings, steps_per_epoch, reserved
        self.started, self.loop_started = started, time.monotonic()
        self.rate_factor = 1.0

    @property
    def peak_rate(self) -> float:
        """The highest learning rate, halved each time that training was rolled back."""
        return self.settings.learning_rate * self.rate_factor

    def share_done(self, step: int) -> float:
        """Share of the run done after `step` steps, 0 to 1: by epochs or the clock, whichever is more."""
        shares = []
        epochs = self.settings.epochs
        if epochs is None and self.settings.max_minutes is None:
            epochs = _DEFAULT_EPOCHS
        if epochs is not None:
            shares.append(step / self.steps_per_epoch / epochs if epochs else 1.0)
        if self.settings.max_minutes is not None:
            # The share of the time left when the loop began: warm-up and decay belong to the loop.
            deadline = self.started + 60 * self.settings.max_minutes - self.reserved
            left = deadline - self.loop_started
            shares.append((time.monotonic() - self.loop_started) / left if left > 0 else 1.0)
        return max(shares)

    def learning_rate(self, share: float) -> float:
        """The learning rate when `share` of the run is done."""
        warmup = self.settings.warmup_fraction
        if share < warmup:
            return self.peak_rate * max(share / warmup, _FIRST_RATE)
        cosine = 0.5 * (1 + math.cos(math.pi * min((share - warmup) / (1 - warmup), 1.0)))
        return self.peak_rate * (_FINAL_RATE + (1 - _FINAL_RATE) * cosine)

    def counters(self) -> dict[str, Any]:
        """The state that `restore` needs, as JSON values."""
        now = time.monotonic()
        return {
            "elapsed_seconds": now - self.started,
            "loop_seconds": now - self.loop_started,
            "rate_factor": self.rate_factor,
        }

    def restore(self, counters: dict[str, Any]) -> None:
        """Continue as if no time had passed since `counters`."""
        now = time.monotonic()
        self.started = now - counters["elapsed_seconds"]
        self.loop_started = now - counters["loop_seconds"]
        self.rate_factor = counters["rate_factor"]


class Interrupt:
    """Whether Ctrl-C has been pressed."""

    requested = False


@contextmanager
def deferred_interrupt(*, enabled: bool) -> Iterator[Interrupt]:
    """Turn the first Ctrl-C into a flag that the loop checks; the second one raises as usual.

    Ctrl-C raises KeyboardInterrupt at once if not `enabled`, or outside the main thread, where Python
    delivers no signals.
    """
    interrupt = Interrupt()
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield interrupt
        return

    def request(signal_number: int, frame: FrameType | None) -> None:
        interrupt.requested = True
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, request)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, previous)


@dataclasses.dataclass(frozen=True)
class _Decision:
    """What all processes do next."""

    share: float
    """Share of the run that is done."""
    interrupted: bool
    """Whether Ctrl-C reached any process."""
    checkpoint_due: bool


class TrainingLoop:
    """One training run over normalized vectors; `run` returns when it is finished or interrupted."""

    def __init__(
        self,
        start: Start,
        training_nD: Tensor,
        validation_nD: Tensor,
        settings: TrainConfig,
        *,
        started: float,
        reserved: float = 0.0,
        workers: Workers,
        progress: TrainingProgress,
    ) -> None:
        self.start, self.quantizer, self.settings = start, start.quantizer, settings
        self.validation_nD, self.workers, self.progress = validation_nD, workers, progress
        self.batches = Batches(training_nD, size=settings.batch_size, seed=settings.seed, mixing=start.mixing)
        self.schedule = Schedule(
            settings, steps_per_epoch=self.batches.per_epoch, started=started, reserved=reserved
        )
        self.optimizer = Optimizer(self.quantizer, settings)
        loss_of = TrainingLoss(
            training_nD, self.quantizer.config.metric, seed=settings.seed, sum_=workers.sum_
        )
        self.gradients = GradientComputation(self.quantizer, loss_of, settings.precision)
        self.training_step = TrainingStep(
            self.quantizer, self.gradients, self.optimizer, workers, record=settings.cuda_graphs
        )
        self.usage_MK = self.training_step.usage_MK
        self.square_unit = float(self.quantizer.scale) ** 2
        self.utilisation: float | None = None
        self.step = self.recoveries = 0
        self.newest_mse = workers.broadcast_json(quick_mse(self.quantizer, validation_nD))
        self.best = BestWeights(self.quantizer, self.newest_mse)
        self.last_checkpoint = time.monotonic()

    @property
    def epochs(self) -> float:
        """Passes over the training vectors so far."""
        return self.step / self.batches.per_epoch

    def run(self, identity: dict[str, Any]) -> None:
        """Train until done or, with a checkpoint directory, interrupted; then load the best weights."""
        place = self.settings.checkpoint_dir
        directory = None if place is None else os.fspath(place)
        self.progress.stage("training")
        with deferred_interrupt(enabled=directory is not None) as interrupt:
            while not self._is_over(decision := self._decide(interrupt)):
                if directory is not None and decision.checkpoint_due:
                    self._save(identity, directory)
                self._train_step(decision.share)
                self._finish_step()
            if directory is not None:
                self._save(identity, directory)
        self._validate()
        self.quantizer.load_state_dict(self.best.weights)

    def _decide(self, interrupt: Interrupt) -> _Decision:
        """Agree with the other processes: the main one's clock counts, and Ctrl-C may reach any of them."""
        mine = [float(interrupt.requested), 0.0, 0.0]
        if self.workers.is_main:
            due = time.monotonic() - self.last_checkpoint > 60 * self.settings.checkpoint_minutes
            mine[1:] = self.schedule.share_done(self.step), float(due)
        interrupted, share, due_somewhere = self.workers.sum_numbers(mine)
        return _Decision(share, interrupted > 0, due_somewhere > 0)

    def _is_over(self, decision: _Decision) -> bool:
        patience = self.settings.patience
        out_of_patience = patience is not None and self.best.stale >= patience
        return decision.interrupted or decision.share >= 1 or out_of_patience

    def _train_step(self, share: float) -> None:
        device = self.workers.device
        (batch_BD,) = run_on_device(device, [functools.partial(self.batches.at, self.step)])
        outcome_2 = self.training_step.launch(batch_BD, self.schedule.learning_rate(share))
        if device.type != "cpu":
            self.batches.prepare(self.step + 1)
        # The only numbers of a step that are read: a GPU is waited for once.
        self.loss, norm = outcome_2.tolist()
        if not math.isfinite(self.loss):
            self._roll_back(f"training loss became {self.loss}")
        elif not math.isfinite(norm):
            self._roll_back(f"norm of the gradient became {norm}")

    def _roll_back(self, problem: str) -> None:
        """Return to the best weights after a failed step, and continue at half the learning rate."""
        if self.recoveries == _MAX_RECOVERIES:
            raise InvalidInputError(
                f"The {problem} at step {self.step} with learning_rate={self.settings.learning_rate}, "
                f"although it was halved {self.recoveries} times. Train again with a lower learning_rate."
            )
        self.recoveries += 1
        self.schedule.rate_factor /= 2
        self.quantizer.load_state_dict(self.best.weights)
        self.training_step.clear()
        if self.workers.is_main:
            warn_caller(
                f"The {problem} at step {self.step}; went back to the weights of step {self.best.step}, "
                f"continuing with learning_rate={self.schedule.peak_rate:g}."
            )

    def _finish_step(self) -> None:
        self.step += 1
        if self.step % self.batches.per_epoch == 0:
            self._revive()
        if self.step % max(self.batches.per_epoch, _MIN_STEPS_BETWEEN_VALIDATIONS) == 0:
            self._validate()
        self.progress.update(
            self.schedule.share_done(self.step),
            loss=self.loss,
            validation_mse=self.newest_mse * self.square_unit,
            relative_to_rq=self.newest_mse / self.start.rq_mse if self.start.rq_mse else None,
            utilisation=self.utilisation,
        )

    def _revive(self) -> None:
        """Revive the codewords that the epoch used in no process."""
        self.workers.sum_(self.usage_MK)
        self.utilisation = float((self.usage_MK > 0).float().mean())
        if self.utilisation < 1:  # looking for dead codewords of every step waits for a GPU several times
            seed = derived_seed(self.settings.seed, f"revival at step {self.step}")
            revive_dead(self.quantizer, self.optimizer, self.usage_MK, torch.Generator().manual_seed(seed))
        # Processes on different hardware may round differently. This ends their drift once per epoch.
        self.workers.broadcast_(self.quantizer.parameters())
        self.usage_MK.zero_()

    def _validate(self) -> None:
        """Measure the weights, and keep them if they are the best so far."""
        self.newest_mse = self.workers.broadcast_json(quick_mse(self.quantizer, self.validation_nD))
        self.best.offer(self.quantizer, self.newest_mse, self.step)

    def snapshot(self, identity: dict[str, Any]) -> Checkpoint:
        """The state of the run, from which `restore` continues."""
        groups = {
            "weights": self.quantizer.state_dict(),
            "best": self.best.weights,
            "optimizer": self.optimizer.tensors(),
            "usage": {"counts": self.workers.sum_(self.usage_MK.clone())},
        }
        tensors = {
            f"{group}.{name}": tensor for group, named in groups.items() for name, tensor in named.items()
        }
        counters = {name: getattr(self, name) for name in _COUNTERS}
        baseline = {
            name: getattr(self.start, name) for name in ("rq_prefix_mse", "rq_mse", "mixing", "continued")
        }
        counters |= {**baseline, **self.best.counters(), **self.schedule.counters()}
        return Checkpoint(identity, counters, tensors)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint of the same run, whose weights the quantizer already has."""
        counters = checkpoint.counters
        self.best.restore(counters, checkpoint.group("best"))
        self.schedule.restore(counters)
        self.training_step.restore(checkpoint.group("optimizer"))
        if self.workers.is_main:  # the counts are the sum over all processes, which will be summed again
            self.usage_MK.copy_(checkpoint.group("usage")["counts"])
        for name in _COUNTERS:
            setattr(self, name, counters[name])

    def _save(self, identity: dict[str, Any], directory: str) -> None:
        checkpoint = self.snapshot(identity)
        if self.workers.is_main:
            write_checkpoint(checkpoint, directory)
        self.last_checkpoint = time.monotonic()


@torch.no_grad()
def revive_dead(
    quantizer: ResidualQuantizer,
    optimizer: Optimizer,
    usage_MK: Tensor,
    generator: torch.Generator,
) -> int:
    """Move every unused codeword next to one of its step's most used ones, and reset its moments.

    Both halves of a split codeword get its expert component, so the experts treat them alike. Returns the
    number of codewords moved.
    """
    stacks = [quantizer.codebooks_MKD]
    if isinstance(quantizer, RQMoE):
        stacks.append(quantizer.expert_components_MKE)
    revived = 0
    for step, usage_K in enumerate(usage_MK):
        dead_X = (usage_K == 0).nonzero()[:, 0]
        crowded_X = usage_K.topk(len(dead_X)).indices
        # A codeword that a single vector uses cannot be split.
        splittable_X = usage_K[crowded_X] > 1
        dead_X, crowded_X = dead_X[splittable_X], crowded_X[splittable_X]
        for stack_MKX in stacks:
            codewords_KX = stack_MKX[step]
            noise_XX = torch.randn(len(dead_X), codewords_KX.shape[1], generator=generator, device="cpu")
            spread = codewords_KX.std() * _NOISE
            codewords_KX[dead_X] = codewords_KX[crowded_X] + noise_XX.to(codewords_KX.device) * spread
            optimizer.reset_moments(stack_MKX, step, dead_X)
        revived += len(dead_X)
    return revived
