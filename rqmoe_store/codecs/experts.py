"""Mixture of experts: networks that deform a base codeword under a conditioning vector.

For step s, codeword c and conditioning vector I (RQ-MoE, arXiv 2605.14359, section 3):

    z       = W_c P c + W_I I + b          P projects wide vectors to the network width, else identity
    alpha   = softmax(G z)                 a linear gate
    h_0 = z;  h_l = h_{l-1} + V_{n,l} relu(U_{n,l} h_{l-1})
    E_n(z)  = h_L - h_0                    no outer identity: the codeword itself is the skip
    c~      = c + Q sum_n alpha_n E_n(z)   Q widens back to D, else identity

Every use of z is linear, so U_{n,l} z and G z split into a codeword part, computed once per codebook,
and a conditioning part. `ExpertMixture.fold` computes both as tables, and `FoldedExperts` finishes the
network from their sum. Training, encoding and parallel decoding run through the folded form.
`deform_plainly` follows the definition above word for word, for sequential decoding and for testing the
folded form.

Shape legend: S steps that have experts, B batch, K codewords, D vector dimension, W network width,
E conditioning width, N experts, L layers, H hidden width, G = L * N * H gated hidden units,
F = G + N first-layer features.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rqmoe_store.config import CodecConfig

_LARGEST_CONDITION = 1e3
"""Condition number above which an inverse would amplify rounding errors visibly."""


@dataclasses.dataclass(frozen=True)
class FoldedExperts:
    """The networks of S steps in the form that runs: first-layer tables, and the weights that follow."""

    codeword_SKF: Tensor
    """First-layer features of every codeword, bias included."""
    condition_SEF: Tensor
    """Maps a conditioning vector to its share of the first-layer features."""
    contract_SLNHW: Tensor
    expand_SLNHW: Tensor
    """Used by the second and later layers only."""
    output_projection_WD: Tensor | None

    def detached(self) -> "FoldedExperts":
        """The same in float32, outside the autograd graph."""
        return self._converted(lambda tensor: tensor.detach().float())

    def to(self, dtype: torch.dtype) -> "FoldedExperts":
        """The same in another number format."""
        return self._converted(lambda tensor: tensor.to(dtype))

    def _converted(self, convert: Callable[[Tensor], Tensor]) -> "FoldedExperts":
        projection = self.output_projection_WD
        return FoldedExperts(
            convert(self.codeword_SKF),
            convert(self.condition_SEF),
            convert(self.contract_SLNHW),
            convert(self.expand_SLNHW),
            None if projection is None else convert(projection),
        )

    def contracting(self, steps: slice) -> Tensor:
        """The contracting weights (S, G, W) of these steps, which multiply `gated` units."""
        return self.contract_SLNHW[steps].flatten(1, 3)

    def gated(self, features_SBF: Tensor, first_step: int) -> Tensor:
        """Hidden units of all layers times their expert's gate (S, B, G), for S steps from `first_step`."""
        num_layers, num_experts, hidden_dim = self.contract_SLNHW.shape[1:4]
        steps = slice(first_step, first_step + len(features_SBF))
        layers_SBLNH = features_SBF[..., :-num_experts].unflatten(-1, (num_layers, num_experts, hidden_dim))
        gate_SBN1 = features_SBF[..., -num_experts:].softmax(dim=-1).unsqueeze(-1)
        gated: list[Tensor] = []
        moved_SNBW: Tensor | None = None  # h_{l-1} - h_0 of every expert
        for layer in range(num_layers):
            hidden_SBNH = layers_SBLNH[:, :, layer]
            if moved_SNBW is not None:
                cross_SNBH = moved_SNBW @ self.expand_SLNHW[steps, layer].transpose(-1, -2)
                hidden_SBNH = hidden_SBNH + cross_SNBH.transpose(1, 2)
            hidden_SBNH = hidden_SBNH.relu()
            gated.append((hidden_SBNH * gate_SBN1).flatten(2))
            if layer + 1 < num_layers:
                step_SNBW = hidden_SBNH.transpose(1, 2) @ self.contract_SLNHW[steps, layer]
                moved_SNBW = step_SNBW if moved_SNBW is None else moved_SNBW + step_SNBW
        return gated[0] if num_layers == 1 else torch.cat(gated, dim=2)

    def deform(self, features_SBF: Tensor, first_step: int) -> Tensor:
        """Deformations (S, B, D) from summed first-layer features of S steps from `first_step` on."""
        steps = slice(first_step, first_step + len(features_SBF))
        return self.widen(self.gated(features_SBF, first_step) @ self.contracting(steps))

    def summed_deformations(self, features_SBF: Tensor) -> Tensor:
        """Deformations (B, D) summed over the first S steps, without gradient or an S x B x D tensor."""
        # One product over steps and hidden units: one GPU launch, and one rounding in bfloat16.
        gated_SBG = self.gated(features_SBF, 0)
        contract_SGW = self.contracting(slice(len(features_SBF)))
        return self.widen(gated_SBG.transpose(0, 1).flatten(1) @ contract_SGW.flatten(0, 1))

    def widen(self, deformations_SBW: Tensor) -> Tensor:
        """Deformations (..., W) in the width of the vectors (..., D)."""
        if self.output_projection_WD is None:
            return deformations_SBW
        return deformations_SBW @ self.output_projection_WD


