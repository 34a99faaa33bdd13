"""The query builder against brute force over the reconstructions, and against LanceDB itself."""

import sys

import numpy as np
import pyarrow as pa
import pytest
import torch
from brute_force import FILTERS, assert_same_rows, plain_distances
from hypothesis import given, settings
from hypothesis import strategies as st

from rqmoe_store.errors import InvalidInputError, RQMoEError

METRICS = ["l2", "cosine", "dot"]


def queries_of(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 16)).astype(np.float32)


def brute_force(world, query: np.ndarray, where: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Ids and distances of every row that matches, nearest first, in plain float64 numpy."""
    near = plain_distances(world.metric, query, world.vectors)
    rows = np.flatnonzero(FILTERS[where](world.ids))
    # The order within equal distances is that of the row ids; float32 decides what is equal.
    order = rows[np.lexsort((world.row_ids[rows], near[rows].astype(np.float32)))]
    return world.ids[order], near[order]


def exhaustive(world, query):
    return world.store.search(query).nprobes(1000).shortlist(500)


@pytest.mark.parametrize("partitions", [0, 4])
@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    limit=st.integers(1, 400),
    offset=st.integers(0, 100),
    where=st.sampled_from(list(FILTERS)),
)
def test_exhaustive_search_is_brute_force(worlds, metric, partitions, seed, limit, offset, where) -> None:
    world, query = worlds(metric, partitions), queries_of(seed, 1)[0]
    search = exhaustive(world, query).limit(limit).offset(offset)
    found = (search.where(where) if where else search).to_arrow()
    wanted_ids, wanted = brute_force(world, query, where)
    page = slice(offset, offset + limit)
    assert_same_rows(found["id"].to_numpy(), found["_distance"].to_numpy(), wanted_ids[page], wanted[page])


@pytest.mark.parametrize("partitions", [0, 4])
@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(2, 5), where=st.sampled_from(list(FILTERS)))
def test_exhaustive_batch_is_brute_force(worlds, metric, partitions, seed, count, where) -> None:
    world, queries = worlds(metric, partitions), queries_of(seed, count)
    search = exhaustive(world, queries).limit(20).offset(3)
    found = (search.where(where) if where else search).to_pandas()
    for index, query in enumerate(queries):
        rows = found[found.query_index == index]
        wanted_ids, wanted = brute_force(world, query, where)
        assert_same_rows(rows["id"].to_numpy(), rows["_distance"].to_numpy(), wanted_ids[3:23], wanted[3:23])
    assert found.query_index.is_monotonic_increasing


@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), ends=st.tuples(st.integers(0, 499), st.integers(0, 499)))
def test_distance_range_is_brute_force(worlds, metric, seed, ends) -> None:
    world, query = worlds(metric, 4), queries_of(seed, 1)[0]
    every = exhaustive(world, query).limit(500).to_arrow()["_distance"].to_numpy()
    lower, upper = float(every[min(ends)]), float(every[max(ends)])
    for low, high in [(lower, None), (None, upper)] + ([(lower, upper)] if lower < upper else []):
        found = exhaustive(world, query).distance_range(low, high).limit(500).to_arrow()
        kept = (every >= (-np.inf if low is None else low)) & (every < (np.inf if high is None else high))
        assert (found["_distance"].to_numpy() == every[kept]).all()


def test_a_short_shortlist_fills_the_page_beyond_a_lower_bound(world) -> None:
    query = queries_of(1, 1)[0]
    every = exhaustive(world, query).limit(500).to_arrow()["_distance"].to_numpy()
    found = world.store.search(query).shortlist(60).distance_range(float(every[250])).limit(5).to_arrow()
    distances = found["_distance"].to_numpy()
    assert len(distances) == 5 and (distances >= every[250]).all()
    assert distances[0] < every[300]


@pytest.mark.parametrize("metric", METRICS)
def test_distances_are_those_of_lancedb(worlds, metric) -> None:
    world = worlds(metric, 4)
    for query in queries_of(5, 3):
        ours = exhaustive(world, query).limit(500).to_pandas()
        theirs = world.plain.search(query).distance_type(metric).limit(500).to_pandas()
        np.testing.assert_allclose(
            ours.set_index("id")["_distance"].sort_index(),
            theirs.set_index("id")["_distance"].sort_index(),
            rtol=1e-4,
            atol=1e-5,
        )
        assert ours["_distance"].dtype == np.float32


def test_a_range_of_lancedb_gives_the_same_rows(world) -> None:
    query = queries_of(2, 1)[0]
    middle = exhaustive(world, query).limit(500).to_arrow()["_distance"].to_numpy()
    low, high = float(middle[100:102].mean()), float(middle[300:302].mean())
    ours = exhaustive(world, query).distance_range(low, high).limit(500).to_pandas()
    theirs = world.plain.search(query).distance_range(low, high).limit(500).to_pandas()
    assert set(ours["id"]) == set(theirs["id"])


@pytest.mark.parametrize("nprobes", [1, 2, 4])
def test_each_query_considers_its_own_partitions(world, nprobes) -> None:
    queries = queries_of(3, 6)
    batch = world.store.search(queries).nprobes(nprobes).limit(50).select(["id", "vector_partition"])
    found = batch.shortlist(500).to_pandas()
    probed = world.codec.probe(queries, nprobes)
    for index, query in enumerate(queries):
        rows = found[found.query_index == index]
        assert len(rows) == 50
        assert set(rows["vector_partition"]) <= set(probed[index].tolist())
        single = world.store.search(query).nprobes(nprobes).shortlist(500).limit(50).to_pandas()
        assert single["id"].tolist() == rows["id"].tolist()


@pytest.mark.parametrize("where", [None, "lang = 'en'", "id < 40 OR id >= 480", "text = 'text 17'"])
def test_partitions_that_hold_too_few_rows_are_not_the_end(world, where) -> None:
    for query in queries_of(4, 5):
        search = world.store.search(query).nprobes(1).limit(300)
        found = (search.where(where) if where else search).to_arrow()
        matching = FILTERS[where](world.ids).sum()
        assert found.num_rows == min(300, matching)


def test_where_cannot_widen_the_probed_partitions(world) -> None:
    query = queries_of(4, 1)[0]
    search = world.store.search(query).nprobes(1).where("id < 0 OR id >= 0").limit(50)
    found = search.shortlist(500).select(["vector_partition"]).to_arrow()["vector_partition"]
    assert found.unique().to_pylist() == world.codec.probe(query[None], 1)[0].tolist()


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("where", ["lang = 'en'", "id > 480", "id < 0"])
def test_filter_after_the_search_keeps_matching_results(world, where, count) -> None:
    queries = queries_of(11, count)
    every = world.store.search(queries).limit(30).to_pandas()
    found = world.store.search(queries).limit(30).where(where, prefilter=False).to_pandas()
    wanted = every[FILTERS[where](every["id"]) if where in FILTERS else every["id"] > 480]
    assert found.reset_index(drop=True).equals(wanted.reset_index(drop=True))


def test_repeated_where_means_and(world) -> None:
    search = exhaustive(world, queries_of(4, 1)[0]).where("id < 40 OR id > 480").where("id > 30").limit(500)
    assert set(search.to_arrow()["id"].to_pylist()) == {*range(31, 40), *range(481, 500)}


def test_filtering_after_the_search_is_for_all_conditions_as_in_lancedb(world) -> None:
    query = queries_of(11, 1)[0]
    theirs = world.plain.search(query).where("id < 250", prefilter=False).where("lang = 'en'").limit(30)
    ours = exhaustive(world, query).where("id < 250", prefilter=False).where("lang = 'en'").limit(30)
    assert ours.to_arrow()["id"].to_pylist() == theirs.to_arrow()["id"].to_pylist()
    again = exhaustive(world, query).where("id < 250", prefilter=False).where("lang = 'en'", prefilter=True)
    assert again.limit(30).to_arrow().num_rows == 30


def test_shorter_shortlists_find_near_rows_and_ties_are_stable(world) -> None:
    query = world.vectors[0]
    first = world.store.search(query).shortlist(30).to_arrow()
    assert first.equals(world.store.search(query).shortlist(30).to_arrow())
    best = brute_force(world, query)[1][:10]
    assert first["_distance"].to_numpy()[0] == pytest.approx(best[0], abs=1e-6)


@pytest.mark.parametrize("kind", [list, np.asarray, torch.tensor, lambda rows: np.asarray(rows, np.float64)])
def test_queries_of_every_type(world, kind) -> None:
    queries = queries_of(6, 2)
    wanted = world.store.search(queries).to_arrow()
    assert world.store.search(kind(queries.tolist())).to_arrow().equals(wanted)
    single = world.store.search(kind(queries[0].tolist())).to_arrow()
    assert single.equals(world.store.search(queries[0]).to_arrow())
    assert world.store.search([kind(row) for row in queries.tolist()]).to_arrow().equals(wanted)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("with_row_id", [False, True])
@pytest.mark.parametrize(
    "columns",
    [
        None,
        [],
        ["id"],
        ["text", "id"],
        ["_distance", "id"],
        ["id", "_distance"],
        ["_rowid", "id"],
        ["_distance"],
    ],
)
def test_columns_and_their_order_are_those_of_lancedb(world, columns, batched, with_row_id) -> None:
    query = queries_of(8, 2) if batched else queries_of(8, 1)[0]
    theirs = world.plain.search(query).with_row_id(with_row_id)
    if columns is not None:
        theirs = theirs.select(columns)
    schema = theirs.to_arrow().schema
    wanted = [field.remove_metadata() for field in schema if field.name != "vector"]
    search = world.store.search(query).with_row_id(with_row_id).select(columns)
    assert list(search.to_arrow().schema) == wanted
    assert list(search.where("id < 0").to_arrow().schema) == wanted


def test_a_batch_of_one_is_a_single_query_as_in_lancedb(world) -> None:
    query = queries_of(8, 1)
    assert "query_index" not in world.plain.search(query).to_arrow().schema.names
    assert world.store.search(query).to_arrow().equals(world.store.search(query[0]).to_arrow())


def test_code_columns_only_when_selected(world) -> None:
    search = world.store.search(queries_of(8, 1)[0])
    assert search.to_arrow().schema.names == ["id", "lang", "text", "_distance"]
    named = search.select(["vector_code", "vector_partition"]).to_arrow()
    assert named.schema.field("vector_code").type == pa.binary(4)
    assert named.schema.names == ["vector_code", "vector_partition", "_distance"]


def test_rows_belong_to_their_row_ids(world) -> None:
    found = world.store.search(queries_of(9, 3)).with_row_id(True).limit(30).to_pandas()
    ids = dict(zip(world.row_ids.tolist(), world.ids.tolist(), strict=True))
    assert [ids[row] for row in found["_rowid"]] == found["id"].tolist()
    assert found["text"].tolist() == [f"text {row}" for row in found["id"]]


def test_defaults_and_outputs(world) -> None:
    search = world.store.search(queries_of(9, 1)[0])
    table = search.to_arrow()
    assert table.num_rows == 10
    assert search.to_list() == table.to_pylist()
    assert search.to_pandas().equals(table.to_pandas())
    assert search.to_polars().to_arrow()["id"].to_pylist() == table["id"].to_pylist()
    assert search.distance_type("L2").to_arrow().equals(table)


@pytest.mark.parametrize("length", [None, 1, 7, 1000])
def test_batches(world, length) -> None:
    search = world.store.search(queries_of(9, 3)).limit(20)
    reader = search.to_batches(length)
    assert type(reader) is type(world.plain.search(queries_of(9, 1)[0]).to_batches(length))
    batches = list(reader)
    assert pa.Table.from_batches(batches, reader.schema).equals(search.to_arrow())
    assert length is None or all(batch.num_rows <= length for batch in batches)
    nothing = search.where("id < 0").to_batches(max_batch_length=length)
    assert nothing.schema == reader.schema and nothing.read_all().num_rows == 0


@pytest.mark.parametrize("module", ["polars", "pandas"])
def test_a_missing_package_is_named_with_its_command(world, monkeypatch, module) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(RQMoEError, match=f"pip install {module}"):
        getattr(world.store.search(queries_of(9, 1)[0]), f"to_{module}")()


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda query: query.limit(0), "limit=0"),
        (lambda query: query.limit(-3), "limit=-3"),
        (lambda query: query.limit(2.5), "limit=2.5"),
        (lambda query: query.limit(True), "limit=True"),
        (lambda query: query.limit(None), "limit=None"),
        (lambda query: query.offset(-1), "offset=-1"),
        (lambda query: query.nprobes(0), "nprobes=0"),
        (lambda query: query.shortlist(0), "shortlist=0"),
        (lambda query: query.to_batches(0), "max_batch_length=0"),
        (lambda query: query.limit(10).offset(5).shortlist(14).to_arrow(), "at least 15"),
        (lambda query: query.distance_range(1.0, 1.0), "lower_bound < upper_bound"),
        (lambda query: query.distance_range(2, 1), "lower_bound < upper_bound"),
        (lambda query: query.distance_range(float("nan"), None), "lower_bound=nan"),
        (lambda query: query.distance_range(None, 10**400), "upper_bound=10"),
        (lambda query: query.distance_range(None, "far"), "upper_bound='far'"),
        (lambda query: query.distance_type("cosine"), "trained for 'l2'"),
        (lambda query: query.where(3), "expected an SQL condition"),
        (lambda query: query.where("id <").to_arrow(), "sql parser error"),
        (lambda query: query.where("nope = 1").to_arrow(), "No field named nope"),
        (lambda query: query.where("id > 0) OR (1 = 1").to_arrow(), "parentheses"),
        (lambda query: query.select(["nope"]).to_arrow(), "available are id, lang, text"),
        (lambda query: query.select(["query_index"]).to_arrow(), "unknown column 'query_index'"),
        (lambda query: query.select(["id", "id"]), "twice"),
        (lambda query: query.select("id"), "list of column names"),
    ],
)
def test_unusable_options(world, build, reason) -> None:
    with pytest.raises(InvalidInputError, match=reason):
        build(world.store.search(queries_of(0, 1)[0]))


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        (np.zeros(15), "dimension 15; expected 16"),
        (np.zeros((2, 17)), "dimension 17; expected 16"),
        ([float("nan")] * 16, "NaN"),
        (np.full((3, 16), np.inf), "NaN or infinite"),
        (np.zeros((0, 16)), "empty batch"),
        ([], "two dimensions"),
        ([[]], "width 0"),
        ([[1.0] * 16, [1.0] * 15], "same length"),
        (np.zeros((1, 2, 16)), "two dimensions"),
        ("some text", "neither an embedding function nor a full-text index"),
        (["some text"], "text is not a vector"),
        (3.0, "Got "),
    ],
)
def test_unusable_queries(world, query, reason) -> None:
    with pytest.raises(InvalidInputError, match=reason):
        world.store.search(query)


def test_zero_query_under_cosine(worlds) -> None:
    with pytest.raises(InvalidInputError, match="zero vectors"):
        worlds("cosine", 0).store.search(np.zeros(16))
    assert worlds("dot", 0).store.search(np.zeros(16)).to_arrow().num_rows == 10
