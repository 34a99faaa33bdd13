"""Reconstruction error of a quantizer during and after training.

Shape legend: n vectors, B batch, M steps, D dimension.
"""

import torch
from torch import Tensor

from rqmoe_store.codecs import encoding
from rqmoe_store.codecs.encoding_tables import encoding_tables
from rqmoe_store.codecs.quantizer import ResidualQuantizer
from rqmoe_store.config import scored_pairs

TRAINING_BEAM = 2
"""Beam of the encoder in the loop: codebooks should fit the codes that a beam search finds, and a
wider one costs more steps than it is worth."""

_QUICK_ROWS = 2048


@torch.inference_mode()
def prefix_mse(
    quantizer: ResidualQuantizer, normalized_nD: Tensor, *, beam: int, preselect: int | None
) -> tuple[float, ...]:
    """Mean squared error norm of every code prefix (1 to M steps), in normalized units."""
    folded = quantizer.fold()
    tables = encoding_tables(quantizer, folded)
    rows = encoding.chunk_rows(quantizer, beam=beam, preselect=preselect)
    total_M = torch.zeros(quantizer.num_steps, dtype=torch.float64)
    for chunk_BD in normalized_nD.split(rows):
        codes_BM, partitions_B = encoding.encode(quantizer, tables, chunk_BD, beam=beam, preselect=preselect)
        chosen_MBD = quantizer.chosen_codewords(codes_BM, partitions_B, folded)
        first_residual_BD = chunk_BD - quantizer.partition_offset(partitions_B)
        errors_MBD = first_residual_BD - chosen_MBD.cumsum(dim=0)
        total_M += errors_MBD.square().sum(dim=2).double().sum(dim=1).cpu()
    return tuple((total_M / len(normalized_nD)).tolist())


def quick_mse(quantizer: ResidualQuantizer, normalized_nD: Tensor) -> float:
    """Validation error by the training encoder on some of the held-out vectors: picks the best weights.

    The report uses all of them and the default encoder.
    """
    return prefix_mse(quantizer, normalized_nD[:_QUICK_ROWS], beam=TRAINING_BEAM, preselect=TRAINING_BEAM)[-1]


def validation_mse(quantizer: ResidualQuantizer, validation_nD: Tensor) -> tuple[float, ...]:
    """Prefix errors with the quantizer's default encoder, in the units of the input."""
    config = quantizer.config
    normalized_nD = quantizer.normalize(validation_nD)
    errors = prefix_mse(
        quantizer, normalized_nD, beam=config.beam, preselect=scored_pairs(config.beam, config.preselect)
    )
    return tuple(error * float(quantizer.scale) ** 2 for error in errors)
