"""Coverage by greedy facility location, against plain readings of its definition, alone and in searches."""

import itertools
import math

import numpy as np
import pytest
from costly_examples import costly_examples
from diverse_searches import METRICS, SEARCHES, near_first, queries_of
from hypothesis import given, settings
from hypothesis import strategies as st
from lancedb.rerankers import RRFReranker

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.search.diversity import Diversity, choose_greedily, covers_of, weights_of
from rqmoe_store.search.hybrid import fuse
from rqmoe_store.search.rerank import exact_values

LAMBDAS = st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0])
SEEDS = st.integers(0, 10**6)


def worth(chosen: list[int], vectors: np.ndarray, values: np.ndarray, metric: str, lambda_: float) -> float:
    """What a set of chosen rows is worth, by the definition, pair after pair."""
    rows = vectors.astype(np.float64)
    if metric != "l2":
        rows = np.array([row / (np.linalg.norm(row) or 1) for row in rows])
    far = [-value if metric == "dot" else value for value in values]
    spread = max(far) - min(far)
    pairs = itertools.product(range(len(rows)), repeat=2)
    widest = max(((rows[one] - rows[other]) ** 2).sum() for one, other in pairs)
    total = 0.0
    for row in range(len(rows)):
        weight = (max(far) - far[row]) / spread if spread else 1.0
        if row in chosen:
            total += weight
        elif chosen:
            nearest = min(((rows[row] - rows[one]) ** 2).sum() for one in chosen)
            total += weight * (1 - lambda_) * (1 - nearest / widest if widest else 1.0)
    return total


def covering(query, vectors, distances, metric, lambda_, count) -> list[int]:
    values = exact_values(distances, None, metric)
    rows = Diversity(lambda_, "coverage").rows_of(query, vectors, values, metric)
    return rows.choose(np.ones(len(vectors), dtype=bool), count).tolist()


@pytest.mark.parametrize("metric", METRICS)
@costly_examples(40, part=10)
@given(seed=SEEDS, rows=st.integers(1, 8), count=st.integers(1, 4), lambda_=LAMBDAS)
def test_it_is_worth_what_the_guarantee_says(metric, seed, rows, count, lambda_) -> None:
    query, vectors, distances = near_first(seed, rows, metric)
    values, count = exact_values(distances, None, metric), min(rows, count)
    found = covering(query, vectors, distances, metric, lambda_, count)
    assert len(set(found)) == count
    worths = {
        chosen: worth(chosen, vectors, values, metric, lambda_)
        for chosen in itertools.combinations(range(rows), count)
    }
    best, attained = max(worths.values()), worths[tuple(sorted(found))]
    assert attained >= (1 - 1 / math.e) * best - 1e-9
    if count in (1, rows) or lambda_ == 1:  # here the greedy choice is the best one
        assert attained == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, rows=st.integers(1, 12), lambda_=st.sampled_from([0.0, 0.4, 0.9]))
def test_every_row_chosen_adds_the_most(metric, seed, rows, lambda_) -> None:
    query, vectors, distances = near_first(seed, rows, metric)
    values = exact_values(distances, None, metric)
    found = covering(query, vectors, distances, metric, lambda_, rows)
    for place, row in enumerate(found[:-1]):
        before = found[:place]
        worths = {
            other: worth([*before, other], vectors, values, metric, lambda_)
            for other in range(rows)
            if other not in before
        }
        assert worths[row] == pytest.approx(max(worths.values()), abs=1e-9)


def plain_greedy(covers, weights, covered, open_rows, count) -> list[int]:
    """Measures the gain of every open row for every place, in the order in which the lazy one adds."""
    covered, chosen = covered.copy(), []
    while len(chosen) < min(count, open_rows.sum()):
        gains = {}
        for row in np.flatnonzero(open_rows):
            if row not in chosen:
                gain = 0.0
                for other in range(len(weights)):
                    gain += weights[other] * max(covers[row, other] - covered[other], 0.0)
                gains[row] = gain
        chosen.append(max(gains, key=lambda row: (gains[row], -row)))
        covered = np.maximum(covered, covers[chosen[-1]])
    return chosen


