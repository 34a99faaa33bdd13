"""Expansion by the neighbor graph against a plain reading of its definition, alone and with other options."""

import asyncio
import datetime

import lancedb
import numpy as np
import pytest
from costly_examples import costly_examples
from hypothesis import given
from hypothesis import strategies as st
from small_tables import source_table, tiny_codec

import rqmoe_store as rqs
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.search.expansion import graph_scores
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import compress

ROWS, DIM, NEIGHBORS = 90, 8, 6
VECTORS = np.random.default_rng(3).normal(size=(ROWS, DIM)).astype(np.float32)
ENDS = [10, 15, 25, 50, 100]


def made(folder, metric="l2", refine_bytes=0, **settings) -> CompressedTable:
    docs = lancedb.connect(folder).create_table("docs", source_table(VECTORS))
    codec = tiny_codec(VECTORS, metric, 0, refine_bytes)
    store = compress(docs, codec, "small", progress=False, **settings)
    store.build_neighbor_graph(NEIGHBORS, progress=False)
    return store


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return {metric: made(tmp_path_factory.mktemp(metric), metric) for metric in ("l2", "cosine", "dot")}


@pytest.fixture(scope="module")
def store(stores):
    return stores["l2"]


def lists_of(store: CompressedTable) -> dict[int, list[int]]:
    graph = store.handle.snapshots.current().neighbor_graph
    ids = np.arange(ROWS + 50, dtype=np.uint64)
    return {row: near.tolist() for row, near in graph.neighbors_of(ids).items()}


def distances_of(query, shortlist: int) -> dict[int, float]:
    """Distances by row id, nearest first."""
    found = query.shortlist(shortlist).limit(shortlist).select([]).with_row_id().to_arrow()
    return dict(zip(found["_rowid"].to_pylist(), found["_distance"].to_pylist(), strict=True))


def by_definition(
    lists, shortlist, every, *, hops, neighbors, weight, count
) -> tuple[list[int], list[float]]:
    """Row ids in order, and their scores: stage after stage, path after path.

    `shortlist` and `every` are distances of the rows that match, of the shortlist and of all.
    """

    def steps(row: int) -> list[int]:
        return [each for each in lists.get(row, []) if each in every][:neighbors]

    def paths(row: int, left: int):
        for each in steps(row) if left else []:
            yield each, 1
            yield from ((end, length + 1) for end, length in paths(each, left - 1))

    order, scores, considered = [], [], set(shortlist)
    for end in ENDS:
        seeds = list(shortlist)[:end]
        considered |= {row for seed in seeds for row, _ in paths(seed, hops)}
        near = list(shortlist)[: 3 * end]
        low, high = min(every[row] for row in considered), every[near[-1]]
        similarity = {row: min(1, max(0, (high - every[row]) / (high - low))) for row in considered}
        graph = dict.fromkeys(considered, 0.0)
        for seed in seeds:
            for row, length in paths(seed, hops):
                graph[row] = max(graph[row], similarity[seed] * 0.5**length)
        blended = {row: (1 - weight) * similarity[row] + weight * graph[row] for row in considered}
        left = sorted(considered - set(order), key=lambda row: (-blended[row], every[row], row))
        placed = left[: min(end, count) - len(order)]
        order += placed
        scores += [blended[row] for row in placed]
        if len(order) == count:
            break
    return order, scores


def require_equal(query, wanted: tuple[list[int], list[float]], every) -> None:
    """Scores that differ by rounding alone may be in either order."""
    found = query.select([]).with_row_id().to_arrow()
    rows, (order, scores) = found["_rowid"].to_pylist(), wanted
    score = dict(zip(order, scores, strict=True))
    assert sorted(rows) == sorted(order)
    np.testing.assert_allclose([score[row] for row in rows], scores, atol=1e-6)
    np.testing.assert_allclose(found["_distance"].to_pylist(), [every[row] for row in rows], atol=1e-5)


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
@costly_examples(20, part=6)
@given(
    seed=st.integers(0, 10**6),
    hops=st.integers(1, 3),
    neighbors=st.integers(1, NEIGHBORS),
    weight=st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]),
    shortlist=st.integers(12, 30),
    count=st.integers(1, 12),
    where=st.sampled_from([None, "lang = 'de'"]),
)
def test_it_is_what_the_definition_says(
    stores, metric, seed, hops, neighbors, weight, shortlist, count, where
) -> None:
    store, query = stores[metric], np.random.default_rng(seed).normal(size=DIM).astype(np.float32)
    near = distances_of(store.search(query).where(where), shortlist)
    every = distances_of(store.search(query).where(where), ROWS)
    settings = {"hops": hops, "neighbors": neighbors, "weight": weight}
    wanted = by_definition(lists_of(store), near, every, count=count, **settings)
    searched = store.search(query).where(where).shortlist(shortlist).limit(count).expand(**settings)
    require_equal(searched, wanted, every)


