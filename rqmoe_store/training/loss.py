"""Training loss: what a training step minimizes, and the validation error.

    loss = mean_B sum_m log(1 + rho_m)  +  FINAL * mean_B log ||r^{M+1}||^2  +  DISTANCES * log V

The first term is that of the RQ-MoE paper (arXiv 2605.14359), with rho_m = ||r^{m+1}||^2 / ||r^m||^2. The
other two are ours. The second favors the error of the whole code over that of each prefix. The third serves
search: V is the variance over vectors, averaged over queries, of the error of a vector's distance to a
query. An error that all vectors share does not change the order of neighbors. An error that differs from
vector to vector does, and reconstructions that are too short by different lengths cause such errors.

Shape legend: n training vectors, B batch, M steps, D dimension, Q sample queries.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rqmoe_store.codecs import encoding
from rqmoe_store.codecs.device import has_bfloat16_units, run_on_device
from rqmoe_store.codecs.encoding import EncodingTables, encoding_tables
from rqmoe_store.codecs.experts import FoldedExperts
from rqmoe_store.codecs.parallel import run_chunks, run_parallel
from rqmoe_store.codecs.quantizer import ResidualQuantizer
from rqmoe_store.config import Metric, TrainingPrecision, scored_pairs
from rqmoe_store.training.sampler import random_order

TRAINING_BEAM = 2
"""Beam of the encoder in the training loop. Codebooks should fit the codes that a beam search finds; a wider
beam costs more training steps than it is worth."""

_FINAL_WEIGHT = 2.0
_DISTANCE_WEIGHT = 0.1
_QUERIES = 256
_EPSILON = 1e-6

_QUICK_ROWS = 2048


@dataclasses.dataclass(frozen=True)
class LossShare:
    """What the loss needs of some vectors of a batch, before it knows the statistics of the whole batch."""

    prefix_loss: Tensor
    """The first term of the loss."""
    final_loss: Tensor
    """The second one, without its weight."""
    distance_errors_BQ: Tensor
    sums_3Q: Tensor
    """Per query, the sum and the sum of squares of the distance errors, and their number."""


class TrainingLoss:
    """The loss of normalized vectors, given their chosen deformed codewords.

    A batch is divided into shares. Each share is measured alone (`measure`), their sums are added
    (`statistics`), and every share then has a loss of its own (`of_share`). The loss of the batch is the mean
    of these, weighted by the number of vectors.
    """

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
        chosen_Q = random_order(len(vectors_nD), generator)[:_QUERIES]
        self.queries_QD = vectors_nD[chosen_Q.to(vectors_nD.device)]
        self.metric, self._sum = metric, sum_

    def measure(self, vectors_BD: Tensor, first_residual_BD: Tensor, chosen_MBD: Tensor) -> LossShare:
        """The loss's parts that a share has alone; `first_residual_BD` are the vectors less their partition
        centroids."""
        prefix_loss, errors_BD = normalized_residual_loss(first_residual_BD, chosen_MBD)
        errors_BQ = distance_errors(vectors_BD, errors_BD, self.queries_QD, self.metric)
        # In double precision, because the variance is a difference of large sums.
        final_B = torch.log(errors_BD.square().sum(dim=1) + _EPSILON)
        exact_BQ = errors_BQ.detach().double()
        counts_Q = torch.full_like(exact_BQ[0], len(exact_BQ))
        sums_3Q = torch.stack([exact_BQ.sum(dim=0), exact_BQ.square().sum(dim=0), counts_Q])
        return LossShare(prefix_loss, final_B.mean(), errors_BQ, sums_3Q)

    def statistics(self, shares: Sequence[LossShare]) -> tuple[Tensor, Tensor]:
        """Mean distance error per query (Q,), and variance over vectors averaged over queries, of the whole
        batch. A process without a share of a small batch takes part in the sums, too."""
        sums_3Q = self.queries_QD.new_zeros(3, len(self.queries_QD), dtype=torch.float64)
        for share in shares:
            sums_3Q += share.sums_3Q
        self._sum(sums_3Q)
        means_Q, squares_Q = sums_3Q[:2] / sums_3Q[2].clamp_min(1)
        variance = (squares_Q - means_Q.square()).mean().clamp_min(0) + _EPSILON
        return means_Q.float(), variance.float()

    def of_share(
        self, share: LossShare, mean_Q: Tensor, variance: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a share with the statistics of the whole batch, and its derivatives with respect to the
        differentiable parts of the share.

        Automatic differentiation goes on from there: its sums have one order only if one thread has recorded
        all that it goes through.
        """
        loss = share.prefix_loss + _FINAL_WEIGHT * share.final_loss + _DISTANCE_WEIGHT * variance.log()
        distance_errors_BQ = share.distance_errors_BQ.detach()
        return loss.detach(), {
            "prefix_loss": torch.ones_like(share.prefix_loss),
            "final_loss": torch.full_like(share.final_loss, _FINAL_WEIGHT),
            # The gradient of log V, with mean and variance of the whole batch as constants.
            "distance_errors_BQ": (distance_errors_BQ - mean_Q)
            * (2 * _DISTANCE_WEIGHT / (distance_errors_BQ.numel() * variance)),
        }


