"""Tables take vectors in any layout, in every call that takes them."""

import warnings

import lancedb
import numpy as np
import pandas as pd
import pytest
from array_layouts import VECTOR_LAYOUTS
from small_tables import source_table, tiny_codec

import rqmoe_store

DIM = 8
VECTORS = np.random.default_rng(0).normal(size=(120, DIM)).astype(np.float32)
ADDED = VECTORS[:3] + np.float32(7)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    db = lancedb.connect(tmp_path_factory.mktemp("layouts"))
    docs = db.create_table("docs", source_table(VECTORS))
    codec = tiny_codec(VECTORS, "l2", 3)
    return rqmoe_store.compress(docs, codec, into="kept", keep_vectors="float32", progress=False)


@pytest.fixture
def store(made):
    """The table as it was, whatever was written to it."""
    version = made.table.version
    yield made
    made.restore(version)


@pytest.fixture(autouse=True)
def warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


@pytest.fixture(params=["reversed", "other byte order", "memory-mapped", "list of rows", "list of tensors"])
def lay_out(request):
    return VECTOR_LAYOUTS[request.param]


def raw(store, condition):
    rows = store.search().where(condition).to_pandas().sort_values("id")
    return np.stack(rows["vector"].to_numpy())


def row(place, vector):
    return {"id": place, "lang": "en", "text": "added", "vector": vector}


def test_searches(store, lay_out):
    queries, expected = lay_out(VECTORS[:4]), store.search(VECTORS[:4]).limit(3).to_list()
    assert store.search(queries).limit(3).to_list() == expected
    single = store.search(queries[1]).refine_factor(2).limit(1).to_list()
    assert [(found["id"], found["_distance"]) for found in single] == [(1, 0)]


def test_rows_added_as_dicts(store, lay_out):
    store.add([row(1000 + place, vector) for place, vector in enumerate(lay_out(ADDED))])
    np.testing.assert_array_equal(raw(store, "id >= 1000"), ADDED)


def test_rows_added_as_a_frame(store, lay_out):
    rows = [row(1000 + place, vector) for place, vector in enumerate(lay_out(ADDED))]
    store.add(pd.DataFrame({name: [each[name] for each in rows] for name in rows[0]}))
    np.testing.assert_array_equal(raw(store, "id >= 1000"), ADDED)


def test_rows_merged(store, lay_out):
    merge = store.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
    merge.execute([row(119 + place, vector) for place, vector in enumerate(lay_out(ADDED))])
    np.testing.assert_array_equal(raw(store, "id >= 119"), ADDED)


def test_values_updated(store, lay_out):
    store.update(where="id = 5", values={"vector": lay_out(ADDED)[2]})
    np.testing.assert_array_equal(raw(store, "id = 5"), ADDED[2:])


def test_tuning_and_reranking(store, lay_out):
    assert store.tune(queries=lay_out(VECTORS[:20]), progress=False) is not None
    rqmoe_store.DecodedReranker(store, query=lay_out(VECTORS)[3])


def test_hybrid_queries(store, lay_out):
    store.search(query_type="hybrid").vector(lay_out(VECTORS)[0]).text("text")
