"""Tables whose rows have many vectors each: written, searched, read back and kept up.

The numbers of LanceDB's own multivector search are the reference for exact search.
"""

import lancedb
import numpy as np
import pyarrow as pa
import pytest

import rqmoe_store as rqs
from rqmoe_store.errors import TableError

DIM = 8
CONFIG = rqs.CodecConfig(kind="rq", metric="cosine", code_bytes=4, codebook_size=16)
ENCODING = rqs.MultiVectorConfig(code_bytes=16, num_repetitions=4, num_hyperplanes=2, final_dim=None)
QUICK = rqs.TrainConfig(epochs=0, progress=False)
SCHEMA = pa.schema(
    [("id", pa.int64()), ("text", pa.string()), ("vector", pa.list_(pa.list_(pa.float32(), DIM)))]
)


def make_rows(count: int, first: int = 0, seed: int = 0) -> list[dict]:
    """Rows of 1 to 6 vectors around a few directions."""
    generator = np.random.default_rng([seed, first])
    centers = np.random.default_rng(5).normal(size=(24, DIM))
    rows = []
    for number in range(first, first + count):
        chosen = centers[generator.integers(0, len(centers), generator.integers(1, 7))]
        vectors = (chosen + 0.2 * generator.normal(size=chosen.shape)).astype(np.float32)
        rows.append({"id": number, "text": f"row {number % 7}", "vector": vectors})
    return rows


def make_query(vectors: int = 3, seed: int = 1) -> np.ndarray:
    centers = np.random.default_rng(5).normal(size=(24, DIM))
    generator = np.random.default_rng(seed)
    return (centers[generator.integers(0, 24, vectors)] + 0.1 * generator.normal(size=(vectors, DIM))).astype(
        np.float32
    )


def distances(query_KD: np.ndarray, vectors_nD: np.ndarray, metric: str = "cosine") -> float:
    query_KD, vectors_nD = np.asarray(query_KD, np.float64), np.asarray(vectors_nD, np.float64)
    if metric == "cosine":
        query_KD = query_KD / np.linalg.norm(query_KD, axis=1, keepdims=True)
        vectors_nD = vectors_nD / np.linalg.norm(vectors_nD, axis=1, keepdims=True)
    return float(len(query_KD) - (query_KD @ vectors_nD.T).max(axis=1).sum())


@pytest.fixture
def db(tmp_path):
    return lancedb.connect(tmp_path)


@pytest.fixture
def raw(db):
    return rqs.create_table(db, "raw", make_rows(300), schema=SCHEMA, config=CONFIG, multi_vector=ENCODING)


@pytest.fixture
def store(raw):
    raw.train(QUICK, progress=False)
    return raw


def test_raw_rows_are_found_as_lancedb_finds_them(db, raw):
    rows = make_rows(300)
    plain = db.create_table(
        "plain",
        pa.Table.from_pylist([row | {"vector": row["vector"].tolist()} for row in rows], schema=SCHEMA),
    )
    for metric, table in (
        ("cosine", raw),
        (
            "dot",
            rqs.create_table(
                db, "dot", rows, schema=SCHEMA, config=rqs.CodecConfig(metric="dot"), multi_vector=ENCODING
            ),
        ),
    ):
        query = make_query()
        expected = plain.search(query).distance_type(metric).limit(20).to_arrow()
        found = table.search(query).limit(20).to_arrow()
        assert found["id"].to_pylist() == expected["id"].to_pylist()
        np.testing.assert_allclose(found["_distance"], expected["_distance"], rtol=1e-4, atol=1e-4)


def test_encoded_rows_are_found_by_max_sim_of_what_their_codes_decode_to(store):
    decoded = {row["id"]: row["vector"] for row in store.search().select(["id", "vector"]).to_list()}
    assert store.count_rows("vector IS NOT NULL") == 300 and store.stats().raw_rows == 0
    query = make_query()
    found = store.search(query).shortlist(300).limit(12).to_list()
    expected = sorted((distances(query, vectors), number) for number, vectors in decoded.items())[:12]
    np.testing.assert_allclose([row["_distance"] for row in found], [each for each, _ in expected], atol=1e-4)
    assert {row["id"] for row in found[:10]} <= {number for _, number in expected}
    # The default shortlist is shorter, and finds most of them.
    some = store.search(query).limit(10).to_list()
    assert len({row["id"] for row in some} & {number for _, number in expected[:10]}) >= 7


def test_decoded_lists_are_near_what_was_added(store):
    rows = {row["id"]: row["vector"] for row in make_rows(300)}
    for row in store.search().select(["id", "vector"]).to_list():
        given, decoded = rows[row["id"]], np.array(row["vector"])
        assert decoded.shape == given.shape
        given = given / np.linalg.norm(given, axis=1, keepdims=True)
        assert np.square(given - decoded).sum() < 0.3 * len(given)


def test_rows_added_before_and_after_the_codec_are_found_together(store):
    store.add(make_rows(40, 300))
    store.add(make_rows(40, 340), encode=False)
    assert store.stats().raw_rows == 40
    query = make_query(seed=3)
    found = store.search(query).shortlist(380).limit(380).to_list()
    assert sorted(row["id"] for row in found) == list(range(380))
    assert [row["_distance"] for row in found] == sorted(row["_distance"] for row in found)
    raw = {row["id"]: row["vector"] for row in make_rows(40, 340)}
    for row in found:
        if row["id"] in raw:
            assert row["_distance"] == pytest.approx(distances(query, raw[row["id"]]), abs=1e-4)
    store.optimize(progress=False)
    assert store.stats().raw_rows == 0 and store.count_rows() == 380


