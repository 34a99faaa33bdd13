"""Pages are cut from one ranking: whatever their size, they continue each other."""

import asyncio
import dataclasses
import itertools

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from costly_examples import costly_examples
from hypothesis import given
from hypothesis import strategies as st
from lancedb.rerankers import LinearCombinationReranker, RRFReranker
from small_tables import source_table, tiny_codec
from word_embedding import WORDS

import rqmoe_store as rqs
from rqmoe_store.async_table import AsyncCompressedQuery
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.search import execution, scan, tensor_scan
from rqmoe_store.search.ranking import first_open, rank_in_stages
from rqmoe_store.search.shards import Shard
from rqmoe_store.store.databases import TablePlace
from rqmoe_store.store.metadata import TunedSearch

DIM, METRICS = 16, ("l2", "cosine", "dot")
SOURCES = ("memory", "disk", "tried", "tensors", "shards")
SIZES = (1, 7, 10, 33, 100, 1000)


def clustered(count: int, seed: int) -> np.ndarray:
    """Vectors of which many are as good as equal, and some equal."""
    random = np.random.default_rng(seed)
    centers = np.random.default_rng(1).normal(size=(12, DIM))
    vectors = centers[random.integers(12, size=count)] + random.normal(scale=0.4, size=(count, DIM))
    vectors[count // 2 : count // 2 + count // 8] = vectors[: count // 8]
    return vectors.astype(np.float32)


def rows_of(first: int, count: int) -> pa.Table:
    rows = source_table(clustered(count, first))
    return rows.set_column(0, "id", pa.array(range(first, first + count)))


def build(folder, metric: str):
    """Rows of two codecs, and raw ones beside them; raw vectors are kept."""
    db = lancedb.connect(folder)
    docs = db.create_table("docs", rows_of(0, 400))
    codec = tiny_codec(clustered(400, 0), metric, 8)
    store = rqs.compress(docs, codec, into="coded", keep_vectors="float32", progress=False)
    training = rqs.TrainConfig(epochs=0, progress=False)
    store.retrain(training, vectors=clustered(400, 5), progress=False)
    store.add(rows_of(1000, 150))
    store.delete("id % 11 = 5")
    store.add(rows_of(2000, 60), encode=False)
    store.create_fts_index("text")
    return store


@dataclasses.dataclass(frozen=True)
class Sources:
    """One table, and ways to search it."""

    store: rqs.CompressedTable
    tuned: rqs.CompressedTable
    shards: rqs.CompressedTable

    def search(self, source: str, tuned: bool, query):
        if source == "shards":
            return self.shards.search(query)
        store = self.tuned if tuned else self.store
        return store.use_cache("disk" if source == "disk" else "memory").search(query)


def on_tensors(selection, tables, probed, sides, size, device, refinement, ordered):
    return tensor_scan.nearest("cpu", selection, tables, probed, sides, size, refinement)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """By metric; made when first asked for."""
    made: dict[str, Sources] = {}

    def get(metric: str) -> Sources:
        if metric not in made:
            folder = tmp_path_factory.mktemp(metric)
            store, tuned = build(folder / "plain", metric), build(folder / "tuned", metric)
            TunedSearch(nprobes=2, shortlist=40, limit=12, target_recall=0.9).write(tuned.table)
            place = TablePlace.of(store.table)
            shards = [Shard(place, device="cpu") for _ in range(3)]

            def ask(method, parts, arguments):
                return [getattr(shards[shard], method)(part, *arguments) for shard, part in parts.items()]

            spread = rqs.open_table(lancedb.connect(folder / "plain"), "coded").use_shards(3, ask)
            made[metric] = Sources(store, tuned, spread)
        return made[metric]

    return get


@st.composite
def searches(draw):
    """What is asked besides the page, as a function that completes a search."""
    where = draw(st.sampled_from([None, None, "lang = 'en'", "id >= 1000", "id < 40 OR id = 2003", "id < 0"]))
    prefilter, nprobes = draw(st.booleans()), draw(st.sampled_from([None, 1, 2, 9]))
    bounds = draw(st.sampled_from([None, None, (None, 6.0), (4.0, None), (0.2, 0.9), (3.0, 5.0)]))
    factor, lambda_ = draw(st.sampled_from([None, None, 1, 3])), draw(st.sampled_from([None, None, 0.5, 0.9]))
    method = draw(st.sampled_from(["mmr", "coverage"]))
    shortlist = draw(st.sampled_from([None, None, 600]))

    def completed(query):
        query = query.with_row_id(True).select(["id"])
        query = query if where is None else query.where(where, prefilter=prefilter)
        query = query if nprobes is None else query.nprobes(nprobes)
        query = query if bounds is None else query.distance_range(*bounds)
        query = query if factor is None else query.refine_factor(factor)
        query = query if lambda_ is None else query.diversify(lambda_, method=method)
        return query if shortlist is None else query.shortlist(shortlist)

    return completed


def cuts_of(count: int):
    """Pages of one size, or of several."""
    sizes = st.sampled_from(SIZES).map(lambda size: [size] * -(-count // size))
    return (sizes.filter(lambda pages: len(pages) < 14) | st.lists(st.integers(1, 60), max_size=6)).map(
        lambda pages: [edge for edge in itertools.accumulate(pages, initial=0) if edge < count] + [count]
    )


def by_query(rows: pa.Table) -> dict[int, list[tuple[int, float]]]:
    """Row ids and distances of every query."""
    columns = rows.to_pydict()
    queries = columns.get("query_index", [0] * rows.num_rows)
    found: dict[int, list[tuple[int, float]]] = {}
    for query, row, distance in zip(queries, columns["_rowid"], columns["_distance"], strict=True):
        found.setdefault(query, []).append((row, distance))
    return found


def paged(completed, search, cuts: list[int]) -> dict[int, list[tuple[int, float]]]:
    """The pages from cut to cut, one after the other."""
    found: dict[int, list[tuple[int, float]]] = {}
    for start, end in itertools.pairwise(cuts):
        page = completed(search()).limit(end - start).offset(start).to_arrow()
        for query, rows in by_query(page).items():
            found.setdefault(query, []).extend(rows)
    return found


@pytest.mark.parametrize("source", SOURCES)
@costly_examples(40, part=5)
@given(
    metric=st.sampled_from(METRICS),
    tuned=st.booleans(),
    seed=st.integers(0, 1000),
    batch=st.integers(1, 3),
    completed=searches(),
    pages=st.sampled_from([40, 130, 199]).flatmap(cuts_of),
)
def test_pages_are_those_of_one_ranking(
    sources, source, metric, tuned, seed, batch, completed, pages
) -> None:
    world, queries = sources(metric), clustered(batch, seed)
    with pytest.MonkeyPatch.context() as patch:
        if source == "tried":
            patch.setattr(execution, "_MANY_ROWS", 0)
        if source == "tensors":
            patch.setattr(scan, "_parts", on_tensors)

        def search():
            return world.search(source, tuned, queries)

        whole = by_query(completed(search()).limit(pages[-1]).to_arrow())
        assert paged(completed, search, pages) == whole
    assert all(len(rows) == len({row for row, _ in rows}) for rows in whole.values())


@costly_examples(30, part=5)
@given(metric=st.sampled_from(METRICS), seed=st.integers(0, 1000), completed=searches(), cuts=cuts_of(60))
def test_pages_of_a_batch_are_those_of_its_queries(sources, metric, seed, completed, cuts) -> None:
    store, queries = sources(metric).store.use_cache("memory"), clustered(3, seed)
    together = paged(completed, lambda: store.search(queries), cuts)
    for number, query in enumerate(queries):
        alone = paged(completed, lambda query=query: store.search(query), cuts).get(0, [])
        assert [row for row, _ in alone] == [row for row, _ in together.get(number, [])]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("size", [10, 100, 1000])
def test_pages_hold_every_row_once(sources, metric, size) -> None:
    store = sources(metric).store
    count = store.count_rows()
    pages = paged(
        lambda query: query.with_row_id(True),
        lambda: store.search(clustered(1, 3)[0]),
        [*range(0, count + size, size)],
    )
    assert sorted(row for row, _ in pages[0]) == sorted(
        store.search().with_row_id(True).to_arrow()["_rowid"].to_pylist()
    )


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("scale", [1e20, 1e-24])
def test_pages_of_rows_beyond_float32(tmp_path, metric, scale) -> None:
    docs = lancedb.connect(tmp_path).create_table("docs", rows_of(0, 300))
    store = rqs.compress(docs, tiny_codec(clustered(300, 0), metric, 4), into="coded", progress=False)
    rows = rows_of(1000, 60)
    scales = np.where(np.arange(60) % 2 == 0, scale, 1)[:, None]
    vectors = (clustered(60, 3) * scales).astype(np.float32)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), DIM)
    store.add(rows.set_column(rows.schema.get_field_index("vector"), "vector", lists), encode=False)

    def completed(query):
        return query.with_row_id(True).where("id >= 1000")

    for query in clustered(2, 4):
        whole = by_query(completed(store.search(query)).limit(60).to_arrow())
        assert len(whole[0]) == 60
        for size in (7, 10, 33):
            assert (
                paged(completed, lambda query=query: store.search(query), [*range(0, 60 + size, size)])
                == whole
            )


def test_a_stage_is_in_the_order_of_its_distances(sources) -> None:
    found = sources("l2").store.search(clustered(1, 8)[0]).limit(150).to_arrow()["_distance"].to_numpy()
    for start, end in itertools.pairwise([0, 10, 15, 25, 50, 100, 150]):
        assert (np.diff(found[start:end]) >= 0).all()


@pytest.mark.parametrize("limit", [10, 100])
def test_as_much_is_found_as_in_one_shortlist(sources, limit) -> None:
    store, queries = sources("l2").store, clustered(40, 9)

    def ids(search) -> list[set[int]]:
        found = by_query(search.with_row_id(True).limit(limit).nprobes(99).to_arrow())
        return [{row for row, _ in found[query]} for query in range(len(queries))]

    nearest, staged = ids(store.search(queries).shortlist(700)), ids(store.search(queries))
    single = ids(store.search(queries).shortlist(3 * limit))
    shares = [
        np.mean([len(some & best) / limit for some, best in zip(found, nearest, strict=True)])
        for found in (staged, single)
    ]
    assert shares[0] >= shares[1] - 0.002


def test_awaited_pages_are_the_same(sources) -> None:
    store, query = sources("cosine").store, clustered(1, 2)[0]

    async def pages() -> list[int]:
        found = []
        for offset in range(0, 60, 12):
            search = AsyncCompressedQuery(store.search(query)).limit(12).offset(offset)
            found += (await search.to_arrow())["id"].to_pylist()
        return found

    assert asyncio.run(pages()) == store.search(query).limit(60).to_arrow()["id"].to_pylist()


@costly_examples(30, part=5)
@given(
    seed=st.integers(0, 1000),
    words=st.lists(st.sampled_from([*WORDS, "absent"]), min_size=1, max_size=3),
    where=st.sampled_from([None, "lang = 'en'", "id < 12", "id < 0"]),
    prefilter=st.booleans(),
    reranker=st.sampled_from([RRFReranker(), RRFReranker(return_score="all"), LinearCombinationReranker()]),
    upper=st.sampled_from([None, 12.0]),
    cuts=st.sampled_from([8, 40, 110]).flatmap(cuts_of),
)
def test_hybrid_pages_are_those_of_one_ranking(
    text_world, seed, words, where, prefilter, reranker, upper, cuts
):
    vector = np.random.default_rng(seed).normal(size=DIM).astype(np.float32)

    def page(start: int, end: int) -> pa.Table:
        search = text_world.store.search(query_type="hybrid").vector(vector).text(" ".join(words))
        search = search.rerank(reranker).distance_range(None, upper).limit(end - start).offset(start)
        search = search if where is None else search.where(where, prefilter=prefilter)
        return search.with_row_id(True).to_arrow()

    whole = page(0, cuts[-1])
    pages = [page(start, end) for start, end in itertools.pairwise(cuts)]
    assert pa.concat_tables(pages).to_pylist() == whole.to_pylist()
    assert len(set(whole["_rowid"].to_pylist())) == whole.num_rows


def test_a_reranker_that_drops_row_ids_does_for_one_list(text_world) -> None:
    class Forgetful(RRFReranker):
        def rerank_hybrid(self, query, vector_results, fts_results):
            return super().rerank_hybrid(query, vector_results, fts_results).drop_columns(["_rowid"])

    search = (
        text_world.store.search(query_type="hybrid").vector(np.ones(DIM)).text("copper").rerank(Forgetful())
    )
    assert search.limit(10).to_arrow().num_rows == 10
    with pytest.raises(InvalidInputError, match="returned no column _rowid"):
        search.limit(11).to_arrow()


@given(
    stages=st.lists(st.integers(0, 3), max_size=60),
    ends=st.lists(st.integers(1, 15), min_size=4, max_size=4).map(
        lambda steps: [*itertools.accumulate(steps)]
    ),
    last=st.lists(st.booleans(), min_size=4, max_size=4),
)
def test_stages_place_the_best_that_are_left(stages, ends, last) -> None:
    found = rank_in_stages(np.array(stages, np.int64), ends, first_open, last)
    placed: list[int] = []
    for stage, end in enumerate(ends):
        others = [row for row, first in enumerate(stages) if first <= stage and row not in placed]
        placed += others[: end - len(placed)]
        if len(placed) < end and last[stage]:
            break
    assert found.places.tolist() == placed
