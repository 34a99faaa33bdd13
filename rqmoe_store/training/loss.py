"""The training loss.

Shape legend: M steps, B batch, n training vectors, Q sample queries, D dimension.

    loss = mean_B sum_m log(1 + rho_m)  +  FINAL * mean_B log ||r^{M+1}||^2  +  DISTANCES * log V

The first term is the paper's, with rho_m = ||r^{m+1}||^2 / ||r^m||^2. The other two are ours. The
second favours what all steps reach together over what each prefix reaches. The third is about search:
V is the variance over vectors, averaged over queries, of the error of a vector's distance to a query.
An error that all vectors share puts no neighbour before another. One that differs from vector to
vector does, and reconstructions that fall short of their vectors by different lengths have just that.
"""

import torch
from torch import Tensor

from rqmoe_store.config import Metric

_FINAL_WEIGHT = 2.0
_DISTANCE_WEIGHT = 0.1
_QUERIES = 256
_EPSILON = 1e-6


class TrainingLoss:
    """The loss of normalized vectors, given the deformed codewords chosen for them."""

    def __init__(self, vectors_nD: Tensor, metric: Metric, *, seed: int) -> None:
        """Queries are taken to be distributed as the normalized training vectors are."""
        generator = torch.Generator().manual_seed(seed)
        chosen_Q = torch.randperm(len(vectors_nD), generator=generator)[:_QUERIES]
        self.queries_QD = vectors_nD[chosen_Q.to(vectors_nD.device)]
        self.metric = metric

    def __call__(self, vectors_BD: Tensor, first_residual_BD: Tensor, chosen_MBD: Tensor) -> Tensor:
        """The loss (a scalar); `first_residual_BD` is what partitions leave of the vectors."""
        errors_BD = first_residual_BD - chosen_MBD.sum(dim=0)
        final_B = torch.log(errors_BD.square().sum(dim=1) + _EPSILON)
        variance = distance_variance(vectors_BD, errors_BD, self.queries_QD, self.metric)
        return (
            normalized_residual_loss(first_residual_BD, chosen_MBD)
            + _FINAL_WEIGHT * final_B.mean()
            + _DISTANCE_WEIGHT * torch.log(variance + _EPSILON)
        )


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


def distance_variance(vectors_BD: Tensor, errors_BD: Tensor, queries_QD: Tensor, metric: Metric) -> Tensor:
    """Variance over vectors of what their reconstructions get wrong about a query, mean over queries.

    That is the squared distance under "l2", and twice the inner product for the metrics that compare
    directions, which lengths do not matter to. `errors_BD` are vectors less reconstructions.
    """
    wrong_BQ = 2 * errors_BD @ queries_QD.T
    if metric == "l2":
        lengths_B = (vectors_BD - errors_BD).square().sum(dim=1) - vectors_BD.square().sum(dim=1)
        wrong_BQ = wrong_BQ + lengths_B.unsqueeze(1)
    return wrong_BQ.var(dim=0, correction=0).mean()
