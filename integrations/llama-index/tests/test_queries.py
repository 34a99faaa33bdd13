"""Queries: modes, restrictions and similarities."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from lancedb.rerankers import RRFReranker
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.vector_stores.rqmoe import RQMoEVectorStore
from small_nodes import TEXTS, TROUBLE, asked, ids, many_nodes, node, where

from rqmoe_store import CodecConfig, InvalidInputError

NODES = [
    node("east", [1.0, 0.0], document="plane", text="the sun rises in the east", n=1),
    node("north", [0.0, 1.0], document="plane", text="moss grows in the north", n=2),
    node("northeast", [1.0, 1.0], document="sphere", text="the wind blows north and east", n=3),
    node("west", [-1.0, 0.1], document="sphere", text="the sun sets in the west", n=4),
    node("nowhere", [0.1, -1.0], text="", n=5),
]


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> RQMoEVectorStore:
    made = RQMoEVectorStore(uri=str(tmp_path_factory.mktemp("db")))
    made.add(NODES)
    return made


@pytest.fixture(scope="module")
def simple() -> SimpleVectorStore:
    made = SimpleVectorStore()
    made.add(NODES)
    return made


@pytest.mark.parametrize(
    "query",
    [
        asked([1.0, 0.9]),
        asked([1.0, 0.9], top=1),
        asked([0.2, -1.0], top=3),
        asked([1.0, 0.9], node_ids=["west", "north", "nobody"]),
        asked([1.0, 0.9], filters=where(("n", ">", 2))),
        asked([1.0, 0.9], top=1, filters=where(("n", ">", 2), ("n", "<", 5))),
        asked([1.0, 0.9], filters=where(("n", "==", 2), ("n", "==", 3))),
        asked([1.0, 0.9], filters=where(("unknown", "==", "c"))),
        asked([1.0, 0.9], filters=where(("doc_id", "==", "sphere")), node_ids=["west", "north"]),
    ],
)
def test_results_are_those_of_the_frameworks_own_store(
    plane: RQMoEVectorStore, simple: SimpleVectorStore, query: Any
) -> None:
    found, expected = plane.query(query), simple.query(query)
    assert found.ids == expected.ids and ids(found.nodes or []) == expected.ids
    assert found.similarities == pytest.approx(expected.similarities, abs=1e-6)


def test_nodes_come_whole_with_their_embeddings(plane: RQMoEVectorStore) -> None:
    found = plane.query(asked([1.0, 0.0], top=2))
    assert found.nodes == [NODES[0], NODES[2]]


@pytest.mark.parametrize(
    ("doc_ids", "expected"),
    [
        (None, {"east", "north", "northeast", "west", "nowhere"}),
        (["plane"], {"east", "north"}),
        (["plane", "sphere"], {"east", "north", "northeast", "west"}),
        (["missing"], set()),
        ([], set()),
    ],
)
@pytest.mark.parametrize("mode", ["default", "mmr"])
def test_documents_that_were_asked_for(
    plane: RQMoEVectorStore, mode: str, doc_ids: Any, expected: set[str]
) -> None:
    assert set(plane.query(asked(mode=mode, doc_ids=doc_ids)).ids or []) == expected


def test_all_restrictions_hold_together(plane: RQMoEVectorStore) -> None:
    query = asked(doc_ids=["plane"], node_ids=["east", "west"], filters=where(("n", "<", 4)))
    assert plane.query(query).ids == ["east"]
    assert plane.query(asked(doc_ids=["plane"]), where="id <> 'east'").ids == ["north"]


def test_no_node_ids_are_all_nodes(plane: RQMoEVectorStore) -> None:
    assert len(plane.query(asked(node_ids=[])).ids or []) == 5


@pytest.mark.parametrize(
    ("of_query", "options", "expected"),
    [
        (0.0, {}, ["a", "c"]),
        (1.0, {}, ["a", "b"]),
        (None, {}, ["a", "b"]),
        (None, {"mmr_threshold": 0.0}, ["a", "c"]),
        (1.0, {"mmr_threshold": 0.0}, ["a", "c"]),
        (0.0, {"mmr_threshold": None}, ["a", "b"]),
    ],
)
def test_mmr_thresholds(store: RQMoEVectorStore, of_query: Any, options: Any, expected: list[str]) -> None:
    store.add([node("a"), node("b"), node("c", [0.0, 1.0])])
    found = store.query(asked(top=2, mode="mmr", mmr_threshold=of_query), **options)
    assert found.ids == expected
    assert found.similarities == pytest.approx([1.0, float(expected[1] == "b")])


def test_text_search(plane: RQMoEVectorStore) -> None:
    found = plane.query(asked(None, mode="text_search", query_str="sun"))
    assert set(found.ids or []) == {"east", "west"}
    assert all(score > 0 for score in found.similarities or [])
    both = plane.query(asked(None, mode="text_search", query_str="north east"))
    assert (both.ids or [])[0] == "northeast" and both.similarities == sorted(
        both.similarities or [], reverse=True
    )
    only = asked(None, mode="text_search", query_str="sun", filters=where(("n", ">", 1)), doc_ids=["sphere"])
    assert plane.query(only).ids == ["west"]
    assert plane.query(asked(None, mode="text_search", query_str="nothing has this")).ids == []


def test_text_search_finds_what_was_added_later(store: RQMoEVectorStore) -> None:
    store.add([node("a", text="first words")])
    assert store.query(asked(None, mode="text_search", query_str="words")).ids == ["a"]
    store.add([node("b", text="more words")])
    assert set(store.query(asked(None, mode="text_search", query_str="words")).ids or []) == {"a", "b"}


@settings(max_examples=30, deadline=None)
@given(text=TEXTS)
def test_any_text_can_be_searched_for(plane: RQMoEVectorStore, text: str) -> None:
    assert plane.query(asked(None, mode="text_search", query_str=text)).nodes is not None
    hybrid = plane.query(asked(mode="hybrid", query_str=text, top=5))
    assert len(hybrid.ids or []) == 5


def test_hybrid_searches_weigh_vector_and_text(plane: RQMoEVectorStore) -> None:
    def first(**options: Any) -> str:
        found = plane.query(asked([1.0, 0.0], mode="hybrid", query_str="moss", top=5, **options))
        assert found.similarities == sorted(found.similarities or [], reverse=True)
        return (found.ids or [])[0]

    assert first(alpha=1.0) == "east"
    assert first(alpha=0.0) == "north"
    assert first() in {"east", "north"}  # reciprocal ranks: both are first once
    assert first(filters=where(("n", ">", 1)), alpha=1.0) == "northeast"


def test_counts_of_hybrid_searches(plane: RQMoEVectorStore) -> None:
    def count(**options: int) -> int:
        return len(plane.query(asked(mode="hybrid", query_str="sun", **options)).ids or [])

    assert count(top=1) == 1
    assert count(top=2, hybrid_top_k=3) == 3
    assert count(top=4, hybrid_top_k=1) == 1
    assert count(top=1, sparse_top_k=4, hybrid_top_k=4) == 4


def test_rerankers_of_users(store: RQMoEVectorStore) -> None:
    class Backwards(RRFReranker):
        def rerank_hybrid(self, *arguments: Any) -> Any:
            return super().rerank_hybrid(*arguments)[::-1]

    store.add(NODES)
    query = asked([1.0, 0.0], mode="hybrid", query_str="sun", top=3)
    forwards = store.query(query).ids or []
    turned = RQMoEVectorStore(uri=store.uri, reranker=Backwards()).query(query).ids or []
    assert len(turned) == 3 and turned[0] != forwards[0]


@pytest.mark.parametrize(
    ("metric", "expected"), [("cosine", [1.0, math.sqrt(0.5)]), ("dot", [1.0, 1.0]), ("l2", [1.0, 0.5])]
)
def test_similarities_of_every_metric(tmp_path: Any, metric: Any, expected: list[float]) -> None:
    store = RQMoEVectorStore(uri=str(tmp_path), config=CodecConfig(metric=metric))
    store.add([node("same"), node("other", [1.0, 1.0])])
    found = store.query(asked([1.0, 0.0]))
    assert found.similarities == pytest.approx(expected)
    if metric != "dot":
        assert found.ids == ["same", "other"]


def test_embeddings_of_codes_are_decoded_ones(coded: RQMoEVectorStore) -> None:
    given_nodes = many_nodes(300)
    vectors = np.array([one.embedding for one in given_nodes], dtype=np.float32)
    codec = coded.table.codec
    decoded = codec.decode(codec.encode(vectors))
    everything = {one.node_id: one for one in coded.get_nodes()}
    read = np.array([everything[one.node_id].embedding for one in given_nodes])
    np.testing.assert_allclose(read, decoded, atol=1e-6)
    found = coded.query(asked(given_nodes[7].embedding, top=5))
    for one, similarity in zip(found.nodes or [], found.similarities or [], strict=True):
        assert one.embedding == everything[one.node_id].embedding
        length = float(np.linalg.norm(one.embedding or []) * np.linalg.norm(vectors[7]))
        assert similarity == pytest.approx(float(np.dot(one.embedding or [], vectors[7])) / length, abs=1e-5)
        assert one.model_copy(update={"embedding": None}) == given_nodes[
            int(one.metadata["place"])
        ].model_copy(update={"embedding": None})


@pytest.mark.parametrize("mode", ["default", "mmr", "hybrid", "text_search"])
def test_modes_on_codes(coded: RQMoEVectorStore, mode: str) -> None:
    query = asked(
        many_nodes(300)[5].embedding,
        mode=mode,
        query_str="n5",
        top=3,
        filters=where(("place", "<", 100)),
    )
    found = coded.query(query)
    assert "n5" in (found.ids or [])
    assert all(one.metadata["place"] < 100 and len(one.embedding or []) == 8 for one in found.nodes or [])


def test_more_is_found_with_a_longer_shortlist(coded: RQMoEVectorStore) -> None:
    query = asked(many_nodes(300)[5].embedding, top=3)
    assert coded.query(query, shortlist=300, nprobes=1).ids == coded.query(query, shortlist=299).ids


@pytest.mark.parametrize("mode", ["sparse", "semantic_hybrid", "svm", "logistic_regression"])
def test_modes_that_are_not_known(plane: RQMoEVectorStore, mode: str) -> None:
    with pytest.raises(InvalidInputError, match="expected one of default, hybrid, text_search, mmr"):
        plane.query(asked(mode=mode, query_str="x"))


@pytest.mark.parametrize(
    ("query", "options", "expected"),
    [
        (asked(None), {}, "without query_embedding"),
        (asked(None, mode="mmr"), {}, "without query_embedding"),
        (asked(None, mode="hybrid", query_str="x"), {}, "without query_embedding"),
        (asked(mode="hybrid"), {}, "without query_str"),
        (asked(None, mode="text_search"), {}, "without query_str"),
        (asked([1.0, 0.0, 0.0]), {}, "expected.*dimension|dimension"),
        (asked([math.nan, 0.0]), {}, "NaN"),
        (asked([0.0, 0.0]), {}, "zero"),
        (asked(top=0), {}, "limit=0"),
        (asked(embedding_field="other"), {}, "embeddings of this store are in 'vector'"),
        (asked(mode="hybrid", query_str="x", alpha=1.5), {}, "expected 0 .* to 1"),
        (asked(mode="mmr"), {"mmr_threshold": 2}, "number from 0 to 1"),
        (asked(), {"nprobes": 0}, "nprobes=0"),
        (asked(), {"shortlist": 0}, "shortlist=0"),
        (asked(), {"where": "nope = 1"}, "which LanceDB refuses"),
        (asked(), {"where": "1 = 1) OR (1 = 1"}, "unbalanced"),
        (asked(), {"refine_factor": 3}, "option 'refine_factor' for query; expected mmr_threshold"),
        (asked(filters=where(("a", "in", "x"))), {}, "expected a list"),
    ],
)
def test_queries_that_cannot_be_answered(
    plane: RQMoEVectorStore, query: Any, options: Any, expected: str
) -> None:
    with pytest.raises(InvalidInputError, match=expected):
        plane.query(query, **options)


@pytest.mark.parametrize("text", TROUBLE)
def test_ids_with_any_characters(store: RQMoEVectorStore, text: str) -> None:
    store.add([node(text, document=text, text=text), node("other", document="other")])
    assert store.query(asked(node_ids=[text])).ids == [text]
    assert store.query(asked(doc_ids=[text])).ids == [text]
    store.delete(text)
    assert ids(store.get_nodes()) == ["other"]
