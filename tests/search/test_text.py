"""Full-text queries, against LanceDB's own on the plain table: conditions, words, indexes."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from costly_examples import costly_examples
from hypothesis import example, given
from hypothesis import strategies as st
from lancedb.index import FTS
from lancedb.query import BooleanQuery, BoostQuery, MatchQuery, MultiMatchQuery, Occur, PhraseQuery
from lancedb.rerankers import Reranker
from word_embedding import NAME, WORDS, embed

from rqmoe_store.errors import InvalidInputError, RQMoEError, TableError
from rqmoe_store.search.hybrid import HybridQuery
from rqmoe_store.search.query import CompressedQuery
from rqmoe_store.search.reranker import DecodedReranker
from rqmoe_store.search.text import (
    TextIndexOptions,
    TextQuery,
    as_vector,
    indexed_columns,
    is_content,
    query_kind,
    text_columns,
    words_query,
)
from rqmoe_store.tables import create_table, open_table

FILTERS = [None, "lang = 'en'", "id > 100 AND lang != 'fr' -- most", "title = 'title7'", "id < 0"]

AWKWARD = [
    "", " ", "'", '"', '"copper', "copper' OR 1=1 --", "copper; DROP TABLE docs", "copper AND silver",
    "+copper -silver", "text:copper", "copper*", "(copper", "copper~2", "日本 語", "\n", "\x00", "a\tb\\c",
    "{'match': 1}", "`text`", "cop%per", "🎈 copper", "$1", "the",
]  # fmt: skip


def both(world, query, **more):
    return (
        world.store.search(query, query_type="fts", **more),
        world.plain.search(query, query_type="fts", **more).select(["id", "lang", "title", "text", "_score"]),
    )


def same(found: pa.Table, wanted: pa.Table) -> bool:
    return found.equals(wanted.replace_schema_metadata(None))


@costly_examples(40, part=15)
@given(
    words=st.lists(st.sampled_from([*WORDS, "title7", "absent"]), min_size=1, max_size=3),
    where=st.sampled_from(FILTERS),
    limit=st.integers(1, 40),
    offset=st.integers(0, 20),
    columns=st.sampled_from([None, "text", ["title"], ["text", "title"]]),
    with_row_id=st.booleans(),
)
def test_results_are_those_of_lancedb(text_world, words, where, limit, offset, columns, with_row_id) -> None:
    found, wanted = (
        search.limit(limit).offset(offset).with_row_id(with_row_id)
        for search in both(text_world, " ".join(words), fts_columns=columns)
    )
    if where is not None:
        found, wanted = found.where(where), wanted.where(where)
    assert same(found.to_arrow(), wanted.to_arrow())


@costly_examples(60, part=15)
@given(text=st.text(max_size=30))
@example(text="copper'); --")
def test_any_text_is_only_text(text_world, text) -> None:
    outcomes = []
    for search in both(text_world, text):
        try:
            outcomes.append(search.to_arrow().replace_schema_metadata(None))
        except ValueError as error:  # a phrase in quotes, for which the index has no positions
            assert "position is not found" in str(error) or "column must be specified" in str(error)
            outcomes.append(None)
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_texts(text_world, text) -> None:
    found, wanted = both(text_world, text, fts_columns="text")
    assert same(found.to_arrow(), wanted.to_arrow())
    assert text_world.store.count_rows() == 300


def found_by(world, query) -> list[int]:
    found = world.store.search(query, query_type="fts").limit(300).to_arrow()
    return sorted(found["id"].to_pylist())


TYPED = st.lists(
    st.sampled_from(
        [*WORDS[:4], *"\"'+-*~^:()[]{}\\/.?!", " ", "AND", "NOT", "the", "\0", "\ud800", "😀", "\u202e"]
    )
    | st.text(max_size=3),
    max_size=8,
).map("".join)


@costly_examples(100, part=20)
@given(text=TYPED)
@example(text='"copper bridge"')
@example(text='""')
@example(text='"copper" "bridge"')
@example(text="copper " * 1500)
@example(text="x" * 100_000)
def test_the_words_of_any_text_are_found(text_world, text) -> None:
    query = words_query(text, "text")
    found = found_by(text_world, query)
    assert found == found_by(text_world, words_query(f'"{text}"', "text")), "quotes are no words"
    # LanceDB reads a string that is not quoted as words.
    assert found == found_by(text_world, MatchQuery(f". {query.query} .", "text"))
    hybrid = text_world.store.search(query_type="hybrid").vector(np.ones(16)).text(query)
    assert hybrid.limit(5).to_arrow().num_rows == 5


@pytest.mark.parametrize(
    "options",
    [{"with_position": True}, {"base_tokenizer": "raw"}, {"base_tokenizer": "ngram"}, {"stem": False}],
    ids=str,
)
def test_words_are_searched_for_in_any_index(own_text_world, options) -> None:
    store = own_text_world.store
    store.create_fts_index("text", replace=True, **options)
    store.add([{"id": 900, "text": "copper"}])  # not in the index yet
    for text in (*AWKWARD, '"copper"', '""', '"copper" "bridge"', "\ud800"):
        assert isinstance(found_by(own_text_world, words_query(text, "text")), list)
    assert 900 in found_by(
        own_text_world, words_query('"copper"' if "base" not in str(options) else "copper", "text")
    )


def test_rerankers_read_the_text_of_a_query(text_world) -> None:
    reranker = Backwards()
    text_world.store.search(words_query('"copper"', "text"), "fts").rerank(reranker).to_arrow()
    assert reranker.given[0] == '"copper"'


@pytest.mark.parametrize(
    ("text", "column"), [(None, "text"), (["copper"], "text"), ("copper", None), (b"x", "text")]
)
def test_words_of_what_is_no_text(text, column) -> None:
    with pytest.raises(InvalidInputError, match="for words_query; expected a string"):
        words_query(text, column)


@pytest.mark.parametrize("column", ["The text", "it's", "a-b", "Text", "select"])
def test_columns_with_any_name_are_indexed_once(tmp_path, column) -> None:
    store = create_table(lancedb.connect(tmp_path), "t", [{column: "a cat", "vector": [1.0, 0.0]}])
    for _ in range(2):
        store.create_fts_index(column, exist_ok=True)
    assert store.search('"cat', "fts").to_list() == store.search(words_query("cat", column), "fts").to_list()
    with pytest.raises(TableError, match="already"):
        store.create_fts_index(column)


def test_awkward_texts_in_rows_and_filters(own_text_world) -> None:
    store = own_text_world.store
    store.add([{"id": 900 + row, "title": text, "text": "unheard"} for row, text in enumerate(AWKWARD)])
    for row, text in enumerate(AWKWARD):
        search = store.search("unheard", query_type="fts").where("title = '" + text.replace("'", "''") + "'")
        assert [(found["id"], found["title"]) for found in search.to_list()] == [(900 + row, text)]


def test_every_word_finds_its_rows(text_world) -> None:
    for word in WORDS[:5]:
        found = text_world.store.search(word, query_type="fts", fts_columns="text").limit(300).to_arrow()
        wanted = {row for row, text in enumerate(text_world.texts) if word in text.split()}
        assert set(found["id"].to_pylist()) == wanted
        scores = found["_score"].to_pylist()
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("with_row_id", [False, True])
@pytest.mark.parametrize(
    "columns", [None, [], ["id"], ["_score", "text"], ["text", "_score"], ["_rowid", "id"], ["_score"]]
)
def test_columns_and_their_order_are_those_of_lancedb(text_world, columns, with_row_id) -> None:
    theirs = text_world.plain.search("copper", query_type="fts").with_row_id(with_row_id)
    schema = (theirs if columns is None else theirs.select(columns)).to_arrow().schema
    wanted = [field for field in schema if field.name != "vector"]
    search = text_world.store.search("copper", query_type="fts").with_row_id(with_row_id).select(columns)
    found = search.to_arrow().schema
    assert list(found) == wanted and found.metadata is None
    assert list(search.where("id < 0").to_arrow().schema) == wanted


def test_code_columns_only_when_selected(text_world) -> None:
    search = text_world.store.search("copper", query_type="fts")
    assert search.to_arrow().schema.names == ["id", "lang", "title", "text", "_score"]
    named = search.select(["vector_code", "vector_partition"]).to_arrow()
    assert named.schema.names == ["vector_code", "vector_partition", "_score"]


@pytest.mark.parametrize(
    "query",
    [
        MatchQuery("coper", "text", fuzziness=1),
        MultiMatchQuery("copper title7", ["text", "title"]),
        BoostQuery(MatchQuery("copper", "text"), MatchQuery("silver", "text"), negative_boost=0.2),
        BooleanQuery(
            [(Occur.MUST, MatchQuery("copper", "text")), (Occur.MUST_NOT, MatchQuery("silver", "text"))]
        ),
        MatchQuery("copper", "text") & MatchQuery("silver", "text"),
    ],
)
def test_structured_queries(text_world, query) -> None:
    found, wanted = both(text_world, query)
    assert same(found.to_arrow(), wanted.to_arrow())
    assert found.to_arrow().num_rows > 0
    assert isinstance(text_world.store.search(query), TextQuery)


def test_phrases(own_text_world) -> None:
    store = own_text_world.store
    with pytest.raises(InvalidInputError, match=r"with_position=True, replace=True.*words_query"):
        store.search('"copper bridge"', "fts", fts_columns="text").to_arrow()
    store.create_fts_index("text", replace=True, with_position=True)
    words = " ".join(own_text_world.texts[9].split()[:2])
    together = {row for row, text in enumerate(own_text_world.texts) if words in text}
    for search in (
        store.search(words, "fts", fts_columns="text").phrase_query(),
        store.search(f'"{words}"', "fts", fts_columns="text"),
        store.search(PhraseQuery(words, "text")),
    ):
        assert set(search.limit(300).to_arrow()["id"].to_pylist()) == together
    with pytest.raises(InvalidInputError, match="requires a string or PhraseQuery"):
        store.search(MatchQuery("copper", "text")).phrase_query().to_arrow()


def test_rows_written_since(own_text_world) -> None:
    store = own_text_world.store
    found = store.search("copper", "fts").limit(300).to_arrow()["id"].to_pylist()
    store.add([{"id": 900, "lang": "en", "title": "new", "text": "copper unheard"}])
    assert store.search("unheard", "fts").to_arrow()["id"].to_pylist() == [900]
    assert store.search("unheard", "fts").fast_search().to_arrow().num_rows == 0
    store.delete(f"id = {found[0]}")
    store.table.optimize()
    after = store.search("copper", "fts").with_row_id(True).limit(300).to_arrow()
    assert set(after["id"].to_pylist()) == {*found[1:], 900}
    taken = store.table.take_row_ids(after["_rowid"].to_pylist()).select(["id"]).to_arrow()
    assert set(taken["id"].to_pylist()) == set(after["id"].to_pylist())
    assert store.search("unheard", "fts").fast_search().to_arrow().num_rows == 1


@pytest.mark.parametrize("prefilter", [True, False])
def test_filters_before_or_after(text_world, prefilter) -> None:
    found, wanted = (search.where("lang = 'en'", prefilter).limit(9) for search in both(text_world, "copper"))
    assert same(found.to_arrow(), wanted.to_arrow())
    assert (found.to_arrow().num_rows == 9) == prefilter


def test_rows_written_by_others(own_text_world) -> None:
    store = own_text_world.store
    store.search("copper", "fts").to_arrow()
    other = open_table(lancedb.connect(store.table.uri.rpartition("/")[0]), "texts")
    other.add([{"id": 900, "text": "unheard"}])
    assert store.search("unheard", "fts").to_arrow()["id"].to_pylist() == [900]
    reranker = DecodedReranker(store, query=np.ones(16))
    found = store.search("unheard", "fts").rerank(reranker).to_arrow()
    assert found["_relevance_score"].null_count == 0
    hybrid = store.search("unheard", query_type="hybrid").limit(1).to_arrow()
    assert hybrid["id"].to_pylist() == [900]


class Backwards(Reranker):
    """By falling id; keeps what it was given."""

    def rerank_hybrid(self, query, vector_results, fts_results):
        raise NotImplementedError

    def rerank_fts(self, query, fts_results):
        self.given = query, fts_results
        relevance = fts_results["id"].cast(pa.float32())
        ranked = fts_results.append_column("_relevance_score", relevance)
        return self._keep_relevance_score(ranked.sort_by([("_relevance_score", "descending")]))


@pytest.mark.parametrize("return_score", ["relevance", "all"])
@pytest.mark.parametrize("with_row_id", [False, True])
def test_rerank_as_lancedb_does(text_world, return_score, with_row_id) -> None:
    reranker = Backwards(return_score)
    found, wanted = (search.with_row_id(with_row_id) for search in both(text_world, "copper"))
    found, wanted = (search.rerank(reranker).to_arrow() for search in (found, wanted))
    assert same(found, wanted)
    text_world.store.search("copper", "fts").rerank(reranker).to_arrow()
    assert reranker.given[0] == "copper" and "_rowid" in reranker.given[1].schema.names


def test_defaults_and_outputs(text_world) -> None:
    search = text_world.store.search("copper", query_type="fts")
    table = search.to_arrow()
    assert table.num_rows == 10
    assert search.to_list() == table.to_pylist()
    assert search.to_pandas().equals(table.to_pandas())
    assert search.to_polars().to_arrow()["id"].to_pylist() == table["id"].to_pylist()


def test_plans_are_those_of_lancedb(text_world) -> None:
    def stages(plan: str) -> list[str]:
        return [line.strip().split(":")[0].split(",")[0] for line in plan.splitlines()]

    found, wanted = (search.where("id > 100").limit(7) for search in both(text_world, "copper"))
    assert stages(found.explain_plan()) == stages(wanted.explain_plan())
    assert stages(found.analyze_plan()) == stages(wanted.analyze_plan())
    assert "output_rows=7" in found.analyze_plan()
    reranked = found.rerank(Backwards())
    assert stages(reranked.explain_plan()) == ["Rerank", *stages(wanted.explain_plan())]
    assert reranked.analyze_plan().startswith("Rerank: Backwards\n  AnalyzeExec")


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda store: store.search(np.zeros(16), "fts"), "Got ndarray as a full-text query"),
        (lambda store: store.search(None, "fts"), "Got NoneType as a full-text query"),
        (
            lambda store: store.search("a", "fts", fts_columns="id").to_arrow(),
            r"Got columns \['id'\].*title, text",
        ),
        (
            lambda store: store.search("a", "fts", fts_columns=["text", "nope"]).to_arrow(),
            r"Got columns \['nope'\]",
        ),
        (lambda store: store.search("a", "fts", fts_columns="vector_code").to_arrow(), r"\['vector_code'\]"),
        (lambda store: store.search(MatchQuery("a", "nope")).to_arrow(), "which LanceDB refuses.*nope"),
        (lambda store: store.search(MatchQuery("a", "id")).to_arrow(), "which LanceDB refuses.*Int64"),
        (lambda store: store.search("a", "fts").select(["nope"]).to_arrow(), "available are id, lang, title"),
        (lambda store: store.search("a", "fts").select(["_distance"]).to_arrow(), "unknown column"),
        (lambda store: store.search("a", "fts").where("id > 0) OR (1 = 1").to_arrow(), "parentheses"),
        (lambda store: store.search("a", "fts").where("nope = 1").to_arrow(), "No field named nope"),
        (lambda store: store.search("a", "fts").limit(0), "limit=0"),
        (lambda store: store.search("a", "fts").rerank(None), "Got None as a reranker"),
    ],
)
def test_unusable_queries(text_world, build, reason) -> None:
    with pytest.raises(InvalidInputError, match=reason):
        build(text_world.store)


def test_without_an_index(world) -> None:
    search = world.store.search("a", query_type="fts")
    for run in (search.to_arrow, search.explain_plan, search.analyze_plan):
        with pytest.raises(TableError, match="'docs_compressed' has no full-text index; make one"):
            run()
    # A structured query that names its column needs none; LanceDB reads the texts then.
    assert world.store.search(MatchQuery("17", "text")).to_arrow()["id"].to_pylist() == [17]


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
