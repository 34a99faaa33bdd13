"""QINCo: one expert per step, conditioned on the running reconstruction."""

import torch
from torch import Tensor

from rqmoe_store.codecs.experts import FoldedExperts
from rqmoe_store.codecs.quantizer import ResidualQuantizer


class QINCo(ResidualQuantizer):
    """Residual Quantization with Implicit Neural Codebooks (arXiv 2401.14732), from our own parts.

    The conditioning vector is the reconstruction so far, in the network width, so every step waits
    for the one before: decoding is sequential by nature.

    Shape legend: as in `quantizer`.
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
        """The network input starts as codeword + reconstruction: the candidate for the next one."""
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
