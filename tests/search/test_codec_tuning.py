"""Codecs tuned by relevance: what searches find, what stays as it was, and what is refused.

The codec was trained on other vectors than the table has, so that there is much to gain.
"""

import datetime
import functools
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from small_tables import source_table, stored

import rqmoe_store as rqs
from rqmoe_store.codecs.base import Codec
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.search.rerank import exact_distances
from rqmoe_store.training.sampler import sample_with_positives

ROWS, DIM, QUERIES = 2_048, 12, 400


@functools.cache
def rows_and_queries() -> tuple[np.ndarray, np.ndarray]:
    """Sums of a coarse and a fine vector, of 16 each, as two steps code them; and random queries."""
    random = np.random.default_rng(0)
    coarse, fine = random.normal(size=(16, DIM)), 0.3 * random.normal(size=(16, DIM))
    which = random.permutation(ROWS)
    rows = coarse[which % 16] + fine[which // 16 % 16] + 0.01 * random.normal(size=(ROWS, DIM))
    return rows.astype(np.float32), random.normal(size=(QUERIES, DIM)).astype(np.float32)


@functools.cache
def codec(metric: str = "l2", kind: str = "rq", **changes: object) -> Codec:
    """A codec that has seen half of the dimensions only, so that its errors follow from the codes."""
    shape = {"code_bytes": 2, "codebook_size": 256 if kind == "pq" else 16, "num_partitions": 0} | changes
    training = rqs.TrainConfig(epochs=1 if kind == "rqmoe" else 0, progress=False)
    config = rqs.CodecConfig(kind=kind, metric=metric, **shape)
    seen = rows_and_queries()[0].copy()
    seen[:, DIM // 2 :] *= 0.1
    return rqs.train(seen, config=config, training=training)


def table(folder: Path, codec: Codec, keep: str = "float32") -> rqs.CompressedTable:
    docs = lancedb.connect(folder).create_table("docs", source_table(rows_and_queries()[0]))
    return rqs.compress(docs, codec, "small", keep_vectors=keep, progress=False)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> rqs.CompressedTable:
    store = table(tmp_path_factory.mktemp("tuned"), codec())
    assert store.tune_codec(rows_and_queries()[1], progress=False).kept
    return store


def decoded(store: rqs.CompressedTable) -> np.ndarray:
    return store.handle.codecs.decode(store.handle.codecs.read(store.table.to_arrow())[0])


def hits_of(query) -> list[tuple[int, float]]:
    return [(hit["id"], hit["_distance"]) for hit in query.to_list()]


@pytest.mark.parametrize(("metric", "kind"), [("l2", "rq"), ("cosine", "rqmoe"), ("dot", "pq")])
def test_tuned_searches_find_more_and_rows_stay(tmp_path, metric, kind):
    store, (_, queries) = table(tmp_path, codec(metric, kind)), rows_and_queries()
    before, vectors, encodes = stored(store), decoded(store), store.codec.encode(queries)
    report = store.tune_codec(queries, progress=False)
    assert report.kept and not report.labeled
    assert report.ndcg_after > report.ndcg_before and report.recall_after > report.recall_before
    assert report.training_queries + report.held_out_queries == QUERIES
    assert stored(store) == before
    np.testing.assert_array_equal(decoded(store), vectors)
    np.testing.assert_array_equal(store.codec.encode(queries).codes, encodes.codes)
    assert store.verify(progress=False).ok


def test_distances_are_those_of_decoded_vectors_less_the_correction(tuned):
    codes, _ = tuned.handle.codecs.read(tuned.table.to_arrow())
    vectors, correction = decoded(tuned), tuned.codec.correction
    for query in rows_and_queries()[1][:5]:
        amounts = np.zeros(ROWS)
        for place in range(ROWS):  # as the definition reads
            selected = [0, *(1 + 16 * step + codes.codes[place, step] for step in range(2))]
            rows = correction.rows_TC[selected].sum(axis=0)
            amounts[place] = np.append(correction.directions_RD @ query, 1) @ rows
        expected = exact_distances(query, vectors, "l2") - amounts
        found = hits_of(tuned.search(query).limit(10).shortlist(ROWS))
        np.testing.assert_allclose([distance for _, distance in found], np.sort(expected)[:10], rtol=1e-4)
        np.testing.assert_allclose(expected[[row for row, _ in found]], np.sort(expected)[:10], rtol=1e-4)


def test_all_kinds_of_searches_agree(tuned):
    queries = rows_and_queries()[1][:4]
    single = [hits_of(tuned.search(query).limit(20).shortlist(200)) for query in queries]
    batch = tuned.search(queries).limit(20).shortlist(200).to_list()
    by_query = [
        [(hit["id"], hit["_distance"]) for hit in batch if hit["query_index"] == place] for place in range(4)
    ]
    assert by_query == single
    from_disk = rqs.open_table(tuned.handle.snapshots.current().database, "small")
    from_disk.cache = "disk"
    assert [hits_of(from_disk.search(query).limit(20).shortlist(200)) for query in queries] == single
    filtered = hits_of(tuned.search(queries[0]).where("lang = 'en'").limit(5).shortlist(200))
    assert filtered == [hit for hit in hits_of(tuned.search(queries[0]).limit(200)) if hit[0] % 3 == 0][:5]
    bound = single[0][12][1]
    near = hits_of(tuned.search(queries[0]).distance_range(None, bound).limit(20).shortlist(200))
    assert near == [hit for hit in single[0] if hit[1] < bound]
    page = hits_of(tuned.search(queries[0]).limit(10).offset(10).shortlist(200))
    assert page == single[0][10:]
    assert "corrected" in tuned.search(queries[0]).explain_plan()


def test_labels_decide_what_should_be_found(tmp_path):
    store, (rows, queries) = table(tmp_path, codec(), keep="none"), rows_and_queries()
    nearest = [np.argsort(np.square(rows - query).sum(axis=1))[:3].tolist() for query in queries]
    texts = [[f"text {row}" for row in each] for each in nearest]
    report = store.tune_codec(queries, texts, on="text", progress=False)
    assert report.labeled and "rows given" in str(report)
    assert report.kept == (store.codec.correction is not None)


def test_rows_added_meanwhile_and_later_are_read_alike(tmp_path):
    store, (rows, queries) = table(tmp_path, codec()), rows_and_queries()
    other = rqs.open_table(store.handle.snapshots.current().database, "small")
    snapshot = other.handle.newest()
    encoder = other.handle.encoder(snapshot)
    assert store.tune_codec(queries, progress=False).kept
    encoder.require_codec_in(store.table.schema)  # what was encoded before may be written now
    new = source_table(rows[:3]).set_column(0, "id", pa.array([5_000, 5_001, 5_002]))
    other.add(new)
    hits = dict(hits_of(store.search(queries[0]).limit(ROWS + 3)))
    for row in range(3):
        assert hits[5_000 + row] == pytest.approx(hits[row], rel=1e-6)


def test_restoring_undoes_it_and_retraining_drops_it(tmp_path):
    store, (_, queries) = table(tmp_path, codec()), rows_and_queries()
    before, version = hits_of(store.search(queries[0])), store.version
    assert not any(
        b"tuned" in value for value in store.table.schema.metadata.values()
    )  # for earlier releases
    assert store.tune_codec(queries, progress=False).kept
    after = hits_of(store.search(queries[0]))
    assert after != before
    store.optimize(codecs_older_than=datetime.timedelta(0), progress=False)
    reopened = rqs.open_table(store.handle.snapshots.current().database, "small")
    assert hits_of(reopened.search(queries[0])) == after
    store.restore(version)
    assert hits_of(store.search(queries[0])) == before and store.codec.correction is None
    assert store.tune_codec(queries, progress=False).kept
    store.retrain(rqs.TrainConfig(epochs=0, progress=False), progress=False)
    assert store.codec.correction is None
    assert "corrected" not in store.search(queries[0]).explain_plan() or store.handle.codecs.are_corrected


def test_a_tuned_codec_compresses_a_table(tmp_path):
    rows, queries = rows_and_queries()
    better, report = rqs.tune_codec(codec(), rows, queries)
    assert report.kept and better.fingerprint != codec().fingerprint
    better.save(tmp_path / "codec")
    store = table(tmp_path, rqs.load_codec(tmp_path / "codec"), keep="none")
    assert store.handle.codecs.are_corrected
    assert store.verify(progress=False).ok


def test_what_does_not_pay_changes_nothing(tmp_path):
    store = table(tmp_path, codec(code_bytes=8, codebook_size=256))
    version = store.version
    random = np.random.default_rng(5)
    anything = [[int(row)] for row in random.integers(ROWS, size=QUERIES)]
    report = store.tune_codec(rows_and_queries()[1], anything, on="id", progress=False)
    assert not report.kept and "as it was" in str(report)
    assert store.version == version and store.codec.correction is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"queries": np.ones((20, DIM))}, "1 different queries; expected at least 100"),
        ({"queries": np.full((120, DIM), np.nan)}, "NaN"),
        ({"queries": np.ones((120, DIM + 1))}, "dimension|components|width"),
        ({"held_out": 1.0}, "held_out"),
        ({"held_out": True}, "held_out"),
        ({"seed": -1}, "seed"),
        ({"on": "id"}, "without positives"),
        ({"positives": [[0]] * QUERIES}, "expected a column"),
        ({"positives": [[0]] * QUERIES, "on": "nothing"}, "expected a column"),
        ({"positives": [[0]] * 3, "on": "id"}, "positives of 3 queries"),
        ({"positives": [[]] * QUERIES, "on": "id"}, "positives of 0 queries"),
        ({"positives": [[ROWS + 7]] * QUERIES, "on": "id"}, f"such as {ROWS + 7}"),
        ({"positives": [["a"]] * QUERIES, "on": "id"}, "expected values of that type"),
    ],
)
def test_what_cannot_be_tuned_for_is_refused(tuned, arguments, message):
    version = tuned.version
    with pytest.raises(InvalidInputError, match=message):
        tuned.tune_codec(**{"queries": rows_and_queries()[1], "progress": False} | arguments)
    assert tuned.version == version


