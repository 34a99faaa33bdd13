"""Artifact: a codec on disk, as a JSON description and a safetensors file that hashes bind together.

The fingerprint is the hash of the description. The description contains the hash of the weights, so the
fingerprint identifies the whole codec. A float32 tensor of rounded rows is stored packed, in five to six bits
a number, one of bfloat16 numbers as bfloat16, and a rotation of float16 numbers as float16. All are read as
the float32 tensors that they were.

Shape legend: D dimension, T table rows, W width of the experts' deformations.
"""

import dataclasses
import hashlib
import json
import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import safetensors

from rqmoe_store.codecs.additive import complete_tables
from rqmoe_store.codecs.coder import Coder, ResidualCoder, TransformCoder
from rqmoe_store.codecs.codes import Codes, check_codes
from rqmoe_store.codecs.correction import DistanceCorrection
from rqmoe_store.codecs.device import as_tensor
from rqmoe_store.codecs.frame import Frame
from rqmoe_store.codecs.refine import Refiner
from rqmoe_store.codecs.rounding import pack_rows, unpack_rows
from rqmoe_store.codecs.subject import Subject, subject_from_json, subject_to_json
from rqmoe_store.codecs.transform import Arrays, TransformQuantizer
from rqmoe_store.codecs.weights import QuantizerWeights, weight_shapes
from rqmoe_store.config import CodecConfig
from rqmoe_store.errors import ArtifactError, InvalidInputError, StorageError

if TYPE_CHECKING:
    from torch import Tensor

AnyArray = npt.NDArray[Any]

FORMAT_VERSION = 5
READABLE_VERSIONS = (2, 3, 4, FORMAT_VERSION)
"""Version 2 has no refine codes and no transform codes. Version 3 has no packed rows. Rotations of version 4
are square and of float32."""

CONFIG_FILE = "config.json"
WEIGHTS_PREFIX = "weights-"
WEIGHTS_SUFFIX = ".safetensors"

_BFLOAT16, _FLOAT16 = "BF16", "F16"
_TYPES = {
    **{"F32": np.float32, "F64": np.float64, _BFLOAT16: np.uint16, _FLOAT16: np.float16},
    **{"U8": np.uint8, "U16": np.uint16, "U32": np.uint32, "I8": np.int8, "I32": np.int32},
}
"""Types that tensors are stored as, by their names in safetensors files. numpy lacks bfloat16: its bits are
read as integers."""

_WEIGHT = "quantizer."  # prefix of the quantizer's tensors
_OFFSET, _EXPONENT = "frame.offset", "frame_exponent"
_ENCODES = "encodes"
_TRANSFORM, _REFINE = "transform.", "refine."  # prefixes of the arrays of transform codes
_CORRECTION = "correction."  # prefix of the arrays of a distance correction
_CALIBRATION = ("calibration.codes", "calibration.partitions")
_TABLES = ("tables.corrections", "tables.norms")
_ROTATION = ".rotation"
"""Ends the names of rotations: of the only tensors that are float16."""

_EXPONENTS = ".exponents"
"""Ends the name of the exponents of a packed tensor."""


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A codec as two byte strings."""

    config_json: str
    """Canonical JSON: format version, configuration, training report, hash of the weights."""
    weights: bytes
    """Tensors in safetensors format."""

    @classmethod
    def build(cls, description: dict[str, Any], arrays: Arrays) -> "Artifact":
        """Build an artifact from a description and its tensors."""
        import safetensors.torch

        stored: dict[str, Tensor] = {}
        for name, array in arrays.items():
            stored |= _shortest_form(name, array)
        weights = safetensors.torch.save(stored)
        document = {
            **description,
            "format_version": FORMAT_VERSION,
            "weights_sha256": hashlib.sha256(weights).hexdigest(),
        }
        return cls(json.dumps(document, sort_keys=True), weights)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the description, which covers the weights through their hash."""
        return hashlib.sha256(self.config_json.encode()).hexdigest()

    def unpack(self) -> tuple[dict[str, Any], Arrays]:
        """The description and the tensors, verified.

        Raises:
            ArtifactError: the description is not JSON or has another format version, or the weights do not
                match their hash.
        """
        description = _parse_object(self.config_json, "The codec's description")
        if description.get("format_version") not in READABLE_VERSIONS:
            raise ArtifactError(
                f"Got a codec of format version {description.get('format_version')!r}; this release reads "
                f"versions {READABLE_VERSIONS[0]} to {FORMAT_VERSION}. Upgrade rqmoe-store, or train again."
            )
        digest = hashlib.sha256(self.weights).hexdigest()
        if digest != description.get("weights_sha256"):
            raise ArtifactError(
                f"The codec's weights have hash {digest[:12]}..., expected "
                f"{str(description.get('weights_sha256'))[:12]}...: truncated or changed. "
                "Restore them from a copy."
            )
        try:
            return description, _restored(_read_arrays(self.weights))
        except (safetensors.SafetensorError, KeyError, ValueError) as error:
            raise ArtifactError(
                f"The codec's weights are not readable ({type(error).__name__}: {error}). "
                "Restore them from a copy."
            ) from error