def test_what_is_opened_again_finds_the_same(db, store):
    queries = [make_query(), make_query(1, seed=2), make_query(5, seed=4)]
    again = rqs.open_table(db, "raw")
    assert again.search(queries).limit(4).to_arrow() == store.search(queries).limit(4).to_arrow()
    assert (again.dim, again.metric) == (DIM, "cosine")
    assert again.codec.fingerprint == store.codec.fingerprint and again.codec.dim == DIM
    assert again.schema.names == ["id", "text"]


def test_forms_of_queries(store):
    query = make_query(2)
    single = store.search(query).limit(5).to_arrow()
    assert store.search(query.tolist()).limit(5).to_arrow() == single
    assert store.search([query[0], query[1]]).limit(5).to_arrow() == single
    one = store.search(query[0]).limit(5).to_arrow()
    assert store.search(query[:1]).limit(5).to_arrow() == one
    for batch in ([query, query[:1]], [query.tolist(), query[:1].tolist()]):
        both = store.search(batch).limit(5).to_arrow()
        assert both.column_names[0] == "query_index"
        assert both["id"].to_pylist() == single["id"].to_pylist() + one["id"].to_pylist()
    assert store.search(query[None]).limit(5).to_arrow() == single


def test_options_of_searches(store):
    query = make_query()
    all_rows = store.search(query).shortlist(300).limit(300).to_list()
    found = store.search(query).where("text = 'row 3'").shortlist(300).limit(8).with_row_id().to_list()
    wanted = [row for row in all_rows if row["text"] == "row 3"][:8]
    assert [row["id"] for row in found] == [row["id"] for row in wanted] and "_rowid" in found[0]
    after = store.search(query).where("text = 'row 3'", prefilter=False).shortlist(300).limit(300).to_list()
    assert [row["id"] for row in after] == [row["id"] for row in all_rows if row["text"] == "row 3"]
    page = store.search(query).shortlist(300).limit(5).offset(5).select(["id"]).to_list()
    assert [row["id"] for row in page] == [row["id"] for row in all_rows[5:10]]
    by_encodings = store.search(query).rerank("none").limit(5).to_list()
    assert len({row["id"] for row in by_encodings} & {row["id"] for row in all_rows[:30]}) >= 2
    assert "all decoded vectors" in store.search(query).explain_plan()


@pytest.mark.parametrize("keep", ["none", "float16", "float32"])
def test_kept_vectors_refine(db, keep):
    rows = make_rows(120)
    store = rqs.create_table(
        db, "kept", rows, schema=SCHEMA, config=CONFIG, multi_vector=ENCODING, keep_vectors=keep
    )
    store.train(QUICK, progress=False)
    query = make_query()
    if keep == "none":
        with pytest.raises(TableError, match="keeps no raw vectors"):
            store.search(query).refine_factor(3)
        return
    found = store.search(query).refine_factor(12).limit(10).to_list()
    expected = sorted((distances(query, row["vector"]), row["id"]) for row in rows)[:10]
    atol = 1e-2 if keep == "float16" else 1e-4
    np.testing.assert_allclose([row["_distance"] for row in found], [each for each, _ in expected], atol=atol)
    kept = store.search().limit(1).to_list()[0]
    np.testing.assert_allclose(kept["vector"], rows[0]["vector"], atol=atol)


def test_refine_codes_of_vectors_come_nearer(db, store):
    config = rqs.CodecConfig(kind="rq", metric="cosine", code_bytes=4, codebook_size=16, refine_bytes=6)
    refined = rqs.create_table(
        db, "refined", make_rows(300), schema=SCHEMA, config=config, multi_vector=ENCODING
    )
    refined.train(QUICK, progress=False)
    rows = {row["id"]: row["vector"] for row in make_rows(300)}

    def error(table):
        lists = {
            row["id"]: np.array(row["vector"]) for row in table.search().select(["id", "vector"]).to_list()
        }
        unit = {number: each / np.linalg.norm(each, axis=1, keepdims=True) for number, each in rows.items()}
        return sum(np.square(lists[number] - unit[number]).sum() for number in rows)

    assert error(refined) < 0.7 * error(store)
    query = make_query()
    plain = refined.search(query).rerank("decoded").limit(5).to_list()
    assert plain != refined.search(query).limit(5).to_list()


def test_retraining_makes_both_codecs_new(db, store):
    before = store.codecs.metadata.generations[-1]
    first = store.search(make_query()).limit(1).to_list()[0]["id"]
    with pytest.warns(UserWarning, match="codes only"):
        store.retrain(QUICK, vectors="decoded", progress=False)
    after = store.codecs.metadata.generations[-1]
    assert before.fingerprints.isdisjoint(after.fingerprints)
    assert store.table.count_rows(f"{store.columns.partition} >= 1") == 300
    assert first in [row["id"] for row in store.search(make_query()).limit(5).to_list()]
    assert rqs.open_table(db, "raw").search(make_query()).limit(1).to_list()


def test_tables_of_older_releases_are_not_changed_by_this_one(db):
    store = rqs.create_table(db, "one", [{"id": 1, "vector": [1.0, 2.0]}])
    metadata = store.table.schema.metadata
    assert metadata[b"rqmoe_store.format_version"] == b"3"
    assert b"rqmoe_store.multi_vector" not in metadata
    many = rqs.create_table(db, "many", make_rows(3), schema=SCHEMA, multi_vector=ENCODING)
    assert many.table.schema.metadata[b"rqmoe_store.format_version"] == b"4"