def test_tables_that_cannot_be_tuned_say_why(tmp_path):
    queries = rows_and_queries()[1]
    store = table(tmp_path / "bare", codec(), keep="none")
    with pytest.raises(InvalidInputError, match="keeps no vectors"):
        store.tune_codec(queries, progress=False)
    refined = table(tmp_path / "refined", codec(refine_bytes=4))
    with pytest.raises(InvalidInputError, match="without refine codes"):
        refined.tune_codec(queries, progress=False)
    rows = rows_and_queries()[0]
    store.retrain(rqs.TrainConfig(epochs=0, progress=False), vectors=rows, encode=False, progress=False)
    with pytest.raises(TableError, match="earlier codec"):
        store.tune_codec(queries, [0] * QUERIES, on="id", progress=False)
    empty = rqs.create_table(lancedb.connect(tmp_path), "empty", schema=source_table(queries).schema)
    with pytest.raises(TableError, match="no codec"):
        empty.tune_codec(queries, progress=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"positives": [[ROWS]] * QUERIES}, "positions of the"),
        ({"positives": [[0.5]] * QUERIES}, "positions of the"),
        ({"positives": [[0]]}, "positives of 1 queries"),
        ({"vectors": np.ones((3, DIM))}, "3 vectors"),
        ({"held_out": 0}, "held_out"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arguments, message):
    rows, queries = rows_and_queries()
    with pytest.raises(InvalidInputError, match=message):
        rqs.tune_codec(codec(), **{"vectors": rows, "queries": queries} | arguments)