@costly_examples(60, part=25)
@given(seed=SEEDS, rows=st.integers(1, 25), count=st.integers(1, 30), steps=st.sampled_from([1, 2, 4, 64]))
def test_the_lazy_choice_is_the_plain_one(seed, rows, count, steps) -> None:
    # Multiples of 1/64 are summed without rounding, so that rows often add exactly the same.
    random = np.random.default_rng(seed)
    covers = random.integers(0, steps + 1, (rows, rows)) / steps
    covers = np.maximum(covers, covers.T)
    weights, covered = random.integers(0, 5, rows) / 4, random.integers(0, steps + 1, rows) / steps
    open_rows = random.uniform(size=rows) < 0.8
    found = choose_greedily(covers, weights, covered, open_rows, count)
    assert found.tolist() == plain_greedy(covers, weights, covered, open_rows, count)


@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, rows=st.integers(0, 20), parts=st.lists(st.integers(0, 9), max_size=6))
def test_it_may_be_done_in_parts(metric, seed, rows, parts) -> None:
    query, vectors, distances = near_first(seed, rows, metric)
    values, open_rows = exact_values(distances, None, metric), np.ones(rows, dtype=bool)
    covered = Diversity(0.3, "coverage").rows_of(query, vectors, values, metric)
    found: list[int] = []
    for count in [*parts, 100]:
        chosen = covered.choose(open_rows, count)
        open_rows[chosen] = False
        found += chosen.tolist()
    assert found == covering(query, vectors, distances, metric, 0.3, 100)


@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, rows=st.integers(0, 20), repeats=st.integers(1, 3))
def test_lambda_one_keeps_the_order(metric, seed, rows, repeats) -> None:
    query, vectors, distances = near_first(seed, rows, metric)
    vectors, distances = np.repeat(vectors, repeats, axis=0), np.repeat(distances, repeats)
    assert covering(query, vectors, distances, metric, 1, 1000) == list(range(rows * repeats))


def test_weights_and_covers_are_shares() -> None:
    random = np.random.default_rng(3)
    weights, covers = weights_of(np.sort(random.normal(size=9))), covers_of(random.normal(size=(9, 4)), 0.25)
    assert weights[0] == 1 and weights[-1] == 0 and (np.diff(weights) <= 0).all()
    assert (covers == covers.T).all() and (np.diag(covers) == 1).all()
    assert covers.min() == 0 and (covers[~np.eye(9, dtype=bool)] <= 0.75).all()
    assert (weights_of(np.full(3, 2.0)) == 1).all()
    assert (covers_of(np.ones((3, 4)), 0.25) == np.where(np.eye(3), 1, 0.75)).all()


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, lambda_=st.floats(0.05, 0.95))
def test_unit_vectors_are_chosen_alike_under_every_metric(seed, lambda_) -> None:
    query, vectors, _ = near_first(seed, 20, "cosine")
    query, vectors = (rows / np.linalg.norm(rows, axis=-1, keepdims=True) for rows in (query, vectors))
    query, vectors = query.astype(np.float32), vectors.astype(np.float32)
    worths = []
    for metric in METRICS:
        squares = ((vectors.astype(np.float64) - query) ** 2).sum(axis=1)
        values = {"l2": squares, "cosine": squares / 2, "dot": 1 - squares / 2}[metric]
        rows = Diversity(lambda_, "coverage").rows_of(query, vectors, values, metric)
        chosen = rows.choose(np.ones(20, dtype=bool), 5).tolist()
        worths.append(worth(chosen, vectors, squares, "l2", lambda_))
    assert worths == pytest.approx([worths[0]] * 3, rel=1e-5)


