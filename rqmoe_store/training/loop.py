"""The optimization loop: encode without gradient, decode with it, follow the loss.

Shape legend: n training vectors, B batch, M steps, K codewords, D dimension.
"""

import math
import time
from typing import Any

import torch
from torch import Tensor

from rqmoe_store.codecs import encoding
from rqmoe_store.codecs.encoding_tables import encoding_tables
from rqmoe_store.codecs.quantizer import ResidualQuantizer
from rqmoe_store.config import TrainConfig
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.training.augmentation import mixed
from rqmoe_store.training.checkpoint import (
    Checkpoint,
    optimizer_tensors,
    restore_optimizer,
    write_checkpoint,
)
from rqmoe_store.training.evaluate import prefix_mse
from rqmoe_store.training.interrupt import deferred_interrupt
from rqmoe_store.training.loss import normalized_residual_loss
from rqmoe_store.training.precision import mixed_precision
from rqmoe_store.training.progress import Progress
from rqmoe_store.training.revival import revive_dead

_DEFAULT_EPOCHS = 30
_PRESELECT = 4  # enough at beam 1: exhaustive scoring lowers the error by less than 0.1 %
_MIN_STEPS_BETWEEN_VALIDATIONS = 50
_VALIDATION_ROWS = 2048  # for choosing the best weights; the report uses all held-out rows
_FINAL_RATE = 0.02  # of the peak learning rate
_COUNTERS = ("step", "rq_prefix_mse", "rq_mse", "mixing", "best_mse", "newest_mse", "utilisation")


