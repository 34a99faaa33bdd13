"""Filters: each matches what LlamaIndex's own store says, and characters in them change nothing."""

import asyncio
import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)
from llama_index.core.vector_stores.utils import build_metadata_filter_fn
from llama_index.vector_stores.rqmoe import RQMoEVectorStore
from llama_index.vector_stores.rqmoe.filters import filters_sql
from small_nodes import NUMBERS, TEXTS, TROUBLE, ids, node, where

from rqmoe_store import InvalidInputError

KEYS = st.sampled_from(["a", "b", "a.b", "it's", "$", "0", ""])
SCALARS = st.none() | st.booleans() | NUMBERS | TEXTS
FIELDS = SCALARS | st.lists(SCALARS, max_size=3)
SINGLE = [*[">", "<", ">=", "<=", "==", "!="], "contains"]
LISTED = ["in", "nin", "any", "all"]


def filters() -> st.SearchStrategy[MetadataFilter]:
    single = st.tuples(KEYS, st.sampled_from(SINGLE), NUMBERS | TEXTS)
    text = st.tuples(KEYS, st.sampled_from(["text_match", "text_match_insensitive"]), TEXTS)
    lists = st.lists(TEXTS, max_size=3) | st.lists(st.integers(-3, 10), max_size=3)
    listed = st.tuples(KEYS, st.sampled_from(LISTED), lists)
    empty = st.tuples(KEYS, st.just("is_empty"), st.none())
    return (single | text | listed | empty).map(
        lambda part: MetadataFilter(key=part[0], operator=FilterOperator(part[1]), value=part[2])
    )


NESTED: Any = st.recursive(
    filters(),
    lambda inner: st.builds(
        MetadataFilters,
        filters=st.lists(inner, max_size=3),
        condition=st.sampled_from([*FilterCondition, None]),
    ),
    max_leaves=4,
)


def matches(part: MetadataFilter | MetadataFilters, metadata: dict[str, Any]) -> bool:
    """What LlamaIndex says of one filter, and Python of several."""
    if isinstance(part, MetadataFilter):
        holds = build_metadata_filter_fn(lambda name: metadata, MetadataFilters(filters=[part]))
        try:
            return holds("a node")
        except TypeError:  # a comparison of unlike things
            return False
    terms = [matches(inner, metadata) for inner in part.filters]
    if not terms:
        return True
    if part.condition == FilterCondition.OR:
        return any(terms)
    return not any(terms) if part.condition == FilterCondition.NOT else all(terms)


def found(store: RQMoEVectorStore, given_filters: MetadataFilters) -> list[str]:
    return sorted(ids(store.get_nodes(filters=given_filters)))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> RQMoEVectorStore:
    return RQMoEVectorStore(uri=str(tmp_path_factory.mktemp("db")))


@settings(max_examples=40, deadline=None)
@given(
    metadata=st.lists(st.dictionaries(KEYS, FIELDS, max_size=4), min_size=1, max_size=8),
    asked_for=st.lists(NESTED, min_size=3, max_size=6),
)
def test_filters_match_what_the_framework_says(
    shared: RQMoEVectorStore, metadata: list[dict[str, Any]], asked_for: list[Any]
) -> None:
    shared.clear()
    shared.add([node(f"n{place}", **fields) for place, fields in enumerate(metadata)])
    for part in asked_for:
        given_filters = part if isinstance(part, MetadataFilters) else MetadataFilters(filters=[part])
        expected = [f"n{place}" for place, fields in enumerate(metadata) if matches(part, fields)]
        assert found(shared, given_filters) == expected, (filters_sql(given_filters), metadata)


EVERYTHING: list[dict[str, Any]] = [{}, {"a": 1}, {"a": "x", "b": ["x", ""]}, {"0": None, "": ""}]


def without_empty_parts(part: Any) -> Any:
    """The same filters but for groups with nothing in them; None where nothing is left."""
    if isinstance(part, MetadataFilter):
        return part
    parts = [left for left in map(without_empty_parts, part.filters) if left is not None]
    return MetadataFilters(filters=parts, condition=part.condition) if parts else None


