"""Queries: modes, restrictions and similarities."""

import asyncio
import math
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lancedb.rerankers import RRFReranker
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.vector_stores.rqmoe import RQMoEVectorStore
from small_nodes import TEXTS, TROUBLE, asked, ids, node, where

from rqmoe_store import CodecConfig

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
    assert found.similarities == pytest.approx([1.0, float(expected[1] == "b")], abs=1e-6)


def test_mmr_by_coverage(store: RQMoEVectorStore) -> None:
    # Two groups, and an outlier that is the most different from the nearest node.
    store.add(
        [node("a", [1.0, 0.1]), node("b", [1.0, 0.12]), node("c", [1.0, -0.9]), node("d", [1.0, -0.92])]
    )
    store.add([node("e", [1.0, -0.94]), node("f", [-1.0, 0.0])])
    query = asked(top=2, mode="mmr", mmr_threshold=0.0)
    assert store.query(query).ids == ["a", "f"]
    covering = store.query(query, mmr_method="coverage").ids or []
    assert len({"a", "b"} & set(covering)) == len({"c", "d", "e"} & set(covering)) == 1
    assert store.query(query, mmr_method="coverage", mmr_threshold=1.0).ids == ["a", "b"]


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
@given(text=TEXTS | st.text(st.characters(), max_size=9))
@example(text='"')
@example(text='a" "b')
@example(text="sun " * 2500)
@example(text="x" * 100_000)
def test_any_text_can_be_searched_for(plane: RQMoEVectorStore, text: str) -> None:
    for question in (text, f'"{text}"', f'"{text}', f"{text}\ud800"):
        assert plane.query(asked(None, mode="text_search", query_str=question)).nodes is not None
        hybrid = plane.query(asked(mode="hybrid", query_str=question, top=5))
        assert len(hybrid.ids or []) == 5


def test_quotes_are_no_words(plane: RQMoEVectorStore) -> None:
    for question in ('"north east"', '"north" "east"', '"north east'):
        found = plane.query(asked(None, mode="text_search", query_str=question))
        assert (found.ids or [])[0] == "northeast"
        assert asyncio.run(plane.aquery(asked(None, mode="text_search", query_str=question))).ids == found.ids


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


@pytest.mark.parametrize("text", TROUBLE)
def test_ids_with_any_characters(store: RQMoEVectorStore, text: str) -> None:
    store.add([node(text, document=text, text=text), node("other", document="other")])
    assert store.query(asked(node_ids=[text])).ids == [text]
    assert store.query(asked(doc_ids=[text])).ids == [text]
    store.delete(text)
    assert ids(store.get_nodes()) == ["other"]
