"""Gradient of a training step: a batch in shares, on a CPU each on a core of its own.

    fold        (groups of steps)    first-layer tables of the experts, from the parameters
    forward     (shares of rows)     codes, chosen codewords, and sums for the loss
    backward    (shares of rows)     gradients with respect to tables and parameters
    unfold      (groups of steps)    gradients of the tables, with respect to the parameters
    sum         (parameters)         over shares and groups, in a fixed order

Every stage consists of tasks that need nothing of each other, so a core that another program takes delays
one task, not all of them. Small shares also stay in a core's cache. A GPU has one share and one group.

No two tasks record a graph from the same tensor: torch (2.13) may then wait forever, since it takes the lock
of a tensor and that of the interpreter in either order. Each task has parameters of its own, in the same
memory. And one task records the whole of a graph, or the order of its sums would depend on the threads.

Shape legend: B batch, M steps, K codewords, D dimension, S steps with experts, F first-layer features.
"""

import copy
import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from rqmoe_store.codecs.device import run_on_device
from rqmoe_store.codecs.encoding import EncodingTables, encode, encoding_tables
from rqmoe_store.codecs.experts import ExpertMixture, FoldedExperts
from rqmoe_store.codecs.parallel import num_threads
from rqmoe_store.codecs.quantizer import ResidualQuantizer
from rqmoe_store.config import TrainingPrecision
from rqmoe_store.training.loss import TRAINING_BEAM, LossShare, TrainingLoss, mixed_precision

_LEAST_ROWS, _MOST_ROWS = 128, 1_024  # of a share on a CPU
_GROUP_STEPS = 4
_TABLES = ("codeword_SKF", "condition_SEF")


@dataclasses.dataclass(frozen=True)
class BatchGradient:
    """The loss of a batch, its gradient, and the codes it was computed for."""

    loss: Tensor
    of_parameters: list[Tensor | None]
    """In the order of `quantizer.parameters()`; None for those that the loss does not depend on."""
    codes_BM: Tensor


@dataclasses.dataclass(frozen=True)
class _Group:
    """Tables folded for a group of steps, and the parameters that they come from."""

    steps: slice
    parameters: dict[str, Tensor]
    """Under their names in the quantizer. They share its memory, but not its gradients."""
    folded: FoldedExperts


@dataclasses.dataclass(frozen=True)
class _Share:
    """The forward pass of some vectors of a batch."""

    codes_BM: Tensor
    measured: LossShare
    tables: Sequence[Tensor]
    """First-layer tables of the experts, and the parameters, from which the graph of the loss leads."""
    parameters: dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class _Pass:
    """The backward pass of some vectors of a batch, weighted by their share."""

    loss: Tensor
    of_tables: Sequence[Tensor]
    of_parameters: dict[str, Tensor | None]


