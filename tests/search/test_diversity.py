"""Maximal marginal relevance against a plain reading of its definition, alone and in searches."""

import lancedb
import numpy as np
import pytest
from costly_examples import costly_examples
from diverse_searches import METRICS, SEARCHES, near_first, queries_of
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tables import source_table, tiny_codec

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.search import rerank as reranking
from rqmoe_store.search.diversity import DiverseRows, Diversity
from rqmoe_store.search.rerank import exact_distances, exact_values
from rqmoe_store.tables import compress


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def by_definition(query, vectors, metric, lambda_, count) -> list[int]:
    """Row after row, pair after pair. For "cosine" this is what LangChain computes."""
    query, vectors = query.astype(np.float64), vectors.astype(np.float64)
    longest = max(np.linalg.norm(vector) for vector in vectors) * np.linalg.norm(query)
    relevance = {
        "l2": lambda row: -((row - query) ** 2).sum(),
        "cosine": lambda row: cosine(row, query),
        "dot": lambda row: row @ query / longest,
    }[metric]
    likeness = {"l2": lambda one, other: -((one - other) ** 2).sum()}.get(metric, cosine)
    chosen: list[int] = []
    while len(chosen) < min(count, len(vectors)):
        scores = {
            row: lambda_ * relevance(vectors[row])
            - (1 - lambda_) * max((likeness(vectors[row], vectors[one]) for one in chosen), default=0)
            for row in range(len(vectors))
            if row not in chosen
        }
        chosen.append(max(scores, key=lambda row: (scores[row], -row)))
    return chosen


def prepared(query, vectors, distances, metric, lambda_) -> DiverseRows:
    values = exact_values(distances, None, metric)
    return Diversity(lambda_, "mmr").rows_of(query, vectors, values, metric)


def diverse_rows(query, vectors, distances, metric, *, lambda_, count) -> np.ndarray:
    """All rows to choose from, at once."""
    every = np.ones(len(vectors), dtype=bool)
    return prepared(query, vectors, distances, metric, lambda_).choose(every, count)


@pytest.mark.parametrize("metric", METRICS)
@costly_examples(30, part=10)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 40),
    count=st.integers(1, 45),
    lambda_=st.sampled_from([0.0, 0.2, 0.5, 0.77, 1.0]),
)
def test_it_is_what_the_definition_says(metric, seed, rows, count, lambda_) -> None:
    query, vectors, distances = near_first(seed, rows, metric)
    found = diverse_rows(query, vectors, distances, metric, lambda_=lambda_, count=count)
    if lambda_ == 0:  # the definition leaves the first open; the nearest is taken
        assert found[0] == 0
    assert found.tolist() == by_definition(query, vectors, metric, lambda_, count)


@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 40), parts=st.lists(st.integers(0, 9), max_size=6))
def test_it_may_be_done_in_parts(metric, seed, rows, parts) -> None:
    query, vectors, distances = near_first(seed, rows, metric)
    diverse, open_rows = prepared(query, vectors, distances, metric, 0.4), np.ones(rows, dtype=bool)
    found: list[int] = []
    for count in [*parts, 100]:
        chosen = diverse.choose(open_rows, count)
        open_rows[chosen] = False
        found += chosen.tolist()
    assert found == by_definition(query, vectors, metric, 0.4, rows)


@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(0, 40), repeats=st.integers(1, 3))
def test_lambda_one_keeps_the_order(metric, seed, rows, repeats) -> None:
    query, vectors, distances = near_first(seed, rows, metric)
    vectors, distances = np.repeat(vectors, repeats, axis=0), np.repeat(distances, repeats)
    found = diverse_rows(query, vectors, distances, metric, lambda_=1, count=1000)
    assert found.tolist() == list(range(rows * repeats))


@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(2, 10))
def test_lambda_zero_takes_duplicates_last(metric, seed, rows) -> None:
    query, vectors, distances = near_first(seed, rows, metric)
    doubled, distances = np.repeat(vectors, 2, axis=0), np.repeat(distances, 2)
    found = diverse_rows(query, doubled, distances, metric, lambda_=0, count=2 * rows)
    assert sorted(found[:rows] // 2) == sorted(found[rows:] // 2) == list(range(rows))
    assert (found[:rows] % 2 == 0).all()  # of equal rows the one that came first


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), lambda_=st.floats(0.05, 0.95))
def test_unit_vectors_are_chosen_alike_under_every_metric(seed, lambda_) -> None:
    random = np.random.default_rng(seed)
    query, *vectors = (row / np.linalg.norm(row) for row in random.normal(size=(21, 6)))
    vectors = np.array(sorted(vectors, key=lambda row: -float(row @ query)))
    query, vectors = query.astype(np.float32), vectors.astype(np.float32)
    wanted = by_definition(query, vectors, "cosine", lambda_, 20)
    for metric in METRICS:
        distances = exact_distances(query, vectors, metric)
        found = diverse_rows(query, vectors, distances, metric, lambda_=lambda_, count=20)
        assert found.tolist() == wanted


@pytest.mark.parametrize("metric", ["l2", "dot"])
def test_zero_vectors(metric) -> None:
    query, vectors, _ = near_first(1, 5, metric)
    vectors[2] = 0
    for asked in (query, 0 * query):
        distances = exact_distances(asked, vectors, metric)
        found = diverse_rows(asked, vectors, distances, metric, lambda_=0.5, count=5)
        assert sorted(found) == list(range(5))


