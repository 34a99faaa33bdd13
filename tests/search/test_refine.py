"""refine_factor against brute force over the raw vectors, and searches with and without kept vectors."""

import dataclasses

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from brute_force import FILTERS, assert_same_rows, plain_distances
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tables import source_table, tiny_codec

from rqmoe_store.config import KEEP_VECTORS
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.search import ranking as refining
from rqmoe_store.search.ranking import nearest_of_stages, refine
from rqmoe_store.search.rerank import Hits
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import compress

METRICS = ["l2", "cosine", "dot"]
KEPT = ["float16", "float32"]
ROWS, DIM = 500, 16


@dataclasses.dataclass(frozen=True)
class Keepers:
    """The same rows compressed three times; every eleventh has no vector."""

    stores: dict[str, CompressedTable]
    vectors: np.ndarray
    metric: str

    def exact(self, query: np.ndarray, keep: str, where: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Ids and distances of all rows that match, nearest first, from vectors rounded as they are kept."""
        near = plain_distances(self.metric, query, self.vectors.astype(keep))
        ids = np.arange(ROWS)
        rows = np.flatnonzero(FILTERS[where](ids) & (ids % 11 != 0))
        order = rows[np.argsort(near[rows])]
        return order, near[order]


@pytest.fixture(scope="module")
def keepers(tmp_path_factory):
    """`keepers(metric)`: built on first use. Tests must not write to it."""
    built = {}

    def get(metric: str) -> Keepers:
        if metric not in built:
            vectors = np.random.default_rng(11).normal(size=(ROWS, DIM)).astype(np.float32)
            rows = source_table(vectors)
            lists = pa.FixedSizeListArray.from_arrays(
                pa.array(vectors.ravel()), DIM, mask=pa.array(np.arange(ROWS) % 11 == 0)
            )
            rows = rows.set_column(rows.schema.get_field_index("vector"), "vector", lists)
            db = lancedb.connect(tmp_path_factory.mktemp(metric))
            docs = db.create_table("docs", schema=rows.schema)
            docs.add(rows)  # create_table itself refuses nulls among the vectors
            codec = tiny_codec(vectors, metric, 4)
            stores = {
                keep: compress(docs, codec, keep, keep_vectors=keep, progress=False) for keep in KEEP_VECTORS
            }
            built[metric] = Keepers(stores, vectors, metric)
        return built[metric]

    return get


def queries_of(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)


def assert_same(found, wanted_ids, wanted) -> None:
    assert_same_rows(np.asarray(found["id"]), np.asarray(found["_distance"]), wanted_ids, wanted)


def everything(store, query, limit, offset=0):
    """A search whose refining covers all rows, already that of its first stage, which ends after 10."""
    factor = -(-ROWS // 10)
    return store.search(query).nprobes(1000).limit(limit).offset(offset).refine_factor(factor)


@pytest.mark.parametrize("keep", KEPT)
@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    limit=st.integers(1, 400),
    offset=st.integers(0, 100),
    where=st.sampled_from(list(FILTERS)),
)
def test_refining_all_rows_is_brute_force(keepers, metric, keep, seed, limit, offset, where) -> None:
    world, query = keepers(metric), queries_of(seed, 1)[0]
    search = everything(world.stores[keep], query, limit, offset)
    found = (search.where(where) if where else search).to_arrow()
    wanted_ids, wanted = world.exact(query, keep, where)
    page = slice(offset, offset + limit)
    assert_same(found.to_pydict(), wanted_ids[page], wanted[page])


@pytest.mark.parametrize("keep", KEPT)
@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(2, 5), where=st.sampled_from(list(FILTERS)))
def test_refining_a_batch_is_brute_force(keepers, metric, keep, seed, count, where) -> None:
    world, queries = keepers(metric), queries_of(seed, count)
    search = everything(world.stores[keep], queries, 20, 3)
    found = (search.where(where) if where else search).to_pandas()
    for index, query in enumerate(queries):
        wanted_ids, wanted = world.exact(query, keep, where)
        assert_same(found[found.query_index == index], wanted_ids[3:23], wanted[3:23])


@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10**6), ends=st.tuples(st.integers(0, 453), st.integers(0, 453)))
def test_a_distance_range_is_of_exact_distances(keepers, metric, seed, ends) -> None:
    world, query = keepers(metric), queries_of(seed, 1)[0]
    every = everything(world.stores["float32"], query, ROWS).to_arrow()["_distance"].to_numpy()
    low, high = float(every[min(ends)]), float(every[max(ends)])
    for lower, upper in [(low, None), (None, high)] + ([(low, high)] if low < high else []):
        search = everything(world.stores["float32"], query, ROWS).distance_range(lower, upper)
        kept = (every >= (-np.inf if lower is None else low)) & (every < (np.inf if upper is None else high))
        assert (search.to_arrow()["_distance"].to_numpy() == every[kept]).all()


def test_a_lower_bound_is_refined_on_both_sides(keepers) -> None:
    world, query = keepers("l2"), queries_of(3, 1)[0]
    wanted_ids, wanted = world.exact(query, "float32")
    search = world.stores["float32"].search(query).nprobes(1000).limit(5).refine_factor(20)
    found = search.distance_range(float(wanted[200])).to_arrow()
    distances = found["_distance"].to_numpy()
    assert len(distances) == 5
    assert (distances >= np.float32(wanted[200])).all()
    assert distances[-1] < wanted[230]
    assert set(found["id"].to_pylist()) <= set(wanted_ids[200:].tolist())


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("factor", [1, 3])
def test_the_rows_refined_are_the_nearest_by_decoded_distance(keepers, metric, factor) -> None:
    world, query = keepers(metric), queries_of(4, 1)[0]
    store = world.stores["float32"]
    near = store.search(query).limit(10 * factor).shortlist(200).to_arrow()["id"].to_pylist()
    found = store.search(query).limit(10).shortlist(200).refine_factor(factor).to_arrow().to_pydict()
    ids, distances = world.exact(query, "float32")
    best = np.isin(ids, near)
    assert_same(found, ids[best][:10], distances[best][:10])


@pytest.mark.parametrize("metric", METRICS)
def test_without_refining_kept_vectors_change_nothing(keepers, metric) -> None:
    world, queries = keepers(metric), queries_of(5, 3)
    for build in (
        lambda search: search,
        lambda search: search.where("lang = 'en'").limit(40),
        lambda search: search.nprobes(1).offset(3).with_row_id(True),
    ):
        plain, *others = [build(world.stores[keep].search(queries)).to_arrow() for keep in KEEP_VECTORS]
        assert all(found.drop_columns("vector").equals(plain) for found in others)


def test_kept_vectors_are_returned_as_in_lancedb(keepers) -> None:
    world, query = keepers("l2"), queries_of(6, 1)[0]
    for keep in KEPT:
        search = world.stores[keep].search(query)
        assert search.to_arrow().schema.names == ["id", "lang", "text", "vector", "_distance"]
        found = search.select(["vector", "id"]).to_arrow()
        assert found.schema.names == ["vector", "id", "_distance"]
        wanted = world.vectors[found["id"].to_numpy()].astype(keep)
        for vectors in (
            found["vector"].to_pylist(),
            search.to_pandas()["vector"],
            search.to_polars()["vector"],
        ):
            np.testing.assert_array_equal(np.array([*vectors], dtype=keep), wanted)
    coded = world.stores["none"].search(query)
    assert "vector" not in coded.to_arrow().column_names
    assert coded.select(["vector"]).to_arrow()["vector"].null_count == 0  # decoded


def test_a_table_without_vectors_says_how_to_keep_them(keepers) -> None:
    with pytest.raises(TableError, match=r"'none' keeps no raw vectors.*keep_vectors='float16'"):
        keepers("l2").stores["none"].search(np.ones(DIM)).refine_factor(5)


@pytest.mark.parametrize("factor", [0, -1, 2.5, True, None])
def test_unusable_factors(keepers, factor) -> None:
    with pytest.raises(InvalidInputError, match="refine_factor="):
        keepers("l2").stores["float32"].search(np.ones(DIM)).refine_factor(factor)


def test_a_shortlist_holds_all_that_is_refined(keepers) -> None:
    search = keepers("l2").stores["float32"].search(np.ones(DIM)).limit(10).offset(2).refine_factor(4)
    with pytest.raises(InvalidInputError, match="shortlist=47; expected at least 48"):
        search.shortlist(47).to_arrow()
    assert search.shortlist(48).to_arrow().num_rows == 10


@pytest.mark.parametrize("where", [None, "lang = 'en'"])
def test_codes_on_disk_give_the_same(keepers, where) -> None:
    store, queries = keepers("l2").stores["float16"], queries_of(8, 3)
    found = {}
    for cache in ("disk", "memory"):
        search = store.use_cache(cache).search(queries).refine_factor(3).with_row_id()
        found[cache] = (search.where(where) if where else search).to_arrow()
    assert found["disk"].equals(found["memory"])


def test_a_filter_of_the_results_comes_after_refining(keepers) -> None:
    store, query = keepers("l2").stores["float32"], queries_of(9, 1)[0]
    every = everything(store, query, 30).to_pandas()
    some = everything(store, query, 30).where("lang = 'en'", prefilter=False).to_pandas()
    assert some["id"].tolist() == every[every.lang == "en"]["id"].tolist()


def test_plans_show_refining(keepers) -> None:
    search = keepers("l2").stores["float32"].search(queries_of(0, 1)[0]).limit(5).refine_factor(4).nprobes(4)
    assert search.select(["id"]).explain_plan().splitlines()[:3] == [
        "Take: id, _distance",
        "  Refine: l2 distance to raw vectors, keep 5",
        "    Rerank: l2 distance to decoded rows, keep 40",
    ]
    lines = search.analyze_plan().splitlines()
    assert [line.split("rows=")[1].split()[0] for line in lines] == ["5", "40", "40", "40"]


# The stage by itself.


def unranked(row_ids: np.ndarray, distances: np.ndarray) -> Hits:
    return Hits(row_ids, distances, stages_S=np.zeros(len(row_ids), np.int64))


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    sizes=st.lists(st.integers(0, 60), min_size=1, max_size=5),
    rows_at_once=st.integers(1, 100),
)
def test_refine_does_not_depend_on_how_rows_are_taken(keepers, seed, sizes, rows_at_once) -> None:
    world, generator = keepers("l2"), np.random.default_rng(seed)
    table, queries = world.stores["float32"].table, queries_of(seed, len(sizes))
    rows = table.search().where("vector IS NOT NULL").select(["id"]).with_row_id(True).to_arrow()
    places = [generator.permutation(rows.num_rows)[:size] for size in sizes]
    row_ids = rows["_rowid"].to_numpy().astype(np.uint64)
    hits = [unranked(row_ids[chosen], np.zeros(len(chosen), np.float32)) for chosen in places]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refining, "rows_per_batch", lambda dim: rows_at_once)
        found = refine(table, "vector", queries, hits, "l2")
    for query, chosen, refined in zip(queries, places, found, strict=True):
        vectors = world.vectors[rows["id"].to_numpy()[chosen]].astype(np.float64)
        distances = ((vectors - query) ** 2).sum(axis=1).astype(np.float32)
        order = np.lexsort((row_ids[chosen], distances))
        np.testing.assert_array_equal(refined.row_ids_S, row_ids[chosen][order])
        np.testing.assert_allclose(refined.distances_S, distances[order], rtol=1e-6)


def test_rows_without_a_vector_are_left_out(keepers) -> None:
    table = keepers("l2").stores["float16"].table
    rows = table.search().where("id IN (0, 1, 11)").with_row_id(True).to_arrow()
    hits = unranked(rows["_rowid"].to_numpy().astype(np.uint64), np.zeros(3, np.float32))
    (refined,) = refine(table, "vector", queries_of(0, 1), [hits], "l2")
    (kept,) = table.search().where("id = 1").with_row_id(True).to_list()
    assert refined.row_ids_S.tolist() == [kept["_rowid"]]


@given(
    distances=st.lists(st.integers(0, 20), max_size=30).map(sorted),
    count=st.integers(1, 40),
    lower=st.none() | st.integers(-1, 22),
)
def test_candidates_lie_around_the_lower_bound(distances, count, lower) -> None:
    hits = unranked(np.arange(len(distances), dtype=np.uint64), np.array(distances, dtype=np.float32))
    chosen = nearest_of_stages(hits, [count], lower).row_ids_S.tolist()
    within = [row for row, distance in enumerate(distances) if lower is not None and distance < lower]
    beyond = [row for row in range(len(distances)) if row not in within]
    assert chosen == within[-count:] + beyond[:count]


@given(
    stages=st.lists(st.integers(0, 2), max_size=30),
    counts=st.tuples(st.integers(1, 9), st.integers(1, 20), st.integers(1, 40)).map(sorted),
    lower=st.none() | st.integers(-1, 32),
)
def test_every_stage_refines_what_it_considers(stages, counts, lower) -> None:
    row_ids = np.arange(len(stages), dtype=np.uint64)
    hits = Hits(row_ids, row_ids.astype(np.float32), stages_S=np.array(stages, np.int64))
    found = nearest_of_stages(hits, counts, lower)
    seen: set[int] = set()
    for stage, count in enumerate(counts):
        alone = nearest_of_stages(hits[hits.stages_S <= stage], [0] * stage + [count], lower)
        seen |= set(alone.row_ids_S.tolist())
        assert set(found.row_ids_S[found.stages_S <= stage].tolist()) == seen