class GradientComputation:
    """Gradients for training one quantizer, whose parameters may change from batch to batch."""

    def __init__(
        self, quantizer: ResidualQuantizer, loss_of: TrainingLoss, precision: TrainingPrecision
    ) -> None:
        self.quantizer, self.loss_of, self.precision = quantizer, loss_of, precision
        self.device = quantizer.codebooks_MKD.device

    def of_batch(self, batch_BD: Tensor) -> BatchGradient:
        """The gradient of the loss of normalized vectors. If there are none, this process still takes part in
        the sums over processes."""
        if not len(batch_BD):
            self.loss_of.statistics([])
            nothing: list[Tensor | None] = [None for _ in self.quantizer.parameters()]
            codes_BM = torch.empty(0, self.quantizer.num_steps, dtype=torch.long, device=self.device)
            return BatchGradient(batch_BD.new_zeros(()), nothing, codes_BM)
        run = functools.partial(run_on_device, self.device)
        groups = run([functools.partial(self._fold, steps) for steps in self._step_groups()])
        (tables,) = run([functools.partial(self._encoding_tables, groups)])
        parts = batch_BD.split(self._share_rows(len(batch_BD)))
        shares = run([functools.partial(self._forward, part_BD, tables) for part_BD in parts])
        mean_Q, variance = self.loss_of.statistics([share.measured for share in shares])
        weights = [len(share.codes_BM) / len(batch_BD) for share in shares]
        passes = run(
            [
                functools.partial(self._backward, share, weight, mean_Q, variance)
                for share, weight in zip(shares, weights, strict=True)
            ]
        )
        unfolded = run([functools.partial(self._unfold, group, passes) for group in groups])
        names = [name for name, _ in self.quantizer.named_parameters()]
        return BatchGradient(
            torch.stack([each.loss for each in passes]).sum(),
            run([functools.partial(self._summed, name, passes, groups, unfolded) for name in names]),
            torch.cat([share.codes_BM for share in shares]),
        )

    def _share_rows(self, rows: int) -> int:
        """Vectors in a share of a batch of `rows`."""
        if self.device.type != "cpu":
            return rows
        return min(_MOST_ROWS, max(_LEAST_ROWS, math.ceil(rows / num_threads())))

    def _step_groups(self) -> list[slice]:
        if self.quantizer.mixture is None:
            return []
        steps = self.quantizer.num_steps - self.quantizer.first_expert_step
        size = _GROUP_STEPS if self.device.type == "cpu" else steps
        return [slice(start, min(start + size, steps)) for start in range(0, steps, size)]

    def _fold(self, steps: slice) -> _Group:
        quantizer = self.quantizer
        assert quantizer.mixture is not None, "there are steps with experts"
        mixture = _with_own_parameters(quantizer.mixture, steps)
        codebooks_SKD = quantizer.codebooks_MKD.detach()[quantizer.first_expert_step :][steps]
        codebooks_SKD.requires_grad_()
        with mixed_precision(self.device, self.precision):
            folded = mixture.fold(codebooks_SKD)
        named = {f"mixture.{name}": parameter for name, parameter in mixture.named_parameters()}
        return _Group(steps, {"codebooks_MKD": codebooks_SKD, **named}, folded)

    @torch.no_grad()
    def _encoding_tables(self, groups: Sequence[_Group]) -> EncodingTables:
        """The tables of all steps, outside any graph."""
        mixture = self.quantizer.mixture
        if mixture is None:
            return encoding_tables(self.quantizer, None)
        folded = FoldedExperts(
            torch.cat([group.folded.codeword_SKF for group in groups]),
            torch.cat([group.folded.condition_SEF for group in groups]),
            mixture.contract_SLNHW,
            mixture.expand_SLNHW,
            mixture.output_projection_WD,
        )
        # A GPU takes longer for a decomposition than to widen the few candidates of the training encoder.
        with_subspace = self.device.type == "cpu"
        return encoding_tables(self.quantizer, folded.detached(), with_subspace=with_subspace)

    def _forward(self, batch_BD: Tensor, tables: EncodingTables) -> _Share:
        quantizer = _with_own_parameters(self.quantizer)
        with torch.no_grad(), mixed_precision(self.device, self.precision):
            codes_BM, partitions_B = encode(
                quantizer, tables, batch_BD, beam=TRAINING_BEAM, preselect=TRAINING_BEAM
            )
        folded = _with_own_tables(tables.folded, quantizer.mixture)
        with mixed_precision(self.device, self.precision):
            chosen_MBD = quantizer.chosen_codewords(codes_BM, partitions_B, folded)
        first_residual_BD = batch_BD - quantizer.partition_offset(partitions_B)
        return _Share(
            codes_BM,
            self.loss_of.measure(batch_BD, first_residual_BD, chosen_MBD.float()),
            [] if folded is None else [getattr(folded, name) for name in _TABLES],
            dict(quantizer.named_parameters()),
        )

    def _backward(self, share: _Share, weight: float, mean_Q: Tensor, variance: Tensor) -> _Pass:
        loss, derivatives = self.loss_of.of_share(share.measured, mean_Q, variance)
        outputs = [getattr(share.measured, name) for name in derivatives]
        incoming = [weight * derivative for derivative in derivatives.values()]
        inputs = [*share.tables, *share.parameters.values()]
        gradients = torch.autograd.grad(outputs, inputs, incoming, allow_unused=True)
        of_parameters: dict[str, Tensor | None] = dict(
            zip(share.parameters, gradients[len(share.tables) :], strict=True)
        )
        return _Pass(weight * loss, gradients[: len(share.tables)], of_parameters)

    def _unfold(self, group: _Group, passes: Sequence[_Pass]) -> dict[str, Tensor | None]:
        """Gradients with respect to the parameters of a group of steps, by way of its tables."""
        outputs, incoming = [], []
        for position, name in enumerate(_TABLES):
            table = getattr(group.folded, name)
            of_shares = [each.of_tables[position][group.steps] for each in passes]
            outputs.append(table)
            incoming.append(functools.reduce(torch.add, of_shares).to(table.dtype))
        parameters = group.parameters
        gradients = torch.autograd.grad(outputs, list(parameters.values()), incoming, allow_unused=True)
        return dict(zip(parameters, gradients, strict=True))

    def _summed(
        self,
        name: str,
        passes: Sequence[_Pass],
        groups: Sequence[_Group],
        unfolded: Sequence[dict[str, Tensor | None]],
    ) -> Tensor | None:
        """The gradient with respect to one parameter; None if the loss does not depend on it."""
        by_share = [of for each in passes if (of := each.of_parameters[name]) is not None]
        by_group = [of.get(name) for of in unfolded]
        if not by_share and all(gradient is None for gradient in by_group):
            return None
        total = by_share[0] if by_share else torch.zeros_like(self.quantizer.get_parameter(name))
        for gradient in by_share[1:]:
            total += gradient
        first = self.quantizer.first_expert_step if name == "codebooks_MKD" else 0
        for group, part in zip(groups, by_group, strict=True):
            if part is not None:
                place = total if part.shape == total.shape else total[first:][group.steps]
                place += part
        return total


Module = TypeVar("Module", bound=nn.Module)


def _with_own_parameters(module: Module, steps: slice = slice(None)) -> Module:
    """A copy of a module, with those parameters of some steps that steps have, in the same memory."""
    own = copy.copy(module)
    own._parameters = {
        name: None if parameter is None else nn.Parameter(_of_steps(name, parameter.detach(), steps))
        for name, parameter in module._parameters.items()
    }
    own._modules = {
        name: None if child is None else _with_own_parameters(child, steps)
        for name, child in module._modules.items()
    }
    return own


def _of_steps(name: str, parameter: Tensor, steps: slice) -> Tensor:
    has_steps = name.rpartition("_")[2].startswith("S")
    return parameter[steps] if has_steps else parameter


def _with_own_tables(folded: FoldedExperts | None, mixture: ExpertMixture | None) -> FoldedExperts | None:
    """Folded experts whose tables and parameters are where a graph begins."""
    if folded is None or mixture is None:
        return None
    return FoldedExperts(
        folded.codeword_SKF.detach().requires_grad_(),
        folded.condition_SEF.detach().requires_grad_(),
        mixture.contract_SLNHW,
        mixture.expand_SLNHW,
        mixture.output_projection_WD,
    )
