"""An average of the weights over the latest steps: steadier than the weights of any one step."""

import copy

import torch
from torch import Tensor

from rqmoe_store.codecs.quantizer import ResidualQuantizer


class AveragedWeights:
    """Exponential moving average of a quantizer's parameters, itself held by a quantizer."""

    def __init__(self, quantizer: ResidualQuantizer, decay: float) -> None:
        """`decay`: what a step leaves of the average at most; less at first, to forget the start."""
        self.decay = decay
        self.quantizer = copy.deepcopy(quantizer).requires_grad_(False)

    @torch.no_grad()
    def update(self, quantizer: ResidualQuantizer, step: int) -> None:
        """Take the weights in that step number `step`, counted from 0, has made."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for average, value in zip(self.quantizer.parameters(), quantizer.parameters(), strict=True):
            average.lerp_(value, 1 - decay)

    @torch.no_grad()
    def restart(self, tensors: dict[str, Tensor]) -> None:
        """Set the average to named parameters, such as those of `tensors`."""
        for name, average in self.quantizer.named_parameters():
            average.copy_(tensors[name])

    def tensors(self) -> dict[str, Tensor]:
        """The averages by name."""
        return dict(self.quantizer.named_parameters())
