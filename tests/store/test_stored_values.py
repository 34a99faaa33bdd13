"""Metadata that is not what it was is noticed before it is used."""

import dataclasses
import json
from collections.abc import Mapping
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rqmoe_store.store.stored_values import json_object, require_types


class Part(NamedTuple):
    name: str
    rows: int | None


@dataclasses.dataclass(frozen=True)
class Whole:
    name: str
    count: int
    share: float
    parts: Mapping[str, Part]
    anything: object = None


GOOD = Whole("x", 3, 0.5, {"a": Part("p", 7), "b": Part("q", None)}, anything=[1])


def test_what_fits_is_passed_on() -> None:
    assert require_types(GOOD) is GOOD
    assert require_types(dataclasses.replace(GOOD, share=1, count=0, parts={})).share == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"name": 3},
        {"name": None},
        {"count": True},
        {"count": 1.0},
        {"count": -1},
        {"count": 2**63},
        {"count": "3"},
        {"share": "0.5"},
        {"share": float("nan")},
        {"share": float("inf")},
        {"share": -0.5},
        {"share": {}},
        {"parts": {"a": Part("p", 7), "b": Part("q", "7")}},
        {"parts": {"a": Part(None, 7)}},
        {"parts": {"a": Part("p", -7)}},
        {"parts": {"a": Part("p", False)}},
    ],
)
def test_what_does_not_fit_is_named(changes: dict) -> None:
    with pytest.raises(ValueError, match="is "):
        require_types(dataclasses.replace(GOOD, **changes))


@given(
    value=st.recursive(st.none() | st.integers() | st.text(), st.lists)
    | st.dictionaries(st.text(), st.text())
)
def test_objects_alone_are_objects(value: object) -> None:
    if isinstance(value, dict):
        assert json_object(json.dumps(value)) == value
        return
    with pytest.raises(ValueError, match="not an object"):
        json_object(json.dumps(value))


@pytest.mark.parametrize("text", ["", "{", "{'a': 1}", "[" * 10**5, '{"a":' * 10**5, "9" * 5000])
def test_text_that_is_no_json(text: str) -> None:
    with pytest.raises(ValueError):
        json_object(text)
