"""Hybrid queries, against LanceDB's own on the plain table; lists are fused, ordered and cut."""

import itertools
import re

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from costly_examples import costly_examples
from hypothesis import given, settings
from hypothesis import strategies as st
from lancedb.index import FTS
from lancedb.query import LanceHybridQueryBuilder, MatchQuery
from lancedb.rerankers import LinearCombinationReranker, MRRReranker, Reranker, RRFReranker
from small_tables import tiny_codec
from word_embedding import WORDS, embed, sentences, text_table

from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.search.hybrid import HybridQuery, check_normalization, fuse, values_of
from rqmoe_store.tables import compress

ENDS = [10, 15, 25, 50, 100]

FILTERS = [None, "lang = 'en'", "id > 100 AND lang != 'fr' -- most", "title = 'title7'", "id < 0"]


def vector_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=16).astype(np.float32)


def ours(world, text, vector) -> HybridQuery:
    search = world.store.search(query_type="hybrid").vector(vector).text(text)
    return search.nprobes(1000).shortlist(300)


def theirs(world, text, vector):
    search = world.plain.search(query_type="hybrid", vector_column_name="vector")
    return search.vector(vector.tolist()).text(text)


def staged(first, count: int, goes_on: bool = False) -> pa.Table:
    """The first rows of a ranking made of LanceDB's results with higher and higher limits, which do not begin
    alike; as long as there are enough, or, if it goes on, some new ones."""
    ranked = first(ENDS[0])
    for before, end in itertools.pairwise(ENDS):
        if len(ranked) >= count or (len(ranked) < before and not goes_on):
            break
        later = first(end)
        new = later.filter(pc.invert(pc.is_in(later["id"], ranked["id"].combine_chunks())))
        if new.num_rows == 0:
            break
        ranked = pa.concat_tables([ranked, new.slice(0, end - len(ranked))])
    return ranked.slice(0, count)


def assert_same(found: pa.Table, wanted: pa.Table) -> None:
    assert found.schema.names == wanted.schema.names
    assert found["id"].to_pylist() == wanted["id"].to_pylist()
    for name in {"_relevance_score", "_distance", "_score"} & set(found.schema.names):
        left, right = (np.asarray(table[name].to_pylist(), dtype=float) for table in (found, wanted))
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)


@costly_examples(30, part=10)
@given(
    seed=st.integers(0, 10**6),
    words=st.lists(st.sampled_from([*WORDS, "title7", "absent"]), min_size=1, max_size=3),
    where=st.sampled_from(FILTERS),
    limit=st.integers(1, 40),
    offset=st.integers(0, 20),
    kind=st.sampled_from([RRFReranker, LinearCombinationReranker, MRRReranker]),
    return_score=st.sampled_from(["relevance", "all"]),
)
def test_results_are_those_of_lancedb(
    text_world, seed, words, where, limit, offset, kind, return_score
) -> None:
    text, vector = " ".join(words), vector_of(seed)

    def asked(search, limit: int):
        search = search.select(["id", "text"]).limit(limit).rerank(kind(return_score=return_score))
        return search if where is None else search.where(where)

    found = asked(ours(text_world, text, vector), limit).offset(offset).to_arrow()
    wanted = staged(
        lambda depth: asked(theirs(text_world, text, vector), depth).to_arrow(), limit + offset
    ).slice(offset)
    if found.num_rows:
        assert_same(found, wanted)
    else:
        assert wanted.num_rows == 0


@pytest.mark.parametrize("with_row_id", [False, True])
@pytest.mark.parametrize("columns", [None, [], ["id"], ["text", "id"]])
def test_columns_are_those_of_lancedb(text_world, columns, with_row_id) -> None:
    found, wanted = (
        make(text_world, "copper", vector_of(1)).with_row_id(with_row_id) for make in (ours, theirs)
    )
    found = found.select(columns)
    schema = (wanted if columns is None else wanted.select(columns)).to_arrow().schema
    kept = [field.remove_metadata() for field in schema if field.name != "vector"]
    assert list(found.to_arrow().schema) == kept
    nothing = found.where("id < 0").to_arrow()
    assert nothing.num_rows == 0 and set(nothing.schema) == set(kept)


def test_columns_of_its_own(text_world) -> None:
    search = ours(text_world, "copper", vector_of(1))
    names = ["vector_code", "_relevance_score", "_rowid"]
    assert set(search.select(names).to_arrow().schema.names) == set(names)
    assert search.select(["_relevance_score"]).to_arrow().schema.names == ["_relevance_score"]


