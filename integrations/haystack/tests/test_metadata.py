"""Metadata as JSON, and what is said about their fields."""

import json
from typing import Any

import pytest
from haystack.document_stores.errors import DocumentStoreError
from haystack_integrations.document_stores.rqmoe import _metadata

METAS: list[dict[str, Any]] = [
    {"n": 1, "f": 0.5, "t": "b", "flag": True, "mixed": 1, "some": 1, "none": None},
    {"n": 5, "f": -1.5, "t": "A", "flag": False, "mixed": "x", "some": 1.5, "deep": {"a": [1]}},
    {"n": 3, "t": "it's"},
]


def test_tells_types() -> None:
    types = {name: info["type"] for name, info in _metadata.fields_info(METAS).items()}
    assert types == {
        "n": "int", "f": "float", "t": "keyword", "flag": "boolean", "mixed": "keyword", "some": "float",
        "deep": "keyword",
    }  # fmt: skip


def test_finds_least_and_largest() -> None:
    assert _metadata.min_max(METAS, "meta.n") == {"min": 1, "max": 5}
    assert _metadata.min_max(METAS, "f") == {"min": -1.5, "max": 0.5}
    assert _metadata.min_max(METAS, "t") == {"min": "A", "max": "it's"}
    for field in ("mixed", "deep", "none", "missing"):
        assert _metadata.min_max(METAS, field) == {"min": None, "max": None}


def test_counts_different_values() -> None:
    metas: list[dict[str, Any]] = [
        {"x": value} for value in (1, 1.0, True, "1", [1], [1.0], [1], None, {"a": 1})
    ]
    assert _metadata.counts_of_unique(metas, ["meta.x", "y"]) == {"x": 7, "y": 0}
    assert _metadata.unique_values(metas, "x", "TRU") == [True]


def test_finds_dates_in_objects() -> None:
    dates = _metadata.dates_of(
        {"a": "2020-01-01", "b": {"c": "1970-01-01T00:00:01", "d": 5}, "e": {}, "f": "no"}
    )
    assert dates == {"a": {"local": 1577836800000000}, "b": {"c": {"local": 1000000}}}


@pytest.mark.parametrize(
    "value", [2**63, 2**64 - 1, -(2**63), 1e308, "\x00", "ü", [], {}, [None, True, (1,)]]
)
def test_takes_what_json_holds(value: Any) -> None:
    assert json.loads(_metadata.as_json({"x": value}, "meta")) == json.loads(json.dumps({"x": value}))


@pytest.mark.parametrize(
    ("meta", "reason"),
    [
        ({"x": 2**64}, "64 bits"),
        ({"x": -(2**63) - 1}, "64 bits"),
        ({"x": float("inf")}, "finite"),
        ({"x": {"y": [float("nan")]}}, r"meta\.x\.y"),
        ({"x": b"bytes"}, "bytes"),
        ({"x": {1, 2}}, "set"),
        ({1: "x"}, "as a name"),
        ({"x": "\ud800"}, "Unicode"),
        ({"\udfff": 1}, "Unicode"),
        ({"x": object()}, "isoformat"),
    ],
)
def test_refuses_what_it_does_not(meta: dict[Any, Any], reason: str) -> None:
    with pytest.raises(DocumentStoreError, match=reason):
        _metadata.as_json(meta, "meta")
