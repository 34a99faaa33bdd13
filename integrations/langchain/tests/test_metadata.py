"""Texts and metadata come back exactly, or are refused."""

import asyncio
import datetime
import decimal
import math
import pathlib
import uuid

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_rqmoe import RQMoEVectorStore
from langchain_rqmoe.metadata import MAX_DEPTH, json_text
from small_stores import BY_L2, PointEmbedding

from rqmoe_store import InvalidInputError

texts = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.sampled_from(["it's", '"', "\\", "a\nb\r\n", "\0", "' OR 1=1 --", "{$eq: 1}", "🍎\u2028", "$.a[0]"]),
)
numbers = st.one_of(
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, -0.0, 1.0, 5e-324, 1.7976931348623157e308, 2**53 + 1, 0.1]),
)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=8,
)
metadatas = st.dictionaries(texts, json_values, max_size=5)


def exactly(value):
    """The value with the types of its parts, which `==` does not tell apart."""
    if isinstance(value, dict):
        return {key: exactly(member) for key, member in value.items()}
    if isinstance(value, list):
        return [exactly(member) for member in value]
    sign = math.copysign(1, value) if isinstance(value, float) else None
    return type(value).__name__, sign, value


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(documents=st.dictionaries(texts.filter(bool), st.tuples(texts, metadatas), min_size=1, max_size=20))
def test_documents_come_back_exactly(tmp_path_factory, documents):
    store = RQMoEVectorStore(PointEmbedding(), uri=tmp_path_factory.mktemp("metadata"), config=BY_L2)
    contents, given_metadatas = zip(*documents.values(), strict=True)
    vectors = np.zeros((len(documents), 2))
    store.add_embeddings(contents, vectors, list(given_metadatas), ids=list(documents))
    found = store.get_by_ids(list(documents))
    assert [document.id for document in found] == list(documents)
    assert [document.page_content for document in found] == list(contents)
    assert [exactly(document.metadata) for document in found] == [exactly(one) for one in given_metadatas]
    last = list(documents)[-1]
    store.delete([last])
    assert store.table.count_rows() == len(documents) - 1
    assert store.get_by_ids([last]) == []


def test_many_levels(empty):
    metadata: dict = {}
    for _ in range(MAX_DEPTH - 2):
        metadata = {"a": metadata}
    empty.add_texts(["x"], [metadata], ids=["x"])
    assert empty.get_by_ids(["x"])[0].metadata == metadata
    with pytest.raises(InvalidInputError, match="more than 100 levels"):
        empty.add_texts(["x"], [{"a": {"a": metadata}}])


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("text", "metadata of document 3 is str"),
        ({1: "a"}, "a key 1 in metadata"),
        ({"\ud800": 1}, "a key"),
        ({"a": [{"b": "\udfff"}]}, r"metadata\['a'\]\[0\]\['b'\]"),
        ({"a": math.nan}, r"metadata\['a'\] = nan"),
        ({"a": [-math.inf]}, r"metadata\['a'\]\[0\] = -inf"),
        ({"a": 2**64}, "keep integers beyond 64 bits as text"),
        ({"a": (1, 2)}, "of type tuple"),
        ({"a": datetime.timedelta(1)}, "of type timedelta"),
        ({"a": np.float64("nan")}, r"metadata\['a'\] = nan"),
        ({"a": np.zeros(2)}, r"of type ndarray.*\.tolist\(\)"),
        ({"a": {"b": np.datetime64("NaT")}}, r"metadata\['a'\]\['b'\] of type datetime64"),
        ({"a": {1, 2}}, "of type set"),
        ({"a": decimal.Decimal(1)}, "of type Decimal"),
        ({"a": pathlib.PurePosixPath("a")}, "of type PurePosixPath"),
        ({"a": b"x"}, "of type bytes"),
        ({"a": Document(page_content="x")}, "of type Document"),
    ],
)
def test_what_json_would_change_is_refused(metadata, message):
    with pytest.raises(InvalidInputError, match=message):
        json_text(metadata, 3)


IDENTIFIER = uuid.UUID(int=7)


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (np.int64(5), 5),
        (np.float32(0.5), 0.5),
        (np.float64(0.1), 0.1),
        (np.bool_(True), True),
        (np.str_("x"), "x"),
        (datetime.date(2024, 1, 2), "2024-01-02"),
        (datetime.datetime(2024, 1, 2, 3, tzinfo=datetime.UTC), "2024-01-02T03:00:00+00:00"),
        (datetime.time(1, 2), "01:02:00"),
        (np.datetime64("2024-01-02"), "2024-01-02"),
        (IDENTIFIER, str(IDENTIFIER)),
    ],
)
def test_values_that_texts_and_numbers_stand_for(store, value, kept):
    store.add_texts(["new"], [{"a": value, "in": [{"b": value}]}], ids=["new"])
    assert exactly(store.get_by_ids(["new"])[0].metadata) == exactly({"a": kept, "in": [{"b": kept}]})
    for one in (value, kept, {"$in": [value]}, {"$eq": value}):
        assert [found.id for found in store.similarity_search("0 0", filter={"a": one})] == ["new"]
    if not isinstance(kept, bool):
        assert len(store.similarity_search("0 0", filter={"a": {"$gte": value}})) == 1
    store.delete(filter={"a": value})
    assert store.get_by_ids(["new"]) == []


def test_ids_that_are_uuids(store):
    assert store.add_texts(["new"], ids=[IDENTIFIER]) == [str(IDENTIFIER)]
    assert store.get_by_ids([IDENTIFIER]) == store.get_by_ids([str(IDENTIFIER)]) != []
    assert asyncio.run(store.aget_by_ids([IDENTIFIER])) == store.get_by_ids([IDENTIFIER])
    store.delete([IDENTIFIER])
    assert store.table.count_rows() == 4


def test_no_metadata():
    assert json_text(None, 0) == json_text({}, 0) == "{}"