def test_original_scores_whatever_the_normalization(text_world) -> None:
    vector, text = vector_of(2), "silver forest"
    search = ours(text_world, text, vector).rerank(RRFReranker(return_score="all"), normalize="rank")
    found = search.limit(20).to_pandas().set_index("id")
    near = text_world.store.search(vector).nprobes(1000).shortlist(300).limit(25).to_pandas()
    best = text_world.store.search(text, "fts").limit(25).to_pandas()
    for name, list_of_one in (("_distance", near), ("_score", best)):
        scores = found[name].dropna().to_dict()
        assert scores and scores.items() <= list_of_one.set_index("id")[name].to_dict().items()


def test_one_text_is_searched_for_both_ways(text_world) -> None:
    text = "harbour music"
    found = text_world.store.search(text, query_type="hybrid").limit(20).to_arrow()
    one_by_one = text_world.store.search(query_type="hybrid").text(text)
    assert found.equals(one_by_one.vector(embed(text)).limit(20).to_arrow())
    assert found.equals(one_by_one.vector(text).limit(20).to_arrow())
    words = set(text.split())
    assert all(words & set(row["text"].split()) for row in found.to_pylist()[:5])


@pytest.mark.parametrize("kind", [list, torch.tensor, lambda vector: np.asarray([vector])])
def test_vectors_of_every_type(text_world, kind) -> None:
    wanted = ours(text_world, "copper", vector_of(3)).to_arrow()
    assert ours(text_world, "copper", kind(vector_of(3).tolist())).to_arrow().equals(wanted)


def test_structured_text_and_its_columns(text_world) -> None:
    query, vector = MatchQuery("coper", "text", fuzziness=1), vector_of(4)
    assert_same(
        ours(text_world, query, vector).select(["id", "text"]).to_arrow(),
        theirs(text_world, query, vector).select(["id", "text"]).to_arrow(),
    )
    store = text_world.store
    search = store.search(query_type="hybrid", fts_columns="title").text("title7 copper").vector(vector)
    scored = search.rerank(RRFReranker(return_score="all")).to_list()
    assert [row["id"] for row in scored if row["_score"] is not None] == [7]


def test_settings_of_the_vector_search_reach_it(text_world) -> None:
    vector, spy = vector_of(5), Spy()
    search = text_world.store.search(query_type="hybrid").vector(vector).text("absent").rerank(spy)
    near = text_world.store.search(vector).limit(300).shortlist(300)
    search.nprobes(1).shortlist(300).distance_type("l2").limit(300).to_arrow()
    assert spy.rows() == near.nprobes(1).to_arrow()["id"].to_pylist()
    distances = near.nprobes(4).to_arrow()["_distance"].to_pylist()
    search.nprobes(4).distance_range(distances[10], distances[20]).to_arrow()
    assert spy.rows() == near.distance_range(distances[10], distances[20]).to_arrow()["id"].to_pylist()


class Spy(Reranker):
    """Keeps what it was given."""

    def rerank_hybrid(self, query, vector_results, fts_results):
        self.given = query, vector_results, fts_results
        return RRFReranker().rerank_hybrid(query, vector_results, fts_results)

    def rows(self) -> list[int]:
        return self.given[1]["id"].to_pylist()


def test_both_searches_reach_to_the_end_of_the_page(text_world) -> None:
    spy = Spy()
    search = ours(text_world, "copper", vector_of(6)).rerank(spy).limit(5).offset(7)
    assert search.to_arrow().num_rows == 5
    assert [len(results) for results in spy.given[1:]] == [15, 15]
    assert spy.given[0] == "copper"


def test_default_reranker_and_outputs(text_world) -> None:
    search = ours(text_world, "copper", vector_of(7))
    table = search.to_arrow()
    assert table.num_rows == 10
    assert search.rerank().to_arrow().equals(table)
    assert search.rerank(RRFReranker(), normalize="score").to_arrow().equals(table)
    assert search.to_list() == table.to_pylist()
    assert search.to_pandas().equals(table.to_pandas())
    assert search.to_polars().to_arrow()["id"].to_pylist() == table["id"].to_pylist()


