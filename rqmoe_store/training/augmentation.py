"""More training vectors than there are: mixtures that keep the data's mean and covariance.

Shape legend: B vectors, D dimension.
"""

import torch
from torch import Tensor

MAX_SHARE = 0.8
"""Largest weight of the partner in a mixture."""


def mixed(vectors_BD: Tensor, partners_BD: Tensor, mean_D: Tensor, *, generator: torch.Generator) -> Tensor:
    """Each vector mixed with its partner, sqrt(1 - a^2) and a times their deviations from the mean.

    With squared weights that sum to one, mixtures of independent vectors have the covariance of the
    vectors themselves; a is uniform in [0, MAX_SHARE]. Codebooks fitted to few vectors remember them:
    against unseen vectors, mixtures lower the error where more passes over the same vectors raise it.
    """
    share_B1 = torch.rand(len(vectors_BD), 1, generator=generator).to(vectors_BD.device) * MAX_SHARE
    own_B1 = (1 - share_B1.square()).sqrt()
    return mean_D + own_B1 * (vectors_BD - mean_D) + share_B1 * (partners_BD - mean_D)


def enlarged(vectors_BD: Tensor, rows: int, *, generator: torch.Generator) -> Tensor:
    """The vectors and as many mixtures of random pairs of them as make `rows` together."""
    missing = rows - len(vectors_BD)
    if missing <= 0:
        return vectors_BD
    pairs_2X = torch.randint(len(vectors_BD), (2, missing), generator=generator).to(vectors_BD.device)
    mixtures_XD = mixed(
        vectors_BD[pairs_2X[0]], vectors_BD[pairs_2X[1]], vectors_BD.mean(dim=0), generator=generator
    )
    return torch.cat([vectors_BD, mixtures_XD])
