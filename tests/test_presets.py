"""Presets are complete settings, and any field can be changed."""

from typing import get_args

import pytest

from rqmoe_store import preset
from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.presets import PresetName


def test_presets_are_ordered_by_what_they_cost() -> None:
    settings = [preset(name) for name in get_args(PresetName)]
    minutes = [training.max_minutes or 0 for _, training in settings]
    beams = [config.beam for config, _ in settings]
    assert minutes == sorted(set(minutes))
    assert beams == sorted(set(beams))


def test_balanced_is_the_defaults_within_a_time() -> None:
    assert preset("balanced", max_minutes=None) == (CodecConfig(), TrainConfig())


def test_changes_go_to_the_settings_they_belong_to() -> None:
    config, training = preset("fast", code_bytes=8, seed=5, beam=1)
    assert (config.code_bytes, config.beam, training.seed) == (8, 1, 5)
    assert training.max_minutes == preset("fast")[1].max_minutes


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("quick", {}, "'quick' is unknown.*'fast'"),
        ("fast", {"bytes": 8}, "bytes; expected fields.*code_bytes"),
        ("fast", {"beam": 0}, "beam=0"),
    ],
)
def test_unknown_names_and_values(name: str, changes: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        preset(name, **changes)
