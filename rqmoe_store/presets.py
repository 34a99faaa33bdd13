"""Presets: settings of codec and training, by how long these take and by the recall that is wanted."""

import dataclasses
import itertools
import math
from typing import Any, Literal, get_args

from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.errors import InvalidInputError

PresetName = Literal["fast", "balanced", "best"]

_PRESETS: dict[PresetName, dict[str, Any]] = {
    "fast": {"max_minutes": 3.0, "beam": 2},
    "balanced": {"max_minutes": 15.0, "beam": 3},
    "best": {"max_minutes": 60.0, "beam": 16},
}

_MEASURED: tuple[tuple[int, float], ...] = (
    (8, 0.53), (16, 0.71), (24, 0.74), (32, 0.79), (48, 0.85), (64, 0.89), (96, 0.935), (128, 0.957),
    (144, 0.964), (192, 0.978),
)  # fmt: skip
"""Bytes altogether, and the share of the 10 nearest that searches for 10 find, of 60,000 passages embedded in
384 dimensions (BENCHMARKS.md). From 24 bytes on, `_CODE_BYTES` are the code, and the others a refine code."""

_MEASURED_DIM = 384
_CODE_BYTES = 16
_WIDE = 1_024
"""Dimension from which on codes are twice as long."""

_STEP = 8


def preset(
    name: PresetName = "balanced", *, recall: float | None = None, dim: int | None = None, **changes: Any
) -> tuple[CodecConfig, TrainConfig]:
    """Settings of codec and training by name, and bytes by the recall that is wanted.

    - "fast": 3 minutes of training, and encoding at about 1.5 times the speed of "balanced".
    - "balanced": 15 minutes of training, and the defaults of CodecConfig and TrainConfig.
    - "best": an hour of training, and encoding at about a fifth of the speed of "balanced".

    All three take the same space, and the same time to decode and to search.

    With `recall`, the codec gets as many bytes as codes of that recall had in the project's benchmark: text
    embeddings of 384 dimensions, under cosine. For other dimensions the bytes are scaled: in proportion to
    the dimension above 384, and to its square root below. **This is an estimate.** Other data, other models
    and other metrics need more bytes or fewer (embeddings of a static model with 256 dimensions had .94 where
    .95 was asked for), so measure what searches of your own find: `rqmoe bench search`.

    Args:
        name: "fast", "balanced" or "best".
        recall: wanted share of the 10 nearest vectors that a search for 10 finds, such as 0.95. It decides
            `code_bytes` and `refine_bytes`.
        dim: dimension of the vectors, for `recall`. None means 384.
        changes: other values for fields of CodecConfig and TrainConfig, such as `code_bytes=8`.

    Raises:
        InvalidInputError: the name, a field or a value is unknown, no number of bytes was measured to have
            that recall, or `recall` comes with bytes.

    Example:
        >>> config, training = preset("fast", code_bytes=8, seed=1)
        >>> config, training = preset(recall=0.95, dim=768, metric="cosine")
        >>> codec = train(table, config=config, training=training)  # doctest: +SKIP
    """
    if not isinstance(name, str) or name not in _PRESETS:
        options = ", ".join(repr(choice) for choice in get_args(PresetName))
        raise InvalidInputError(f"preset {name!r} is unknown; choose one of {options}.")
    settings = {**_PRESETS[name], **_bytes_for(recall, dim, changes), **changes}
    codec_fields = {field.name for field in dataclasses.fields(CodecConfig)}
    training_fields = {field.name for field in dataclasses.fields(TrainConfig)}
    unknown = sorted(settings.keys() - codec_fields - training_fields)
    if unknown:
        raise InvalidInputError(
            f"Got settings {', '.join(unknown)}; expected fields of CodecConfig "
            f"({', '.join(sorted(codec_fields))}) or of TrainConfig ({', '.join(sorted(training_fields))})."
        )
    codec_settings = {key: value for key, value in settings.items() if key in codec_fields}
    training_settings = {key: value for key, value in settings.items() if key in training_fields}
    return CodecConfig(**codec_settings), TrainConfig(**training_settings)


def _bytes_for(recall: float | None, dim: int | None, changes: dict[str, Any]) -> dict[str, int]:
    """The bytes of codes and refine codes for a recall; nothing without one."""
    if recall is None:
        if dim is not None:
            raise InvalidInputError(f"Got dim={dim} without recall; the dimension matters for recall only.")
        return {}
    given = sorted({"code_bytes", "refine_bytes"} & changes.keys())
    if given:
        raise InvalidInputError(
            f"Got recall={recall} with {', '.join(given)}, which it decides; leave one out."
        )
    least, most = 0.0, _MEASURED[-1][1]
    if isinstance(recall, bool) or not isinstance(recall, int | float) or not least < recall <= most:
        raise InvalidInputError(
            f"Got recall={recall!r}; expected a number above 0 and up to {most}, the most that was measured. "
            "For more, keep raw vectors (keep_vectors) and search with refine_factor."
        )
    dim = _MEASURED_DIM if dim is None else dim
    if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
        raise InvalidInputError(f"Got dim={dim!r}; expected the dimension of the vectors, a whole number.")
    total, ratio = _measured_bytes(recall), dim / _MEASURED_DIM
    scaled = total * (ratio if ratio > 1 else math.sqrt(ratio))
    if total <= _CODE_BYTES:
        return {"code_bytes": min(dim, math.ceil(scaled)), "refine_bytes": 0}
    code_bytes = min(dim, _CODE_BYTES if dim < _WIDE else 2 * _CODE_BYTES)
    refine_bytes = _STEP * math.ceil(max(_STEP, scaled - code_bytes) / _STEP)
    most = dim if changes.get("metric") == "dot" else dim + 2  # 8 bits a dimension, and lengths
    return {"code_bytes": code_bytes, "refine_bytes": min(most, refine_bytes)}


def _measured_bytes(recall: float) -> float:
    """Bytes altogether that had a recall, between those that were measured; at least the fewest of them."""
    for (fewer, low), (more, high) in itertools.pairwise(_MEASURED):
        if recall <= high:
            return fewer + (more - fewer) * max(0.0, recall - low) / (high - low)
    raise AssertionError(f"{recall} is within what was measured")
