"""The second-level mixture: experts that deform a base codeword under a conditioning vector.

Shape legend: S steps that have experts, B batch, K codewords, D vector dimension, W network width,
E conditioning width, N experts, L layers, H hidden width, F = N * L * H + N first-layer features.

For step s, codeword c and conditioning vector I (RQ-MoE, arXiv 2605.14359, section 3):

    z       = W_c P c + W_I I + b          P projects wide vectors to the network width, else identity
    alpha   = softmax(G z)                 a linear gate
    h_0 = z;  h_l = h_{l-1} + V_{n,l} relu(U_{n,l} h_{l-1})
    E_n(z)  = h_L - h_0                    no outer identity: the codeword itself is the skip
    c~      = c + Q sum_n alpha_n E_n(z)   Q widens back to D, else identity

Every use of z is linear, so U_{n,l} z and G z split into a codeword part, computed once per
codebook, and a conditioning part. `fold` makes those tables and `deform` finishes the network from
their sum; training, encoding and parallel decoding all run through these two. `deform_plainly` is
the definition above word for word, kept for sequential decoding and to test the folded form against.
"""

import dataclasses
import math

import torch
from torch import Tensor, nn

from rqmoe_store.config import CodecConfig


@dataclasses.dataclass(frozen=True)
class FoldedExperts:
    """First-layer tables of the S steps."""

    codeword_SKF: Tensor
    """First-layer features of every codeword, bias included."""
    condition_SEF: Tensor
    """Map from a conditioning vector to its share of the first-layer features."""

    def detached(self) -> "FoldedExperts":
        """The same tables in float32, outside the autograd graph."""
        return FoldedExperts(self.codeword_SKF.detach().float(), self.condition_SEF.detach().float())


class ExpertMixture(nn.Module):
    """Experts and gate of `num_steps` steps, stacked so that all steps run as one batched product."""

    def __init__(self, config: CodecConfig, *, dim: int, num_steps: int, condition_dim: int) -> None:
        super().__init__()
        assert config.network_dim is not None and config.hidden_dim is not None, "config is resolved"
        width, hidden = config.network_dim, config.hidden_dim
        experts, layers = config.num_experts, config.num_layers
        self.num_experts, self.num_layers, self.hidden_dim = experts, layers, hidden
        self.codeword_weight_SWW = nn.Parameter(torch.eye(width).repeat(num_steps, 1, 1))
        self.condition_weight_SWE = nn.Parameter(torch.zeros(num_steps, width, condition_dim))
        self.bias_SW = nn.Parameter(torch.zeros(num_steps, width))
        self.gate_SNW = nn.Parameter(torch.randn(num_steps, experts, width) * 0.1 / math.sqrt(width))
        self.expand_SLNHW = nn.Parameter(
            torch.randn(num_steps, layers, experts, hidden, width) * math.sqrt(2 / width)
        )
        self.contract_SLNHW = nn.Parameter(torch.zeros(num_steps, layers, experts, hidden, width))
        self.input_projection_WD: nn.Parameter | None = None
        self.output_projection_WD: nn.Parameter | None = None
        if width < dim:
            # The zero output projection makes c~ = c at the start. Contracting weights must then be
            # non-zero, or neither of the two would ever receive a gradient.
            self.input_projection_WD = nn.Parameter(torch.zeros(width, dim))
            self.output_projection_WD = nn.Parameter(torch.zeros(width, dim))
            nn.init.orthogonal_(self.input_projection_WD)
            nn.init.normal_(self.contract_SLNHW, std=1 / math.sqrt(hidden))

    def narrow(self, vectors: Tensor) -> Tensor:
        """Vectors (..., D) in the network width (..., W)."""
        if self.input_projection_WD is None:
            return vectors
        return vectors @ self.input_projection_WD.T

    def fold(self, codebooks_SKD: Tensor) -> FoldedExperts:
        """First-layer tables for the codebooks of the mixture's first `len(codebooks_SKD)` steps."""
        steps = slice(0, len(codebooks_SKD))
        first_layer_SFW = torch.cat([self.expand_SLNHW[steps].flatten(1, 3), self.gate_SNW[steps]], dim=1)
        features_SWF = first_layer_SFW.transpose(1, 2)
        inputs_SKW = torch.baddbmm(
            self.bias_SW[steps].unsqueeze(1),
            self.narrow(codebooks_SKD),
            self.codeword_weight_SWW[steps].transpose(1, 2),
        )
        condition_SEW = self.condition_weight_SWE[steps].transpose(1, 2)
        return FoldedExperts(inputs_SKW @ features_SWF, condition_SEW @ features_SWF)

    def deform(self, features_SBF: Tensor, first_step: int) -> Tensor:
        """Deformations (S, B, D) from summed first-layer features of S steps from `first_step` on."""
        steps = slice(first_step, first_step + len(features_SBF))
        hidden_size = self.num_experts * self.hidden_dim
        gate_SBN = features_SBF[..., self.num_layers * hidden_size :].softmax(dim=-1)
        expand_SLNHW, contract_SLNHW = self.expand_SLNHW[steps], self.contract_SLNHW[steps]
        moved_SNBW: Tensor | None = None  # h_{l-1} - h_0 of every expert
        delta_SBW: Tensor | None = None
        for layer in range(self.num_layers):
            columns = slice(layer * hidden_size, (layer + 1) * hidden_size)
            hidden_SBNH = features_SBF[..., columns].unflatten(-1, (self.num_experts, self.hidden_dim))
            if moved_SNBW is not None:
                cross_SNBH = moved_SNBW @ expand_SLNHW[:, layer].transpose(-1, -2)
                hidden_SBNH = hidden_SBNH + cross_SNBH.transpose(1, 2)
            hidden_SBNH = hidden_SBNH.relu()
            gated_SBH = (hidden_SBNH * gate_SBN.unsqueeze(-1)).flatten(2)
            layer_SBW = gated_SBH @ contract_SLNHW[:, layer].flatten(1, 2)
            delta_SBW = layer_SBW if delta_SBW is None else delta_SBW + layer_SBW
            if layer + 1 < self.num_layers:
                step_SNBW = hidden_SBNH.transpose(1, 2) @ contract_SLNHW[:, layer]
                moved_SNBW = step_SNBW if moved_SNBW is None else moved_SNBW + step_SNBW
        assert delta_SBW is not None, "num_layers is at least 1"
        if self.output_projection_WD is None:
            return delta_SBW
        return delta_SBW @ self.output_projection_WD

    def deform_plainly(self, step: int, codewords_BD: Tensor, condition_BE: Tensor) -> Tensor:
        """Deformations (B, D) of given codewords at one step, computed as the definition reads."""
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
