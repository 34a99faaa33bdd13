"""Metadata as JSON, and what is said about their fields."""

import datetime
import decimal
import json
import uuid
from typing import Any

import numpy as np
import pytest
from haystack.dataclasses import Document
from haystack.document_stores.errors import DocumentStoreError
from haystack_integrations.document_stores.rqmoe import RQMoEDocumentStore, _metadata

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
        ({"x": object()}, r"value\.tolist\(\)"),
        ({"x": {"y": np.zeros(2)}}, r"meta\.x\.y; expected"),
        ({"x": np.float32("nan")}, "finite"),
        ({"x": np.timedelta64(5, "ns")}, "timedelta64"),
        ({"x": decimal.Decimal(1)}, "Decimal"),
    ],
)
def test_refuses_what_it_does_not(meta: dict[Any, Any], reason: str) -> None:
    with pytest.raises(DocumentStoreError, match=reason):
        _metadata.as_json(meta, "meta")


IDENTIFIER = uuid.UUID(int=7)


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (np.int64(5), 5),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.str_("x"), "x"),
        (datetime.date(2024, 1, 2), "2024-01-02"),
        (datetime.datetime(2024, 1, 2, 3, tzinfo=datetime.UTC), "2024-01-02T03:00:00+00:00"),
        (np.datetime64("2024-01-02"), "2024-01-02"),
        (datetime.time(1, 2), "01:02:00"),
        (IDENTIFIER, str(IDENTIFIER)),
    ],
)
def test_keeps_what_texts_and_numbers_stand_for(
    small_store: RQMoEDocumentStore, value: Any, kept: Any
) -> None:
    small_store.write_documents([Document(id="a", meta={"x": {"y": value}}), Document(id="b", meta={"x": 1})])
    for one in (value, kept):
        for operator, operand in (("==", one), ("in", [one, "other"])):
            filters = {"field": "meta.x.y", "operator": operator, "value": operand}
            assert [found.meta for found in small_store.filter_documents(filters)] == [{"x": {"y": kept}}]
    assert small_store.update_by_filter({"field": "meta.x", "operator": "==", "value": 1}, {"z": value}) == 1
    small_store.delete_by_filter({"field": "meta.z", "operator": "==", "value": value})
    assert small_store.count_documents() == 1


def test_compares_dates_with_their_texts(small_store: RQMoEDocumentStore) -> None:
    small_store.write_documents([Document(id="a", meta={"x": datetime.date(2024, 1, 2)})])
    for operator, value, count in (
        (">", "2024-01-01T12:00:00", 1),
        ("<=", datetime.date(2024, 1, 2), 1),
        ("<", np.datetime64("2024-01-02"), 0),
    ):
        filters = {"field": "meta.x", "operator": operator, "value": value}
        assert small_store.count_documents_by_filter(filters) == count


def test_ids_may_be_uuids(small_store: RQMoEDocumentStore) -> None:
    small_store.write_documents([Document(id=IDENTIFIER, content="x")])  # type: ignore[arg-type]
    (found,) = small_store.filter_documents({"field": "id", "operator": "in", "value": [IDENTIFIER]})
    assert found.id == str(IDENTIFIER)
    small_store.delete_documents([IDENTIFIER])  # type: ignore[list-item]
    assert small_store.count_documents() == 0