def _shortest_form(name: str, array: AnyArray) -> "dict[str, Tensor]":
    """The array as it is stored: packed or in two bytes a number where it is float32 and loses nothing."""
    import torch

    tensor = as_tensor(array).contiguous()
    if tensor.dtype != torch.float32:
        return {name: tensor}
    short = tensor.half() if name.endswith(_ROTATION) else tensor.bfloat16()
    if not torch.equal(short.float(), tensor):
        return {name: tensor}
    packed = pack_rows(tensor.numpy())
    if packed is None or sum(part.nbytes for part in packed) >= short.nbytes:
        return {name: short}
    return {name: as_tensor(packed[0]), name + _EXPONENTS: as_tensor(packed[1])}


def _restored(stored: Arrays) -> Arrays:
    """Arrays as they were before `_shortest_form` packed some of them.

    Raises:
        InvalidInputError: packed rows are damaged.
    """
    packed = [name for name in stored if name + _EXPONENTS in stored]
    rows = {name: unpack_rows(stored[name], stored[name + _EXPONENTS]) for name in packed}
    parts = {*packed, *(name + _EXPONENTS for name in packed)}
    return {name: array for name, array in stored.items() if name not in parts} | rows


def _read_arrays(weights: bytes) -> Arrays:
    """The tensors of a safetensors file.

    Raises:
        SafetensorError, KeyError, ValueError: it is no such file, or a tensor has another type than the bytes
            it has.
    """
    arrays: Arrays = {}
    for name, tensor in safetensors.deserialize(weights):  # type: ignore[no-untyped-call]
        if tensor["dtype"] == _FLOAT16 and not name.endswith(_ROTATION):
            raise ValueError(f"{name} is float16")
        bits = np.frombuffer(tensor["data"], np.dtype(_TYPES[tensor["dtype"]]).newbyteorder("<"))
        if tensor["dtype"] == _BFLOAT16:
            wide = bits.astype(np.uint32)
            wide <<= 16  # in place: a second array of this size takes longer than the shift
            bits = wide.view(np.float32)
        elif tensor["dtype"] == _FLOAT16:
            bits = bits.astype(np.float32)
        arrays[name] = bits.reshape(tensor["shape"])
    return arrays


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingReport:
    """Errors are means of ||x - x_hat||^2 over held-out vectors, encoded with the codec's own settings."""

    rows: int
    """Vectors trained on."""
    epochs: float
    """Passes over the training vectors."""
    validation_rows: int
    """Held-out vectors that the errors were measured on."""
    variance: float
    """Mean squared distance of the held-out vectors to their mean."""
    prefix_mse: tuple[float, ...]
    """Error of every prefix of their codes, from 1 byte to all bytes."""
    rq_prefix_mse: tuple[float, ...]
    """The same for the plain RQ that training started from, encoded with the same beam. Empty for a transform
    code, which does not start from any."""
    utilisation: float
    """Share of codewords used at least once by the training vectors, averaged over steps."""
    seconds: float
    """Wall-clock time of the call to `train`, codebook initialization included."""
    refined_mse: float | None = None
    """Error of the whole code with its refine code; None without refine codes."""
    started_from: str | None = None
    """Fingerprint of the codec that training went on from; None if it began with plain RQ."""
    encoding_precision: Literal["float32"] = "float32"
    """Number format in which codes are chosen. It depends neither on the hardware nor on the precision of
    training."""

    @property
    def validation_mse(self) -> float:
        """Error of the whole code, without a refine code."""
        return self.prefix_mse[-1]

    @property
    def whole_mse(self) -> float:
        """Error of the whole code, with its refine code if it has one."""
        return self.validation_mse if self.refined_mse is None else self.refined_mse

    @property
    def rq_validation_mse(self) -> float:
        """Error of plain RQ at the same bytes and beam; NaN for a transform code."""
        return self.rq_prefix_mse[-1] if self.rq_prefix_mse else math.nan

    @property
    def relative_mse(self) -> float:
        """Error of the whole code, with its refine code if it has one, as a share of the variance; NaN if all
        held-out vectors were the same."""
        return self.whole_mse / self.variance if self.variance else math.nan

    def truncated(self, num_steps: int) -> "TrainingReport":
        """The report of the codec's first `num_steps` steps."""
        return dataclasses.replace(
            self,
            prefix_mse=self.prefix_mse[:num_steps],
            rq_prefix_mse=self.rq_prefix_mse[:num_steps],
            refined_mse=None,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "TrainingReport":
        """Inverse of `to_dict`.

        Raises:
            InvalidInputError: a figure is not a number.
            KeyError, TypeError, ValueError: `fields` are not those of a report.
        """
        values: dict[str, Any] = dict(fields)
        for name in ("prefix_mse", "rq_prefix_mse"):
            values[name] = tuple(values[name])  # JSON has lists only
        report = cls(**values)
        figures = [report.rows, report.epochs, report.validation_rows, report.variance]
        figures += [report.utilisation, report.seconds, *report.prefix_mse, *report.rq_prefix_mse]
        figures += [] if report.refined_mse is None else [report.refined_mse]
        if not all(type(figure) in (int, float) for figure in figures):
            raise InvalidInputError(f"Got {report}; expected numbers.")
        if not isinstance(report.started_from, str | None):
            raise InvalidInputError(f"Got {report}; expected a fingerprint, or none.")
        if report.encoding_precision != "float32":
            raise InvalidInputError(
                f"Got encoding_precision={report.encoding_precision!r}; this release encodes in 'float32', "
                "which may choose other codes. Upgrade rqmoe-store."
            )
        return report


@dataclasses.dataclass(frozen=True)
class CodecParts:
    """The parts that make up a codec."""

    coder: Coder
    calibration: Codes
    """Codes of training vectors, to which `truncate` fits new tables."""
    report: TrainingReport
    frame: Frame
    refiner: Refiner | None = None
    correction: DistanceCorrection | None = None
    encodes: Subject = None
    """What the codec was trained on."""


def pack(parts: CodecParts) -> Artifact:
    """Pack the parts of a codec into an artifact."""
    coder = parts.coder
    calibration = parts.calibration.codes, _in_fewest_bytes(parts.calibration.partitions)
    arrays: Arrays = dict(zip(_CALIBRATION, calibration, strict=True))
    if isinstance(coder, ResidualCoder):
        arrays |= _with_prefix(_WEIGHT, coder.weights.arrays)
        arrays |= zip(_TABLES, (coder.tables.corrections_TW, coder.tables.norms_T1), strict=True)
    elif isinstance(coder, TransformCoder):
        arrays |= _with_prefix(_TRANSFORM, coder.quantizer.arrays())
    if parts.refiner is not None:
        arrays |= _with_prefix(_REFINE, parts.refiner.arrays())
    if parts.correction is not None:
        # A release without corrections finds unknown tensors and refuses the codec.
        arrays |= _with_prefix(_CORRECTION, parts.correction.arrays())
    description: dict[str, Any] = {
        "config": coder.config.to_dict(),
        "dim": coder.dim,
        "report": parts.report.to_dict(),
    }
    if parts.encodes is not None:
        description[_ENCODES] = subject_to_json(parts.encodes)
    if not parts.frame.is_plain:
        # A release without frames finds an unknown tensor and refuses the codec.
        arrays[_OFFSET] = parts.frame.offset_D
        description[_EXPONENT] = parts.frame.exponent
    return Artifact.build(description, arrays)


def _in_fewest_bytes(partitions_n: npt.NDArray[np.int32]) -> AnyArray:
    """Partition ids as integers of the shortest unsigned type."""
    return partitions_n.astype(np.min_scalar_type(int(partitions_n.max(initial=0))))


def _with_prefix(prefix: str, arrays: Mapping[str, AnyArray]) -> Arrays:
    return {prefix + name: array for name, array in arrays.items()}


def _pop_arrays(prefix: str, arrays: Arrays) -> Arrays:
    """Remove the arrays whose names begin with `prefix`, and return them."""
    names = [name for name in arrays if name.startswith(prefix)]
    return {name.removeprefix(prefix): arrays.pop(name) for name in names}


def unpack(artifact: Artifact) -> CodecParts:
    """Inverse of `pack`.

    Before this has checked that the tensors fit the configuration, it allocates nothing larger than the
    artifact.

    Raises:
        ArtifactError: the artifact is damaged, has another format version, or has parts that do not fit
            together.
    """
    description, arrays = artifact.unpack()
    try:
        config, dim = CodecConfig(**description["config"]), description["dim"]
        _require_config(config, dim, arrays)
        frame = _frame(description, arrays.pop(_OFFSET, None), dim)
        codes, partitions = (arrays.pop(name) for name in _CALIBRATION)
        calibration = Codes(codes, _partition_ids(partitions))
        report = TrainingReport.from_dict(description["report"])
        _require_fitting(config, calibration, report)
        refiner = _refiner(config, dim, _pop_arrays(_REFINE, arrays))
        corrected = _pop_arrays(_CORRECTION, arrays)
        correction = DistanceCorrection.from_arrays(corrected, config, dim) if corrected else None
        encodes = subject_from_json(description.get(_ENCODES))
        coder = (_transform_coder if config.is_transform else _residual_coder)(config, dim, arrays)
        return CodecParts(coder, calibration, report, frame, refiner, correction, encodes)
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"The codec's parts do not fit together ({type(error).__name__}: {error}). "
            "Restore it from a copy."
        ) from error


