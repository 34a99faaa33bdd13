"""The training loss.

Shape legend: M steps, B batch, D dimension.
"""

import torch
from torch import Tensor

_EPSILON = 1e-6


def normalized_residual_loss(first_residual_BD: Tensor, chosen_MBD: Tensor) -> Tensor:
    """Mean over vectors of sum_m log(1 + ||r^{m+1}||^2 / ||r^m||^2), denominators without gradient.

    Normalising by the residual before the step gives late steps, whose residuals are small, the same
    weight as early ones (RQ-MoE, arXiv 2605.14359, training objective). Gradients reach every step's
    codeword through all later residuals.
    """
    residuals_MBD = first_residual_BD - chosen_MBD.cumsum(dim=0)
    after_MB = residuals_MBD.square().sum(dim=2)
    before_MB = torch.cat([first_residual_BD.square().sum(dim=1).unsqueeze(0), after_MB[:-1]])
    ratio_MB = after_MB / (before_MB.detach() + _EPSILON)
    return torch.log1p(ratio_MB).sum(dim=0).mean()
