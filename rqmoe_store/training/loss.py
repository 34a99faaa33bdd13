"""Training loss: what a step minimizes, and the validation error.

Shape legend: M steps, B batch, n training vectors, Q sample queries, D dimension.

    loss = mean_B sum_m log(1 + rho_m)  +  FINAL * mean_B log ||r^{M+1}||^2  +  DISTANCES * log V

The first term is the paper's, with rho_m = ||r^{m+1}||^2 / ||r^m||^2. The other two are ours. The
second favors what all steps reach together over what each prefix reaches. The third is about search:
V is the variance over vectors, averaged over queries, of the error of a vector's distance to a query.
An error that all vectors share puts no neighbor before another. One that differs from vector to
vector does, and reconstructions that fall short of their vectors by different lengths have just that.

Shape legend: n vectors, B batch, M steps, D dimension.

Shape legend: B batch, M steps, D dimension.
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

_FINAL_WEIGHT = 2.0
_DISTANCE_WEIGHT = 0.1
_QUERIES = 256
_EPSILON = 1e-6


class TrainingLoss:
    """The loss of normalized vectors, given the deformed codewords chosen for them."""

    def __init__(
        self,
        vectors_nD: Tensor,
        metric: Metric,
        *,
        seed: int,
        sum_: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    ) -> None:
        """Queries are taken to be distributed as the normalized training vectors are.

        `sum_` adds up a tensor over the processes that each have a part of the batch.
        """
        generator = torch.Generator().manual_seed(seed)
        chosen_Q = torch.randperm(len(vectors_nD), generator=generator)[:_QUERIES]
        self.queries_QD = vectors_nD[chosen_Q.to(vectors_nD.device)]
        self.metric, self._sum = metric, sum_

    def __call__(self, vectors_BD: Tensor, first_residual_BD: Tensor, chosen_MBD: Tensor) -> Tensor:
        """The loss (a scalar); `first_residual_BD` is what partitions leave of the vectors."""
        errors_BD = first_residual_BD - chosen_MBD.sum(dim=0)
        final_B = torch.log(errors_BD.square().sum(dim=1) + _EPSILON)
        wrong_BQ = wrong_distances(vectors_BD, errors_BD, self.queries_QD, self.metric)
        mean_Q, variance = self._statistics(wrong_BQ.detach())
        # The gradient of log V, with mean and variance of the whole batch as constants.
        around = (wrong_BQ - mean_Q).square().mean() / variance
        return (
            normalized_residual_loss(first_residual_BD, chosen_MBD)
            + _FINAL_WEIGHT * final_B.mean()
            + _DISTANCE_WEIGHT * (variance.log() + around - around.detach())
        )

    def take_no_part(self) -> None:
        """What a process does whose part of the batch is empty, so that the others do not wait for it."""
        self._statistics(self.queries_QD.new_empty(0, len(self.queries_QD)))

    def _statistics(self, wrong_BQ: Tensor) -> tuple[Tensor, Tensor]:
        """Mean of every query (Q,), and variance over vectors averaged over queries, of the whole batch."""
        wrong_BQ = wrong_BQ.double()  # a difference of large sums
        counts_Q = torch.full_like(self.queries_QD[:, 0], len(wrong_BQ), dtype=torch.float64)
        sums_3Q = self._sum(torch.stack([wrong_BQ.sum(dim=0), wrong_BQ.square().sum(dim=0), counts_Q]))
        means_Q, squares_Q = sums_3Q[:2] / sums_3Q[2].clamp_min(1)
        variance = (squares_Q - means_Q.square()).mean().clamp_min(0) + _EPSILON
        return means_Q.float(), variance.float()


def normalized_residual_loss(first_residual_BD: Tensor, chosen_MBD: Tensor) -> Tensor:
    """Mean over vectors of sum_m log(1 + ||r^{m+1}||^2 / ||r^m||^2), denominators without gradient.

    Normalizing by the residual before the step gives late steps, whose residuals are small, the same
    weight as early ones (RQ-MoE, arXiv 2605.14359, training objective). Gradients reach every step's
    codeword through all later residuals.
    """
    residuals_MBD = first_residual_BD - chosen_MBD.cumsum(dim=0)
    after_MB = residuals_MBD.square().sum(dim=2)
    before_MB = torch.cat([first_residual_BD.square().sum(dim=1).unsqueeze(0), after_MB[:-1]])
    ratio_MB = after_MB / (before_MB.detach() + _EPSILON)
    return torch.log1p(ratio_MB).sum(dim=0).mean()


def wrong_distances(vectors_BD: Tensor, errors_BD: Tensor, queries_QD: Tensor, metric: Metric) -> Tensor:
    """What reconstructions get wrong about every query (B, Q); errors are vectors less reconstructions.

    That is the squared distance under "l2", and minus twice the inner product for the metrics that
    compare directions, which lengths do not matter to.
    """
    wrong_BQ = 2 * errors_BD @ queries_QD.T
    if metric == "l2":
        lengths_B = (vectors_BD - errors_BD).square().sum(dim=1) - vectors_BD.square().sum(dim=1)
        wrong_BQ = wrong_BQ + lengths_B.unsqueeze(1)
    return wrong_BQ


TRAINING_BEAM = 2
"""Beam of the encoder in the loop: codebooks should fit the codes that a beam search finds, and a
wider one costs more steps than it is worth."""

_QUICK_ROWS = 2048


@torch.inference_mode()
def prefix_mse(
    quantizer: ResidualQuantizer, normalized_nD: Tensor, *, beam: int, preselect: int | None
) -> tuple[float, ...]:
    """Mean squared error norm of every code prefix (1 to M steps), in normalized units."""
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
    """Validation error by the training encoder on some of the held-out vectors: picks the best weights.

    The report uses all of them and the default encoder.
    """
    return prefix_mse(quantizer, normalized_nD[:_QUICK_ROWS], beam=TRAINING_BEAM, preselect=TRAINING_BEAM)[-1]


def validation_mse(quantizer: ResidualQuantizer, validation_nD: Tensor) -> tuple[float, ...]:
    """Prefix errors with the quantizer's default encoder, in the units of the input."""
    config = quantizer.config
    normalized_nD = quantizer.normalize(validation_nD)
    errors = prefix_mse(
        quantizer, normalized_nD, beam=config.beam, preselect=scored_pairs(config.beam, config.preselect)
    )
    return tuple(error * float(quantizer.scale) ** 2 for error in errors)


def mixed_precision(device: torch.device, precision: TrainingPrecision) -> AbstractContextManager[Any]:
    """The context in which matrix products are taken in `precision`: autocast for bfloat16, else none."""
    if precision == "auto":
        precision = "bfloat16" if has_bfloat16_units(device) else "float32"
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def has_bfloat16_units(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 matrices; where it does not, torch is far slower at it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def batch_loss(
    quantizer: ResidualQuantizer, batch_BD: Tensor, loss_of: TrainingLoss, precision: TrainingPrecision
) -> tuple[Tensor, Tensor]:
    """The loss of normalized vectors, differentiable, and their codes (B, M)."""
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