def _partition_ids(stored_n: AnyArray) -> npt.NDArray[np.int32]:
    """Partition ids from the type in which `pack` stores them; up to version 3 that was int32."""
    if stored_n.dtype.name not in ("uint8", "uint16", "uint32", "int32"):
        raise InvalidInputError(f"calibration partitions are {stored_n.dtype}, expected unsigned integers")
    return stored_n.astype(np.int32)


def _frame(description: dict[str, Any], offset_D: AnyArray | None, dim: Any) -> Frame:
    """The frame of a codec; the plain one if it was packed without a frame."""
    if offset_D is None and _EXPONENT not in description:
        return Frame.plain(dim)
    if offset_D is None:
        raise InvalidInputError(f"the codec has {_EXPONENT}, but no {_OFFSET}")
    return Frame.checked(offset_D, description[_EXPONENT], dim)


def _require_config(config: CodecConfig, dim: object, arrays: Arrays) -> None:
    """Raise InvalidInputError unless the configuration is complete and the tensors are finite."""
    if type(dim) is not int or dim < 1:
        raise InvalidInputError(f"dim={dim!r}, expected a number of components")
    if config.resolve(dim=dim, rows=1) != config:
        raise InvalidInputError(f"{config} leaves something undecided")
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InvalidInputError(f"{name} has NaN or infinite values")


