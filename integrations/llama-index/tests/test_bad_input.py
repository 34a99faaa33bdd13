"""What cannot be added or asked: it is refused before anything is written."""

import asyncio
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llama_index.vector_stores.rqmoe import RQMoEVectorStore
from small_nodes import asked, ids, node, where

from rqmoe_store import CodecConfig, InvalidInputError

BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "no embedding": (lambda: node("bad").model_copy(update={"embedding": None}), "'bad' has no embedding"),
    "other dimension": (lambda: node("bad", [1.0, 2.0, 3.0]), "dimension 3"),
    "nan": (lambda: node("bad", [math.nan, 1.0]), "'bad' has NaN"),
    "beyond float32": (lambda: node("bad", [1e300, 1.0]), "'bad' has NaN or infinite"),
    "zero": (lambda: node("bad", [0.0, 0.0]), "'bad'.*zero"),
    "metadata": (lambda: node("bad", n=2**64), "'bad' has.*64 bits"),
    "half a character": (lambda: node("bad", text="\udc00"), "half a character"),
    "no node": (lambda: "text", "Got str"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_added(store: RQMoEVectorStore, name: str) -> None:
    make, expected = BAD[name]
    with pytest.raises(InvalidInputError, match=expected):
        store.add([node("good"), make()])
    assert store.client.list_tables().tables == []
    store.add([node("first")])
    with pytest.raises(InvalidInputError, match=expected):
        store.add([node("good"), make()])
    with pytest.raises(ValueError, match=expected):
        asyncio.run(store.async_add([node("good"), make()]))
    assert ids(store.get_nodes()) == ["first"]


def test_another_embedding_model(store: RQMoEVectorStore) -> None:
    store.add([node("a")])
    with pytest.raises(
        InvalidInputError, match="vectors of 3 numbers, but table 'vectors' holds vectors of 2"
    ):
        store.add([node("b", [1.0, 2.0, 3.0])])
    with pytest.raises(InvalidInputError, match="dimension"):
        store.query(asked([1.0, 2.0, 3.0]))
    assert ids(store.get_nodes()) == ["a"]


def test_zero_vectors_where_they_mean_something(tmp_path: Path) -> None:
    store = RQMoEVectorStore(uri=str(tmp_path), config=CodecConfig(metric="l2"))
    store.add([node("zero", [0.0, 0.0])])
    assert store.query(asked([0.0, 0.0])).similarities == [1.0]


def test_unknown_options(store: RQMoEVectorStore) -> None:
    with pytest.raises(InvalidInputError, match="option 'mode' for add; expected show_progress"):
        store.add([node("a")], mode="overwrite")
    with pytest.raises(InvalidInputError, match="option 'force' for delete; it takes none"):
        store.delete("d", force=True)
    with pytest.raises(InvalidInputError, match="option 'force' for delete"):
        store.delete_nodes(["a"], force=True)


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> RQMoEVectorStore:
    made = RQMoEVectorStore(uri=str(tmp_path_factory.mktemp("db")))
    made.add([node("a"), node("b", [0.0, 1.0])])
    return made


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
        (asked(mode="mmr"), {"mmr_method": "medoids"}, "expected one of 'mmr', 'coverage'"),
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