@pytest.mark.parametrize("metric", ["l2", "dot"])
def test_zero_vectors_and_equal_ones(metric) -> None:
    query, vectors, distances = near_first(1, 5, metric)
    vectors[2] = 0
    assert sorted(covering(query, vectors, distances, metric, 0.5, 5)) == list(range(5))
    assert covering(query, np.ones((5, 6), np.float32), np.full(5, 2.0), metric, 0.5, 5) == list(range(5))


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES.keys())
@pytest.mark.parametrize("lambda_", [0.0, 0.5])
def test_searches_find_as_many_rows_and_none_that_a_filter_excludes(worlds, search, lambda_) -> None:
    for metric in METRICS:
        store = worlds(metric, 4).store
        plain, covers = (search(store.search(queries_of(2, 3)).with_row_id()) for _ in range(2))
        plain, found = plain.to_pandas(), covers.diversify(lambda_, method="coverage").to_pandas()
        assert not found.duplicated(["query_index", "_rowid"]).any()
        if search is not SEARCHES["filter of the results"]:  # which knows neither what plain search finds
            counts = found["query_index"].value_counts()
            assert counts.equals(plain["query_index"].value_counts())
        if search in (SEARCHES["filter"], SEARCHES["filter of the results"]):
            assert set(found["lang"]) <= {"de"}
        if search is SEARCHES["range"]:
            assert found["_distance"].between(12.0, 25.0, inclusive="left").all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("lambda_", [0.0, 0.6])
def test_a_search_covers_the_rows_of_its_stage(worlds, metric, lambda_) -> None:
    world, queries = worlds(metric, 4), queries_of(3, 2)
    vector_of = dict(zip(world.ids.tolist(), world.vectors, strict=True))

    def search():
        return world.store.search(queries).where("id >= 50").nprobes(100)

    # The first stage ends after 10 rows, and considers the nearest 100.
    plain = search().shortlist(100).limit(100).to_pandas()
    found = search().diversify(lambda_, method="coverage").limit(7).offset(2).to_pandas()
    for index, query in enumerate(queries):
        pool = plain[plain["query_index"] == index]
        vectors = np.array([vector_of[row] for row in pool["id"]])
        chosen = covering(query, vectors, pool["_distance"].to_numpy(), metric, lambda_, 10)
        page = pool.iloc[chosen[2:9]]
        assert found[found["query_index"] == index].reset_index(drop=True).equals(page.reset_index(drop=True))


@pytest.mark.parametrize("options", [{}, {"shortlist": 60}])
def test_pages_continue_each_other(world, options) -> None:
    def search():
        query = world.store.search(queries_of(6, 1)[0]).diversify(0.3, method="coverage")
        return query.shortlist(options["shortlist"]) if options else query

    whole = search().limit(45).to_arrow()
    assert len(set(whole["id"].to_pylist())) == 45
    for offset in range(0, 45, 9):
        assert search().limit(9).offset(offset).to_arrow().equals(whole.slice(offset, 9))


def test_refined_rows_are_as_many_as_are_covered(refinable) -> None:
    query = queries_of(4, 1)[0]
    plain = refinable.search(query).shortlist(100).limit(100).refine_factor(1).to_pandas()
    covers = refinable.search(query).refine_factor(2).diversify(0.3, method="coverage")
    found, exact = covers.to_pandas(), dict(zip(plain["id"], plain["_distance"], strict=True))
    assert found["id"].tolist() != plain["id"].tolist()[:10]
    assert found["_distance"].tolist() == [exact[row] for row in found["id"]]
    assert [line.strip() for line in covers.explain_plan().splitlines()[1:4]] == [
        "Diversify: coverage of the shortlist, lambda 0.3, keep 10",
        "Refine: l2 distance to raw vectors, keep 100",
        "Rerank: l2 distance to decoded rows, keep 100",
    ]
    assert "Refine: l2 distance to raw vectors, keep 30" in covers.shortlist(30).explain_plan()