def _refiner(config: CodecConfig, dim: int, arrays: Arrays) -> Refiner | None:
    if not config.refine_bytes:
        if arrays:
            raise InvalidInputError(f"refine codes of no bytes, with {sorted(arrays)}")
        return None
    return Refiner.from_arrays(
        arrays, dim=dim, refine_bytes=config.refine_bytes, base=config.refine_base, metric=config.metric
    )


def _transform_coder(config: CodecConfig, dim: int, arrays: Arrays) -> TransformCoder:
    own = _pop_arrays(_TRANSFORM, arrays)
    if arrays:
        raise InvalidInputError(f"unknown tensors {sorted(arrays)}")
    return TransformCoder(config, TransformQuantizer.from_arrays(own, dim=dim, num_bytes=config.code_bytes))


def _residual_coder(config: CodecConfig, dim: int, arrays: Arrays) -> ResidualCoder:
    weights = QuantizerWeights(config, _pop_arrays(_WEIGHT, arrays))
    _require_arrays(weights.arrays, weight_shapes(config, dim))
    if not weights.scale > 0:
        raise InvalidInputError(f"the scale is {weights.scale}, expected a positive number")
    rows = max(1, weights.num_partitions) + config.code_bytes * config.codebook_size
    shapes = (rows, weights.deformation_dim), (rows, 1)
    _require_arrays(arrays, dict(zip(_TABLES, shapes, strict=True)))
    return ResidualCoder(weights, complete_tables(weights, *(arrays[name] for name in _TABLES)))


