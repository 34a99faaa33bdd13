"""Full-text indexes on compressed tables: LanceDB's, with its options."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import lancedb
import pytest
from lancedb.index import FTS

from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.search.text import TextIndexOptions, indexed_columns, text_columns
from rqmoe_store.tables import open_table


def test_one_column_or_several(own_text_world) -> None:
    store = own_text_world.store
    assert indexed_columns(store.table) == ["text", "title"]
    store.create_fts_index("lang")
    assert sorted(indexed_columns(store.table)) == ["lang", "text", "title"]
    assert store.search("de", "fts", fts_columns="lang").limit(300).to_arrow().num_rows == 100


def test_options_are_those_of_lancedb(own_text_world) -> None:
    assert set(TextIndexOptions.__annotations__) == {field.name for field in dataclasses.fields(FTS)}
    store = own_text_world.store
    store.add([{"id": 900, "text": "Running RIVERS"}])
    assert store.search("run", "fts", fts_columns="text").to_arrow()["id"].to_pylist() == [900]
    store.create_fts_index("text", replace=True, stem=False, lower_case=False)
    for word, ids in {"run": [], "running": [], "Running": [900]}.items():
        assert store.search(word, "fts", fts_columns="text").to_arrow()["id"].to_pylist() == ids


def test_indexes_that_exist_may_be_left_as_they_are(own_text_world) -> None:
    store = own_text_world.store
    store.create_fts_index("text", replace=True, stem=False)
    version = store.version
    store.create_fts_index(["text", "title"], exist_ok=True)
    assert store.version == version
    store.create_fts_index(["lang", "text"], exist_ok=True)
    assert sorted(indexed_columns(store.table)) == ["lang", "text", "title"]
    store.add([{"id": 900, "text": "running rivers"}])
    assert store.search("run", "fts", fts_columns="text").to_arrow().num_rows == 0
    with pytest.raises(InvalidInputError, match="unknown option 'stemmed'"):
        store.create_fts_index("text", exist_ok=True, stemmed=False)


def test_handles_that_make_the_same_index_at_once(own_text_world) -> None:
    database = lancedb.connect(own_text_world.store.table.uri.rpartition("/")[0])
    stores = [open_table(database, "texts") for _ in range(4)]
    own_text_world.store.add([{"id": 900, "lang": "xx", "text": "rivers"}])
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda store: store.create_fts_index("lang", exist_ok=True), stores))
    for store in stores:
        assert store.search("xx", "fts", fts_columns="lang").to_arrow()["id"].to_pylist() == [900]
        assert sorted(indexed_columns(store.table)) == ["lang", "text", "title"]


def test_columns_that_another_handle_added(own_text_world) -> None:
    store = own_text_world.store
    database = lancedb.connect(store.table.uri.rpartition("/")[0])
    open_table(database, "texts").add_columns({"remark": "'copper ' || lang"})
    store.create_fts_index("remark", exist_ok=True)
    assert store.search("copper", "fts", fts_columns="remark").limit(500).to_arrow().num_rows == len(store)


def test_survives_opening_elsewhere(own_text_world) -> None:
    store = own_text_world.store
    folder = store.table.uri.rpartition("/")[0]
    reopened = open_table(lancedb.connect(folder), "texts")
    assert indexed_columns(reopened.table) == ["text", "title"]
    assert reopened.search("copper", "fts").to_arrow().equals(store.search("copper", "fts").to_arrow())


@pytest.mark.parametrize(
    ("columns", "options", "error", "message"),
    [
        ("id", {}, InvalidInputError, r"Got columns \['id'\].*here lang, title, text"),
        ("nope", {}, InvalidInputError, r"Got columns \['nope'\]"),
        ("vector_code", {}, InvalidInputError, r"Got columns \['vector_code'\]"),
        (["lang", "id"], {}, InvalidInputError, r"Got columns \['id'\]"),
        ([], {}, InvalidInputError, r"Got columns \[\]"),
        (["lang", "text"], {}, TableError, "'text' has a full-text index already; set replace=True"),
        ("lang", {"tokenizer_name": "en_stem"}, InvalidInputError, "unknown option 'tokenizer_name'.*stem"),
        ("lang", {"base_tokenizer": "nope"}, InvalidInputError, "LanceDB refuses.*unknown base tokenizer"),
        ("lang", {"language": "Klingon"}, InvalidInputError, "LanceDB refuses.*Klingon"),
        ("lang", {"max_token_length": "long"}, InvalidInputError, "LanceDB refuses"),
    ],
)
def test_unusable_columns_and_options(own_text_world, columns, options, error, message) -> None:
    store = own_text_world.store
    before = store.version
    with pytest.raises(error, match=message):
        store.create_fts_index(columns, **options)
    assert indexed_columns(store.table) == ["text", "title"]
    assert store.version == before


def test_columns_of_text(text_world) -> None:
    assert text_columns(text_world.store.schema, "text") == ["text"]
    assert text_columns(text_world.store.schema, ("title", "text")) == ["title", "text"]
