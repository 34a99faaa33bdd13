"""Searches by refine codes: distances are those of refined vectors, wherever refine codes are read from."""

import dataclasses
import itertools

import lancedb
import numpy as np
import pyarrow as pa
import pytest

import rqmoe_store as rqs
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.search.rerank import exact_distances

DIM, ROWS = 16, 600


def clustered(rows: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    centers = np.random.default_rng(9).standard_normal((12, DIM))
    noise = 0.3 * random.standard_normal((rows, DIM))
    return (centers[random.integers(0, 12, rows)] + noise).astype(np.float32)


VECTORS, QUERIES = clustered(ROWS, 0), clustered(8, 1)
CONFIG = rqs.CodecConfig(kind="rq", code_bytes=2, codebook_size=16, num_partitions=3, refine_bytes=8)


def trained(**changes) -> rqs.Codec:
    config = dataclasses.replace(CONFIG, **changes)
    return rqs.train(VECTORS, config=config, training=rqs.TrainConfig(epochs=1, progress=False))


@pytest.fixture
def db(tmp_path):
    return lancedb.connect(tmp_path)


@pytest.fixture(scope="module")
def codecs() -> dict[tuple[str, str, str], rqs.Codec]:
    """Metric, kind and base -> a codec with refine codes."""
    made = {}
    for metric, base in itertools.product(("l2", "cosine", "dot"), ("additive", "decoded")):
        made[metric, "rq", base] = trained(metric=metric, refine_base=base)
    made["l2", "rqmoe", "decoded"] = trained(kind="rqmoe", refine_base="decoded", num_experts=2, hidden_dim=8)
    changes = {"codebook_size": 256, "num_partitions": None, "refine_kind": "saq"}
    made["cosine", "pq", "additive"] = trained(metric="cosine", kind="pq", **changes)
    return made


def compressed(db, codec: rqs.Codec, name: str = "coded") -> rqs.CompressedTable:
    vectors = pa.FixedSizeListArray.from_arrays(VECTORS.ravel(), DIM)
    docs = db.create_table(f"{name}_docs", pa.table({"id": np.arange(ROWS), "vector": vectors}))
    return rqs.compress(docs, codec, into=name, progress=False)


def found(query) -> list[tuple[int, float]]:
    rows = query.to_arrow()
    return list(zip(rows["id"].to_pylist(), rows["_distance"].to_pylist(), strict=True))


KEYS = [
    *itertools.product(("l2", "cosine", "dot"), ("rq",), ("additive", "decoded")),
    ("l2", "rqmoe", "decoded"),
    ("cosine", "pq", "additive"),
]


@pytest.mark.parametrize("key", KEYS, ids="-".join)
def test_distances_are_those_of_refined_vectors(db, codecs, key) -> None:
    codec = codecs[key]
    store = compressed(db, codec)
    refined_ND = codec.decode(codec.encode(VECTORS))
    for query in QUERIES:
        everything = store.search(query).limit(ROWS).nprobes(99).shortlist(ROWS).select(["id", "vector"])
        rows = everything.to_arrow()
        ids, distances = rows["id"].to_numpy(), rows["_distance"].to_numpy()
        assert sorted(ids) == list(range(ROWS))
        expected = exact_distances(query, refined_ND[ids], key[0])
        tolerance = 2e-3 * float(np.abs(expected).max())
        np.testing.assert_allclose(distances, expected, rtol=0, atol=tolerance)
        assert (np.diff(distances) >= 0).all()
        # Selected vectors are the refined ones.
        np.testing.assert_allclose(np.stack(rows["vector"].to_pylist()), refined_ND[ids], rtol=0, atol=1e-5)


def test_memory_disk_and_a_budget_without_refine_codes_find_the_same(db, codecs) -> None:
    codec = codecs["cosine", "rq", "additive"]
    compressed(db, codec).add([{"id": 1000 + row, "vector": vector} for row, vector in enumerate(QUERIES)])
    settings = {
        # First, because handles share what is in memory.
        "disk of shortlists": {"cache": "memory", "memory_budget": (ROWS + 8) * (2 + 8) + 100},
        "disk": {"cache": "disk"},
        "memory": {"cache": "memory"},
    }
    results = {}
    for where, setting in settings.items():
        store = rqs.open_table(db, "coded", **setting)
        queries = [store.search(query).limit(15).select(["id"]) for query in QUERIES]
        results[where] = [found(query) for query in queries]
        batch = store.search(QUERIES).limit(15).select(["id"])
        # Look-up tables of a batch may be rounded differently.
        ids, distances = zip(*found(batch), strict=True)
        single_ids, single_distances = zip(*itertools.chain(*results[where]), strict=True)
        assert ids == single_ids
        np.testing.assert_allclose(distances, single_distances, rtol=1e-4, atol=1e-5)
        place = where.partition(" ")[0]
        assert f"rows with refine codes, {place}" in queries[0].explain_plan()
        assert store.stats().refine_codes_in == place
    assert results["memory"] == results["disk"] == results["disk of shortlists"]
    shared = rqs.open_table(db, "coded", **settings["disk of shortlists"])
    assert "refine codes, memory" in shared.search(QUERIES[0]).explain_plan()
    assert shared.stats().refine_codes_in == "memory"


def test_what_orders_the_shortlist(db, codecs) -> None:
    store = compressed(db, codecs["l2", "rqmoe", "decoded"])
    codec, query = codecs["l2", "rqmoe", "decoded"], QUERIES[0]
    codes = codec.encode(VECTORS)
    decoded_ND = codec.decode(codes.unrefined)
    estimates = codec.lookup_tables(query[None]).score(codes)[0]
    for kind, expected in (("decoded", exact_distances(query, decoded_ND, "l2")), ("none", estimates)):
        rows = found(store.search(query).nprobes(9).limit(20).shortlist(ROWS).rerank(kind).select(["id"]))
        ids = [row for row, _ in rows]
        np.testing.assert_allclose([distance for _, distance in rows], expected[ids], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(np.sort(expected)[:20], expected[ids], rtol=1e-4, atol=1e-4)
    default, refined = store.search(query).limit(5), store.search(query).limit(5).rerank("refined")
    assert found(default.select(["id"])) == found(refined.select(["id"]))


def test_refine_codes_find_more(db, codecs) -> None:
    store = compressed(db, codecs["l2", "rq", "additive"])
    near = np.argsort(np.stack([exact_distances(query, VECTORS, "l2") for query in QUERIES]), axis=1)[:, :10]

    def recall(kind) -> float:
        query = store.search(QUERIES).limit(10).nprobes(9).rerank(kind).select(["id"])
        ids = query.to_arrow()["id"].to_numpy().reshape(len(QUERIES), 10)
        return float(np.mean([np.isin(mine, true).mean() for mine, true in zip(ids, near, strict=True)]))

    assert recall("refined") > recall("decoded") + 0.1
    assert recall("refined") > 0.9


def test_a_table_without_refine_codes_has_none_to_rerank_by(db) -> None:
    plain = compressed(db, trained(refine_bytes=0), "plain")
    with pytest.raises(InvalidInputError, match="without refine codes"):
        plain.search(QUERIES[0]).rerank("refined").to_arrow()
    assert "decoded rows" in plain.search(QUERIES[0]).explain_plan()
    assert plain.stats().refine_codes_in == "none"
    config = rqs.CodecConfig(kind="pq", code_bytes=4)
    scalar = compressed(db, rqs.train(VECTORS, config=config), "scalar")
    assert "look-up tables alone" in scalar.search(QUERIES[0]).explain_plan()
    with pytest.raises(InvalidInputError, match="expected one of 'refined'"):
        plain.search(QUERIES[0]).rerank("exact")


def test_diverse_and_bounded_results_use_refined_distances(db, codecs) -> None:
    codec = codecs["cosine", "rq", "additive"]
    store = compressed(db, codec)
    refined_ND = codec.decode(codec.encode(VECTORS))
    query = QUERIES[3]
    exact = exact_distances(query, refined_ND, "cosine")
    diverse = found(store.search(query).nprobes(9).limit(8).diversify(0.7).select(["id"]))
    ids = [row for row, _ in diverse]
    np.testing.assert_allclose([distance for _, distance in diverse], exact[ids], rtol=1e-4, atol=1e-5)
    upper = float(np.sort(exact)[30])
    bounded = store.search(query).nprobes(9).limit(ROWS).shortlist(ROWS).distance_range(upper_bound=upper)
    count = len(found(bounded.select(["id"])))
    assert abs(count - 30) <= 1


def test_tuning_measures_against_refined_vectors(db, codecs) -> None:
    store = compressed(db, codecs["l2", "rq", "additive"])
    report = store.tune(QUERIES, target_recall=0.9, limit=5, progress=False)
    assert report.recall >= 0.9
    assert "rows with refine codes" in store.search(QUERIES[0]).limit(5).explain_plan()
    again = rqs.open_table(db, "coded", cache="disk").tune(
        QUERIES, target_recall=0.9, limit=5, progress=False
    )
    assert [each.recall for each in again.measured] == [each.recall for each in report.measured]
