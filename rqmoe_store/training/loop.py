"""Training loop: steps, learning rate, validation, checkpoints, and when to stop.

Shape legend: n training vectors, B batch, M steps, K codewords, D dimension.

Shape legend: M steps, K codewords.
"""

import dataclasses
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

from rqmoe_store.codecs.kinds import RQMoE
from rqmoe_store.codecs.quantizer import ResidualQuantizer
from rqmoe_store.config import TrainConfig
from rqmoe_store.errors import InvalidInputError, warn_caller
from rqmoe_store.progress import TrainingProgress
from rqmoe_store.training.checkpoint import BestWeights, Checkpoint, write_checkpoint
from rqmoe_store.training.initialize import Start
from rqmoe_store.training.loss import TrainingLoss, batch_loss, quick_mse
from rqmoe_store.training.sampler import Batches, derived_seed
from rqmoe_store.training.workers import Workers

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


class Interrupt:
    """Whether Ctrl-C has been pressed."""

    requested = False


@contextmanager
def deferred_interrupt(*, enabled: bool) -> Iterator[Interrupt]:
    """Turn the first Ctrl-C into a flag for the loop to look at; the second one raises as usual.

    Without `enabled`, or outside the main thread (where Python delivers no signals), Ctrl-C raises
    KeyboardInterrupt at once.
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


_CODEWORD_RATE = 10.0


def make_optimizer(quantizer: ResidualQuantizer, settings: TrainConfig) -> torch.optim.AdamW:
    """AdamW that decays the matrices of the experts only: codewords have no reason to shrink.

    Codewords and expert components learn faster than the networks: each is seen by the few vectors of
    a batch that chose it, and has a long way to go from where k-means left it.
    """
    experts = [] if quantizer.mixture is None else list(quantizer.mixture.parameters())
    decayed = {id(parameter) for parameter in experts}
    others = [parameter for parameter in quantizer.parameters() if id(parameter) not in decayed]
    groups = [{"params": others, "weight_decay": 0.0, "rate_factor": _CODEWORD_RATE}]
    if experts:
        groups.append({"params": experts, "weight_decay": settings.weight_decay, "rate_factor": 1.0})
    return torch.optim.AdamW(groups, lr=settings.learning_rate)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Make `rate` the experts' learning rate, and that of codewords as many times higher as it is to be."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_factor"]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as named tensors."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value)
        for index, values in state.items()
        for name, value in values.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Inverse of `optimizer_tensors`; the optimizer must hold the same parameters."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def forget_rows(optimizer: torch.optim.Optimizer, stack_MKX: Tensor, step: int, rows_X: Tensor) -> None:
    """Set the moments of some codewords of one step to zero, as if they were new."""
    for name in ("exp_avg", "exp_avg_sq"):
        moment = optimizer.state.get(stack_MKX, {}).get(name)
        if moment is not None:
            moment[step, rows_X] = 0


_NOISE = 1e-2  # of the codebook's spread: enough for the two halves of a split to part


@torch.no_grad()
def revive_dead(
    quantizer: ResidualQuantizer,
    optimizer: torch.optim.Optimizer,
    usage_MK: Tensor,
    generator: torch.Generator,
) -> int:
    """Move every codeword that no vector chose next to its step's most chosen ones, and forget the
    optimizer's memory of it; returns how many were moved.

    A split keeps the codeword's expert component, so the experts treat both halves alike.
    """
    stacks = [quantizer.codebooks_MKD]
    if isinstance(quantizer, RQMoE):
        stacks.append(quantizer.expert_components_MKE)
    revived = 0
    for step, usage_K in enumerate(usage_MK):
        dead_X = (usage_K == 0).nonzero()[:, 0]
        crowded_X = usage_K.topk(len(dead_X)).indices
        # With few vectors a codeword used once has nothing to give away.
        splittable_X = usage_K[crowded_X] > 1
        dead_X, crowded_X = dead_X[splittable_X], crowded_X[splittable_X]
        for stack_MKX in stacks:
            codewords_KX = stack_MKX[step]
            noise_XX = torch.randn(len(dead_X), codewords_KX.shape[1], generator=generator)
            spread = codewords_KX.std() * _NOISE
            codewords_KX[dead_X] = codewords_KX[crowded_X] + noise_XX.to(codewords_KX.device) * spread
            forget_rows(optimizer, stack_MKX, step, dead_X)
        revived += len(dead_X)
    return revived


_MIN_STEPS_BETWEEN_VALIDATIONS = 50
_MAX_RECOVERIES = 5  # then the peak learning rate has been halved to a 32nd, and is not what is wrong
_COUNTERS = ("step", "newest_mse", "utilisation", "recoveries")


@dataclasses.dataclass(frozen=True)
class _Now:
    """What all processes do next."""

    share: float
    """Of the run that is done."""
    interrupted: bool
    saves: bool
    """Whether a checkpoint is due."""


class TrainingLoop:
    """One run over normalized training vectors; `run` returns when it is finished or interrupted."""

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
        self.parameters = list(self.quantizer.parameters())
        self.optimizer = make_optimizer(self.quantizer, settings)
        self.loss_of = TrainingLoss(
            training_nD, self.quantizer.config.metric, seed=settings.seed, sum_=workers.sum_
        )
        shape = (self.quantizer.num_steps, self.quantizer.codebook_size)
        self.usage_MK = torch.zeros(shape, dtype=torch.long, device=training_nD.device)
        self.utilisation: float | None = None
        self.step = self.recoveries = 0
        self.newest_mse = workers.share(quick_mse(self.quantizer, validation_nD))
        self.best = BestWeights(self.quantizer, self.newest_mse)
        self.last_checkpoint = time.monotonic()

    @property
    def epochs(self) -> float:
        """Passes over the training vectors so far."""
        return self.step / self.batches.per_epoch

    def run(self, identity: dict[str, Any]) -> None:
        """Train until done or, with a checkpoint directory, interrupted; best weights end up loaded."""
        place = self.settings.checkpoint_dir
        directory = None if place is None else os.fspath(place)
        self.progress.stage("training")
        with deferred_interrupt(enabled=directory is not None) as interrupt:
            while not self._is_over(now := self._now(interrupt)):
                if directory is not None and now.saves:
                    self._save(identity, directory)
                self._train_step(now.share)
                self._after_step()
            if directory is not None:
                self._save(identity, directory)
        self._validate()
        self.quantizer.load_state_dict(self.best.weights)

    def _now(self, interrupt: Interrupt) -> _Now:
        """The clock is the main process's; Ctrl-C may reach any."""
        mine = [float(interrupt.requested), 0.0, 0.0]
        if self.workers.is_main:
            due = time.monotonic() - self.last_checkpoint > 60 * self.settings.checkpoint_minutes
            mine[1:] = self.schedule.share_done(self.step), float(due)
        together = torch.tensor(mine, dtype=torch.float64, device=self.workers.device)
        interrupted, share, due_somewhere = self.workers.sum_(together).tolist()
        return _Now(share, interrupted > 0, due_somewhere > 0)

    def _is_over(self, now: _Now) -> bool:
        patience = self.settings.patience
        patient = patience is None or self.best.stale < patience
        return now.interrupted or now.share >= 1 or not patient

    def _train_step(self, share: float) -> None:
        batch_BD = self.batches.at(self.step)
        own_BD = self.workers.slice_of(batch_BD)
        set_learning_rate(self.optimizer, self.schedule.learning_rate(share))
        self.optimizer.zero_grad(set_to_none=True)
        loss = batch_BD.new_zeros(())
        if len(own_BD):
            loss, codes_BM = batch_loss(self.quantizer, own_BD, self.loss_of, self.settings.precision)
            loss.backward()
            self._count(codes_BM)
        else:
            self.loss_of.take_no_part()
        loss = self.workers.average_gradients(self.parameters, loss, len(own_BD) / len(batch_BD))
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip_norm)
        self.loss = float(loss)
        if not math.isfinite(self.loss):
            self._go_back(f"training loss became {self.loss}")
        elif not math.isfinite(norm):
            self._go_back(f"norm of the gradient became {float(norm)}")
        else:
            self.optimizer.step()

    def _go_back(self, problem: str) -> None:
        """Leave weights that cannot be trained any further for the best ones, and go on more slowly."""
        if self.recoveries == _MAX_RECOVERIES:
            raise InvalidInputError(
                f"The {problem} at step {self.step} with learning_rate={self.settings.learning_rate}, "
                f"although it was halved {self.recoveries} times. Train again with a lower learning_rate."
            )
        self.recoveries += 1
        self.schedule.rate_factor /= 2
        self.quantizer.load_state_dict(self.best.weights)
        self.optimizer.state.clear()
        if self.workers.is_main:
            warn_caller(
                f"The {problem} at step {self.step}; went back to the weights of step {self.best.step}, "
                f"continuing with learning_rate={self.schedule.peak_rate:g}."
            )

    def _after_step(self) -> None:
        self.step += 1
        if self.step % self.batches.per_epoch == 0:
            self._revive()
        if self.step % max(self.batches.per_epoch, _MIN_STEPS_BETWEEN_VALIDATIONS) == 0:
            self._validate()
        self.progress.update(
            self.schedule.share_done(self.step),
            loss=self.loss,
            validation_mse=self.newest_mse * float(self.quantizer.scale) ** 2,
            relative_to_rq=self.newest_mse / self.start.rq_mse if self.start.rq_mse else None,
            utilisation=self.utilisation,
        )

    def _revive(self) -> None:
        """Bring codewords back that the epoch did not use in any process."""
        self.workers.sum_(self.usage_MK)
        self.utilisation = float((self.usage_MK > 0).float().mean())
        seed = derived_seed(self.settings.seed, f"revival at step {self.step}")
        revive_dead(self.quantizer, self.optimizer, self.usage_MK, torch.Generator().manual_seed(seed))
        # Processes on unlike hardware may round differently; they do not drift apart for long.
        self.workers.broadcast_(self.quantizer.parameters())
        self.usage_MK.zero_()

    def _validate(self) -> None:
        """Offer the weights as the best ones."""
        self.newest_mse = self.workers.share(quick_mse(self.quantizer, self.validation_nD))
        self.best.offer(self.quantizer, self.newest_mse, self.step)

    def _count(self, codes_BM: Tensor) -> None:
        for step, indices_B in enumerate(codes_BM.unbind(dim=1)):
            self.usage_MK[step] += torch.bincount(indices_B, minlength=self.quantizer.codebook_size)

    def snapshot(self, identity: dict[str, Any]) -> Checkpoint:
        """The state that a quantizer with these weights and `restore` go on from."""
        groups = {
            "weights": self.quantizer.state_dict(),
            "best": self.best.weights,
            "optimizer": optimizer_tensors(self.optimizer),
            "usage": {"counts": self.workers.sum_(self.usage_MK.clone())},
        }
        tensors = {
            f"{group}.{name}": tensor for group, named in groups.items() for name, tensor in named.items()
        }
        counters = {name: getattr(self, name) for name in _COUNTERS}
        baseline = {name: getattr(self.start, name) for name in ("rq_prefix_mse", "rq_mse", "mixing")}
        counters |= {**baseline, **self.best.counters(), **self.schedule.counters()}
        return Checkpoint(identity, counters, tensors)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of the same run, whose weights the quantizer already has."""
        counters = checkpoint.counters
        self.best.restore(counters, checkpoint.group("best"))
        self.schedule.restore(counters)
        restore_optimizer(self.optimizer, checkpoint.group("optimizer"))
        if self.workers.is_main:  # the sum of all processes' counts, to which each adds its own again
            self.usage_MK.copy_(checkpoint.group("usage")["counts"])
        for name in _COUNTERS:
            setattr(self, name, counters[name])

    def _save(self, identity: dict[str, Any], directory: str) -> None:
        checkpoint = self.snapshot(identity)
        if self.workers.is_main:
            write_checkpoint(checkpoint, directory)
        self.last_checkpoint = time.monotonic()