def test_plans_are_those_of_both_searches(text_world) -> None:
    vector, text = vector_of(1), "copper silver"
    search = ours(text_world, text, vector).where("id > 9").limit(5).offset(2).select(["id"])
    by_vector = text_world.store.search(vector).nprobes(1000).shortlist(300).select(["id", "_distance"])
    by_text = text_world.store.search(text, "fts").select(["id", "_score"])
    parts = [each.where("id > 9").limit(10).with_row_id() for each in (by_vector, by_text)]

    def below(plans: list[str]) -> list[str]:
        return [f"  {line}" for plan in plans for line in plan.splitlines()]

    def stages(lines: list[str]) -> list[str]:
        return [re.split("[:,]", line)[0] for line in lines]

    explained = below([part.explain_plan() for part in parts])
    assert search.explain_plan().splitlines() == [
        "Rerank: RRFReranker, by score, first 10 of both, rows 2 to 7",
        *explained,
    ]
    first, *others = search.rerank(MRRReranker(), normalize="rank").analyze_plan().splitlines()
    assert first.startswith("Rerank: MRRReranker, by rank, first 10 of both, rows 2 to 7  rows=5 time=")
    assert stages(others) == stages(below([part.analyze_plan() for part in parts]))


def test_phrases(own_text_world) -> None:
    store, spy = own_text_world.store, Spy()
    store.create_fts_index("text", replace=True, with_position=True)
    words = own_text_world.texts[5].split()[:3]
    search = store.search(query_type="hybrid", fts_columns="text").rerank(spy).phrase_query()
    search.text(" ".join(words)).vector(vector_of(1)).limit(300).to_arrow()
    together = [row for row, text in enumerate(own_text_world.texts) if " ".join(words) in text]
    assert set(spy.given[2]["id"].to_pylist()) == set(together)


def test_rows_without_a_vector_are_found_by_their_text(own_text_world) -> None:
    store = own_text_world.store
    bare = pa.table({"id": [900], "text": pa.array([None], pa.string()), "title": ["lonely"]})
    store.add(bare)
    found = store.search(query_type="hybrid").vector(vector_of(1)).text("lonely").limit(300).to_list()
    assert [row["id"] for row in found].count(900) == 1


@pytest.mark.parametrize("prefilter", [True, False])
def test_filters_before_or_after_both_searches(text_world, prefilter) -> None:
    vector, text = vector_of(8), "copper bridge"

    def first(make, limit: int) -> pa.Table:
        search = make(text_world, text, vector).where("lang = 'en'", prefilter)
        return search.select(["id", "text"]).limit(limit).to_arrow()

    wanted = staged(lambda depth: first(theirs, depth), 20, goes_on=not prefilter)
    assert_same(first(ours, 20), wanted)


def test_kept_vectors_are_returned_and_refined_by(tmp_path) -> None:
    db = lancedb.connect(tmp_path)
    docs = text_table(db, "docs", sentences(200))
    vectors = np.stack(docs.to_pandas()["vector"].to_list())
    codec = tiny_codec(vectors, "l2", 4)
    store = compress(docs, codec, "kept", keep_vectors="float32", progress=False)
    store.create_fts_index("text")
    docs.create_index("text", config=FTS())
    reranker = RRFReranker(return_score="all")
    vector = embed("copper bridge")  # equal texts come in the order of the rows, which is another one
    wanted = docs.search(query_type="hybrid", vector_column_name="vector").vector(vector.tolist())
    found = store.search(query_type="hybrid").vector(vector).nprobes(4).shortlist(200).refine_factor(10)
    found, wanted = found.text("absent"), wanted.text("absent").limit(10)
    names = ["id", "vector"]
    found, wanted = (search.select(names).rerank(reranker).to_arrow() for search in (found, wanted))
    assert_same(found, wanted)
    assert found["vector"].combine_chunks().equals(wanted["vector"].combine_chunks())
    store.add([{"id": 900, "text": "unheard"}])
    (row,) = store.search("unheard", "fts").to_list()
    np.testing.assert_array_equal(np.asarray(row["vector"], np.float32), embed("unheard"))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda query: query.to_arrow(), "hybrid query without vector"),
        (lambda query: query.vector(vector_of(1)).to_arrow(), "hybrid query without text"),
        (lambda query: query.text("a").to_arrow(), "without vector"),
        (lambda query: query.text("a").vector(np.zeros((2, 16))).to_arrow(), "Got a batch of vectors"),
        (lambda query: query.text("a").vector(np.zeros(3)).to_arrow(), "dimension 3; expected 16"),
        (lambda query: query.text(5).vector(vector_of(1)).to_arrow(), "Got int as a full-text query"),
        (lambda query: query.text("a").vector(vector_of(1)).select(["nope"]).to_arrow(), "available are id"),
        (lambda query: query.text("a").vector(vector_of(1)).where("nope = 1").to_arrow(), "field named nope"),
        (lambda query: query.text("a").vector(vector_of(1)).shortlist(3).to_arrow(), "shortlist=3"),
        (lambda query: query.limit(0), "limit=0"),
        (lambda query: query.offset(-1), "offset=-1"),
        (lambda query: query.nprobes(0), "nprobes=0"),
        (lambda query: query.shortlist(0), "shortlist=0"),
        (lambda query: query.distance_range("a"), "lower_bound='a'"),
        (lambda query: query.distance_range(2, 1), "lower_bound < upper_bound"),
        (lambda query: query.distance_type("dot"), "trained for 'l2'"),
        (lambda query: query.rerank("rrf"), "Got 'rrf' as a reranker"),
        (lambda query: query.rerank(normalize="max"), "normalize='max'"),
        (lambda query: query.where(5), "expected an SQL condition"),
    ],
)
def test_unusable_queries(text_world, build, reason) -> None:
    with pytest.raises(InvalidInputError, match=reason):
        build(text_world.store.search(query_type="hybrid"))


