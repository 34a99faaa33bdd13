"""What a step follows: encode without gradient, decode with it, measure.

Shape legend: B batch, M steps, D dimension.
"""

import torch
from torch import Tensor

from rqmoe_store.codecs import encoding
from rqmoe_store.codecs.encoding_tables import encoding_tables
from rqmoe_store.codecs.quantizer import ResidualQuantizer
from rqmoe_store.config import TrainingPrecision
from rqmoe_store.training.evaluate import TRAINING_BEAM
from rqmoe_store.training.loss import TrainingLoss
from rqmoe_store.training.precision import mixed_precision


def batch_loss(
    quantizer: ResidualQuantizer, batch_BD: Tensor, loss_of: TrainingLoss, precision: TrainingPrecision
) -> tuple[Tensor, Tensor]:
    """The loss of normalized vectors, differentiable, and their codes (B, M)."""
    with mixed_precision(batch_BD.device, precision):
        folded = quantizer.fold()
    with torch.no_grad():
        constant = None if folded is None else folded.detached()
        tables = encoding_tables(quantizer, constant)
        codes_BM, partitions_B = encoding.encode(
            quantizer, tables, batch_BD, beam=TRAINING_BEAM, preselect=TRAINING_BEAM
        )
    with mixed_precision(batch_BD.device, precision):
        chosen_MBD = quantizer.chosen_codewords(codes_BM, partitions_B, folded)
    first_residual_BD = batch_BD - quantizer.partition_offset(partitions_B)
    return loss_of(batch_BD, first_residual_BD, chosen_MBD.float()), codes_BM
