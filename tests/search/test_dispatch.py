"""Which search a query is, by LanceDB's rules."""

import numpy as np
import pytest
from lancedb.query import MatchQuery
from word_embedding import NAME, embed

from rqmoe_store.errors import InvalidInputError, RQMoEError
from rqmoe_store.search.hybrid import HybridQuery
from rqmoe_store.search.query import CompressedQuery
from rqmoe_store.search.text import TextQuery, as_vector, is_content, query_kind


def test_text_is_embedded_where_there_is_a_function(text_world) -> None:
    store, text = text_world.store, "river bridge stone"
    wanted = store.search(embed(text)).to_arrow()
    for search in (store.search(text), store.search(text, "vector"), store.search(text, query_type="vector")):
        assert isinstance(search, CompressedQuery)
        assert search.to_arrow().equals(wanted)
    assert search.where("lang = 'en'").nprobes(2).to_arrow().num_rows == 10


def test_text_finds_what_it_finds_in_lancedb(text_world) -> None:
    text = text_world.texts[17]
    found = text_world.store.search(text).nprobes(1000).shortlist(300).limit(5).to_arrow()
    wanted = text_world.plain.search(embed(text)).limit(5).to_arrow()
    assert found["id"].to_pylist() == wanted["id"].to_pylist()


def test_text_without_a_function(own_text_world, world) -> None:
    store = own_text_world.store
    store.handle.embedding = None
    assert isinstance(store.search("copper"), TextQuery)
    with pytest.raises(InvalidInputError, match=r"'texts' has no embedding function\. Pass a vector.*fts"):
        store.search("copper", query_type="vector")
    with pytest.raises(InvalidInputError, match="neither an embedding function nor a full-text index"):
        world.store.search("copper")


@pytest.mark.parametrize("query_type", ["auto", "vector"])
def test_vectors_stay_vectors(text_world, query_type) -> None:
    for query in (np.ones(16), [1.0] * 16, np.ones((2, 16))):
        search = text_world.store.search(query, query_type)
        assert search.to_arrow().equals(text_world.store.search(query).to_arrow())


def test_kinds(text_world) -> None:
    store = text_world.store
    assert query_kind(store._source.reader(), MatchQuery("a", "text"), "auto") == "fts"
    assert query_kind(store._source.reader(), None, "hybrid") == "hybrid"
    assert isinstance(store.search("a", query_type="hybrid"), HybridQuery)
    for query_type in ("nope", None, "FTS"):
        with pytest.raises(InvalidInputError, match="expected one of auto, vector, fts, hybrid"):
            store.search("a", query_type=query_type)
    with pytest.raises(InvalidInputError, match="Got MatchQuery that cannot be read as float32"):
        store.search(MatchQuery("a", "text"), query_type="vector")
    for query in ("copper", np.ones(16)):
        with pytest.raises(InvalidInputError, match="fts_columns='text' for a search by vector"):
            store.search(query, fts_columns="text")


def test_content() -> None:
    class Image:
        __module__ = "PIL.Image"

    assert is_content("") and is_content(Image())
    assert not any(map(is_content, ([1.0], np.ones(2), None, b"a", 3)))


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("RAISE", RQMoEError, "failed.*the model is out"),
        ("NONE", InvalidInputError, "gives no vector for 'NONE'; pass a vector"),
        ("", InvalidInputError, "gives no vector for ''"),
        ("SHORT", InvalidInputError, r"shape \(3,\); expected \(16,\)"),
        ("NESTED", InvalidInputError, r"shape \(1, 16\)"),
        ("NAN", InvalidInputError, "NaN"),
        ("WORDS", InvalidInputError, "could not convert"),
    ],
)
def test_a_function_that_fails(text_world, text, error, message) -> None:
    for search in (text_world.store.search, lambda text: as_vector(text_world.store, text)):
        with pytest.raises(error, match=f"embedding function '{NAME}' of column 'text'.*{message}"):
            search(text)
