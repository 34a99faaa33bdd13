"""Codec kinds by name: rq, qinco and rqmoe.

Shape legend: as in `quantizer`; F first-layer features of the experts.
"""

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from rqmoe_store.codecs.experts import FoldedExperts, add_to_last_steps
from rqmoe_store.codecs.quantizer import ResidualQuantizer
from rqmoe_store.config import CodecConfig, CodecKind


class RQ(ResidualQuantizer):
    """Plain residual quantization: c~ = c at every step (Chen et al., "Approximate Nearest Neighbor Search by
    Residual Vector Quantization", 2010)."""

    @property
    def condition_dim(self) -> int:
        return 0

    def initial_condition(self, partitions_B: Tensor) -> Tensor:
        return self.codebooks_MKD.new_zeros(len(partitions_B), 0)

    def condition_increment(self, step: int, indices: Tensor, codewords: Tensor | None) -> Tensor:
        return self.codebooks_MKD.new_zeros(*indices.shape, 0)

    def chosen_codewords(
        self, codes_BM: Tensor, partitions_B: Tensor, folded: FoldedExperts | None
    ) -> Tensor:
        return self.base_codewords(codes_BM)

    def summed_codewords(
        self, codes_BM: Tensor, partitions_B: Tensor, folded: FoldedExperts | None
    ) -> Tensor:
        return self.summed_base_codewords(codes_BM)


class QINCo(ResidualQuantizer):
    """Residual Quantization with Implicit Neural Codebooks (arXiv 2401.14732), built from our own parts.

    The conditioning vector is the reconstruction so far, in the network width. Every step waits for the one
    before it, so decoding is inherently sequential.
    """

    condition_follows_codewords = True

    @property
    def condition_dim(self) -> int:
        assert self.config.network_dim is not None, "config is resolved"
        return self.config.network_dim

    def initial_condition(self, partitions_B: Tensor) -> Tensor:
        return self._narrow(self.partition_offset(partitions_B))

    def condition_increment(self, step: int, indices: Tensor, codewords: Tensor | None) -> Tensor:
        assert codewords is not None, "condition_follows_codewords"
        return self._narrow(codewords)

    def _narrow(self, vectors: Tensor) -> Tensor:
        if self.mixture is None:
            return vectors[..., : self.condition_dim]
        return self.mixture.narrow(vectors)

    @torch.no_grad()
    def start_experts(self) -> None:
        """Initialize the network input to codeword + reconstruction, a candidate for the next one."""
        super().start_experts()
        if self.mixture is not None:
            self.mixture.condition_weight_SWE.copy_(torch.eye(self.condition_dim))

    def chosen_codewords(
        self, codes_BM: Tensor, partitions_B: Tensor, folded: FoldedExperts | None
    ) -> Tensor:
        condition_BE = self.initial_condition(partitions_B)
        chosen: list[Tensor] = []
        for step, indices_B in enumerate(codes_BM.unbind(dim=1)):
            codewords_BD = self.codebooks_MKD[step, indices_B]
            if self.mixture is not None and folded is not None and step >= self.first_expert_step:
                index = step - self.first_expert_step
                chosen_BF = folded.codeword_SKF[index, indices_B]
                features_BF = torch.addmm(
                    chosen_BF, condition_BE.to(chosen_BF.dtype), folded.condition_SEF[index]
                )
                deformed_1BD = folded.deform(features_BF.unsqueeze(0), first_step=index)
                codewords_BD = codewords_BD + deformed_1BD[0]
            condition_BE = condition_BE + self.condition_increment(step, indices_B, codewords_BD)
            chosen.append(codewords_BD)
        return torch.stack(chosen)


class RQMoE(ResidualQuantizer):
    """Residual Quantization via Mixture of Experts (arXiv 2605.14359).

    Each index selects a base codeword and an expert component. The instruction, which conditions the
    experts, is the prefix sum of expert components. A decoder gets it for every step from look-ups alone,
    so it decodes all steps at once. Partition centroids carry expert components too, so that the first
    step has an instruction as well.
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
        """Initialize expert components to the codewords, projected on their main directions.

        The first instructions are then the plain RQ reconstructions, which the networks see from the start.
        """
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
        return add_to_last_steps(chosen_MBD, folded.deform(features_SBF, first_step=0))

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
        # On a CPU, adding whole matrices step by step is several times faster than torch's cumsum.
        for component_BE in components_MBE:
            instructions.append(instructions[-1] + component_BE)
        return torch.stack(instructions)


_KINDS: dict[CodecKind, type[ResidualQuantizer]] = {"rqmoe": RQMoE, "qinco": QINCo, "rq": RQ}


def make_quantizer(config: CodecConfig, dim: int) -> ResidualQuantizer:
    """A quantizer of the configured kind, its weights not yet set."""
    return _KINDS[config.kind](config, dim)
