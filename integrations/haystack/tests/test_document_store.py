"""Documents written, read, changed and deleted."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from comparisons import assert_same_documents
from haystack.dataclasses import ByteStream, Document, SparseEmbedding
from haystack.document_stores.errors import DocumentStoreError, DuplicateDocumentError
from haystack.document_stores.types import DuplicatePolicy
from haystack_integrations.document_stores.rqmoe import RQMoEDocumentStore
from hypothesis import given, settings
from hypothesis import strategies as st
from small_stores import new_store

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
    ["'", '"', "\\", "\n", "\x00", "'; DROP TABLE documents; --", "{}", "null", "😀\u2028"]
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
META = st.dictionaries(TEXT, JSON, max_size=4)
BLOBS = st.builds(ByteStream, data=st.binary(max_size=20), meta=META, mime_type=st.none() | TEXT)
SPARSE = st.lists(st.tuples(st.integers(0, 2**31), st.floats(-10, 10)), max_size=4).map(
    lambda pairs: SparseEmbedding([index for index, _ in pairs], [value for _, value in pairs])
)
DOCUMENTS = st.lists(
    st.builds(
        Document,
        id=TEXT.filter(bool),
        content=st.none() | TEXT,
        blob=st.none() | BLOBS,
        meta=META,
        score=st.none() | st.floats(-1e6, 1e6),
        embedding=st.none() | st.lists(st.floats(0.125, 100, width=32), min_size=8, max_size=8),
        sparse_embedding=st.none() | SPARSE,
    ),
    min_size=1,
    max_size=12,
    unique_by=lambda document: document.id,
)


@settings(max_examples=25)
@given(documents=DOCUMENTS)
def test_documents_come_back_exactly(small_store: RQMoEDocumentStore, documents: list[Document]) -> None:
    assert small_store.write_documents(documents, DuplicatePolicy.OVERWRITE) == len(documents)
    assert_same_documents(small_store.filter_documents(), documents)
    ids = [document.id for document in documents]
    found = small_store.filter_documents({"field": "id", "operator": "in", "value": ids[:1]})
    assert_same_documents(found, documents[:1])
    small_store.delete_documents(ids)
    assert small_store.count_documents() == 0


def test_what_came_back_can_be_written_again(small_store: RQMoEDocumentStore) -> None:
    small_store.write_documents([Document(id="a", content="x", meta={"range": (0, 5)}, embedding=[0.1] * 8)])
    (once,) = small_store.filter_documents()
    assert once.meta == {"range": [0, 5]}
    small_store.write_documents([once], DuplicatePolicy.OVERWRITE)
    assert small_store.filter_documents() == [once]


def _numbered(*numbers: int, **fields: Any) -> list[Document]:
    return [Document(id=f"{number}", embedding=[1.0, *[float(number)] * 7], **fields) for number in numbers]


@pytest.mark.parametrize("policy", [DuplicatePolicy.NONE, DuplicatePolicy.FAIL])
def test_by_fail_nothing_is_written(small_store: RQMoEDocumentStore, policy: DuplicatePolicy) -> None:
    small_store.write_documents(_numbered(1, 2))
    with pytest.raises(DuplicateDocumentError, match="'2'"):
        small_store.write_documents(_numbered(3, 2, 4), policy)
    with pytest.raises(DuplicateDocumentError, match="'5'"):
        small_store.write_documents(_numbered(5, 6, 5), policy)
    assert_same_documents(small_store.filter_documents(), _numbered(1, 2))


def test_by_skip_the_first_stays(small_store: RQMoEDocumentStore) -> None:
    small_store.write_documents(_numbered(1, content="old"))
    new = [*_numbered(1, 2, content="new"), *_numbered(2, 3, content="newer")]
    assert small_store.write_documents(new, DuplicatePolicy.SKIP) == 2
    contents = {document.id: document.content for document in small_store.filter_documents()}
    assert contents == {"1": "old", "2": "new", "3": "newer"}


def test_by_overwrite_the_last_wins(small_store: RQMoEDocumentStore) -> None:
    small_store.write_documents(_numbered(1, content="old", meta={"a": "2020-01-01"}, score=1.0))
    new = [*_numbered(1, 2, content="new"), Document(id="1", content="newest")]
    assert small_store.write_documents(new, DuplicatePolicy.OVERWRITE) == 3
    assert_same_documents(small_store.filter_documents(), [new[1], new[2]])
    assert (
        small_store.count_documents_by_filter({"field": "meta.a", "operator": "==", "value": "2020-01-01"})
        == 0
    )


def test_the_first_embedding_says_the_dimension(database: str) -> None:
    store = new_store(database)
    store.write_documents([Document(id="a"), Document(id="b", embedding=[1.0, 2.0, 3.0])])
    assert store.table is not None and store.table.dim == 3
    assert_same_documents(
        store.filter_documents(), [Document(id="a"), Document(id="b", embedding=[1.0, 2.0, 3.0])]
    )


def test_several_stores_share_a_table(database: str) -> None:
    one, other = new_store(database, embedding_dims=8), new_store(database)
    assert other.count_documents() == 0 and other.table is None
    one.write_documents(_numbered(1, 2))
    assert other.count_documents() == 2
    other.delete_documents(["1"])
    assert one.count_documents() == 1
    new_store(database, table_name="another", embedding_dims=3).write_documents([Document(id="1")])
    assert_same_documents(one.filter_documents(), _numbered(2))


def test_updates_keep_everything_else(small_store: RQMoEDocumentStore) -> None:
    documents = _numbered(1, 2, content="text", meta={"a": 1, "b": {"c": 2}}, score=0.5)
    small_store.write_documents([*documents, Document(id="3")])
    filters = {"field": "meta.a", "operator": "==", "value": 1}
    assert small_store.update_by_filter(filters, {"b": "2020-05-05", "new": [None]}) == 2
    updated = [dataclasses.replace(one, meta={"a": 1, "b": "2020-05-05", "new": [None]}) for one in documents]
    assert_same_documents(small_store.filter_documents(), [*updated, Document(id="3")])
    dated = {"field": "meta.b", "operator": ">", "value": "2020-05-04T12:00:00"}
    assert small_store.count_documents_by_filter(dated) == 2


def test_updates_keep_codes(coded_document_store: RQMoEDocumentStore) -> None:
    store, vector = coded_document_store, np.random.default_rng(1).random(768).tolist()
    store.write_documents([Document(id="a", meta={"x": 1}, embedding=vector)])
    (before,) = store.embedding_retrieval(vector, return_embedding=True)
    assert store.update_by_filter({"field": "meta.x", "operator": "==", "value": 1}, {"x": 2}) == 1
    (after,) = store.embedding_retrieval(vector, return_embedding=True)
    assert (after.embedding, after.score, after.meta) == (before.embedding, before.score, {"x": 2})


def test_recreated_tables_take_embeddings_of_another_model(database: str) -> None:
    store = new_store(database)
    store.delete_all_documents(recreate_index=True)
    store.write_documents(_numbered(1))
    store.delete_all_documents()
    with pytest.raises(DocumentStoreError, match="expected 8"):
        store.write_documents([Document(id="a", embedding=[1.0, 2.0])])
    store.delete_all_documents(recreate_index=True)
    store.write_documents([Document(id="a", embedding=[1.0, 2.0])])
    assert [document.id for document in store.embedding_retrieval([1.0, 2.0])] == ["a"]


def test_embeddings_are_left_out_when_asked(database: str) -> None:
    store = new_store(database, return_embedding=False)
    store.write_documents(_numbered(1))
    assert [document.embedding for document in store.filter_documents()] == [None]


def test_unique_values_come_in_pages(small_store: RQMoEDocumentStore) -> None:
    small_store.write_documents([Document(id=str(n), meta={"x": f"it's {n}"}) for n in range(12)])
    assert small_store.get_metadata_field_unique_values("x", "IT'S 1", from_=1, size=1) == (["it's 10"], 3)
    assert small_store.get_metadata_field_unique_values("meta.x", from_=20) == ([], 12)
