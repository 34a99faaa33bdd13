"""Merging two result lists, against what LanceDB makes of the same lists."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lancedb.query import LanceHybridQueryBuilder
from lancedb.rerankers import LinearCombinationReranker, MRRReranker, Reranker, RRFReranker

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.search.hybrid import check_normalization, fuse, values_of

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
@settings(max_examples=25, deadline=None)
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


class Spy(Reranker):
    """Keeps what it was given."""

    def rerank_hybrid(self, query, vector_results, fts_results):
        self.given = query, vector_results, fts_results
        merged = self.merge_results(vector_results, fts_results)
        return merged.append_column("_relevance_score", pa.array([0.0] * len(merged), pa.float32()))


def test_a_reranker_sees_scores_from_0_to_1() -> None:
    spy, query = Spy(), object()
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
    class Forgetful(Spy):
        def rerank_hybrid(self, query, vector_results, fts_results):
            return vector_results

    vector, text = results([1], [0.0], "_distance"), results([1], [0.0], "_score")
    with pytest.raises(ValueError, match="_relevance_score"):
        fuse(vector, text, query="words", reranker=Forgetful(), normalize="score")


def test_normalizations() -> None:
    assert [check_normalization(name) for name in ("score", "rank")] == ["score", "rank"]
    with pytest.raises(InvalidInputError, match="normalize='max'; expected 'score' or 'rank'"):
        check_normalization("max")
