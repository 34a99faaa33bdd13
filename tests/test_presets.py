"""Presets are complete settings, and any field can be changed."""

from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rqmoe_store import preset
from rqmoe_store.config import METRICS, CodecConfig, TrainConfig
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.presets import PresetName


def test_presets_are_ordered_by_what_they_cost() -> None:
    presets = [preset(name) for name in get_args(PresetName)]
    minutes = [training.max_minutes or 0 for _, training in presets]
    beams = [config.beam for config, _ in presets]
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


def test_recall_decides_bytes() -> None:
    config, training = preset(recall=0.95)
    assert (config.code_bytes, training) == (16, preset("balanced")[1])
    assert 96 < config.code_bytes + config.refine_bytes <= 128
    assert preset("fast", recall=0.95, dim=384)[0].refine_bytes == config.refine_bytes
    assert preset("fast", recall=0.95)[1] == preset("fast")[1]
    assert preset(recall=0.5)[0].refine_bytes == 0


@settings(max_examples=200)
@given(recall=st.floats(0.01, 0.978), dim=st.integers(1, 4096), metric=st.sampled_from(METRICS))
def test_bytes_grow_with_recall_and_dimension(recall: float, dim: int, metric: str) -> None:
    config, _ = preset(recall=recall, dim=dim, metric=metric)
    config.resolve(dim=dim, rows=1000)
    total = config.code_bytes + config.refine_bytes
    for changed in ({"recall": min(0.978, recall + 0.02)}, {"dim": dim + 300}):
        more = preset(**{"recall": recall, "dim": dim, "metric": metric, **changed})
        assert more[0].code_bytes + more[0].refine_bytes >= total


def test_wider_vectors_get_bytes_in_proportion() -> None:
    narrow, wide = (preset(recall=0.95, dim=dim)[0] for dim in (384, 1536))
    assert wide.code_bytes + wide.refine_bytes == pytest.approx(
        4 * (narrow.code_bytes + narrow.refine_bytes), rel=0.1
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"recall": 0.99}, r"recall=0\.99; expected .* up to 0\.978.*refine_factor"),
        ({"recall": 0.0}, r"recall=0\.0; expected a number above 0"),
        ({"recall": True}, "recall=True; expected"),
        ({"recall": "high"}, "recall='high'; expected"),
        ({"recall": 0.9, "dim": 0}, "dim=0"),
        ({"recall": 0.9, "code_bytes": 16}, "recall=0.9 with code_bytes, which it decides"),
        ({"recall": 0.9, "refine_bytes": 0}, "recall=0.9 with refine_bytes, which it decides"),
        ({"dim": 384}, "dim=384 without recall"),
    ],
)
def test_recalls_that_decide_nothing(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        preset(**fields)
