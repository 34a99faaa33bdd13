"""The parts of a codec to and from an artefact.

Shape legend: T table rows, W width of the experts' deformations.
"""

import dataclasses

import numpy as np
import torch
from torch import Tensor

from rqmoe_store.codecs.additive import AdditiveTables
from rqmoe_store.codecs.artefact import Artefact
from rqmoe_store.codecs.calibration import complete_tables
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.kinds import make_quantizer
from rqmoe_store.codecs.quantizer import ResidualQuantizer
from rqmoe_store.codecs.report import TrainingReport
from rqmoe_store.config import CodecConfig
from rqmoe_store.errors import ArtefactError, InvalidInputError

_WEIGHT = "quantizer."  # prefix of the quantizer's tensors


@dataclasses.dataclass(frozen=True)
class CodecParts:
    """What a codec consists of."""

    quantizer: ResidualQuantizer
    tables: AdditiveTables
    calibration: Codes
    """Codes of training vectors, to fit tables again when the codec is truncated."""
    report: TrainingReport


def pack(parts: CodecParts) -> Artefact:
    """The parts as two byte strings."""
    tensors = {_WEIGHT + name: value for name, value in parts.quantizer.state_dict().items()}
    tensors["tables.corrections"] = parts.tables.corrections_TW
    tensors["tables.norms"] = parts.tables.norms_T1
    tensors["calibration.codes"] = torch.from_numpy(parts.calibration.codes)
    tensors["calibration.partitions"] = torch.from_numpy(parts.calibration.partitions)
    description = {
        "config": parts.quantizer.config.to_dict(),
        "dim": parts.quantizer.dim,
        "report": parts.report.to_dict(),
    }
    return Artefact.build(description, tensors)


def unpack(artefact: Artefact) -> CodecParts:
    """Inverse of `pack`.

    Raises:
        ArtefactError: damaged, of another format version, or parts that do not fit together.
    """
    description, tensors = artefact.unpack()
    try:
        config = CodecConfig(**description["config"])
        quantizer = make_quantizer(config, description["dim"])
        weights = {
            name.removeprefix(_WEIGHT): value for name, value in tensors.items() if name.startswith(_WEIGHT)
        }
        quantizer.load_state_dict(weights)
        corrections_TW, norms_T1 = tensors["tables.corrections"], tensors["tables.norms"]
        calibration = Codes(tensors["calibration.codes"].numpy(), tensors["calibration.partitions"].numpy())
        _require_fitting(quantizer, corrections_TW, norms_T1, calibration)
        tables = complete_tables(quantizer, corrections_TW, norms_T1)
        return CodecParts(quantizer, tables, calibration, TrainingReport.from_dict(description["report"]))
    except (KeyError, TypeError, RuntimeError, AssertionError, InvalidInputError) as error:
        raise ArtefactError(
            f"The codec's parts do not fit together ({error}). Restore it from a copy."
        ) from error


def _require_fitting(
    quantizer: ResidualQuantizer, corrections_TW: Tensor, norms_T1: Tensor, calibration: Codes
) -> None:
    rows = max(1, quantizer.num_partitions) + quantizer.num_steps * quantizer.codebook_size
    found = (corrections_TW.shape, norms_T1.shape, calibration.codes.shape[1:])
    expected = ((rows, quantizer.deformation_dim), (rows, 1), (quantizer.num_steps,))
    if found != expected or calibration.codes.dtype != np.uint8:
        raise InvalidInputError(f"tables and calibration codes of shapes {found}, expected {expected}")
