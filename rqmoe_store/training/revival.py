"""Bringing dead codewords back.

Shape legend: M steps, K codewords.
"""

import torch
from torch import Tensor

from rqmoe_store.codecs.quantizer import ResidualQuantizer
from rqmoe_store.codecs.rqmoe import RQMoE
from rqmoe_store.training.optimizer import forget_rows

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
