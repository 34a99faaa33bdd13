"""Filters find what Haystack's own reading of them says, whatever characters they hold."""

import contextlib
from typing import Any

import pytest
from haystack.dataclasses import Document
from haystack.document_stores.types import DuplicatePolicy
from haystack.errors import FilterError
from haystack.utils.filters import document_matches_filter
from haystack_integrations.document_stores.rqmoe import RQMoEDocumentStore
from haystack_integrations.document_stores.rqmoe._filters import condition_of
from hypothesis import given, settings
from hypothesis import strategies as st
from small_stores import new_store

NASTY = [
    "it's",
    "'; DROP TABLE documents; --",
    "' OR true OR '",
    '"quoted"',
    "back\\slash",
    "per%cent_",
    "new\nline",
    "nul\x00",
    "$.name",
    "null",
    "",
    " ",
    "ünïcödé 😀",
    "/* comment */",
    "{}",
    "[1]",
]
NUMBERS = [-10, -2.5, 2, 2.0, 3, 100, 0.1, 2**53, 2**53 + 1, 2**63 - 1, -(2**63), 1e300]
DATES = [
    "2020-01-01",
    "2020-01-01T00:00:00",
    "2020-01-01T00:00:00+00:00",
    "2020-01-01T02:00:00+02:00",
    "2020-01-01T00:00:00Z",
    "2020-01-01 12:30:00.000001",
    "2019-12-31T23:59:59.999999",
    "0001-01-01",
    "9999-12-31T23:59:59+14:00",
]
MIXED = [*NASTY, -10, 2.5, *DATES[:3]]
VALUES = {"meta.number": NUMBERS, "meta.date": DATES, "meta.text": NASTY, "meta.flag": [True, False]}
VALUES |= {"meta.mixed": MIXED, "meta.inner.it's.deep": MIXED, "content": NASTY, "id": ["1", "2", "x'y"]}


def _documents() -> list[Document]:
    documents = []
    for place in range(48):
        meta: dict[str, Any] = {"place": place}
        for name, values in VALUES.items():
            if name.startswith("meta.") and "inner" not in name and place % 5:
                meta[name.removeprefix("meta.")] = values[place % len(values)]
        if place % 4:
            meta["inner"] = (
                {"it's": {"deep": MIXED[place % len(MIXED)]}} if place % 3 else MIXED[place % len(MIXED)]
            )
        if place % 7 == 0:
            meta |= dict.fromkeys(("number", "date", "flag"))
        content = None if place % 6 == 0 else NASTY[place % len(NASTY)]
        embedding = [1.0, float(place)] if place % 2 else None
        documents.append(Document(id=f"{place}", content=content, meta=meta, embedding=embedding))
    return [*documents, Document(id="x'y", meta={"list": ["a", 1], "object": {}})]


DOCUMENTS = _documents()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RQMoEDocumentStore:
    store = new_store(tmp_path_factory.mktemp("filters"), return_embedding=False)
    store.write_documents(DOCUMENTS)
    return store


def _comparisons() -> st.SearchStrategy[dict[str, Any]]:
    def of_field(name: str) -> st.SearchStrategy[dict[str, Any]]:
        value = st.sampled_from([*VALUES[name], None])
        ordered = (
            st.sampled_from(("<", "<=", ">", ">=")) if name in ("meta.number", "meta.date") else st.nothing()
        )
        one = st.tuples(st.sampled_from(("==", "!=")) | ordered, value)
        several = st.tuples(st.sampled_from(("in", "not in")), st.lists(value, max_size=4))
        return (one | several).map(lambda pair: {"field": name, "operator": pair[0], "value": pair[1]})

    return st.sampled_from(sorted(VALUES)).flatmap(of_field)


FILTERS = st.recursive(
    _comparisons(),
    lambda inner: st.builds(
        lambda operator, conditions: {"operator": operator, "conditions": conditions},
        st.sampled_from(("AND", "OR", "NOT")),
        st.lists(inner, max_size=3),
    ),
    max_leaves=5,
)


@settings(max_examples=150)
@given(filters=FILTERS)
def test_finds_what_haystack_finds(store: RQMoEDocumentStore, filters: dict[str, Any]) -> None:
    expected = {document.id for document in DOCUMENTS if document_matches_filter(filters, document)}
    assert {document.id for document in store.filter_documents(filters)} == expected
    assert store.count_documents_by_filter(filters) == len(expected)


def _without_empty_parts(filters: dict[str, Any]) -> dict[str, Any] | None:
    """The same but for groups without conditions; None where nothing is left."""
    if "field" in filters:
        return filters
    parts = [part for part in map(_without_empty_parts, filters["conditions"]) if part is not None]
    return {**filters, "conditions": parts} if parts else None


@settings(max_examples=30)
@given(filters=FILTERS)
def test_deletes_no_more_than_matches(changed: RQMoEDocumentStore, filters: dict[str, Any]) -> None:
    some = DOCUMENTS[-12:]
    changed.write_documents(some, DuplicatePolicy.OVERWRITE)
    with contextlib.suppress(FilterError):
        changed.delete_by_filter(filters)
    left = {document.id for document in changed.filter_documents()}
    deleted, reading = {document.id for document in some} - left, _without_empty_parts(filters)
    if deleted:
        assert reading is not None
        assert deleted == {document.id for document in some if document_matches_filter(reading, document)}


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> RQMoEDocumentStore:
    return new_store(tmp_path_factory.mktemp("changed"), return_embedding=False)


