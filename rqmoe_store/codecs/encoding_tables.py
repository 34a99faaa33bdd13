"""What the encoder scores candidates with, computed once per codec.

Shape legend: M steps, K codewords, D vector dimension, W network width, S steps with experts,
G gated hidden units, X width of the encoder's coordinates.

Experts that work in a narrower width than the vectors end in a projection Q (W x D), so their
deformations lie in a W-dimensional subspace. The encoder works in coordinates [part outside that
subspace; coordinates inside it], X = D + W: distances are the same there, and a deformation changes
the last W coordinates only, so no candidate is ever widened to D. Without a projection X = D = W.
"""

import dataclasses

import torch
from torch import Tensor

from rqmoe_store.codecs.experts import FoldedExperts
from rqmoe_store.codecs.quantizer import ResidualQuantizer


@dataclasses.dataclass(frozen=True)
class EncodingTables:
    """A quantizer's codebooks and expert weights in the encoder's coordinates."""

    codebooks_MKX: Tensor
    norms_MK: Tensor
    """Squared lengths of the codewords."""
    folded: FoldedExperts | None
    contract_SGW: Tensor | None
    """Gated hidden units to the coordinates that deformations change."""
    subspace_WD: Tensor | None
    """Orthonormal rows that span the deformations; None when they fill the whole space."""

    def enter(self, vectors: Tensor) -> Tensor:
        """Vectors (..., D) in the encoder's coordinates (..., X)."""
        if self.subspace_WD is None:
            return vectors
        inside = vectors @ self.subspace_WD.T
        return torch.cat([vectors - inside @ self.subspace_WD, inside], dim=-1)

    def leave(self, vectors: Tensor) -> Tensor:
        """Inverse of `enter`."""
        if self.subspace_WD is None:
            return vectors
        dim = self.subspace_WD.shape[1]
        return vectors[..., :dim] + vectors[..., dim:] @ self.subspace_WD


def encoding_tables(quantizer: ResidualQuantizer, folded: FoldedExperts | None) -> EncodingTables:
    """Tables of a quantizer; `folded` is its `fold()`, outside the autograd graph."""
    codebooks_MKD = quantizer.codebooks_MKD.detach()
    norms_MK = codebooks_MKD.square().sum(dim=2)
    if folded is None:
        return EncodingTables(codebooks_MKD, norms_MK, None, None, None)
    contract_SGW = folded.contracting(slice(None))
    if folded.output_projection_WD is None:
        return EncodingTables(codebooks_MKD, norms_MK, folded, contract_SGW, None)
    # Q^T = O R with orthonormal O gives g V Q = (g V R^T) O^T: the subspace's basis is O^T.
    subspace_DW, mixing_WW = torch.linalg.qr(folded.output_projection_WD.T)
    tables = EncodingTables(
        codebooks_MKD, norms_MK, folded, contract_SGW @ mixing_WW.T, subspace_DW.T.contiguous()
    )
    return dataclasses.replace(tables, codebooks_MKX=tables.enter(codebooks_MKD))