class TrainingLoop:
    """One run over normalized training vectors; `run` returns when it is finished or interrupted."""

    """One run over normalized training vectors; `run` returns when it is finished or interrupted."""

    def __init__(
        self,
        quantizer: ResidualQuantizer,
        training_nD: Tensor,
        validation_nD: Tensor,
        settings: TrainConfig,
        *,
        rq_prefix_mse: tuple[float, ...],
        rq_mse: float,
        mixing: bool,
        started: float,
        progress: Progress,
    ) -> None:
        self.quantizer, self.settings, self.progress = quantizer, settings, progress
        self.rq_prefix_mse, self.rq_mse, self.mixing = rq_prefix_mse, rq_mse, mixing
        self.training_nD, self.validation_nD = training_nD, validation_nD
        self.optimizer = _optimizer(quantizer, settings)
        self.steps_per_epoch = math.ceil(len(training_nD) / settings.batch_size)
        self.step, self.started, self.loop_started = 0, started, time.monotonic()
        shape = (quantizer.num_steps, quantizer.codebook_size)
        self.usage_MK = torch.zeros(shape, dtype=torch.long, device=training_nD.device)
        self.utilisation: float | None = None
        self._order_n: Tensor | None = None  # of the present epoch
        self.best_mse = self.newest_mse = quick_mse(quantizer, validation_nD)
        self.best_weights = self._weights()
        self.last_checkpoint = time.monotonic()

    @property
    def epochs(self) -> float:
        """Passes over the training vectors so far."""
        return self.step / self.steps_per_epoch

    @property
    def share_done(self) -> float:
        """Share of the run done, 0 to 1: by epochs, by the clock, or whichever is further."""
        shares = []
        epochs = self.settings.epochs
        if epochs is None and self.settings.max_minutes is None:
            epochs = _DEFAULT_EPOCHS
        if epochs is not None:
            shares.append(self.epochs / epochs if epochs else 1.0)
        if self.settings.max_minutes is not None:
            # Of the time that was left when the loop began: warm-up and decay belong to the loop.
            deadline = self.started + 60 * self.settings.max_minutes
            left = deadline - self.loop_started
            shares.append((time.monotonic() - self.loop_started) / left if left > 0 else 1.0)
        return max(shares)

    def run(self, identity: dict[str, Any]) -> None:
        """Train until done or, with a checkpoint directory, interrupted; best weights end up loaded."""
        directory = self.settings.checkpoint_dir
        self.progress.stage("training")
        with deferred_interrupt(enabled=directory is not None) as interrupt:
            while self.share_done < 1 and not interrupt.requested:
                self._train_step()
                self._after_step()
                due = time.monotonic() - self.last_checkpoint > 60 * self.settings.checkpoint_minutes
                if directory is not None and due:
                    self._save(identity, directory)
            if directory is not None:
                self._save(identity, directory)
        self._keep_if_best()
        self.quantizer.load_state_dict(self.best_weights)

    def _train_step(self) -> None:
        batch_BD = self._batch()
        rate = self._learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with mixed_precision(batch_BD.device):
            folded = self.quantizer.fold()
        with torch.no_grad():
            constant = None if folded is None else folded.detached()
            codes_BM, partitions_B = encoding.encode(
                self.quantizer,
                encoding_tables(self.quantizer, constant),
                batch_BD,
                beam=1,
                preselect=_PRESELECT,
            )
            self._count(codes_BM)
        with mixed_precision(batch_BD.device):
            chosen_MBD = self.quantizer.chosen_codewords(codes_BM, partitions_B, folded)
        first_residual_BD = batch_BD - self.quantizer.partition_offset(partitions_B)
        loss = normalized_residual_loss(first_residual_BD, chosen_MBD.float())
        self._follow(loss)

    def _follow(self, loss: Tensor) -> None:
        self.loss = float(loss.detach())
        if not math.isfinite(self.loss):
            raise InvalidInputError(
                f"The training loss became {self.loss} at step {self.step} with learning_rate="
                f"{self.settings.learning_rate}. Train again with a lower learning_rate."
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.quantizer.parameters(), self.settings.clip_norm)
        self.optimizer.step()

    def _after_step(self) -> None:
        self.step += 1
        if self.step % self.steps_per_epoch == 0:
            self.utilisation = float((self.usage_MK > 0).float().mean())
            generator = torch.Generator().manual_seed(self._seed(self.step))
            revive_dead(self.quantizer, self.optimizer, self.usage_MK, generator)
            self.usage_MK.zero_()
        if self.step % max(self.steps_per_epoch, _MIN_STEPS_BETWEEN_VALIDATIONS) == 0:
            self._keep_if_best()
        self.progress.update(
            self.share_done,
            loss=self.loss,
            validation_mse=self.newest_mse * float(self.quantizer.scale) ** 2,
            relative_to_rq=self.newest_mse / self.rq_mse if self.rq_mse else None,
            utilisation=self.utilisation,
        )

    def _keep_if_best(self) -> None:
        self.newest_mse = quick_mse(self.quantizer, self.validation_nD)
        if self.newest_mse < self.best_mse:
            self.best_mse, self.best_weights = self.newest_mse, self._weights()

    def _batch(self) -> Tensor:
        """The next batch. Seed and step alone decide it, so a resumed run draws the same."""
        epoch, position = divmod(self.step, self.steps_per_epoch)
        if position == 0 or self._order_n is None:
            generator = torch.Generator().manual_seed(self._seed(-1 - epoch))
            self._order_n = torch.randperm(len(self.training_nD), generator=generator)
        size = self.settings.batch_size
        rows_B = self._order_n[position * size : (position + 1) * size].to(self.training_nD.device)
        batch_BD = self.training_nD[rows_B]
        if not self.mixing:
            return batch_BD
        generator = torch.Generator().manual_seed(self._seed(self.step))
        partners_B = torch.randint(len(self.training_nD), (len(rows_B),), generator=generator)
        partners_BD = self.training_nD[partners_B.to(rows_B.device)]
        # Normalized vectors have mean zero.
        return mixed(batch_BD, partners_BD, torch.zeros_like(batch_BD[0]), generator=generator)

    def _seed(self, purpose: int) -> int:
        return hash((self.settings.seed, purpose)) % 2**63  # of numbers, so the same in every process

    def _learning_rate(self) -> float:
        share, warmup = self.share_done, self.settings.warmup_fraction
        if share < warmup:
            # Half a percent at the very start, not zero: the first step should move.
            return self.settings.learning_rate * max(share / warmup, 0.005)
        cosine = 0.5 * (1 + math.cos(math.pi * min((share - warmup) / (1 - warmup), 1.0)))
        return self.settings.learning_rate * (_FINAL_RATE + (1 - _FINAL_RATE) * cosine)

    def _count(self, codes_BM: Tensor) -> None:
        for step, indices_B in enumerate(codes_BM.unbind(dim=1)):
            self.usage_MK[step] += torch.bincount(indices_B, minlength=self.quantizer.codebook_size)

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.quantizer.state_dict().items()}

    def snapshot(self, identity: dict[str, Any]) -> Checkpoint:
        """The state that a quantizer with these weights and `restore` go on from."""
        groups = {
            "weights": self.quantizer.state_dict(),
            "best": self.best_weights,
            "optimizer": optimizer_tensors(self.optimizer),
            "usage": {"counts": self.usage_MK},
        }
        tensors = {
            f"{group}.{name}": tensor for group, named in groups.items() for name, tensor in named.items()
        }
        counters = {name: getattr(self, name) for name in _COUNTERS}
        now = time.monotonic()
        counters |= {"elapsed_seconds": now - self.started, "loop_seconds": now - self.loop_started}
        return Checkpoint(identity, counters, tensors)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of the same run, whose weights the quantizer already has."""
        device = self.training_nD.device
        best = checkpoint.group("best")
        self.best_weights = {name: value.to(device) for name, value in best.items()}
        restore_optimizer(self.optimizer, checkpoint.group("optimizer"))
        self.usage_MK = checkpoint.group("usage")["counts"].to(device)
        for name in _COUNTERS:
            setattr(self, name, checkpoint.counters[name])
        now = time.monotonic()
        self.started = now - checkpoint.counters["elapsed_seconds"]
        self.loop_started = now - checkpoint.counters["loop_seconds"]

    def _save(self, identity: dict[str, Any], directory: str) -> None:
        write_checkpoint(self.snapshot(identity), directory)
        self.last_checkpoint = time.monotonic()


def quick_mse(quantizer: ResidualQuantizer, normalized_nD: Tensor) -> float:
    """Validation error by the training encoder on some of the held-out vectors: picks the best weights."""
    return prefix_mse(quantizer, normalized_nD[:_VALIDATION_ROWS], beam=1, preselect=_PRESELECT)[-1]


def _optimizer(quantizer: ResidualQuantizer, settings: TrainConfig) -> torch.optim.AdamW:
    """AdamW that decays the matrices of the experts only: codewords have no reason to shrink."""
    experts = [] if quantizer.mixture is None else list(quantizer.mixture.parameters())
    decayed = {id(parameter) for parameter in experts}
    others = [parameter for parameter in quantizer.parameters() if id(parameter) not in decayed]
    groups = [{"params": others, "weight_decay": 0.0}]
    if experts:
        groups.append({"params": experts, "weight_decay": settings.weight_decay})
    return torch.optim.AdamW(groups, lr=settings.learning_rate)
