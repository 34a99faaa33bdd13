"""Plain residual quantization: the codec with no experts, and the start of the other two."""

from torch import Tensor

from rqmoe_store.codecs.experts import FoldedExperts
from rqmoe_store.codecs.quantizer import ResidualQuantizer


class RQ(ResidualQuantizer):
    """c~ = c at every step (Chen et al., "Approximate Nearest Neighbor Search by Residual Vector
    Quantization", 2010)."""

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