SETTINGS = {
    "config": rqs.CodecConfig(kind="rq", code_bytes=2, codebook_size=16, num_partitions=0),
    "training": rqs.TrainConfig(epochs=0, progress=False),
}


@functools.cache
def misleading_queries() -> tuple[np.ndarray, list[list[int]]]:
    """Queries near rows of one cluster, and rows of the next one, which answer them."""
    random, (rows, _) = np.random.default_rng(3), rows_and_queries()
    asked = random.permutation(ROWS)[:200]
    which = np.random.default_rng(0)
    which.normal(size=(2, 16, DIM))
    cluster = which.permutation(ROWS) % 16
    answers = [np.flatnonzero(cluster == (cluster[row] + 1) % 16)[:3].tolist() for row in asked]
    return rows[asked] + 0.01, answers


def assert_equally_tuned(codec: Codec, other: Codec) -> None:
    assert codec.correction is not None and other.correction is not None
    np.testing.assert_array_equal(codec.correction.rows_TC, other.correction.rows_TC)
    np.testing.assert_array_equal(codec.correction.directions_RD, other.correction.directions_RD)


def test_train_tunes_as_tune_codec_does(tmp_path):
    (rows, _), (queries, answers) = rows_and_queries(), misleading_queries()
    plain = rqs.train(rows, **SETTINGS)
    expected, report = rqs.tune_codec(plain, rows, queries, answers)
    assert report.kept and report.ndcg_after > report.ndcg_before + 0.2
    assert_equally_tuned(rqs.train(rows, **SETTINGS, queries=queries, positives=answers), expected)
    docs = lancedb.connect(tmp_path).create_table("docs", source_table(rows))
    texts = [[f"text {row}" for row in each] for each in answers]
    of_table = rqs.train(docs, **SETTINGS, queries=queries, positives=texts, on="text")
    sampled = rqs.train(docs, **SETTINGS)  # in another order than from an array
    assert_equally_tuned(of_table, rqs.tune_codec(sampled, rows, queries, answers)[0])
    neighbors = rqs.train(rows, **SETTINGS, queries=queries)
    assert (neighbors.correction is not None) == rqs.tune_codec(plain, rows, queries)[1].kept


