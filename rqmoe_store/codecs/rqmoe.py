"""RQ-MoE: experts conditioned on an instruction stream that depends on codes only."""

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from rqmoe_store.codecs.experts import FoldedExperts
from rqmoe_store.codecs.quantizer import ResidualQuantizer
from rqmoe_store.config import CodecConfig


class RQMoE(ResidualQuantizer):
    """Residual Quantization via Mixture of Experts (arXiv 2605.14359).

    Each index selects a base codeword and an expert component at once. The instruction is the prefix
    sum of expert components, so a decoder knows it for every step from look-ups and all steps decode
    together. Partition centroids carry expert components too, which makes the first step dynamic.

    Shape legend: as in `quantizer`.
    """

    def __init__(self, config: CodecConfig, dim: int) -> None:
        super().__init__(config, dim)
        self.expert_components_MKE = nn.Parameter(
            torch.zeros(self.num_steps, self.codebook_size, self.condition_dim)
        )
        self.partition_components_PE = nn.Parameter(torch.zeros(self.num_partitions, self.condition_dim))

    @property
    def condition_dim(self) -> int:
        assert self.config.expert_dim is not None, "config is resolved"
        return self.config.expert_dim

    def initial_condition(self, partitions_B: Tensor) -> Tensor:
        if self.num_partitions:
            return self.partition_components_PE[partitions_B]
        return self.partition_components_PE.new_zeros(len(partitions_B), self.condition_dim)

    def condition_increment(self, step: int, indices: Tensor, codewords: Tensor | None) -> Tensor:
        return functional.embedding(indices, self.expert_components_MKE[step])

    @torch.no_grad()
    def start_experts(self) -> None:
        """Expert components start as the codewords, projected on their main directions, so that the
        first instruction stream is the plain RQ reconstruction; the networks see it from the start."""
        super().start_experts()
        if self.mixture is None:
            return
        directions_ED = self.main_directions(self.condition_dim)
        self.expert_components_MKE.copy_(self.codebooks_MKD @ directions_ED.T)
        self.partition_components_PE.copy_(self.centroids_PD @ directions_ED.T)
        self.mixture.condition_weight_SWE.copy_(self.mixture.narrow(directions_ED).T)

    def chosen_codewords(
        self, codes_BM: Tensor, partitions_B: Tensor, folded: FoldedExperts | None
    ) -> Tensor:
        chosen_MBD = self.base_codewords(codes_BM)
        first, num_steps = self.first_expert_step, codes_BM.shape[1]
        if self.mixture is None or folded is None or num_steps <= first:
            return chosen_MBD
        features_SBF = self._features(codes_BM, partitions_B, folded)
        delta_SBD = folded.deform(features_SBF, first_step=0)
        return torch.cat([chosen_MBD[:first], chosen_MBD[first:] + delta_SBD])

    def summed_codewords(
        self, codes_BM: Tensor, partitions_B: Tensor, folded: FoldedExperts | None
    ) -> Tensor:
        summed_BD = self.summed_base_codewords(codes_BM)
        if folded is None or codes_BM.shape[1] <= self.first_expert_step:
            return summed_BD
        features_SBF = self._features(codes_BM, partitions_B, folded)
        return summed_BD + folded.summed_deformations(features_SBF).float()

    def _features(self, codes_BM: Tensor, partitions_B: Tensor, folded: FoldedExperts) -> Tensor:
        """First-layer features (S, B, F) of every step that has experts."""
        first, num_steps = self.first_expert_step, codes_BM.shape[1]
        starts_S1 = self.codebook_size * torch.arange(num_steps - first, device=codes_BM.device)[:, None]
        chosen_SBF = functional.embedding(codes_BM.T[first:] + starts_S1, folded.codeword_SKF.flatten(0, 1))
        instruction_SBE = self._instructions(codes_BM, partitions_B)[first:].to(chosen_SBF.dtype)
        return torch.baddbmm(chosen_SBF, instruction_SBE, folded.condition_SEF[: num_steps - first])

    def _instructions(self, codes_BM: Tensor, partitions_B: Tensor) -> Tensor:
        """I^1 .. I^M (M, B, E): look-ups and a prefix sum."""
        starts_M = self.codebook_size * torch.arange(codes_BM.shape[1] - 1, device=codes_BM.device)
        components_MBE = functional.embedding(
            codes_BM.T[:-1] + starts_M[:, None], self.expert_components_MKE.flatten(0, 1)
        )
        instructions = [self.initial_condition(partitions_B)]
        # Adding whole matrices step by step is several times quicker on a CPU than torch's cumsum.
        for component_BE in components_MBE:
            instructions.append(instructions[-1] + component_BE)
        return torch.stack(instructions)