def _require_arrays(arrays: Mapping[str, AnyArray], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise InvalidInputError unless the arrays have these names and shapes, and are float32."""
    if arrays.keys() != shapes.keys():
        raise InvalidInputError(f"tensors {sorted(arrays)}, expected {sorted(shapes)}")
    for name, array in arrays.items():
        if array.shape != shapes[name] or array.dtype != np.float32:
            raise InvalidInputError(
                f"{name} is {array.dtype} of shape {array.shape}, expected float32 of shape {shapes[name]}"
            )


def _require_fitting(config: CodecConfig, calibration: Codes, report: TrainingReport) -> None:
    """Raise InvalidInputError unless calibration codes and report are those of such a codec."""
    num_steps = config.code_bytes
    check_codes(
        calibration,
        num_steps=num_steps,
        codebook_size=config.codebook_size,
        num_partitions=config.num_partitions or 0,
    )
    if calibration.codes.shape[1] != num_steps or len(calibration) == 0:
        raise InvalidInputError(f"calibration codes of shape {calibration.codes.shape}")
    errors = (len(report.prefix_mse), len(report.rq_prefix_mse))
    if errors != (num_steps, 0 if config.is_transform else num_steps):
        raise InvalidInputError(f"the report does not have an error for each of {num_steps} code bytes")
    if (report.refined_mse is None) == bool(config.refine_bytes):
        raise InvalidInputError(f"a refined error of {report.refined_mse}, of {config.refine_bytes} bytes")


def write_artifact(artifact: Artifact, directory: str | os.PathLike[str]) -> None:
    """Write the artifact into `directory`, replacing the one that is there.

    The name of the weights file contains the fingerprint, and `config.json` is replaced last, in one rename.
    A reader therefore sees the old codec or the new one, never a mixture.

    Raises:
        ArtifactError: `directory` is a file.
        StorageError: the disk refuses the write; the earlier codec is intact.
    """
    folder = Path(directory)
    if folder.exists() and not folder.is_dir():
        raise ArtifactError(f"{folder} is a file; give a directory to save the codec in.")
    weights_name = _weights_name(artifact)
    document = json.loads(artifact.config_json)
    outer = {"fingerprint": artifact.fingerprint, "weights_file": weights_name, "codec": document}
    is_new = not (folder / weights_name).exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / weights_name, artifact.weights)
        try:
            write_atomically(folder / CONFIG_FILE, json.dumps(outer, indent=2, sort_keys=True).encode())
        except OSError:
            if is_new:  # no codec needs these weights
                (folder / weights_name).unlink()
            raise
        for stale in folder.glob(f"{WEIGHTS_PREFIX}*{WEIGHTS_SUFFIX}"):
            if stale.name != weights_name:
                stale.unlink()
    except OSError as error:
        raise StorageError(
            f"The codec of {len(artifact.weights):,} bytes cannot be saved in {folder} ({error}). What was "
            "there before is intact; make room or get the right to write there, or choose another directory."
        ) from error


def read_artifact(directory: str | os.PathLike[str]) -> Artifact:
    """Read the artifact that `write_artifact` wrote, and check it.

    Raises:
        ArtifactError: a file is missing, truncated or changed.
    """
    folder = Path(directory)
    outer = _parse_object(_read_bytes(folder / CONFIG_FILE), str(folder / CONFIG_FILE))
    # The form that was hashed; the name of the weights file follows from its hash.
    described = Artifact(json.dumps(outer.get("codec"), sort_keys=True), b"")
    require_fingerprint(described, outer.get("fingerprint"))
    weights_name = _weights_name(described)
    if outer.get("weights_file") != weights_name:
        raise ArtifactError(
            f"{folder / CONFIG_FILE} names {outer.get('weights_file')!r} as the file of the weights; "
            f"expected {weights_name!r}. It was changed: restore it from a copy."
        )
    return dataclasses.replace(described, weights=_read_bytes(folder / weights_name))


def require_fingerprint(artifact: Artifact, expected: object) -> None:
    """Raise ArtifactError unless the artifact's content has the expected fingerprint."""
    if artifact.fingerprint != expected:
        raise ArtifactError(
            f"Codec fingerprint is {artifact.fingerprint[:12]}..., expected {str(expected)[:12]}...: "
            "its description was changed. Restore it from a copy."
        )


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, even after a power cut."""
    # Not a file of tempfile, which nobody but its owner may read.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _weights_name(artifact: Artifact) -> str:
    return f"{WEIGHTS_PREFIX}{artifact.fingerprint[:16]}{WEIGHTS_SUFFIX}"


def _read_bytes(path: Path) -> bytes:
    try:
        if path.is_file():
            return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error}). Restore it from a copy.") from error
    raise ArtifactError(
        f"No codec at {path.parent}: {path.name} is missing. Save one with codec.save(), or restore the file "
        "from a copy."
    )


def _parse_object(text: str | bytes, name: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{name} is not JSON ({type(error).__name__}: {error}). Restore it from a copy."
        ) from error
    if not isinstance(document, dict):
        raise ArtifactError(
            f"{name} is a JSON {type(document).__name__}; expected an object. Restore it from a copy."
        )
    return document
