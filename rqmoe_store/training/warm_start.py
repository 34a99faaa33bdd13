"""Warm start: training that goes on from the weights of a trained codec."""

import dataclasses

import numpy as np
import torch

from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.coder import ResidualCoder
from rqmoe_store.codecs.frame import Frame, to_float32
from rqmoe_store.codecs.prepared import quantizer_of
from rqmoe_store.codecs.quantizer import ResidualQuantizer
from rqmoe_store.codecs.subject import Subject, describe_subject, may_be
from rqmoe_store.codecs.weights import QuantizerWeights
from rqmoe_store.config import CodecConfig
from rqmoe_store.errors import InvalidInputError

_SHAPE = (
    "kind", "metric", "code_bytes", "codebook_size", "num_partitions", "num_experts", "num_layers",
    "hidden_dim", "expert_dim", "network_dim",
)  # fmt: skip
"""Settings that decide the shapes and the meaning of weights."""


@dataclasses.dataclass(frozen=True)
class WarmStart:
    """A trained quantizer to go on from, and the codec that it comes from."""

    quantizer: ResidualQuantizer
    fingerprint: str

    @classmethod
    def of(cls, start: Codec, config: CodecConfig, frame: Frame, device: torch.device) -> "WarmStart":
        """A copy of a codec's weights with the given config, in another frame."""
        coder = start.coder
        assert isinstance(coder, ResidualCoder), "starting_config refuses others"
        arrays = {name: np.array(array) for name, array in coder.weights.arrays.items()}
        own, weights = start.frame, coder.weights
        mean_D = np.ldexp(weights.mean_D.astype(np.float64), own.exponent) + own.offset_D - frame.offset_D
        arrays["mean_D"] = to_float32(np.ldexp(mean_D, -frame.exponent))
        arrays["scale"] = to_float32(np.ldexp(np.float64(weights.scale), own.exponent - frame.exponent))
        quantizer = quantizer_of(QuantizerWeights(config, arrays)).to(device)
        return cls(quantizer.requires_grad_(True), start.fingerprint)


def starting_config(
    start: Codec | None, config: CodecConfig | None, encodes: Subject = "vectors"
) -> CodecConfig:
    """The config of a training, which may go on from a codec. What `config` leaves open is then as there.

    Args:
        start: a codec to go on from, if there is one.
        config: the config that was asked for, if one was.
        encodes: what is trained on.

    Raises:
        InvalidInputError: the codec has no weights to go on from, they have another shape than the config, or
            were trained on something else.
    """
    if start is None:
        return config or CodecConfig()
    if not isinstance(start, Codec):
        raise InvalidInputError(
            f"Got a start of type {type(start).__name__}; expected a Codec, such as `load_codec` returns."
        )
    if not may_be(start.encodes, encodes):
        raise InvalidInputError(
            f"Got a start that is a codec of {describe_subject(start.encodes)}; expected one of "
            f"{describe_subject(encodes)}, which is what is trained on. Leave start out."
        )
    known = start.config
    if known.is_transform:
        raise InvalidInputError(
            f"Got a start of kind {known.kind!r}; expected one that is trained. A transform code is fitted "
            "in seconds; leave start out."
        )
    if config is None:
        return known
    undecided = {name: getattr(known, name) for name in _SHAPE if getattr(config, name) is None}
    wanted = dataclasses.replace(config, **undecided).resolve(dim=start.dim, rows=1)
    different = [
        f"{name}={getattr(known, name)!r} instead of {getattr(wanted, name)!r}"
        for name in _SHAPE
        if getattr(known, name) != getattr(wanted, name)
    ]
    if different:
        raise InvalidInputError(
            f"Got a start with {', '.join(different)}; expected the shape that the config asks for. Give the "
            "config of the start, or leave one of the two out."
        )
    return wanted


def require_dim(start: Codec | None, dim: int) -> None:
    """Raise InvalidInputError unless the vectors of a training have the dimension of its start."""
    if start is not None and dim != start.dim:
        raise InvalidInputError(
            f"Got vectors of dimension {dim} and a start of dimension {start.dim}; expected the same. Leave "
            "start out for vectors of another model."
        )


def can_start_from(codec: Codec, config: CodecConfig, rows: int, encodes: Subject) -> bool:
    """Whether a training on so many vectors gives a codec of the shape that another one has, of the same.

    A number of partitions that the config leaves open may be off by a factor of two.
    """
    wanted = config.resolve(dim=codec.dim, rows=rows)
    found, right = codec.config.num_partitions, wanted.num_partitions
    assert found is not None and right is not None, "both are resolved"
    if config.num_partitions is None and right <= 2 * found and found <= 2 * right:
        wanted = dataclasses.replace(wanted, num_partitions=found)
    is_alike = may_be(codec.encodes, encodes) and not codec.config.is_transform
    return is_alike and all(getattr(codec.config, name) == getattr(wanted, name) for name in _SHAPE)