def test_refining_needs_kept_vectors(text_world) -> None:
    with pytest.raises(TableError, match="keeps no raw vectors to refine by"):
        text_world.store.search(query_type="hybrid").refine_factor(2)


def test_text_and_parts_exclude_each_other(text_world) -> None:
    search = text_world.store.search("copper", query_type="hybrid")
    for more in (search.vector(vector_of(1)), search.text("silver")):
        with pytest.raises(InvalidInputError, match="either the one or the other"):
            more.to_arrow()
    with pytest.raises(InvalidInputError, match="Got ndarray as a hybrid query"):
        text_world.store.search(vector_of(1), query_type="hybrid")
    with pytest.raises(InvalidInputError, match=r"Got columns \['id'\] for full-text search"):
        text_world.store.search("copper", "hybrid", fts_columns=["id"]).to_arrow()


def test_without_index_or_embedding_function(world) -> None:
    search = world.store.search(query_type="hybrid").text("a").vector(vector_of(1))
    for run in (search.to_arrow, search.explain_plan, search.analyze_plan):
        with pytest.raises(TableError, match=r"no full-text index; make one with create_fts_index"):
            run()
    with pytest.raises(InvalidInputError, match="has no embedding function"):
        world.store.search("a", query_type="hybrid").to_arrow()


RERANKERS = [RRFReranker, LinearCombinationReranker, MRRReranker]

FLOATS = st.floats(-1000, 1000, width=16)  # coarse, so that scaling keeps different ones apart


def results(row_ids: list[int], scores: list[float], name: str) -> pa.Table:
    """A result list as a search gives it, best first."""
    order = np.argsort(scores) if name == "_distance" else np.argsort(scores)[::-1]
    return pa.table(
        {
            "id": pa.array([row_ids[place] * 10 for place in order], pa.int64()),
            name: pa.array([scores[place] for place in order], pa.float32()),
            "_rowid": pa.array([row_ids[place] for place in order], pa.uint64()),
        }
    )


@st.composite
def lists(draw: st.DrawFn) -> tuple[pa.Table, pa.Table]:
    """Two lists that share some of their rows; no two rows of a list are equally good."""
    tables = []
    for name in ("_distance", "_score"):
        row_ids = draw(st.lists(st.integers(0, 12), unique=True, max_size=8))
        scores = draw(st.lists(FLOATS, unique=True, min_size=len(row_ids), max_size=len(row_ids)))
        tables.append(results(row_ids, scores, name))
    return tables[0], tables[1]


def of_lancedb(vector: pa.Table, text: pa.Table, reranker: Reranker, normalize: str) -> pa.Table:
    return LanceHybridQueryBuilder._combine_hybrid_results(
        fts_results=text, vector_results=vector, norm=normalize, fts_query="words", reranker=reranker,
        limit=100, with_row_ids=True,
    )  # fmt: skip