class _SumOfLastSteps(torch.autograd.Function):
    """`add_to_last_steps`. Assigning to a slice instead would have the backward pass copy all gradients."""

    @staticmethod
    def forward(context: Any, codewords_MBD: Tensor, deformations_SBD: Tensor) -> Tensor:
        context.deformations = len(deformations_SBD), deformations_SBD.dtype
        codewords_MBD[-len(deformations_SBD) :] += deformations_SBD
        context.mark_dirty(codewords_MBD)
        return codewords_MBD

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient_MBD: Tensor) -> tuple[Tensor, Tensor]:
        count, dtype = context.deformations
        return gradient_MBD, gradient_MBD[-count:].to(dtype)


def add_to_last_steps(codewords_MBD: Tensor, deformations_SBD: Tensor) -> Tensor:
    """The codewords of M steps, with the deformations of the last S of them added in place."""
    summed_MBD: Tensor = _SumOfLastSteps.apply(codewords_MBD, deformations_SBD)  # type: ignore[no-untyped-call]
    return summed_MBD


class ExpertMixture(nn.Module):
    """Experts and gate of `num_steps` steps, stacked so that all steps run as one batched product."""

    def __init__(self, config: CodecConfig, *, dim: int, num_steps: int, condition_dim: int) -> None:
        super().__init__()
        assert config.network_dim is not None and config.hidden_dim is not None, "config is resolved"
        width, hidden = config.network_dim, config.hidden_dim
        experts, layers = config.num_experts, config.num_layers
        self.num_experts, self.num_layers, self.hidden_dim, self.width = experts, layers, hidden, width
        self.codeword_weight_SWW = nn.Parameter(torch.empty(num_steps, width, width))
        self.condition_weight_SWE = nn.Parameter(torch.zeros(num_steps, width, condition_dim))
        self.bias_SW = nn.Parameter(torch.zeros(num_steps, width))
        self.gate_SNW = nn.Parameter(torch.empty(num_steps, experts, width))
        self.expand_SLNHW = nn.Parameter(torch.empty(num_steps, layers, experts, hidden, width))
        self.contract_SLNHW = nn.Parameter(torch.zeros(num_steps, layers, experts, hidden, width))
        self.input_projection_WD: nn.Parameter | None = None
        self.output_projection_WD: nn.Parameter | None = None
        if width < dim:
            self.input_projection_WD = nn.Parameter(torch.zeros(width, dim))
            self.output_projection_WD = nn.Parameter(torch.zeros(width, dim))
        # Random numbers of mere shapes would have torch load its compiler, for a second of the first decode.
        if not self.bias_SW.is_meta:
            self._initialize()

    @torch.no_grad()
    def _initialize(self) -> None:
        """Set the weights that are not zero at the start."""
        self.codeword_weight_SWW.copy_(torch.eye(self.width))
        self.gate_SNW.copy_(torch.randn(self.gate_SNW.shape) * 0.1 / math.sqrt(self.width))
        self.expand_SLNHW.copy_(torch.randn(self.expand_SLNHW.shape) * math.sqrt(2 / self.width))
        if self.input_projection_WD is not None:
            # The zero output projection makes c~ = c at the start. Contracting weights must then not be
            # zero as well, or neither would ever receive a gradient.
            nn.init.orthogonal_(self.input_projection_WD)
            nn.init.normal_(self.contract_SLNHW, std=1 / math.sqrt(self.hidden_dim))

    def narrow(self, vectors: Tensor) -> Tensor:
        """Vectors (..., D) in the network width (..., W)."""
        if self.input_projection_WD is None:
            return vectors
        return vectors @ self.input_projection_WD.T

    @torch.no_grad()
    def absorb_codeword_weights(self) -> None:
        """Turn codeword weights W_c into identities, which take no space in an artifact; c~ stays the same.

        With z' = W_c^-1 z, U z = (U W_c) z' and G z = (G W_c) z'. Only a single layer reads z through U and
        G alone. A step whose W_c has no accurate inverse keeps it.
        """
        if self.num_layers > 1:
            return
        weight_SWW = self.codeword_weight_SWW.cpu().double().numpy()
        # By NumPy: torch solves a batch in a team of threads, which has failed with wrong pivots.
        steps = torch.from_numpy(np.linalg.cond(weight_SWW) < _LARGEST_CONDITION)
        weight_SWW = weight_SWW[steps.numpy()]
        for read in (self.expand_SLNHW, self.gate_SNW):
            rows_SRW = read[steps].cpu().double().flatten(1, -2).numpy()
            read[steps] = torch.from_numpy(rows_SRW @ weight_SWW).view_as(read[steps]).to(read)
        for part in (self.condition_weight_SWE, self.bias_SW.unsqueeze(2)):
            solved = np.linalg.solve(weight_SWW, part[steps].cpu().double().numpy())
            part[steps] = torch.from_numpy(solved).to(part)
        self.codeword_weight_SWW[steps] = torch.eye(self.width, device=self.bias_SW.device)

    def fold(self, codebooks_SKD: Tensor) -> FoldedExperts:
        """The networks of the first `len(codebooks_SKD)` steps, folded with their codebooks."""
        steps = slice(0, len(codebooks_SKD))
        first_layer_SFW = torch.cat([self.expand_SLNHW[steps].flatten(1, 3), self.gate_SNW[steps]], dim=1)
        features_SWF = first_layer_SFW.transpose(1, 2)
        inputs_SKW = torch.baddbmm(
            self.bias_SW[steps].unsqueeze(1),
            self.narrow(codebooks_SKD),
            self.codeword_weight_SWW[steps].transpose(1, 2),
        )
        condition_SEW = self.condition_weight_SWE[steps].transpose(1, 2)
        return FoldedExperts(
            codeword_SKF=inputs_SKW @ features_SWF,
            condition_SEF=condition_SEW @ features_SWF,
            contract_SLNHW=self.contract_SLNHW[steps],
            expand_SLNHW=self.expand_SLNHW[steps],
            output_projection_WD=self.output_projection_WD,
        )

    def deform_plainly(self, step: int, codewords_BD: Tensor, condition_BE: Tensor) -> Tensor:
        """Deformations (B, D) of given codewords at one step, computed as the definition says."""
        inputs_BW = (
            self.narrow(codewords_BD) @ self.codeword_weight_SWW[step].T
            + condition_BE @ self.condition_weight_SWE[step].T
            + self.bias_SW[step]
        )
        gate_BN = (inputs_BW @ self.gate_SNW[step].T).softmax(dim=-1)
        delta_BW = torch.zeros_like(inputs_BW)
        for expert in range(self.num_experts):
            state_BW = inputs_BW
            for layer in range(self.num_layers):
                hidden_BH = (state_BW @ self.expand_SLNHW[step, layer, expert].T).relu()
                state_BW = state_BW + hidden_BH @ self.contract_SLNHW[step, layer, expert]
            delta_BW = delta_BW + gate_BN[:, expert, None] * (state_BW - inputs_BW)
        if self.output_projection_WD is None:
            return delta_BW
        return delta_BW @ self.output_projection_WD
