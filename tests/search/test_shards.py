"""A table spread over shards answers like one that is searched by a single process."""

import datetime
from multiprocessing.reduction import ForkingPickler

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from costly_examples import costly_examples
from hypothesis import given
from hypothesis import strategies as st
from lancedb.rerankers import RRFReranker
from small_tables import source_table, tiny_codec

import rqmoe_store as rqs
from rqmoe_store.errors import TableError
from rqmoe_store.search.shards import Shard
from rqmoe_store.store.databases import TablePlace

ROWS, DIM = 300, 16
METRICS = ("l2", "cosine", "dot")


def sent(value):
    """As another process gets it."""
    return ForkingPickler.loads(ForkingPickler.dumps(value))


class Asked:
    """Shards in this process, which are made again, without what they knew, when they are lost."""

    def __init__(self, store, count):
        self._place = sent(TablePlace.of(store.table))
        self.shards = [self.new() for _ in range(count)]
        self.parts = {}

    def new(self):
        return Shard(self._place, device="cpu")

    def __call__(self, method, parts, arguments):
        self.parts[method] = parts
        return [
            sent(getattr(self.shards[shard], method)(sent(part), *sent(arguments)))
            for shard, part in parts.items()
        ]


def vectors_of(count, seed=7):
    return np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)


def rows_of(first, count):
    rows = source_table(vectors_of(count, seed=first))
    return rows.set_column(0, "id", pa.array(range(first, first + count)))


def build(folder, metric):
    """Four fragments with codes (and refine codes, by most metrics), one of them with rows deleted, and two
    with raw rows."""
    db = lancedb.connect(folder)
    docs = db.create_table("docs", source_table(vectors_of(ROWS)))
    codec = tiny_codec(vectors_of(ROWS), metric, 4, refine_bytes=0 if metric == "dot" else 8)
    store = rqs.compress(docs, codec, into="coded", progress=False)
    for first in (1000, 2000, 3000):
        store.add(rows_of(first, 40))
    store.delete("id > 2010 AND id < 2020")
    for first in (4000, 5000):
        store.add(rows_of(first, 30), encode=False)
    return store


def spread(store, count):
    """The same table with so many shards, and what reaches them."""
    asked = Asked(store, count)
    db = lancedb.connect(store.table.uri.rpartition("/")[0])
    return rqs.open_table(db, store.name).use_shards(count, asked), asked


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """By metric: a table, and the same over 1, 3 and 9 shards."""
    found = {}
    for metric in METRICS:
        store = build(tmp_path_factory.mktemp(metric), metric)
        found[metric] = store, {count: spread(store, count)[0] for count in (1, 3, 9)}
    return found


@st.composite
def queries(draw):
    """What is asked, as a function that completes a search."""
    where = draw(
        st.sampled_from([None, "lang = 'en'", "id >= 1000", "id = 4003 OR id = 17", "id < 0", "id % 7 = 0"])
    )
    prefilter, limit = draw(st.booleans()), draw(st.integers(1, 60))
    offset, nprobes = draw(st.integers(0, 20)), draw(st.sampled_from([None, 1, 2, 9]))
    bounds = draw(st.sampled_from([None, (None, 12.0), (9.0, None), (0.9, 1.1), (10.0, 20.0)]))
    lambda_ = draw(st.sampled_from([None, None, 0.5]))
    method = draw(st.sampled_from(["mmr", "coverage"]))
    shortlist = draw(st.sampled_from([None, limit + offset, 200]))

    def completed(query):
        query = query.limit(limit).offset(offset).with_row_id(True).select(["id", "lang"])
        query = query if where is None else query.where(where, prefilter=prefilter)
        query = query if nprobes is None else query.nprobes(nprobes)
        query = query if bounds is None else query.distance_range(*bounds)
        query = query if lambda_ is None else query.diversify(lambda_, method=method)
        return query if shortlist is None else query.shortlist(max(shortlist, limit + offset))

    return completed