def test_rows_needed() -> None:
    covers = Diversity(0.5, "coverage")
    assert [covers.rows_needed(end) for end in (10, 100, 250, 5_000)] == [100, 1_000, 2_000, 5_000]
    assert Diversity(1.0, "coverage").rows_needed(10) == Diversity(0.5, "mmr").rows_needed(10) == 10


@pytest.mark.parametrize("method", ["", "MMR", "facility", None, 1])
def test_unusable_methods(world, method) -> None:
    with pytest.raises(InvalidInputError, match="method="):
        world.store.search(queries_of(1, 1)[0]).diversify(method=method)


def hybrid(world, text: str, vector: np.ndarray):
    return world.store.search(query_type="hybrid").vector(vector).text(text).select(["id", "lang"])


@pytest.mark.parametrize(("method", "fused"), [("mmr", 30), ("coverage", 100)])
@pytest.mark.parametrize("lambda_", [0.0, 0.6])
def test_hybrid_searches_choose_among_fused_rows(text_world, method, fused, lambda_) -> None:
    text, vector = "copper silver", queries_of(8, 1)[0]
    near = text_world.store.search(vector).limit(fused).with_row_id().to_arrow()
    best = text_world.store.search(text, "fts").limit(fused).with_row_id().to_arrow()
    rows = fuse(near, best, query=text, reranker=RRFReranker(), normalize="score")
    vector_of = {row["id"]: row["vector"] for row in text_world.plain.to_arrow().to_pylist()}
    vectors = np.array([vector_of[row] for row in rows["id"].to_pylist()], np.float32)
    scores = rows["_relevance_score"].to_numpy().astype(np.float64)
    chosen = Diversity(lambda_, method).fused_rows_of(scores, vectors)
    wanted = rows.take(chosen.choose(np.ones(len(rows), dtype=bool), 10))
    found = hybrid(text_world, text, vector).diversify(lambda_, method=method).to_arrow()
    assert found["id"].to_pylist() == wanted["id"].to_pylist() != rows["id"].to_pylist()[:10]
    assert found["_relevance_score"].equals(wanted["_relevance_score"])
    assert found.schema.names == ["id", "lang", "_relevance_score"]


@pytest.mark.parametrize("method", ["mmr", "coverage"])
def test_hybrid_pages_continue_each_other(text_world, method) -> None:
    def search():
        found = hybrid(text_world, "copper forest", queries_of(9, 1)[0]).where("lang = 'en'")
        return found.diversify(0.4, method=method)

    whole = search().limit(30).to_arrow()
    assert set(whole["lang"].to_pylist()) == {"en"} and len(set(whole["id"].to_pylist())) == 30
    for offset in (0, 8, 16):
        assert search().limit(8).offset(offset).to_arrow().equals(whole.slice(offset, 8))
    assert search().where("id < 0").to_arrow().num_rows == 0


@pytest.mark.parametrize("method", ["mmr", "coverage"])
@pytest.mark.parametrize("limit", [7, 40, 5_000])
def test_hybrid_searches_find_as_many_rows(text_world, method, limit) -> None:
    plain, diverse, undiverse = (
        hybrid(text_world, "copper", queries_of(9, 1)[0]).where("id > 100").limit(limit) for _ in range(3)
    )
    plain = plain.to_arrow()
    found = diverse.diversify(0.2, method=method).to_arrow()
    assert found.num_rows == plain.num_rows == len(set(found["id"].to_pylist()))
    assert undiverse.diversify(1, method=method).to_arrow().equals(plain)


def test_hybrid_plans(text_world) -> None:
    search = hybrid(text_world, "copper", queries_of(9, 1)[0]).diversify(0.2, method="coverage")
    rerank, chosen = "RRFReranker, by score, first 100 of both", "coverage of the shortlist, lambda 0.2"
    assert search.explain_plan().splitlines()[0] == f"Rerank: {rerank}, {chosen}, rows 0 to 10"
    assert "first 30 of both" in search.shortlist(30).explain_plan()
