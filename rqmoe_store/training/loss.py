"""Training loss: what a training step minimizes, and the validation error.

    loss = mean_B sum_m log(1 + rho_m)  +  FINAL * mean_B log ||r^{M+1}||^2  +  DISTANCES * log V

The first term is that of the RQ-MoE paper (arXiv 2605.14359), with rho_m = ||r^{m+1}||^2 / ||r^m||^2. The
other two are ours. The second favors the error of the whole code over that of each prefix. The third serves
search: V is the variance over vectors, averaged over queries, of the error of a vector's distance to a
query. An error that all vectors share does not change the order of neighbors. An error that differs from
vector to vector does, and reconstructions that are too short by different lengths cause such errors.

Shape legend: n training vectors, B batch, M steps, D dimension, Q sample queries.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from rqmoe_store.codecs import encoding
from rqmoe_store.codecs.encoding import encoding_tables
from rqmoe_store.codecs.quantizer import ResidualQuantizer
from rqmoe_store.config import Metric, TrainingPrecision, scored_pairs

TRAINING_BEAM = 2
"""Beam of the encoder in the training loop. Codebooks should fit the codes that a beam search finds; a wider
beam costs more training steps than it is worth."""

_FINAL_WEIGHT = 2.0
_DISTANCE_WEIGHT = 0.1
_QUERIES = 256
_EPSILON = 1e-6

_QUICK_ROWS = 2048


class TrainingLoss:
    """The loss of normalized vectors, given their chosen deformed codewords."""

    def __init__(
        self,
        vectors_nD: Tensor,
        metric: Metric,
        *,
        seed: int,
        sum_: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    ) -> None:
        """Sample the queries from the normalized training vectors, which are assumed to be distributed alike.

        `sum_` sums a tensor over the processes, each of which has a part of the batch.
        """
        generator = torch.Generator().manual_seed(seed)
        chosen_Q = torch.randperm(len(vectors_nD), generator=generator)[:_QUERIES]
        self.queries_QD = vectors_nD[chosen_Q.to(vectors_nD.device)]
        self.metric, self._sum = metric, sum_

    def __call__(self, vectors_BD: Tensor, first_residual_BD: Tensor, chosen_MBD: Tensor) -> Tensor:
        """The loss (a scalar); `first_residual_BD` are the vectors less their partition centroids."""
        errors_BD = first_residual_BD - chosen_MBD.sum(dim=0)
        final_B = torch.log(errors_BD.square().sum(dim=1) + _EPSILON)
        distance_errors_BQ = distance_errors(vectors_BD, errors_BD, self.queries_QD, self.metric)
        mean_Q, variance = self._statistics(distance_errors_BQ.detach())
        # The gradient of log V, with mean and variance of the whole batch as constants.
        around = (distance_errors_BQ - mean_Q).square().mean() / variance
        return (
            normalized_residual_loss(first_residual_BD, chosen_MBD)
            + _FINAL_WEIGHT * final_B.mean()
            + _DISTANCE_WEIGHT * (variance.log() + around - around.detach())
        )

    def reduce_empty_part(self) -> None:
        """Take part in the sums with an empty part of the batch, so that other processes need not wait."""
        self._statistics(self.queries_QD.new_empty(0, len(self.queries_QD)))

    def _statistics(self, distance_errors_BQ: Tensor) -> tuple[Tensor, Tensor]:
        """Mean per query (Q,), and variance over vectors averaged over queries, of the whole batch."""
        distance_errors_BQ = distance_errors_BQ.double()  # the variance is a difference of large sums
        counts_Q = torch.full_like(self.queries_QD[:, 0], len(distance_errors_BQ), dtype=torch.float64)
        sums_3Q = self._sum(
            torch.stack([distance_errors_BQ.sum(dim=0), distance_errors_BQ.square().sum(dim=0), counts_Q])
        )
        means_Q, squares_Q = sums_3Q[:2] / sums_3Q[2].clamp_min(1)
        variance = (squares_Q - means_Q.square()).mean().clamp_min(0) + _EPSILON
        return means_Q.float(), variance.float()


def normalized_residual_loss(first_residual_BD: Tensor, chosen_MBD: Tensor) -> Tensor:
    """Mean over vectors of sum_m log(1 + ||r^{m+1}||^2 / ||r^m||^2), denominators without gradient.

    Dividing by the residual before the step gives late steps, whose residuals are small, the same weight as
    early ones (RQ-MoE, arXiv 2605.14359, training objective). Gradients reach every step's codeword through
    all later residuals.
    """
    residuals_MBD = first_residual_BD - chosen_MBD.cumsum(dim=0)
    after_MB = residuals_MBD.square().sum(dim=2)
    before_MB = torch.cat([first_residual_BD.square().sum(dim=1).unsqueeze(0), after_MB[:-1]])
    ratio_MB = after_MB / (before_MB.detach() + _EPSILON)
    return torch.log1p(ratio_MB).sum(dim=0).mean()


def distance_errors(vectors_BD: Tensor, errors_BD: Tensor, queries_QD: Tensor, metric: Metric) -> Tensor:
    """Errors (B, Q) of distances between reconstructions and queries; `errors_BD` are vectors less
    reconstructions.

    Under "l2" the distance is the squared one. The other metrics compare directions, for which lengths do
    not matter: their distance is minus twice the inner product.
    """
    distance_errors_BQ = 2 * errors_BD @ queries_QD.T
    if metric == "l2":
        lengths_B = (vectors_BD - errors_BD).square().sum(dim=1) - vectors_BD.square().sum(dim=1)
        distance_errors_BQ = distance_errors_BQ + lengths_B.unsqueeze(1)
    return distance_errors_BQ


def batch_loss(
    quantizer: ResidualQuantizer, batch_BD: Tensor, loss_of: TrainingLoss, precision: TrainingPrecision
) -> tuple[Tensor, Tensor]:
    """The differentiable loss of normalized vectors, and their codes (B, M)."""
    with mixed_precision(batch_BD.device, precision):
        folded = quantizer.fold()
    with torch.no_grad():
        constant = None if folded is None else folded.detached()
        tables = encoding_tables(quantizer, constant)
        codes_BM, partitions_B = encoding.encode(
            quantizer, tables, batch_BD, beam=TRAINING_BEAM, preselect=TRAINING_BEAM
        )
    with mixed_precision(batch_BD.device, precision):
        chosen_MBD = quantizer.chosen_codewords(codes_BM, partitions_B, folded)
    first_residual_BD = batch_BD - quantizer.partition_offset(partitions_B)
    return loss_of(batch_BD, first_residual_BD, chosen_MBD.float()), codes_BM


def mixed_precision(device: torch.device, precision: TrainingPrecision) -> AbstractContextManager[Any]:
    """A context in which torch multiplies matrices in `precision`: autocast for bfloat16, else none."""
    if precision == "auto":
        precision = "bfloat16" if has_bfloat16_units(device) else "float32"
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def has_bfloat16_units(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 matrices; elsewhere torch is far slower in bfloat16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


@torch.inference_mode()
def prefix_mse(
    quantizer: ResidualQuantizer, normalized_nD: Tensor, *, beam: int, preselect: int | None
) -> tuple[float, ...]:
    """Mean squared error of every code prefix (1 to M steps), in normalized units."""
    folded = quantizer.fold()
    tables = encoding_tables(quantizer, folded)
    rows = encoding.chunk_rows(quantizer, beam=beam, preselect=preselect)
    total_M = torch.zeros(quantizer.num_steps, dtype=torch.float64)
    for chunk_BD in normalized_nD.split(rows):
        codes_BM, partitions_B = encoding.encode(quantizer, tables, chunk_BD, beam=beam, preselect=preselect)
        chosen_MBD = quantizer.chosen_codewords(codes_BM, partitions_B, folded)
        first_residual_BD = chunk_BD - quantizer.partition_offset(partitions_B)
        errors_MBD = first_residual_BD - chosen_MBD.cumsum(dim=0)
        total_M += errors_MBD.square().sum(dim=2).double().sum(dim=1).cpu()
    return tuple((total_M / len(normalized_nD)).tolist())


def quick_mse(quantizer: ResidualQuantizer, normalized_nD: Tensor) -> float:
    """Validation error that selects the best weights: on some held-out vectors, with the training encoder.

    The report uses all held-out vectors and the default encoder.
    """
    return prefix_mse(quantizer, normalized_nD[:_QUICK_ROWS], beam=TRAINING_BEAM, preselect=TRAINING_BEAM)[-1]


def validation_mse(quantizer: ResidualQuantizer, validation_nD: Tensor) -> tuple[float, ...]:
    """Errors of every code prefix with the quantizer's default encoder, in the units of the input."""
    config = quantizer.config
    normalized_nD = quantizer.normalize(validation_nD)
    errors = prefix_mse(
        quantizer, normalized_nD, beam=config.beam, preselect=scored_pairs(config.beam, config.preselect)
    )
    return tuple(error * float(quantizer.scale) ** 2 for error in errors)