@costly_examples(150, part=12)
@given(
    metric=st.sampled_from(METRICS),
    count=st.sampled_from([1, 3, 9]),
    seed=st.integers(0, 1000),
    batch=st.integers(1, 3),
    completed=queries(),
)
def test_the_same_rows_and_distances(worlds, metric, count, seed, batch, completed):
    alone, together = worlds[metric][0], worlds[metric][1][count]
    vectors = vectors_of(batch, seed) * 0.7
    expected = completed(alone.search(vectors)).to_arrow()
    assert completed(together.search(vectors)).to_arrow().equals(expected)


def test_every_shard_has_its_fragments(worlds):
    store = worlds["l2"][0]
    table, asked = spread(store, 3)
    table.search(vectors_of(1)[0]).to_arrow()
    held = [fragment for part in asked.parts["scan"].values() for fragment in part.fragments]
    assert sorted(held) == [each.fragment_id for each in store.table.to_lance().get_fragments()]
    assert len(asked.parts["scan"]) == 3
    assert sum(len(part.raw) for part in asked.parts["scan"].values()) == 2


def test_hybrid_and_full_text(worlds, tmp_path):
    store = build(tmp_path, "l2")
    store.create_fts_index("text")
    table, _ = spread(store, 2)
    vector = vectors_of(1, seed=3)[0]

    def found(each):
        query = each.search(query_type="hybrid").vector(vector).text("17")
        return query.rerank(RRFReranker(), normalize="score").limit(5).to_list()

    assert found(table) == found(store)
    assert table.search("17", query_type="fts").to_list() == store.search("17", query_type="fts").to_list()


def test_every_change_is_followed(tmp_path):
    store = build(tmp_path, "l2")
    table, asked = spread(store, 3)
    vectors = vectors_of(2, seed=5)

    def require_same():
        for where in (None, "lang = 'de'"):
            each = [one.search(vectors).limit(400).nprobes(9).with_row_id(True) for one in (table, store)]
            one, other = (query if where is None else query.where(where) for query in each)
            assert one.to_arrow().equals(other.to_arrow())

    require_same()
    version = store.version
    for change in (
        lambda: store.add(rows_of(6000, 25)),
        lambda: store.delete("id % 5 = 0"),
        lambda: store.update("id = 1001", {"lang": "de", "vector": vectors[0].tolist()}),
        lambda: store.optimize(cleanup_older_than=datetime.timedelta(0), progress=False),
        lambda: store.retrain(
            rqs.TrainConfig(epochs=0, progress=False), vectors=vectors_of(ROWS), progress=False
        ),
        lambda: store.delete("true"),
    ):
        change()
        require_same()
        asked.shards[0] = asked.new()
        require_same()
    assert store.version > version


def test_a_version_that_is_checked_out(worlds, tmp_path):
    store = build(tmp_path, "cosine")
    version = store.version
    store.delete("lang = 'en'")
    table, _ = spread(store, 2)
    for each in (store, table):
        each.checkout(version)
    vector = vectors_of(1)[0]
    expected = store.search(vector).limit(50).to_arrow()
    assert table.search(vector).limit(50).to_arrow().equals(expected)
    assert "en" in expected["lang"].to_pylist()


def test_a_table_that_was_replaced(tmp_path):
    store = build(tmp_path, "l2")
    table, asked = spread(store, 2)
    table.search(vectors_of(1)[0]).to_arrow()
    part = asked.parts["scan"][0]
    lancedb.connect(tmp_path).drop_table("coded")
    with pytest.raises(TableError, match="is no longer in"):
        table.search(vectors_of(1)[0]).to_arrow()
    lancedb.connect(tmp_path).drop_table("docs")
    again = build(tmp_path, "l2")
    again.checkout(again.version)
    with pytest.raises(FileNotFoundError, match="is another one now"):
        asked.new().nearest_raw(part, None)


def test_plans_say_shards(worlds):
    table = worlds["l2"][1][3]
    assert "shards" in table.search(vectors_of(1)[0]).explain_plan()
    assert "shards" in table.search(vectors_of(1)[0]).analyze_plan()