@settings(max_examples=60, deadline=None)
@given(
    part=NESTED | st.builds(MetadataFilters, filters=st.just([]), condition=st.sampled_from(FilterCondition))
)
def test_no_more_is_deleted_than_matches(shared: RQMoEVectorStore, part: Any) -> None:
    shared.clear()
    shared.add([node(f"n{place}", **fields) for place, fields in enumerate(EVERYTHING)])
    given_filters = part if isinstance(part, MetadataFilters) else MetadataFilters(filters=[part])
    with contextlib.suppress(InvalidInputError):
        shared.delete_nodes(filters=given_filters)
    left, reading = ids(shared.get_nodes()), without_empty_parts(given_filters)
    deleted = [place for place in range(len(EVERYTHING)) if f"n{place}" not in left]
    if reading is None:
        assert not deleted
    elif deleted:
        assert deleted == [place for place, had in enumerate(EVERYTHING) if matches(reading, had)]


EMPTY = MetadataFilters(filters=[])


@pytest.mark.parametrize(
    "given_filters",
    [
        EMPTY,
        MetadataFilters(filters=[EMPTY]),
        MetadataFilters(filters=[EMPTY, EMPTY], condition=FilterCondition.NOT),
        where(("rank", "==", "a"), EMPTY, condition="or"),
        where(("rank", "==", "a"), where(EMPTY, condition="not")),
        where(("rank", "nin", [])),
        where(("rank", "all", [])),
        where(("rank", "text_match", "")),
        where(("rank", "contains", "")),
        where(("rank", "in", []), condition="not"),
        where(("rank", "==", "a"), where(("rank", "any", []), condition="not"), condition="or"),
        [],
        {},
        "",
        [MetadataFilter(key="rank", value="a")],
    ],
)
def test_filters_that_say_nothing_delete_nothing(table: RQMoEVectorStore, given_filters: Any) -> None:
    for node_ids in (None, ["one"]):
        with pytest.raises(InvalidInputError, match=r"says nothing|expected LlamaIndex's MetadataFilters"):
            table.delete_nodes(node_ids, given_filters)
        with pytest.raises(InvalidInputError, match=r"says nothing|expected LlamaIndex's MetadataFilters"):
            asyncio.run(table.adelete_nodes(node_ids, given_filters))
    assert len(table.get_nodes()) == len(ROWS)


@pytest.mark.parametrize("kind", [int, float, str])
def test_long_lists(table: RQMoEVectorStore, kind: Any) -> None:
    listed = [kind(number) for number in range(5000)]
    expected = sorted(name for name, had in ROWS.items() if had.get("weight") in listed)
    assert found(table, where(("weight", "in", listed))) == expected
    assert found(table, where(("weight", "nin", listed))) == sorted(set(ROWS) - set(expected))


ROWS: dict[str, dict[str, Any]] = {
    "one": {"rank": "a", "weight": 1.0, "tags": ["alpha", "beta"], "code": "ABC1", "new": True},
    "two": {"rank": "b", "weight": 2, "tags": ["beta"], "code": "abc2", "new": False},
    "three": {"rank": "c", "weight": 3.5, "tags": [], "code": "", "by": {"name": "Ann"}},
    "four": {"rank": None, "weight": "1", "tags": "beta"},
}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> RQMoEVectorStore:
    made = RQMoEVectorStore(uri=str(tmp_path_factory.mktemp("db")))
    made.add([node(name, document=f"doc of {name}", **metadata) for name, metadata in ROWS.items()])
    return made