@pytest.mark.parametrize(
    ("name", "listed"),
    [
        ("meta.place", list(range(10, 5000))),
        ("meta.place", [float(number) for number in range(10, 5000)]),
        ("meta.date", [f"{year}-01-01T00:00:00Z" for year in range(2000, 5000)] + DATES[:1]),
        ("content", [f"{number}" for number in range(5000)] + NASTY[:2]),
    ],
)
def test_long_lists(store: RQMoEDocumentStore, name: str, listed: list[Any]) -> None:
    for operator in ("in", "not in"):
        filters = {"field": name, "operator": operator, "value": listed}
        expected = {document.id for document in DOCUMENTS if document_matches_filter(filters, document)}
        assert {document.id for document in store.filter_documents(filters)} == expected


@settings(max_examples=50)
@given(text=st.text() | st.sampled_from(NASTY), name=st.text(min_size=1).filter(lambda name: "." not in name))
def test_any_text_is_only_a_value_or_a_name(store: RQMoEDocumentStore, text: str, name: str) -> None:
    for filters in (
        {"field": f"meta.{name}", "operator": "==", "value": text},
        {"field": f"meta.inner.{name}", "operator": "in", "value": [text, "no such text"]},
        {"field": "content", "operator": "==", "value": text},
    ):
        expected = {document.id for document in DOCUMENTS if document_matches_filter(filters, document)}
        assert {document.id for document in store.filter_documents(filters)} == expected


def test_a_name_without_meta_is_one_of_metadata(store: RQMoEDocumentStore) -> None:
    (found,) = store.filter_documents({"field": "place", "operator": "==", "value": 7})
    assert found.id == "7"


def test_types_are_told_apart(small_store: RQMoEDocumentStore) -> None:
    values = [True, 1, "1", None, [1]]
    small_store.write_documents(
        [Document(id=str(place), meta={"x": value}) for place, value in enumerate(values)]
    )
    for value, ids in ((True, ["0"]), (1, ["1"]), (1.0, ["1"]), ("1", ["2"]), (None, ["3"])):
        found = small_store.filter_documents({"field": "meta.x", "operator": "==", "value": value})
        assert [document.id for document in found] == ids


def test_values_that_cannot_be_compared_do_not_match(small_store: RQMoEDocumentStore) -> None:
    small_store.write_documents(
        [Document(id=str(place), meta={"x": value}) for place, value in enumerate(MIXED)]
    )
    found = small_store.filter_documents({"field": "meta.x", "operator": ">", "value": 0})
    assert [document.meta["x"] for document in found] == [2.5]


@pytest.mark.parametrize("name", ["embedding", "blob", "score", "sparse_embedding"])
def test_other_fields_are_compared_with_none(store: RQMoEDocumentStore, name: str) -> None:
    filters = {"field": name, "operator": "==", "value": None}
    expected = {document.id for document in DOCUMENTS if document_matches_filter(filters, document)}
    assert {document.id for document in store.filter_documents(filters)} == expected
    there = store.filter_documents(filters | {"operator": "!="})
    assert {document.id for document in there} == {document.id for document in DOCUMENTS} - expected


@pytest.mark.parametrize(
    ("filters", "reason"),
    [
        ({"field": "meta.x", "operator": "===", "value": 1}, "operator of a field"),
        ({"field": "meta.x", "operator": ["=="], "value": 1}, "operator of a field"),
        ({"field": "meta.x", "operator": "==", "value": [1]}, "not supported"),
        ({"field": "meta.x", "operator": "==", "value": {"a": 1}}, "not supported"),
        ({"field": "meta.x", "operator": "==", "value": float("nan")}, "not supported"),
        ({"field": "meta.x", "operator": "in", "value": [2**70]}, "not supported"),
        ({"field": "meta.x", "operator": "==", "value": "\ud800"}, "not supported"),
        ({"field": "meta.x", "operator": ">", "value": "abc"}, "ISO date"),
        ({"field": "meta.x", "operator": ">", "value": True}, "ISO date"),
        ({"field": "meta.x", "operator": "in", "value": "abc"}, "expected a list"),
        ({"field": "meta", "operator": "==", "value": "abc"}, "as a field"),
        ({"field": "metadata.x", "operator": "==", "value": "abc"}, "as a field"),
        ({"field": 5, "operator": "==", "value": "abc"}, "as a field"),
        ({"field": "content", "operator": ">", "value": "abc"}, "content"),
        ({"field": "id", "operator": "<", "value": 5}, "id"),
        ({"field": "embedding", "operator": "==", "value": [1.0, 2.0]}, "None alone"),
        ({"field": "score", "operator": ">", "value": 0.5}, "score"),
        ({"operator": "XOR", "conditions": []}, "operator of conditions"),
        ({"operator": "AND", "conditions": {"field": "meta.x"}}, "list of filters"),
        ({"operator": "AND", "conditions": ["meta.x"]}, "as a filter"),
        ({"meta.x": 1}, "'operator'"),
        (["meta.x"], "as a filter"),
        ("meta.x = 1", "as a filter"),
    ],
)
def test_refuses_what_it_does_not_know(database: str, filters: Any, reason: str) -> None:
    with pytest.raises(FilterError, match=reason):
        condition_of(filters)
    with pytest.raises(FilterError, match=reason):  # also while there is no table yet
        new_store(database).filter_documents(filters)
