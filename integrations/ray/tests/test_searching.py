"""Tables searched by a cluster: the rows and distances that a single process finds."""

import os
import signal

import numpy as np
import pytest
import ray
import rqmoe_ray
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lancedb.rerankers import RRFReranker
from small_rows import DIM, database_of, rows_of, vectors_of

import rqmoe_store as rqs


def good(count, first):
    return rows_of(count, first).filter(rows_of(count, first)["id"].to_numpy() % 97 != 0)


@pytest.fixture(scope="module")
def worlds(cluster, tmp_path_factory, codec):
    """A table with coded and raw rows in several fragments, opened here and on the cluster."""
    uri = str(tmp_path_factory.mktemp("search") / "docs.lance")
    database = database_of(uri)
    docs = database.create_table("source", good(400, 0))
    store = rqs.compress(docs, codec, into="docs", progress=False)
    for first in (400, 500, 600):
        store.add(good(90, first))
    for first in (700, 800):
        store.add(good(60, first), encode=False)
    store.delete("id > 420 AND id < 430")
    store.create_fts_index("text")
    return store, rqmoe_ray.open_table(uri, num_workers=2), uri


WHERE = [None, "lang = 'en'", "id >= 400", "id = 703 OR id = 17", "id < 0", "text = 'it''s'"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 1000),
    batch=st.integers(1, 3),
    where=st.sampled_from(WHERE),
    prefilter=st.booleans(),
    limit=st.integers(1, 50),
    offset=st.integers(0, 20),
    nprobes=st.sampled_from([None, 1, 2, 9]),
    bounds=st.sampled_from([None, (None, 12.0), (9.0, None), (10.0, 20.0)]),
)
def test_the_same_rows_and_distances(worlds, seed, batch, where, prefilter, limit, offset, nprobes, bounds):
    vectors = vectors_of(batch, seed)

    def found(table):
        query = table.search(vectors).limit(limit).offset(offset).with_row_id(True)
        query = query if where is None else query.where(where, prefilter=prefilter)
        query = query if nprobes is None else query.nprobes(nprobes)
        query = query if bounds is None else query.distance_range(*bounds)
        return query.to_arrow()

    alone, together, _ = worlds
    assert found(together).equals(found(alone))


def test_hybrid_search(worlds):
    alone, together, _ = worlds

    def found(table):
        query = table.search(query_type="hybrid").vector(vectors_of(1)[0]).text("17")
        return query.rerank(RRFReranker(), normalize="score").limit(5).to_list()

    assert found(together) == found(alone)


def test_actors_lost_and_rows_added(worlds):
    alone, together, _ = worlds
    vector = vectors_of(1, seed=3)[0]
    actors = together._source.codes._call._actors
    pids = ray.get([actor.process_id.remote() for actor in actors])
    os.kill(pids[0], signal.SIGKILL)
    found = together.search(vector).limit(40).to_arrow()
    assert found.equals(alone.search(vector).limit(40).to_arrow())
    assert ray.get(actors[0].process_id.remote()) != pids[0]
    alone.add(good(50, 2000))
    alone.delete("id < 50")
    found = together.search(vector).limit(300).to_arrow()
    assert found.equals(alone.search(vector).limit(300).to_arrow())
    assert max(found["id"].to_pylist()) >= 2000


def test_a_single_query(worlds):
    alone, _, uri = worlds
    vectors = vectors_of(3, seed=8)
    query = rqmoe_ray.search(uri, vectors, num_workers=1, num_cpus=0.5)
    expected = alone.search(vectors).where("lang = 'de'").limit(4).to_list()
    assert query.where("lang = 'de'").limit(4).to_list() == expected


def test_refusals(worlds, tmp_path):
    _, together, uri = worlds
    with pytest.raises(rqs.InvalidInputError, match=f"expected .*{DIM}"):
        together.search(np.ones(DIM + 1))
    with pytest.raises(rqs.InvalidInputError, match="where"):
        together.search(np.ones(DIM)).where("nothing = 1").to_arrow()
    with pytest.raises(rqs.InvalidInputError, match="num_workers=0"):
        rqmoe_ray.open_table(uri, num_workers=0)
    with pytest.raises(rqs.TableError, match="has no table"):
        rqmoe_ray.open_table(tmp_path / "docs.lance", num_workers=1)