@pytest.mark.parametrize(
    ("given_filter", "expected"),
    [
        (("rank", "==", "a"), ["one"]),
        (("weight", "==", 1), ["one"]),
        (("weight", "==", "1"), ["four"]),
        (("new", "==", 1), ["one"]),
        (("new", "!=", 1), ["four", "three", "two"]),
        (("rank", "!=", "a"), ["four", "three", "two"]),
        (("weight", ">", 1), ["three", "two"]),
        (("weight", ">=", 1), ["one", "three", "two"]),
        (("weight", "<", 2.0), ["one"]),
        (("weight", "<=", 2.0), ["one", "two"]),
        (("rank", ">", "a"), ["three", "two"]),
        (("rank", "in", ["a", "c"]), ["one", "three"]),
        (("rank", "in", []), []),
        (("rank", "nin", ["a", "c"]), ["four", "two"]),
        (("rank", "nin", []), ["four", "one", "three", "two"]),
        (("missing", "nin", ["a"]), ["four", "one", "three", "two"]),
        (("missing", "==", "a"), []),
        (("tags", "contains", "beta"), ["four", "one", "two"]),
        (("tags", "any", ["alpha", "gamma"]), ["one"]),
        (("tags", "any", []), []),
        (("tags", "all", ["alpha", "beta"]), ["one"]),
        (("tags", "all", []), ["four", "one", "three", "two"]),
        (("code", "text_match", "BC"), ["one"]),
        (("code", "text_match_insensitive", "bC"), ["one", "two"]),
        (("weight", "text_match", "1"), ["four"]),
        (("code", "is_empty", None), ["four", "three"]),
        (("rank", "is_empty", None), ["four"]),
        (("tags", "is_empty", None), ["three"]),
        (("doc_id", "==", "doc of two"), ["two"]),
        (("ref_doc_id", "in", ["doc of two"]), ["two"]),
        (("_node_type", "==", "TextNode"), ["four", "one", "three", "two"]),
    ],
)
def test_operators(table: RQMoEVectorStore, given_filter: tuple[str, str, Any], expected: list[str]) -> None:
    assert found(table, where(given_filter)) == expected


def test_conditions_may_be_nested(table: RQMoEVectorStore) -> None:
    either = where(("rank", "==", "a"), ("rank", "==", "b"), condition="or")
    assert found(table, where(either, ("weight", ">", 1))) == ["two"]
    assert found(table, where(either, condition="not")) == ["four", "three"]
    assert found(table, where(where(either, condition="not"), ("tags", "is_empty", None))) == ["three"]
    assert found(table, where(("rank", "!=", "a"), ("weight", ">", 1), condition=None)) == ["three", "two"]
    assert len(found(table, where(condition="not"))) == 4


@pytest.mark.parametrize("text", [*TROUBLE, "') OR 1=1 --", 'x" OR "1"="1'])
def test_characters_change_no_meaning(table: RQMoEVectorStore, text: str) -> None:
    assert found(table, where((text, "==", text))) == []
    assert found(table, where(("rank", "in", [text, "a"]))) == ["one"]
    assert found(table, where(("rank", "text_match", f"{text}!"), condition="not")) == sorted(ROWS)


@pytest.mark.parametrize(
    ("given_filter", "expected"),
    [
        (("a", "==", None), "is_empty finds missing values"),
        (("a", "==", ["x"]), "expected a text or a number"),
        (("a", ">", ["x"]), "expected a text or a number"),
        (("a", "contains", ["x"]), "expected a text or a number"),
        (("a", "in", "x"), "expected a list"),
        (("a", "nin", None), "expected a list"),
        (("a", "any", 1), "expected a list"),
        (("a", "all", "x"), "expected a list"),
        (("a", "text_match", 1), "expected a text"),
        (("a", "==", float("nan")), "finite float"),
        (("a", ">", 2**64), "integer of 64 bits"),
    ],
)
def test_values_that_operators_cannot_be_given(given_filter: tuple[str, str, Any], expected: str) -> None:
    with pytest.raises(InvalidInputError, match=expected):
        filters_sql(where(given_filter))


def test_operators_and_conditions_that_are_not_known() -> None:
    unknown = MetadataFilter.model_construct(key="a", value="x", operator="~")
    with pytest.raises(InvalidInputError, match=r"operator '~' for 'a'; expected one of ==, !="):
        filters_sql(MetadataFilters.model_construct(filters=[unknown], condition=FilterCondition.AND))
    with pytest.raises(InvalidInputError, match="condition 'xor'; expected and, or, or not"):
        given_filter = MetadataFilter(key="a", value="x")
        filters_sql(MetadataFilters.model_construct(filters=[given_filter], condition="xor"))
