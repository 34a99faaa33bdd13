"""Fitting a codec's additive tables from codes alone.

Shape legend: n codes, M steps, K codewords, D dimension, P partitions, T = max(P, 1) + M * K rows.
"""

import torch
from torch import Tensor

from rqmoe_store.codecs.additive import AdditiveTables, fit_additive, table_rows
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.decoding import decode
from rqmoe_store.codecs.quantizer import ResidualQuantizer

CALIBRATION_ROWS = 32_768
"""Codes kept inside a codec, to fit tables again when it is truncated."""


@torch.inference_mode()
def fit_tables(quantizer: ResidualQuantizer, calibration: Codes) -> AdditiveTables:
    """Tables whose selected rows sum to the reconstructions of the calibration codes."""
    reconstructions_nD = decode(quantizer, quantizer.fold(), calibration)
    norms_n1 = reconstructions_nD.square().sum(dim=1, keepdim=True)
    initial_TD = _initial_rows(quantizer)
    initial_T1 = torch.zeros(len(initial_TD), 1, device=initial_TD.device)
    num_partitions = max(1, quantizer.num_partitions)
    initial_T1[:num_partitions] = norms_n1.mean()
    rows = table_rows(calibration, num_partitions, quantizer.codebook_size, initial_TD.device)
    fitted_TX = fit_additive(
        rows,
        torch.cat([reconstructions_nD, norms_n1], dim=1),
        torch.cat([initial_TD, initial_T1], dim=1),
    )
    return AdditiveTables(
        # Half precision is what the artefact stores; rounding here keeps saved and loaded codecs equal.
        rows_TD=fitted_TX[:, :-1].half().float(),
        norms_T1=fitted_TX[:, -1:].contiguous(),
        num_partitions=num_partitions,
        codebook_size=quantizer.codebook_size,
    )


def _initial_rows(quantizer: ResidualQuantizer) -> Tensor:
    """The undeformed codec as tables: centroids with the mean, then scaled base codewords."""
    codewords_XD = quantizer.codebooks_MKD.flatten(0, 1) * quantizer.scale
    if quantizer.num_partitions:
        return torch.cat([quantizer.denormalize(quantizer.centroids_PD), codewords_XD])
    return torch.cat([quantizer.mean_D[None], codewords_XD])