class _NormalizedResidualLoss(torch.autograd.Function):
    """`normalized_residual_loss`, whose backward pass is a running sum, too.

    With r^{m+1} = r^1 - sum of the first m codewords, the derivative with respect to codeword j is the sum of
    w_m r^{m+1} over m >= j, w_m = -2 / (||r^m||^2 + ||r^{m+1}||^2). Step after step needs no M x B x D tensor
    besides the codewords and their gradient.
    """

    @staticmethod
    def forward(context: Any, first_residual_BD: Tensor, chosen_MBD: Tensor) -> tuple[Tensor, Tensor]:
        residual_BD = first_residual_BD.clone()
        before_B = torch.linalg.vecdot(residual_BD, residual_BD)
        total_B, weights = torch.zeros_like(before_B), []
        for chosen_BD in chosen_MBD:
            residual_BD -= chosen_BD
            after_B = torch.linalg.vecdot(residual_BD, residual_BD)
            before_B = before_B + _EPSILON
            total_B += torch.log1p(after_B / before_B)
            weights.append(-2 / (before_B + after_B))
            before_B = after_B
        context.save_for_backward(chosen_MBD, residual_BD, torch.stack(weights))
        return total_B.mean(), residual_BD

    @staticmethod
    @once_differentiable
    def backward(context: Any, of_loss: Tensor, of_errors_BD: Tensor) -> tuple[None, Tensor]:
        chosen_MBD, errors_BD, weights_MB = context.saved_tensors
        weights_MB1 = (weights_MB * (of_loss / len(errors_BD))).unsqueeze(2)
        residual_BD, total_BD = errors_BD.clone(), -of_errors_BD
        gradient_MBD = torch.empty_like(chosen_MBD)
        for step in reversed(range(len(chosen_MBD))):
            total_BD = torch.addcmul(total_BD, residual_BD, weights_MB1[step], out=gradient_MBD[step])
            residual_BD += chosen_MBD[step]
        return None, gradient_MBD


def normalized_residual_loss(first_residual_BD: Tensor, chosen_MBD: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over vectors of sum_m log(1 + ||r^{m+1}||^2 / ||r^m||^2), and the last residuals (B, D).

    Dividing by the residual before the step gives late steps, whose residuals are small, the same weight as
    early ones (RQ-MoE, arXiv 2605.14359, training objective). The denominators carry no gradient. Gradients
    reach every step's codeword through all later residuals.
    """
    loss, errors_BD = _NormalizedResidualLoss.apply(first_residual_BD, chosen_MBD)  # type: ignore[no-untyped-call]
    return loss, errors_BD


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


def mixed_precision(device: torch.device, precision: TrainingPrecision) -> AbstractContextManager[Any]:
    """A context in which torch multiplies matrices in `precision`: autocast for bfloat16, else none."""
    if precision == "auto":
        precision = "bfloat16" if has_bfloat16_units(device) else "float32"
    if precision != "bfloat16":
        return nullcontext()
    # A cache would keep converted weights from one step to the next, and from a recording to the steps after.
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


def prefix_mse(
    quantizer: ResidualQuantizer, normalized_nD: Tensor, *, beam: int, preselect: int | None
) -> tuple[float, ...]:
    """Mean squared error of every code prefix (1 to M steps), in normalized units."""
    device = quantizer.codebooks_MKD.device

    @torch.inference_mode()
    def prepare() -> tuple[FoldedExperts | None, EncodingTables]:
        folded = quantizer.fold()
        return folded, encoding_tables(quantizer, folded)

    ((folded, tables),) = run_on_device(device, [prepare])

    @torch.inference_mode()
    def measure(chunk_BD: Tensor) -> Tensor:
        codes_BM, partitions_B = encoding.encode(quantizer, tables, chunk_BD, beam=beam, preselect=preselect)
        chosen_MBD = quantizer.chosen_codewords(codes_BM, partitions_B, folded)
        residual_BD = chunk_BD - quantizer.partition_offset(partitions_B)
        totals = []
        for chosen_BD in chosen_MBD:  # a running sum needs no M x B x D tensor more
            residual_BD = residual_BD - chosen_BD
            totals.append(residual_BD.square().sum(dim=1).double().sum())
        return torch.stack(totals).cpu()

    rows = encoding.chunk_rows(quantizer, beam=beam, preselect=preselect)
    parts: list[Tensor] = []
    if device.type == "cpu":
        parts = run_parallel(
            [functools.partial(measure, chunk_BD) for chunk_BD in normalized_nD.split(rows)], one_core=True
        )
    else:  # in smaller chunks where memory does not suffice
        run_chunks(
            len(normalized_nD), rows, lambda start, stop, _: parts.append(measure(normalized_nD[start:stop]))
        )
    return tuple((torch.stack(parts).sum(dim=0) / len(normalized_nD)).tolist())


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