@given(
    seeds=st.dictionaries(st.integers(0, 9), st.floats(0, 1), max_size=4),
    steps=st.dictionaries(st.integers(0, 9), st.lists(st.integers(0, 9), max_size=3)),
)
def test_graph_scores_are_bounded_and_grow_with_hops(seeds, steps) -> None:
    before: dict[int, float] = {}
    for hops in (1, 2, 3, 4):
        scores = graph_scores(seeds, steps, hops)
        assert all(0 <= score <= 0.5 for score in scores.values())
        assert all(scores[row] >= score for row, score in before.items())
        before = scores


QUERY = np.random.default_rng(8).normal(size=DIM).astype(np.float32)


def ids(query) -> list[int]:
    return [row["id"] for row in query.select(["id"]).to_list()]


def test_weight_zero_and_rows_found_by_the_graph_alone(store) -> None:
    plain = store.search(QUERY).shortlist(10)
    assert ids(plain.limit(10).expand(weight=0))[0] == ids(plain.limit(10))[0]
    found = set(ids(store.search(QUERY).shortlist(10).limit(10).expand(hops=2, weight=1)))
    assert found - set(ids(store.search(QUERY).shortlist(10).limit(10)))


@pytest.mark.parametrize(
    "options",
    [
        lambda query: query,
        lambda query: query.where("lang = 'de'"),
        lambda query: query.where("lang = 'de'", prefilter=False),
        lambda query: query.diversify(0.5),
        lambda query: query.diversify(0.5, method="coverage"),
        lambda query: query.distance_range(2.0, 12.0),
        lambda query: query.rerank("none"),
    ],
    ids=["alone", "where", "postfilter", "diversify", "coverage", "range", "estimates"],
)
def test_pages_continue_each_other(store, options) -> None:
    whole = ids(options(store.search(QUERY).expand(hops=2)).limit(40))
    assert len(set(whole)) == len(whole)
    if options(store.search(QUERY))._prefilter:
        parts = [
            ids(options(store.search(QUERY).expand(hops=2)).limit(8).offset(at)) for at in range(0, 40, 8)
        ]
        assert [row for part in parts for row in part] == whole


def test_filters_and_ranges_exclude(store) -> None:
    query = store.search(QUERY).expand(hops=4).limit(30).select(["id", "lang"])
    assert {row["lang"] for row in query.where("lang = 'de'").to_list()} == {"de"}
    found = query.distance_range(4.0, 9.0).to_list()
    assert found and all(4.0 <= row["_distance"] < 9.0 for row in found)


def test_diversified_rows_are_the_best_expanded_ones(store) -> None:
    expanded = ids(store.search(QUERY).shortlist(20).limit(20).expand(hops=2, weight=0.5))
    diverse = ids(store.search(QUERY).shortlist(20).limit(10).expand(hops=2, weight=0.5).diversify(0.3))
    assert len(set(diverse)) == 10
    assert set(diverse) <= set(ids(store.search(QUERY).limit(60).expand(hops=2, weight=0.5)))
    assert set(ids(store.search(QUERY).shortlist(10).limit(10).expand(weight=0.5).diversify(1))) == set(
        ids(store.search(QUERY).shortlist(10).limit(10).expand(weight=0.5))
    )
    assert expanded


def test_batches_disk_and_async_give_the_same(store) -> None:
    queries = np.random.default_rng(5).normal(size=(4, DIM)).astype(np.float32)
    batch = store.search(queries).expand(hops=2).limit(12).to_list()
    single = [store.search(query).expand(hops=2).limit(12).to_list() for query in queries]
    assert [row["id"] for row in batch] == [row["id"] for rows in single for row in rows]
    database = lancedb.connect(store.handle.snapshots.current().database.uri)
    on_disk = rqs.open_table(database, "small", cache="disk")
    assert on_disk.search(queries[0]).expand(hops=2).limit(12).to_list() == single[0]

    async def search() -> list[int]:
        opened = await rqs.open_table_async(database, "small")
        found = (await opened.search(queries[0])).expand(hops=2).limit(12)
        return [row["id"] for row in await found.to_list()]

    assert asyncio.run(search()) == [row["id"] for row in single[0]]