def by_row(table: pa.Table, name: str) -> dict[int, float | None]:
    return dict(zip(table["_rowid"].to_pylist(), table[name].to_pylist(), strict=True))


@pytest.mark.parametrize("normalize", ["score", "rank"])
@pytest.mark.parametrize("return_score", ["relevance", "all"])
@pytest.mark.parametrize("kind", RERANKERS)
@costly_examples(25, part=8)
@given(both=lists())
def test_relevance_and_order_are_those_of_lancedb(kind, return_score, normalize, both) -> None:
    vector, text = both
    reranker = kind(return_score=return_score)
    found = fuse(vector, text, query="words", reranker=reranker, normalize=normalize)
    wanted = of_lancedb(vector, text, reranker, normalize)
    assert by_row(found, "_relevance_score") == pytest.approx(by_row(wanted, "_relevance_score"), abs=1e-6)
    assert found["_relevance_score"].to_pylist() == sorted(
        found["_relevance_score"].to_pylist(), reverse=True
    )
    if len(vector) or len(text):  # of nothing LanceDB returns all score columns, whatever was asked for
        assert found.schema.names == wanted.schema.names
        assert found["id"].to_pylist() == wanted["id"].to_pylist()


@pytest.mark.parametrize("normalize", ["score", "rank"])
@settings(max_examples=25, deadline=None)
@given(both=lists())
def test_scores_come_back_as_they_were(normalize, both) -> None:
    vector, text = both
    reranker = RRFReranker(return_score="all")
    found = fuse(vector, text, query="words", reranker=reranker, normalize=normalize)
    for name, results in (("_distance", vector), ("_score", text)):
        original = by_row(results, name)
        assert by_row(found, name) == {row: original.get(row) for row in found["_rowid"].to_pylist()}


class FusionSpy(Reranker):
    """Keeps what it was given."""

    def rerank_hybrid(self, query, vector_results, fts_results):
        self.given = query, vector_results, fts_results
        merged = self.merge_results(vector_results, fts_results)
        return merged.append_column("_relevance_score", pa.array([0.0] * len(merged), pa.float32()))


def test_a_reranker_sees_scores_from_0_to_1() -> None:
    spy, query = FusionSpy(), object()
    vector = results([1, 2, 3], [10.0, 20.0, 15.0], "_distance")
    fuse(vector, results([4], [7.0], "_score"), query=query, reranker=spy, normalize="score")
    assert spy.given[0] is query
    assert spy.given[1]["_distance"].to_pylist() == [0.0, 0.5, 1.0]
    assert spy.given[2]["_score"].to_pylist() == [0.0]
    fuse(vector, results([4, 5], [7.0, 9.0], "_score"), query=query, reranker=spy, normalize="rank")
    assert spy.given[1]["_distance"].to_pylist() == [0.0, 0.5, 1.0]
    assert spy.given[2]["_score"].to_pylist() == [1.0, 0.0]


@pytest.mark.parametrize(("return_score", "more"), [("relevance", []), ("all", ["_distance", "_score"])])
def test_nothing_found_has_the_columns_of_something(return_score, more) -> None:
    empty = results([], [], "_distance"), results([], [], "_score")
    found = fuse(*empty, query="words", reranker=RRFReranker(return_score=return_score), normalize="score")
    assert found.num_rows == 0
    assert set(found.schema.names) == {"id", "_rowid", "_relevance_score", *more}
    assert found.schema.field("_relevance_score").type == pa.float32()


def test_values_by_row_id() -> None:
    rows = pa.table({"_rowid": pa.array([5, 1, 9], pa.uint64())})
    found = results([1, 5], [0.5, 0.25], "_distance")
    assert values_of(rows, found, "_distance").to_pylist() == [0.25, 0.5, None]


def test_a_reranker_without_relevance_is_reported() -> None:
    class Forgetful(FusionSpy):
        def rerank_hybrid(self, query, vector_results, fts_results):
            return vector_results

    vector, text = results([1], [0.0], "_distance"), results([1], [0.0], "_score")
    with pytest.raises(ValueError, match="_relevance_score"):
        fuse(vector, text, query="words", reranker=Forgetful(), normalize="score")


def test_normalizations() -> None:
    assert [check_normalization(name) for name in ("score", "rank")] == ["score", "rank"]
    with pytest.raises(InvalidInputError, match="normalize='max'; expected 'score' or 'rank'"):
        check_normalization("max")
