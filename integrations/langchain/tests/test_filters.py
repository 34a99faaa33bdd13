"""Filters: what they mean, whatever characters they hold, and what is refused."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_rqmoe import RQMoEVectorStore
from langchain_rqmoe.filters import OPERATORS, condition_of
from small_stores import BY_L2, PointEmbedding, filled, ids_of

from rqmoe_store import InvalidInputError, json_field

NAMES = ["n", "a b", "it's", 'say "x"', "x.y", "[0]", "`id`", "né", "a\nb", "--", "%s"]
VALUES = [None, True, False, 0, 1, -1.5, 10, "", "10", "true", "it's", "a' OR '1'='1", "null", "x\n--", "ü\0"]
LISTS = [[], [1, "a"], ["it's"], [[1]], [True, None]]

names = st.sampled_from(NAMES)
values = st.sampled_from(VALUES)
plain = values.filter(lambda value: value is not None)
ordered = plain.filter(lambda value: not isinstance(value, bool))
fields = st.one_of(
    values,
    values.map(lambda value: {"$eq": value}),
    values.map(lambda value: {"$ne": value}),
    st.tuples(st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), ordered).map(lambda pair: dict([pair])),
    st.tuples(st.sampled_from(["$in", "$nin"]), st.lists(plain, max_size=3)).map(lambda pair: dict([pair])),
    st.booleans().map(lambda value: {"$exists": value}),
    plain.map(lambda value: {"$contains": value}),
)
leaves = st.dictionaries(names, fields, min_size=1, max_size=2)
filters = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["$and", "$or"]), st.lists(inner, min_size=1, max_size=2)).map(
            lambda pair: dict([pair])
        ),
        inner.map(lambda part: {"$not": part}),
    ),
    max_leaves=4,
)


def same(one: Any, other: Any) -> bool:
    """Equal as JSON has it: 1 and 1.0 are, 1 and true are not."""
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def comparable(one: Any, other: Any) -> bool:
    numbers = (int, float)
    both = [isinstance(value, numbers) and not isinstance(value, bool) for value in (one, other)]
    return all(both) or (isinstance(one, str) and isinstance(other, str))


COMPARE = {
    "$gt": lambda one, other: one > other,
    "$gte": lambda one, other: one >= other,
    "$lt": lambda one, other: one < other,
    "$lte": lambda one, other: one <= other,
}


def meets(metadata: dict, name: str, operator: str, operand: Any) -> bool:
    value = metadata.get(name)
    if operator == "$exists":
        return (name in metadata) == operand
    if operator in ("$ne", "$nin"):
        return not meets(metadata, name, {"$ne": "$eq", "$nin": "$in"}[operator], operand)
    if operator == "$eq":
        return same(value, operand) and not isinstance(value, list)
    if operator == "$in":
        return any(same(value, one) for one in operand)
    if operator == "$contains":
        return isinstance(value, list) and any(same(one, operand) for one in value)
    return comparable(value, operand) and COMPARE[operator](value, operand)


def matches(metadata: dict, given: dict) -> bool:
    """What a filter means, in Python."""
    for key, value in given.items():
        if key in ("$and", "$or"):
            met = {"$and": all, "$or": any}[key](matches(metadata, part) for part in value)
        elif key == "$not":
            met = not matches(metadata, value)
        else:
            operators = value if isinstance(value, dict) else {"$eq": value}
            met = all(meets(metadata, key, name, operand) for name, operand in operators.items())
        if not met:
            return False
    return True


def documents(count: int) -> list[dict]:
    """Metadata with every name and value, and fields that are missing."""
    chance = random.Random(0)
    return [
        {name: chance.choice([*VALUES, *LISTS]) for name in chance.sample(NAMES, chance.randrange(6))}
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> RQMoEVectorStore:
    """A store whose document `n` has the metadata `documents(200)[n]`."""
    store = RQMoEVectorStore(PointEmbedding(), uri=tmp_path_factory.mktemp("filters"), config=BY_L2)
    store.add_texts([""] * 200, documents(200), ids=[str(position) for position in range(200)])
    return store


@settings(max_examples=150, deadline=None)
@given(one=filters)
def test_filters_mean_what_they_say(many, one):
    found = many.similarity_search("", k=200, filter=one)
    expected = [place for place, metadata in enumerate(documents(200)) if matches(metadata, one)]
    assert sorted(int(document.id) for document in found) == expected


SAYING_NOTHING = st.sampled_from([{"n": {"$nin": []}}, {"$and": []}, {}, {"$not": {}}, {"n": {"$in": []}}])
nested = st.recursive(
    leaves | SAYING_NOTHING,
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["$and", "$or"]), st.lists(inner, max_size=2)).map(
            lambda pair: dict([pair])
        ),
        inner.map(lambda part: {"$not": part}),
    ),
    max_leaves=4,
)


@settings(max_examples=40, deadline=None)
@given(one=nested)
def test_no_more_is_deleted_than_matches(deleted_from, one):
    everything = [{}, {"n": 1}, {"n": "x"}, {"a b": [1]}]
    deleted_from.add_texts([""] * 4, everything, ids=list("abcd"))
    try:
        deleted_from.delete(filter=one)
    except InvalidInputError:
        expected = list("abcd")
    else:
        expected = [name for name, had in zip("abcd", everything, strict=True) if not matches(had, one)]
    assert sorted(deleted_from.table.search().select(["id"]).to_arrow()["id"].to_pylist()) == expected
    if one in ({}, {"n": {"$nin": []}}, {"n": {"$in": []}}):
        assert expected == list("abcd")


@pytest.fixture(scope="module")
def deleted_from(tmp_path_factory) -> RQMoEVectorStore:
    return RQMoEVectorStore(PointEmbedding(), uri=tmp_path_factory.mktemp("deleted"), config=BY_L2)


@pytest.mark.parametrize("kind", [int, float, str])
def test_long_lists(many, kind):
    expected = [
        place
        for place, had in enumerate(documents(200))
        if any(same(had.get("n"), kind(one)) for one in range(10_000))
    ]
    listed = [kind(one) for one in range(10_000)]
    for one, places in (
        ({"n": {"$in": listed}}, expected),
        ({"n": {"$nin": listed}}, [place for place in range(200) if place not in expected]),
    ):
        found = many.similarity_search("", k=200, filter=one)
        assert sorted(int(document.id) for document in found) == places


def test_no_filter(store):
    assert condition_of(None, "metadata") is None
    assert condition_of({}, "metadata") is None
    assert len(store.similarity_search("0 0", filter={})) == 4


def test_sql_by_the_stores_helpers(tmp_path):
    store = filled(tmp_path)
    store.add_texts(["deep"], [{"made": {"by": "it's me"}}], ids=["deep"])
    assert ids_of(store.similarity_search("", filter=json_field("metadata", "made", "by").eq("it's me"))) == [
        "deep"
    ]


def test_the_columns_may_have_other_names(tmp_path):
    store = filled(tmp_path, metadata_key='it\'s "meta"', id_key="key", text_key="a text", vector_key="v")
    assert ids_of(store.similarity_search("0 0", filter={"fruit": "date"})) == ["d"]
    assert ids_of(store.similarity_search("cherry", query_type="fts")) == ["c"]
    store.delete(["d"])
    assert ids_of(store.get_by_ids(["a", "d"])) == ["a"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "filter of type int"),
        (["n"], "filter of type list"),
        ({"n": {"$like": "x%"}}, r"'\$like' as operator; expected a value, or some of \$eq"),
        ({"n": {"$gt": 1, "plain": 2}}, "'plain' as operator"),
        ({"n": {}}, "'nothing' as operator"),
        ({"$nor": [{"n": 1}]}, r"Got '\$nor' in a filter"),
        ({3: 1}, "Got 3 in a filter"),
        ({"$and": []}, "expected a list of filters"),
        ({"$or": {"n": 1}}, "expected a list of filters"),
        ({"$or": [{}]}, "expected a dict such as"),
        ({"$not": "n = 1"}, "expected a dict such as"),
        ({"n": [1]}, r"\[1\]"),
        ({"n": float("nan")}, "nan"),
        ({"n": 2**70}, "integer"),
        ({"n": {"$in": "abc"}}, "'abc'"),
        ({"n": {"$in": [None]}}, "None"),
        ({"n": {"$gt": True}}, "True"),
        ({"n": {"$gt": None}}, "None"),
        ({"n": {"$exists": 1}}, "expected True or False"),
        ({"\ud800": 1}, "name of a column or field"),
    ],
)
def test_what_is_refused(given, message):
    with pytest.raises(InvalidInputError, match=message):
        condition_of(given, "metadata")


def test_operators_are_documented(project):
    text = (project / "README.md").read_text()
    assert all(f"`{operator}`" in text for operator in (*OPERATORS, "$and", "$or", "$not"))
