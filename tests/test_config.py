"""Settings are checked on creation."""

import dataclasses

import pytest

from rqmoe_store.config import CodecConfig, TrainConfig, scored_pairs
from rqmoe_store.errors import InvalidInputError


@pytest.mark.parametrize(
    "fields",
    [
        {"metric": "manhattan"}, {"kind": "hnsw"}, {"code_bytes": 0}, {"code_bytes": 1.5},
        {"codebook_size": 1}, {"codebook_size": 257}, {"num_partitions": -1}, {"num_experts": 0},
        {"num_layers": 0}, {"hidden_dim": 0}, {"expert_dim": -3}, {"network_dim": 0}, {"beam": 0},
        {"beam": True}, {"preselect": 2, "beam": 4},
    ],
)  # fmt: skip
def test_codec_settings_out_of_range(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(fields))):
        CodecConfig(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"epochs": -1}, {"batch_size": 0}, {"learning_rate": 0.0}, {"learning_rate": float("nan")},
        {"max_minutes": -1.0}, {"max_minutes": float("inf")}, {"weight_decay": 1.0}, {"seed": -1},
        {"warmup_fraction": 1.0}, {"max_rows": 1}, {"clip_norm": -1.0}, {"validation_rows": 0},
        {"patience": 0}, {"patience": 2.5}, {"precision": "float16"}, {"precision": None},
    ],
)  # fmt: skip
def test_training_settings_out_of_range(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(fields))):
        TrainConfig(**fields)


def test_unknown_metric_names_the_known_ones() -> None:
    with pytest.raises(InvalidInputError, match="'l2', 'cosine', 'dot'"):
        CodecConfig(metric="euclid")  # type: ignore[arg-type]


def test_settings_are_frozen_and_keyword_only() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        CodecConfig().beam = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        CodecConfig("rq")  # type: ignore[misc]


@pytest.mark.parametrize(("rows", "partitions"), [(100, 0), (19_999, 0), (40_000, 200), (1_000_000, 1000)])
def test_partitions_follow_row_count(rows: int, partitions: int) -> None:
    assert CodecConfig().resolve(dim=384, rows=rows).num_partitions == partitions


def test_resolve_decides_everything_and_only_once() -> None:
    resolved = CodecConfig().resolve(dim=1536, rows=10**6)
    assert None not in (resolved.network_dim, resolved.hidden_dim, resolved.expert_dim)
    assert resolved.network_dim == 384
    assert resolved.resolve(dim=1536, rows=3) == resolved
    assert CodecConfig(**resolved.to_dict()) == resolved


def test_network_wider_than_the_vectors() -> None:
    with pytest.raises(InvalidInputError, match="network_dim=64 is wider"):
        CodecConfig(network_dim=64).resolve(dim=32, rows=10)


def test_preselect_none_goes_with_any_beam() -> None:
    assert scored_pairs(100, None) is None
    assert scored_pairs(100, "beam") == 100