@pytest.mark.parametrize("refine_bytes", [0, 4])
def test_refined_and_raw_distances(tmp_path, refine_bytes) -> None:
    store = made(tmp_path, refine_bytes=refine_bytes, keep_vectors="float32")
    query = store.search(QUERY).expand(hops=2).limit(15).refine_factor(2)
    for row in query.select(["id"]).to_list():
        assert row["_distance"] == pytest.approx(((VECTORS[row["id"]] - QUERY) ** 2).sum(), rel=1e-4)
    plain = {row["id"]: row["_distance"] for row in store.search(QUERY).shortlist(ROWS).limit(ROWS).to_list()}
    for row in store.search(QUERY).expand(hops=2).limit(15).to_list():
        assert row["_distance"] == pytest.approx(plain[row["id"]], rel=1e-5)


def test_hybrid(store) -> None:
    store.create_fts_index("text", exist_ok=True)

    def hybrid():
        return store.search(query_type="hybrid").vector(QUERY).text("text 3").limit(30)

    found = ids(hybrid().expand(hops=2, weight=0.9))
    assert len(found) == 30 == len(set(found)) and found != ids(hybrid())
    assert ids(hybrid().expand(hops=2, weight=0.9).limit(10).offset(10)) == found[10:20]
    filtered = ids(hybrid().where("id % 3 = 0").expand(hops=2, weight=0.9))
    assert filtered and all(row % 3 == 0 for row in filtered)


def test_a_graph_older_than_the_table(tmp_path) -> None:
    store = made(tmp_path)
    lists = lists_of(store)
    near = ids(store.search(QUERY).limit(10))
    store.delete(f"id IN ({near[1]}, {near[4]})")
    store.add([{"id": 500 + place, "vector": QUERY + 0.01 * place} for place in range(3)])
    store.update(f"id = {near[2]}", {"vector": (QUERY + 0.2).tolist()})
    shortlist, every = distances_of(store.search(QUERY), 20), distances_of(store.search(QUERY), ROWS + 1)
    settings = {"hops": 2, "neighbors": 4, "weight": 0.4}
    wanted = by_definition(lists, shortlist, every, count=10, **settings)
    require_equal(store.search(QUERY).shortlist(20).limit(10).expand(**settings), wanted, every)

    store.retrain(rqs.TrainConfig(epochs=0, progress=False), vectors=VECTORS, progress=False)
    assert lists_of(store) == lists  # rows that were encoded again keep theirs
    assert len(ids(store.search(QUERY).limit(10).expand(hops=2))) == 10


def test_every_version_has_its_graph(tmp_path) -> None:
    docs = lancedb.connect(tmp_path).create_table("docs", source_table(VECTORS))
    store = compress(docs, tiny_codec(VECTORS, "l2", 0), "small", progress=False)
    without = store.version
    store.build_neighbor_graph(3, progress=False)
    small, found = store.version, ids(store.search(QUERY).expand(neighbors=3))
    store.delete("id < 40")
    store.build_neighbor_graph(5, progress=False)
    store.checkout(without)
    with pytest.raises(TableError, match=r"no neighbor graph in version .*build_neighbor_graph\(\)"):
        store.search(QUERY).expand().to_list()
    store.checkout(small)
    assert ids(store.search(QUERY).expand(neighbors=3)) == found
    with pytest.raises(InvalidInputError, match=r"neighbors=5 .* has 3 a row"):
        store.search(QUERY).expand(neighbors=5).to_list()
    store.restore()
    assert ids(store.search(QUERY).expand(neighbors=3)) == found
    store.add([{"id": 900, "vector": QUERY}])
    report = store.build_neighbor_graph(3, progress=False)
    assert report.rows == ROWS + 1 and report.searched < 20
    assert ids(store.search(QUERY).expand(neighbors=3))[0] == 900

    store.tags.create("kept", small)
    store.build_neighbor_graph(4, progress=False)
    store.optimize(cleanup_older_than=datetime.timedelta(0), progress=False)
    store.checkout("kept")
    with pytest.raises(TableError, match=r"cleaned up.*optimize\(\)"):
        store.search(QUERY).expand(neighbors=3).to_list()
    store.restore()
    assert store.optimize(progress=False).graph is not None
    assert ids(store.search(QUERY).expand(neighbors=3)) == found


@pytest.mark.parametrize(
    "wrong",
    [{"hops": 0}, {"hops": 5}, {"hops": 1.5}, {"neighbors": 0}, {"weight": -0.1}, {"weight": "x"}],
)
def test_bad_arguments(store, wrong) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(wrong))):
        store.search(QUERY).expand(**wrong)


def test_plans(store) -> None:
    query = store.search(QUERY).expand(hops=2, neighbors=3).diversify()
    assert "Expand: 3 neighbors, 2 hops, weight 0.1" in query.explain_plan()
    assert "Expand: 3 neighbors, 2 hops, weight 0.1" in query.analyze_plan()