@pytest.mark.parametrize("cache", ["memory", "disk"])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES.keys())
@pytest.mark.parametrize("method", ["mmr", "coverage"])
def test_lambda_one_is_the_plain_search(worlds, method, search, count, cache) -> None:
    for metric in METRICS:
        store = worlds(metric, 4).store.use_cache(cache)
        plain, diverse = (search(store.search(queries_of(2, count)).with_row_id()) for _ in range(2))
        assert diverse.diversify(1, method=method).to_arrow().equals(plain.to_arrow())


@pytest.mark.parametrize("method", ["mmr", "coverage"])
def test_lambda_one_is_the_plain_search_after_refining(refinable, method) -> None:
    for factor in (1, 4):
        plain, diverse = (
            refinable.search(queries_of(2, 3)).refine_factor(factor).offset(2) for _ in range(2)
        )
        assert diverse.diversify(1.0, method=method).to_arrow().equals(plain.to_arrow())


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("lambda_", [0.0, 0.4, 0.9])
def test_searches_choose_among_the_shortlist(worlds, metric, lambda_) -> None:
    world, queries = worlds(metric, 4), queries_of(3, 3)
    vector_of = dict(zip(world.ids.tolist(), world.vectors, strict=True))

    def search():
        return world.store.search(queries).where("id >= 50").shortlist(60).nprobes(3)

    plain = search().limit(60).to_pandas()
    found = search().diversify(lambda_).limit(8).offset(3).to_pandas()
    for index, query in enumerate(queries):
        pool = plain[plain["query_index"] == index]
        vectors = np.array([vector_of[row] for row in pool["id"]])
        page = pool.iloc[by_definition(query, vectors, metric, lambda_, 11)[3:]]
        assert found[found["query_index"] == index].reset_index(drop=True).equals(page.reset_index(drop=True))


def test_refined_rows_keep_their_exact_distances(refinable) -> None:
    query = queries_of(4, 1)[0]
    plain = refinable.search(query).shortlist(50).limit(40).refine_factor(1).to_pandas()
    found = refinable.search(query).shortlist(50).limit(10).refine_factor(4).diversify(0.3).to_pandas()
    exact = dict(zip(plain["id"], plain["_distance"], strict=True))
    assert found["id"].tolist() != plain["id"].tolist()[:10]
    assert found["_distance"].tolist() == [exact[row] for row in found["id"]]


def test_rows_are_within_the_distance_range(world) -> None:
    query = queries_of(5, 1)[0]
    plain = world.store.search(query).limit(60).to_arrow()["_distance"].to_numpy()
    low, high = float(plain[5]), float(plain[40])
    found = world.store.search(query).distance_range(low, high).limit(20).diversify(0).to_arrow()
    distances = found["_distance"].to_numpy()
    assert len(distances) == 20 and (distances >= plain[5]).all() and (distances < plain[40]).all()
    assert distances[0] == plain[5]


def test_pages_continue_each_other(world) -> None:
    query = queries_of(6, 1)[0]
    whole = world.store.search(query).diversify().shortlist(100).limit(30).to_arrow()
    for offset in (0, 10, 20):
        page = world.store.search(query).diversify().shortlist(100).limit(10).offset(offset).to_arrow()
        assert page.equals(whole.slice(offset, 10))


def test_many_queries_take_turns(world, monkeypatch) -> None:
    search = world.store.search(queries_of(7, 5)).shortlist(50).diversify(0.5)
    together = search.to_arrow()
    monkeypatch.setattr(reranking, "MAX_DECODED", 120)  # two shortlists of 50 rows
    assert search.to_arrow().equals(together)
    assert search.analyze_plan().count("Diversify: ") == 3


def test_copies_are_left_out(tmp_path) -> None:
    random = np.random.default_rng(8)
    few = random.normal(size=(8, 16)).astype(np.float32)
    vectors = np.repeat(few, 40, axis=0)
    docs = lancedb.connect(tmp_path).create_table("docs", source_table(vectors))
    store = compress(docs, tiny_codec(random.normal(size=(500, 16)), "l2", 4), "small", progress=False)
    search = store.search(few[0]).nprobes(4).shortlist(320).limit(8)
    assert set(search.to_arrow()["id"].to_numpy() // 40) == {0}
    assert sorted(search.diversify(0.2).to_arrow()["id"].to_numpy() // 40) == list(range(8))


def test_plans(world, refinable) -> None:
    search = world.store.use_cache("memory").search(queries_of(9, 1)[0]).select(["id"]).diversify(0.25)
    assert search.explain_plan().splitlines()[:3] == [
        "Take: id, _distance",
        "  Diversify: maximal marginal relevance, lambda 0.25, keep 10",
        "    Rerank: l2 distance to decoded rows, keep 30",
    ]
    rows = [line.split("rows=")[1].split()[0] for line in search.analyze_plan().splitlines()]
    assert rows == ["10", "10", "30", "30"]
    refined = refinable.search(queries_of(9, 1)[0]).refine_factor(3).diversify()
    assert [line.strip() for line in refined.explain_plan().splitlines()[1:4]] == [
        "Diversify: maximal marginal relevance, lambda 0.5, keep 10",
        "Refine: l2 distance to raw vectors, keep 30",
        "Rerank: l2 distance to decoded rows, keep 30",
    ]


@pytest.mark.parametrize("lambda_", [-0.1, 1.1, float("nan"), None, "0.5", True])
def test_unusable_lambdas(world, lambda_) -> None:
    with pytest.raises(InvalidInputError, match="lambda_="):
        world.store.search(queries_of(1, 1)[0]).diversify(lambda_)
