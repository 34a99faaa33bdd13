"""What the short cuts of our codecs save, and what they cost.

Shape suffixes: N vectors, D vector dimension.

Every way to encode or decode is one row, timed in the same run as the default it is compared with.
Another way is one more entry of `_decoders` or `_encoders`.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import CodecConfig
from rqmoe_store.evaluation.codec_results import SpeedRow
from rqmoe_store.evaluation.codec_timing import cyclic, timed

_MANY = 4096
_FEW = 256
"""Vectors that slow encoders are timed on, and that all errors are measured on."""

_WARM_UP = 64
_CPU_SIZE, _GPU_SIZE = 2048, 8192


@dataclasses.dataclass(frozen=True)
class _Form:
    """A way to do the work; the first of a list is the default."""

    name: str
    run: Callable[[Any], Any]
    vectors: int
    counted: bool = False
    """Whether `decode_multiply_adds` describes it."""


def measure_speed(codec: Codec, name: str, held_out_ND: Float32Array, matmul_rate: float) -> list[SpeedRow]:
    """Rows for every way to decode and encode.

    Args:
        name: what to call the codec.
        held_out_ND: at least one vector; errors are those over the first 256.
        matmul_rate: from `measure_matmul_rate`, on the codec's device.
    """
    few_ND = held_out_ND[:_FEW]
    multiply_adds = decode_multiply_adds(codec.config, codec.dim)
    rows, codes = [], None
    for form, seconds, ratio, encoded in _compare(_encoders(codec), cyclic(held_out_ND, _MANY)):
        codes = encoded if codes is None else codes  # the default's
        decoded_ND = codec.decode(encoded[: len(few_ND)])
        rows.append(_row(codec, name, "encode", form, seconds, ratio, few_ND, decoded_ND))
    for form, seconds, ratio, decoded_ND in _compare(_decoders(codec), codes):
        row = _row(codec, name, "decode", form, seconds, ratio, few_ND, decoded_ND)
        if form.counted:
            share = multiply_adds / seconds / matmul_rate
            row = dataclasses.replace(row, multiply_adds=multiply_adds, matmul_share=share)
        rows.append(row)
    return rows


def _decoders(codec: Codec) -> list[_Form]:
    return [
        _Form("default", codec.decode, _MANY, counted=True),
        _Form("step by step", functools.partial(codec.decode, sequential=True), _MANY),
        _Form("bfloat16", functools.partial(codec.decode, precision="bfloat16"), _FEW),
    ]


def _encoders(codec: Codec) -> list[_Form]:
    exhaustive = functools.partial(codec.encode, beam=1, preselect=None)
    return [
        _Form(f"default (beam {codec.config.beam})", codec.encode, _MANY),
        _Form("exhaustive (beam 1)", exhaustive, _FEW),
    ]


def _compare(forms: list[_Form], work: Any) -> Iterator[tuple[_Form, float, float, Any]]:
    """Every form with its seconds per vector, how many times those of the default they are, and what it
    makes of the first vectors of `work`."""
    default_seconds = None
    for form in forms:
        part = work[: form.vectors]
        form.run(part[:_WARM_UP])
        seconds, made = timed(lambda: form.run(part), least=1)  # noqa: B023
        seconds /= form.vectors
        default_seconds = default_seconds or seconds
        yield form, seconds, seconds / default_seconds, made


def _row(
    codec: Codec,
    name: str,
    work: str,
    form: _Form,
    seconds: float,
    ratio: float,
    few_ND: Float32Array,
    decoded_ND: Float32Array,
) -> SpeedRow:
    return SpeedRow(
        codec=name,
        code_bytes=codec.config.code_bytes,
        work=work,
        form=form.name,
        vectors=form.vectors,
        microseconds=1e6 * seconds,
        times_default=ratio,
        mse=mean_squared_error(few_ND, decoded_ND[: len(few_ND)]),
    )


def mean_squared_error(vectors_ND: Float32Array, decoded_ND: Float32Array) -> float:
    """Mean of ||x - x_hat||^2."""
    return float(np.square(vectors_ND - decoded_ND).sum(axis=1, dtype=np.float64).mean())


def decode_multiply_adds(config: CodecConfig, dim: int) -> int:
    """Multiply-adds of decoding one vector in the default way, counted from shapes.

    Hidden units that are zero count as well, although decoding on a CPU skips them.

    With S expert steps, E conditioning width, N experts, L layers, H hidden and W network width,
    F = N * L * H + N first-layer features, D dimension and M steps:

        S * E * F                    features from the conditioning vector
        S * N * H * W * (3 * L - 2)  layers: out of each, and into and across between two
        W * D                        back to the vectors' width, where W < D; S times as many for "qinco"
        M * D                        sum of the codewords
        (M + 1) * W * D              "qinco" with W < D: into the network's width, start and every step
    """
    steps = config.code_bytes
    additions = steps * dim
    expert_steps = steps if config.num_partitions else steps - 1
    if config.kind == "rq" or not expert_steps:
        return additions
    width, hidden, layers = config.network_dim, config.hidden_dim, config.num_layers
    condition_dim = width if config.kind == "qinco" else config.expert_dim
    assert width is not None and hidden is not None and condition_dim is not None, "config is resolved"
    features = config.num_experts * (layers * hidden + 1)
    per_step = condition_dim * features + config.num_experts * hidden * width * (3 * layers - 2)
    projections = 0
    if width < dim:
        projections = expert_steps + steps + 1 if config.kind == "qinco" else 1
    return expert_steps * per_step + projections * width * dim + additions


def measure_matmul_rate(device: torch.device) -> float:
    """Multiply-adds per second of a large float32 matrix product."""
    size = _GPU_SIZE if device.type == "cuda" else _CPU_SIZE
    matrix = torch.rand(size, size, device=device)

    def multiply() -> float:
        # Reading one number back waits for a GPU.
        return float((matrix @ matrix)[0, 0])

    multiply()
    return size**3 / timed(multiply)[0]