def test_train_reads_all_positives_of_a_table_beside_a_sample(tmp_path):
    (rows, _), (queries, answers) = rows_and_queries(), misleading_queries()
    wanted = np.unique(np.concatenate(answers))
    source = source_table(rows)
    empty = np.array([row % 5 == 0 and row not in wanted for row in range(ROWS)])
    lists = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), DIM, mask=pa.array(empty))
    source = source.set_column(source.schema.get_field_index("vector"), "vector", lists)
    docs = lancedb.connect(tmp_path).create_table("docs", schema=source.schema)
    docs.add(source)
    settings = {"vector_column": "vector", "metric": "l2", "max_rows": 100, "seed": 0}
    vectors, relevant = sample_with_positives(docs, answers, len(queries), on="id", **settings)
    assert len(wanted) < len(vectors) <= len(wanted) + 100
    for each, positions in zip(answers, relevant, strict=True):
        np.testing.assert_array_equal(vectors[positions], rows[np.unique(each)])
    settings["max_rows"] = len(wanted) + 50
    vectors, relevant = sample_with_positives(rows, answers, len(queries), on=None, **settings)
    assert len(vectors) == len(wanted) + 50
    for each, positions in zip(answers, relevant, strict=True):
        np.testing.assert_array_equal(vectors[positions], rows[np.unique(each)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"positives": [[0]] * QUERIES, "queries": None}, "positives without queries"),
        ({"on": "id", "queries": None}, "without queries"),
        ({"on": "id"}, "without positives"),
        ({"positives": [[0]] * QUERIES, "on": "id"}, "for an array"),
        ({"positives": [[ROWS]] * QUERIES}, "positions of the"),
        ({"positives": [[0]]}, "positives of 1 queries"),
        ({"queries": np.ones((120, DIM + 1))}, "dimension"),
        ({"queries": np.full((120, DIM), np.nan)}, "NaN"),
        ({"queries": np.ones((120, DIM))}, "1 different queries"),
        ({"config": rqs.CodecConfig(kind="pq", code_bytes=2, refine_bytes=4)}, "without refine codes"),
    ],
)
def test_train_refuses_queries_before_it_trains(arguments, message):
    rows, queries = rows_and_queries()
    endless = {
        "config": rqs.CodecConfig(code_bytes=2, codebook_size=16),
        "training": rqs.TrainConfig(epochs=10**6, progress=False),
    }
    with pytest.raises(InvalidInputError, match=message):
        rqs.train(rows, **endless | {"queries": queries} | arguments)


@pytest.mark.parametrize(
    ("positives", "on", "message"),
    [
        ([[0]] * QUERIES, None, "expected a column"),
        ([[0]] * QUERIES, "nothing", "expected a column"),
        ([[ROWS + 7]] * QUERIES, "id", f"such as {ROWS + 7}"),
        ([["a"]] * QUERIES, "id", "expected values of that type"),
    ],
)
def test_train_refuses_positives_that_a_table_lacks(tmp_path, positives, on, message):
    rows, queries = rows_and_queries()
    docs = lancedb.connect(tmp_path).create_table("docs", source_table(rows))
    with pytest.raises(InvalidInputError, match=message):
        rqs.train(docs, **SETTINGS, queries=queries, positives=positives, on=on)
