"""The parts of a codec to and from an artefact.

Shape legend: T table rows, W width of the experts' deformations.
"""

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rqmoe_store.codecs.additive import AdditiveTables
from rqmoe_store.codecs.artefact import Artefact
from rqmoe_store.codecs.calibration import complete_tables
from rqmoe_store.codecs.codes import Codes, check_codes
from rqmoe_store.codecs.device import as_tensor
from rqmoe_store.codecs.frame import Frame
from rqmoe_store.codecs.kinds import make_quantizer
from rqmoe_store.codecs.quantizer import ResidualQuantizer
from rqmoe_store.codecs.report import TrainingReport
from rqmoe_store.config import CodecConfig
from rqmoe_store.errors import ArtefactError, InvalidInputError

_WEIGHT = "quantizer."  # prefix of the quantizer's tensors
_OFFSET, _EXPONENT = "frame.offset", "frame_exponent"
_OTHERS = ("tables.corrections", "tables.norms", "calibration.codes", "calibration.partitions")


@dataclasses.dataclass(frozen=True)
class CodecParts:
    """What a codec consists of."""

    quantizer: ResidualQuantizer
    tables: AdditiveTables
    calibration: Codes
    """Codes of training vectors, to fit tables again when the codec is truncated."""
    report: TrainingReport
    frame: Frame


def pack(parts: CodecParts) -> Artefact:
    """The parts as two byte strings."""
    tensors = {_WEIGHT + name: value for name, value in parts.quantizer.state_dict().items()}
    others = (
        parts.tables.corrections_TW,
        parts.tables.norms_T1,
        as_tensor(parts.calibration.codes),
        as_tensor(parts.calibration.partitions),
    )
    tensors |= zip(_OTHERS, others, strict=True)
    description: dict[str, Any] = {
        "config": parts.quantizer.config.to_dict(),
        "dim": parts.quantizer.dim,
        "report": parts.report.to_dict(),
    }
    if not parts.frame.is_plain:
        # A release that knows no frames finds a tensor that it does not know, and refuses the codec.
        tensors[_OFFSET] = as_tensor(parts.frame.offset_D)
        description[_EXPONENT] = parts.frame.exponent
    return Artefact.build(description, tensors)


def unpack(artefact: Artefact) -> CodecParts:
    """Inverse of `pack`.

    Nothing larger than the artefact is allocated before its tensors are known to be those of its
    configuration.

    Raises:
        ArtefactError: damaged, of another format version, or parts that do not fit together.
    """
    description, tensors = artefact.unpack()
    try:
        config, dim = CodecConfig(**description["config"]), description["dim"]
        frame = _frame(description, tensors.pop(_OFFSET, None), dim)
        quantizer = _quantizer(config, dim, tensors)
        corrections_TW, norms_T1, codes, partitions = (tensors[name] for name in _OTHERS)
        calibration = Codes(codes.numpy(), partitions.numpy())
        report = TrainingReport.from_dict(description["report"])
        _require_fitting(quantizer, corrections_TW, norms_T1, calibration, report)
        tables = complete_tables(quantizer, corrections_TW, norms_T1)
        return CodecParts(quantizer, tables, calibration, report, frame)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ArtefactError(
            f"The codec's parts do not fit together ({type(error).__name__}: {error}). "
            "Restore it from a copy."
        ) from error


def _frame(description: dict[str, Any], offset_D: Tensor | None, dim: Any) -> Frame:
    """The frame of a codec; one that was packed without it has the plain one."""
    if offset_D is None and _EXPONENT not in description:
        return Frame.plain(dim)
    if offset_D is None:
        raise InvalidInputError(f"the codec has {_EXPONENT}, but no {_OFFSET}")
    return Frame.checked(offset_D.numpy(), description[_EXPONENT], dim)


def _quantizer(config: CodecConfig, dim: object, tensors: dict[str, Tensor]) -> ResidualQuantizer:
    width = tensors[_WEIGHT + "mean_D"].numel()
    if type(dim) is not int or dim != width:
        raise InvalidInputError(f"dim={dim!r}, but the mean has {width} components")
    if config.resolve(dim=dim, rows=1) != config:
        raise InvalidInputError(f"{config} leaves something undecided")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise InvalidInputError(f"{name} has NaN or infinite values")
        if name.startswith(_WEIGHT) and tensor.dtype != torch.float32:
            raise InvalidInputError(f"{name} is {tensor.dtype}, expected {torch.float32}")
    with torch.device("meta"):  # shapes without memory: the configuration may be anything
        quantizer = make_quantizer(config, dim)
    weights = {name.removeprefix(_WEIGHT): tensor for name, tensor in tensors.items() if name not in _OTHERS}
    quantizer.load_state_dict(weights, assign=True)
    if not quantizer.scale > 0:
        raise InvalidInputError(f"the scale is {quantizer.scale.item()}, expected a positive number")
    return quantizer


def _require_fitting(
    quantizer: ResidualQuantizer,
    corrections_TW: Tensor,
    norms_T1: Tensor,
    calibration: Codes,
    report: TrainingReport,
) -> None:
    num_steps, num_partitions = quantizer.num_steps, quantizer.num_partitions
    rows = max(1, num_partitions) + num_steps * quantizer.codebook_size
    found = corrections_TW.shape, norms_T1.shape, corrections_TW.dtype, norms_T1.dtype
    expected = (rows, quantizer.deformation_dim), (rows, 1), torch.float32, torch.float32
    if found != expected:
        raise InvalidInputError(f"look-up tables of shapes and types {found}, expected {expected}")
    check_codes(
        calibration,
        num_steps=num_steps,
        codebook_size=quantizer.codebook_size,
        num_partitions=num_partitions,
    )
    if calibration.codes.shape[1] != num_steps or len(calibration) == 0:
        raise InvalidInputError(f"calibration codes of shape {calibration.codes.shape}")
    if calibration.partitions.dtype != np.int32:
        raise InvalidInputError(f"calibration partitions are {calibration.partitions.dtype}, expected int32")
    if (len(report.prefix_mse), len(report.rq_prefix_mse)) != (num_steps, num_steps):
        raise InvalidInputError(f"the report does not have an error for each of {num_steps} code bytes")
