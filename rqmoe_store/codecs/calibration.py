"""Fitting a codec's additive tables from codes alone.

Shape legend: n codes, M steps, K codewords, D dimension, W width of the deformations, P partitions,
T = max(P, 1) + M * K rows.

Centroids and undeformed codewords sum to everything of a reconstruction but the experts'
deformations, so only those are fitted. Summed over the steps they are Y_nW Q_WD, Q being the experts'
output projection. Least squares is linear in its targets: corrections (T, W) fitted to Y and then
multiplied by Q are the rows that a fit to Y Q would have given, at W / D of the work, and an
artefact keeps the narrow ones. Without a projection W = D; without experts there is nothing to fit.
"""

import torch
import torch.nn.functional as functional
from torch import Tensor

from rqmoe_store.codecs.additive import AdditiveTables, fit_additive, table_rows
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.decoding import decode
from rqmoe_store.codecs.quantizer import ResidualQuantizer

CALIBRATION_ROWS = 32_768
"""Codes kept inside a codec, to fit tables again when it is truncated."""

_WEAKEST_DIRECTION = 1e-4  # of the strongest; below it, deformations are rounding errors blown up


@torch.inference_mode()
def fit_tables(quantizer: ResidualQuantizer, calibration: Codes) -> AdditiveTables:
    """Tables whose selected rows sum to the reconstructions of the calibration codes."""
    reconstructions_nD = decode(quantizer, quantizer.fold(), calibration)
    norms_n1 = reconstructions_nD.square().sum(dim=1, keepdim=True)
    num_partitions = max(1, quantizer.num_partitions)
    rows_nM = table_rows(calibration, num_partitions, quantizer.codebook_size, norms_n1.device)
    undeformed_TD = _undeformed_rows(quantizer)
    undeformed_nD = functional.embedding_bag(rows_nM, undeformed_TD, mode="sum")
    deformations_nW = _narrowed(quantizer, reconstructions_nD - undeformed_nD)
    initial_TX = undeformed_TD.new_zeros(len(undeformed_TD), quantizer.deformation_dim + 1)
    initial_TX[:num_partitions, -1] = norms_n1.mean()
    fitted_TX = fit_additive(rows_nM, torch.cat([deformations_nW, norms_n1], dim=1), initial_TX)
    # Rounded here, not only in the artefact, so that saved and loaded codecs are equal.
    corrections_TW = fitted_TX[:, :-1].bfloat16().float()
    return complete_tables(quantizer, corrections_TW, fitted_TX[:, -1:].contiguous())


@torch.inference_mode()
def complete_tables(quantizer: ResidualQuantizer, corrections_TW: Tensor, norms_T1: Tensor) -> AdditiveTables:
    """The tables of which `corrections_TW`, in the units of the input, and `norms_T1` were fitted."""
    rows_TD = _undeformed_rows(quantizer)
    if quantizer.mixture is not None:
        projection_WD = quantizer.mixture.output_projection_WD
        rows_TD += corrections_TW if projection_WD is None else corrections_TW @ projection_WD
    return AdditiveTables(
        rows_TD=rows_TD,
        corrections_TW=corrections_TW,
        norms_T1=norms_T1,
        num_partitions=max(1, quantizer.num_partitions),
        codebook_size=quantizer.codebook_size,
    )


def _undeformed_rows(quantizer: ResidualQuantizer) -> Tensor:
    """The codec without its experts as tables: centroids with the mean, then scaled codewords."""
    codewords_XD = quantizer.codebooks_MKD.flatten(0, 1) * quantizer.scale
    if quantizer.num_partitions:
        return torch.cat([quantizer.denormalize(quantizer.centroids_PD), codewords_XD])
    return torch.cat([quantizer.mean_D[None], codewords_XD])


def _narrowed(quantizer: ResidualQuantizer, deformations_nD: Tensor) -> Tensor:
    """What the output projection makes the deformations of (n, W); the shortest where several fit."""
    if quantizer.mixture is None:
        return deformations_nD[:, :0]
    projection_WD = quantizer.mixture.output_projection_WD
    if projection_WD is None:
        return deformations_nD
    # The projection is zero in an untrained codec, so it may have no inverse.
    inverse_DW: Tensor = torch.linalg.pinv(projection_WD, rtol=_WEAKEST_DIRECTION)
    return deformations_nD @ inverse_DW
