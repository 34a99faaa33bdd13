"""Questions of any kind, and the relevance of distances."""

import asyncio
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_rqmoe import RQMoEVectorStore
from langchain_rqmoe.searches import relevance

from rqmoe_store import InvalidInputError

angles = st.floats(0, math.pi)


def distance(metric: str, angle: float) -> float:
    """Between two vectors of length 1, as LanceDB has it."""
    one, other = np.array([1.0, 0.0]), np.array([math.cos(angle), math.sin(angle)])
    by_metric = {"l2": float(((one - other) ** 2).sum()), "cosine": 1 - one @ other, "dot": 1 - one @ other}
    return by_metric[metric]


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
@given(pair=st.tuples(angles, angles).map(sorted))
def test_nearer_is_more_relevant(metric, pair):
    near, far = (relevance(metric, distance(metric, angle)) for angle in pair)
    assert near >= far - 1e-9
    assert near <= 1 + 1e-9


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
def test_ends_of_the_scale(metric):
    assert relevance(metric, distance(metric, 0)) == pytest.approx(1)
    assert relevance(metric, distance(metric, math.pi / 2)) == pytest.approx(0)


def test_rounding_takes_nothing_above_one():
    assert relevance("cosine", -1e-7) == 1
    assert relevance("l2", -1e-7) == 1


def test_longer_vectors_by_dot_stay_in_order():
    assert relevance("dot", 1 - 30.0) > relevance("dot", 1 - 2.0) > relevance("dot", 1 - 0.9)


class WithoutQuotes(DeterministicFakeEmbedding):
    """The vector of a question is that of its words, whether they are in quotes or not."""

    def embed_query(self, text):
        return super().embed_query(text.replace('"', ""))


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    store = RQMoEVectorStore(WithoutQuotes(size=8), uri=tmp_path_factory.mktemp("db"))
    store.add_texts(["vector databases keep embeddings", "cats sleep a lot", "a vector is a list"])
    return store


@settings(max_examples=40, deadline=None)
@given(
    text=st.text(st.characters(), max_size=9) | st.sampled_from(["AND", "the", "+cats -lot", "cats*", "a\0b"])
)
@example(text="cats " * 2000)
@example(text="x" * 100_000)
@example(text='a" "b')
def test_any_question_is_answered(asked, text):
    for question in (text, f'"{text}"', f'"{text}', "\ud800" + text):
        assert len(asked.similarity_search(question, k=3, query_type="hybrid")) == 3
        assert len(asked.similarity_search(question, k=3, query_type="fts")) <= 3
        assert len(asked.similarity_search(question, k=3)) == 3


@pytest.mark.parametrize(
    "question", ['what is a "vector database"?', '"vector databases"', '"vector" "databases"']
)
@pytest.mark.parametrize("query_type", ["hybrid", "fts"])
def test_quotes_are_no_words(asked, question, query_type):
    found = asked.similarity_search_with_score(question, k=3, query_type=query_type)
    assert found == asked.similarity_search_with_score(question.replace('"', ""), k=3, query_type=query_type)
    if query_type == "fts":
        assert found[0][0].page_content == "vector databases keep embeddings"
    documents = [document for document, _ in found]
    assert documents == asyncio.run(asked.asimilarity_search(question, k=3, query_type=query_type))


@pytest.mark.parametrize("question", [None, 5, ["cats"], b"cats"])
def test_questions_that_are_no_texts(asked, question):
    for query_type in ("vector", "hybrid", "fts"):
        with pytest.raises(InvalidInputError, match="Got query="):
            asked.similarity_search(question, query_type=query_type)
