"""The optimization loop: steps down the loss, validation, checkpoints, and when to stop.

Shape legend: n training vectors, B batch, M steps, K codewords, D dimension.
"""

import dataclasses
import math
import os
import time
import warnings
from typing import Any

import torch
from torch import Tensor

from rqmoe_store.config import TrainConfig
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.training.batches import Batches, derived_seed
from rqmoe_store.training.best import BestWeights
from rqmoe_store.training.checkpoint import Checkpoint, write_checkpoint
from rqmoe_store.training.evaluate import quick_mse
from rqmoe_store.training.interrupt import Interrupt, deferred_interrupt
from rqmoe_store.training.loss import TrainingLoss
from rqmoe_store.training.objective import batch_loss
from rqmoe_store.training.optimizer import (
    make_optimizer,
    optimizer_tensors,
    restore_optimizer,
    set_learning_rate,
)
from rqmoe_store.training.progress import Progress
from rqmoe_store.training.revival import revive_dead
from rqmoe_store.training.schedule import Schedule
from rqmoe_store.training.start import Start
from rqmoe_store.training.workers import Workers

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
        progress: Progress,
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
            warnings.warn(
                f"The {problem} at step {self.step}; went back to the weights of step {self.best.step}, "
                f"continuing with learning_rate={self.schedule.peak_rate:g}.",
                UserWarning,
                stacklevel=2,
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
