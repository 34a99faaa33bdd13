"""Presets: named settings of codec and training, by how long training and encoding take."""

import dataclasses
from typing import Any, Literal, get_args

from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.errors import InvalidInputError

PresetName = Literal["fast", "balanced", "best"]

_PRESETS: dict[PresetName, dict[str, Any]] = {
    "fast": {"max_minutes": 3.0, "beam": 2},
    "balanced": {"max_minutes": 15.0, "beam": 3},
    "best": {"max_minutes": 60.0, "beam": 16},
}


def preset(name: PresetName, **changes: Any) -> tuple[CodecConfig, TrainConfig]:
    """Settings of codec and training by name.

    - "fast": 3 minutes of training, and encoding at about 1.5 times the speed of "balanced".
    - "balanced": 15 minutes of training, and the defaults of CodecConfig and TrainConfig.
    - "best": an hour of training, and encoding at about a fifth of the speed of "balanced".

    All three take the same space, and the same time to decode and to search.

    Args:
        name: "fast", "balanced" or "best".
        changes: other values for fields of CodecConfig and TrainConfig, such as `code_bytes=8`.

    Raises:
        InvalidInputError: the name, a field or a value is unknown.

    Example:
        >>> config, training = preset("fast", code_bytes=8, seed=1)
        >>> codec = train(table, config=config, training=training)  # doctest: +SKIP
    """
    if not isinstance(name, str) or name not in _PRESETS:
        options = ", ".join(repr(choice) for choice in get_args(PresetName))
        raise InvalidInputError(f"preset {name!r} is unknown; choose one of {options}.")
    settings = {**_PRESETS[name], **changes}
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
