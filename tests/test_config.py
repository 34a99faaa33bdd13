"""Settings are checked on creation."""

import dataclasses

import pytest

from rqmoe_store.config import TRANSFORM_KINDS, CodecConfig, TrainConfig, scored_pairs
from rqmoe_store.errors import InvalidInputError


@pytest.mark.parametrize(
    "fields",
    [
        {"metric": "manhattan"}, {"kind": "hnsw"}, {"code_bytes": 0}, {"code_bytes": 1.5},
        {"codebook_size": 1}, {"codebook_size": 257}, {"num_partitions": -1}, {"num_experts": 0},
        {"num_layers": 0}, {"hidden_dim": 0}, {"expert_dim": -3}, {"network_dim": 0}, {"beam": 0},
        {"beam": True}, {"preselect": 2, "beam": 4}, {"refine_bytes": -1}, {"refine_bytes": True},
        {"refine_bytes": 1}, {"refine_bytes": 2, "metric": "cosine"}, {"refine_kind": "rq"},
        {"refine_base": "exact"}, {"kind": "saq", "num_partitions": 4}, {"kind": "pq", "codebook_size": 16},
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


@pytest.mark.parametrize(
    ("fields", "most"),
    [
        ({"kind": "pq", "code_bytes": 33}, 32), ({"refine_bytes": 35}, 34),
        ({"refine_bytes": 33, "metric": "dot"}, 32), ({"refine_bytes": 35, "metric": "cosine"}, 34),
    ],
)  # fmt: skip
def test_a_transform_code_has_at_most_8_bits_a_dimension(fields: dict[str, object], most: int) -> None:
    name = "code_bytes" if "code_bytes" in fields else "refine_bytes"
    with pytest.raises(
        InvalidInputError, match=f"{name}={most + 1} for vectors of dimension 32.*at most {most}"
    ):
        CodecConfig(**fields).resolve(dim=32, rows=1000)
    CodecConfig(**{**fields, name: most}).resolve(dim=32, rows=1000)


def test_dot_needs_no_lengths() -> None:
    assert CodecConfig(metric="dot", refine_bytes=1).refine_bytes == 1
    with pytest.raises(InvalidInputError, match="two of which are for lengths; expected 0 or at least 3"):
        CodecConfig(metric="l2", refine_bytes=2)


def test_transform_codes_have_no_partitions() -> None:
    for kind in TRANSFORM_KINDS:
        resolved = CodecConfig(kind=kind, num_partitions=None).resolve(dim=32, rows=10**6)
        assert resolved.num_partitions == 0
        assert resolved.least_training_rows == 2


def test_preselect_none_goes_with_any_beam() -> None:
    assert scored_pairs(100, None) is None
    assert scored_pairs(100, "beam") == 100
