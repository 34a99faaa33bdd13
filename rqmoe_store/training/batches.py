"""The batch of a given step.

Shape legend: n training vectors, B batch, D dimension.
"""

import hashlib
import math

import torch
from torch import Tensor

from rqmoe_store.training.augmentation import mixed


class Batches:
    """Batches of normalized vectors, every vector once an epoch.

    Seed and step alone decide a batch, so a resumed run and each of several processes draw the same.
    """

    def __init__(self, vectors_nD: Tensor, *, size: int, seed: int, mixing: bool) -> None:
        self.vectors_nD, self.size, self.seed, self.mixing = vectors_nD, size, seed, mixing
        self.per_epoch = math.ceil(len(vectors_nD) / size)
        self._order: tuple[int, Tensor] | None = None  # an epoch, and the order of the vectors in it

    def at(self, step: int) -> Tensor:
        """The batch (B, D) of a step; with `mixing`, of mixtures with random partners."""
        epoch, position = divmod(step, self.per_epoch)
        order_n = self._order_of(epoch)
        rows_B = order_n[position * self.size : (position + 1) * self.size].to(self.vectors_nD.device)
        batch_BD = self.vectors_nD[rows_B]
        if not self.mixing:
            return batch_BD
        generator = torch.Generator().manual_seed(derived_seed(self.seed, f"mixtures of step {step}"))
        partners_B = torch.randint(len(self.vectors_nD), (len(rows_B),), generator=generator)
        partners_BD = self.vectors_nD[partners_B.to(rows_B.device)]
        # Normalized vectors have mean zero.
        return mixed(batch_BD, partners_BD, torch.zeros_like(batch_BD[0]), generator=generator)

    def _order_of(self, epoch: int) -> Tensor:
        if self._order is None or self._order[0] != epoch:
            generator = torch.Generator().manual_seed(derived_seed(self.seed, f"order of epoch {epoch}"))
            self._order = epoch, torch.randperm(len(self.vectors_nD), generator=generator)
        return self._order[1]


def derived_seed(seed: int, purpose: str) -> int:
    """A seed of its own for every purpose, the same in every process."""
    digest = hashlib.sha256(f"{seed} {purpose}".encode()).digest()
    return int.from_bytes(digest[:8]) % 2**63
