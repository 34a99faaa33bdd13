"""Tables whose rows have many vectors each: written, searched, read back and kept up.

The numbers of LanceDB's own multivector search are the reference for exact search.
"""

import dataclasses

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from given_means import GivenMeans

import rqmoe_store as rqs
from rqmoe_store.errors import InvalidInputError, TableError

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
    assert (
        "all vectors of rows by look-up tables, 100 of them by cosines, 20 decoded"
        in store.search(query).explain_plan()
    )


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
    assert many.table.schema.metadata[b"rqmoe_store.format_version"] == b"5"


@pytest.fixture
def docs(db):
    rows = [row | {"vector": row["vector"].tolist()} for row in make_rows(200)]
    rows[5]["vector"], rows[6]["vector"] = None, []
    return db.create_table("docs", pa.Table.from_pylist(rows, schema=SCHEMA))


def test_a_table_of_lancedb_is_compressed(db, docs):
    codec = rqs.train(docs, config=CONFIG, training=QUICK)
    assert codec.dim == DIM and codec.num_partitions == 1
    store = rqs.compress(docs, codec, into="small", multi_vector=ENCODING, key="id", progress=False)
    assert store.count_rows() == 200 and store.stats().raw_rows == 0 and store.key == "id"
    assert store.count_rows("vector IS NULL") == 2
    decoded = {row["id"]: row["vector"] for row in store.search().select(["id", "vector"]).to_list()}
    assert decoded[5] is None and decoded[6] is None
    query = make_query()
    found = store.search(query).shortlist(200).limit(198).to_list()
    expected = [distances(query, decoded[row["id"]]) for row in found]
    np.testing.assert_allclose([row["_distance"] for row in found], expected, atol=1e-4)
    assert len(found) == 198
    with pytest.raises(InvalidInputError, match="into"):
        rqs.compress(docs, codec, in_place=True, progress=False)
    other = rqs.train(np.random.default_rng(0).normal(size=(99, 5)), config=CONFIG, training=QUICK)
    with pytest.raises(InvalidInputError, match=r"dimension 8.*dimension 5"):
        rqs.compress(docs, other, into="other", progress=False)
    assert "other" not in db.list_tables().tables


def test_merges_replace_and_insert_lists(store):
    store.set_key("id")
    done = (
        store.merge_insert()
        .when_matched_update_all()
        .when_not_matched_insert_all()
        .execute(make_rows(20, 290, seed=9))
    )
    assert (done.num_updated_rows, done.num_inserted_rows) == (10, 10)
    new = {row["id"]: row["vector"] for row in make_rows(20, 290, seed=9)}
    decoded = {row["id"]: row["vector"] for row in store.search().select(["id", "vector"]).to_list()}
    assert all(len(decoded[number]) == len(new[number]) for number in new)
    assert store.stats().raw_rows == 0
    store.merge_insert().when_matched_update_all().execute([{"id": 3, "vector": None}])
    assert store.count_rows("vector IS NULL") == 1
    assert store.verify(progress=False).ok


def test_updates_and_deletes(store):
    store.update(where="id = 7", values={"vector": make_rows(1, 500)[0]["vector"], "text": "new"})
    row = store.search().where("id = 7").select(["text", "vector"]).to_list()[0]
    assert row["text"] == "new" and len(row["vector"]) == len(make_rows(1, 500)[0]["vector"])
    before = store.version
    assert store.delete("id < 100") == 100
    query = make_query()
    assert min(row["id"] for row in store.search(query).shortlist(300).limit(200).to_list()) >= 100
    store.checkout(before)
    assert len(store.search(query).shortlist(300).limit(300).to_list()) == 300
    store.restore()
    assert store.count_rows() == 300 and len(store.search(query).shortlist(300).limit(300).to_list()) == 300


def test_ingestion_puts_bad_lists_in_quarantine(db, store, tmp_path):
    rows = [row | {"vector": row["vector"].tolist()} for row in make_rows(50, 300)]
    rows[4]["vector"][0][2] = float("nan")
    rows[9]["vector"] = []
    path = tmp_path / "more.parquet"
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)
    report = rqs.ingest(str(path), store, progress=False, on_bad_rows="quarantine")
    assert report.rows == 49 and store.count_rows() == 349
    assert store.count_rows("vector IS NULL") == 1
    assert store.count_rows("id = 304") == 0
    assert store.search(make_query()).shortlist(400).limit(400).to_arrow().num_rows == 348


def test_exports(store, tmp_path):
    import pyarrow.parquet as pq

    store.export(tmp_path / "all.parquet", progress=False)
    exported = pq.read_table(tmp_path / "all.parquet")
    decoded = store.search().select(["id", "vector"]).to_arrow()
    assert exported["vector"].to_pylist() == decoded["vector"].to_pylist()
    store.export(tmp_path / "codes", format="codes", progress=False)
    rows = pq.read_table(tmp_path / "codes" / "rows")
    (folder,) = (tmp_path / "codes").glob("codec-*-tokens")
    codec, of_encodings = rqs.load_codec(folder), rqs.load_codec(str(folder).removesuffix("-tokens"))
    tokens = np.frombuffer(rows["vector_tokens"][0].as_py(), np.uint8).reshape(-1, 4)
    encoder = rqs.FixedDimensionalEncoder(DIM, num_repetitions=4, num_hyperplanes=2)
    code = np.frombuffer(rows["vector_code"][0].as_py(), np.uint8)[None]
    means = encoder.estimate_means(of_encodings.decode(code))
    np.testing.assert_allclose(codec.decode(tokens) + means, decoded["vector"][0].as_py(), atol=1e-6)
    with pytest.raises(InvalidInputError, match="many vectors"):
        store.export(tmp_path / "all.npy", format="npy", progress=False)


def test_hybrid_searches(store):
    store.create_fts_index("text")
    query = make_query()
    found = store.search(query_type="hybrid").vector(query).text("row 3").limit(5).to_list()
    assert len(found) == 5 and "_relevance_score" in found[0]
    with pytest.raises(InvalidInputError, match="batch"):
        store.search(query_type="hybrid").vector([query, query]).text("row 3").to_list()


async def _found_in_event_loop(db, query):
    table = await rqs.open_table_async(db, "raw")
    return await (await table.search(query)).limit(4).to_arrow()


def test_event_loops(db, store):
    import asyncio

    query = make_query()
    assert asyncio.run(_found_in_event_loop(db, query)) == store.search(query).limit(4).to_arrow()


def test_shards_find_the_same(db, store):
    from rqmoe_store.search.shards import Shard
    from rqmoe_store.store.databases import TablePlace

    shards = [Shard(TablePlace.of(store.table), device="cpu") for _ in range(2)]

    def call(method, parts, arguments):
        return [getattr(shards[shard], method)(part, *arguments) for shard, part in parts.items()]

    store.add(make_rows(40, 300))
    queries = [make_query(), make_query(2, seed=4)]
    expected = store.search(queries).where("id > 9").limit(6).to_arrow()
    sharded = rqs.open_table(db, "raw").use_shards(2, call)
    assert sharded.search(queries).where("id > 9").limit(6).to_arrow() == expected


@pytest.mark.parametrize("damage", ["cut", "beyond", "gone"])
def test_damaged_codes_of_vectors_are_found(store, damage):
    tokens = {
        "cut": "X'000102'",
        "beyond": "X'ffffffff'",
        "gone": "NULL",
    }[damage]
    store.table.to_lance().update({"vector_tokens": tokens}, where="id = 11")
    report = store.verify(progress=False)
    assert not report.ok and any("row" in problem for problem in report.problems)
    with pytest.raises(TableError):
        store.search().select(["vector"]).to_arrow()


def test_what_makes_no_sense_is_refused(store):
    query = make_query()
    for call in (
        lambda: store.search(query).diversify(),
        lambda: store.search(query).distance_range(0, 1),
        lambda: store.search(query).expand(),
        lambda: store.build_neighbor_graph(progress=False),
        lambda: store.tune(progress=False),
        lambda: rqs.advise(store),
        lambda: rqs.DecodedReranker(store, query),
        lambda: store.search(query).distance_type("l2"),
        lambda: store.search(query).rerank("refined").to_arrow(),
    ):
        with pytest.raises(InvalidInputError):
            call()
    assert store.search(query).distance_type("cosine").limit(1).to_list()
    dot = dataclasses.replace(CONFIG, metric="dot")
    with (
        pytest.warns(UserWarning, match="codes only"),
        pytest.raises(InvalidInputError, match="keeps its metric"),
    ):
        store.retrain(QUICK, vectors="decoded", config=dot, progress=False)


def test_health_and_statistics(store, tmp_path):
    store.add(make_rows(300, 300))
    store.save_health_report(tmp_path / "health.html")
    assert (tmp_path / "health.html").stat().st_size > 1_000
    health = store.health()
    assert health.rows == 300 and health.error_ratio is not None and health.error_ratio < 3
    vectors = sum(len(row["vector"]) for row in [*make_rows(300), *make_rows(300, 300)])
    stats = store.stats()
    assert stats.raw_bytes == 4 * DIM * vectors and stats.dim == DIM and stats.code_disk_bytes > 0
    store.add(make_rows(10, 600), encode=False)
    assert store.stats().raw_bytes > stats.raw_bytes and store.stats().vector_disk_bytes > 0


BAD_QUERIES = {
    "no vectors": np.zeros((0, DIM), np.float32),
    "nothing": [],
    "another dimension": np.ones((2, DIM + 1), np.float32),
    "a component that is NaN": np.full((2, DIM), np.nan, np.float32),
    "zero": np.zeros((2, DIM), np.float32),
    "four dimensions": np.ones((1, 2, 2, DIM), np.float32),
    "an empty query in a batch": [np.ones((2, DIM)), np.zeros((0, DIM))],
    "vectors of different dimensions": [[1.0] * DIM, [1.0]],
    "text in it": [["a"] * DIM],
}


@pytest.mark.parametrize("what", BAD_QUERIES)
def test_bad_queries(store, raw, what):
    with pytest.raises(InvalidInputError):
        store.search(BAD_QUERIES[what]).to_arrow()


GOOD = [[1.0] * DIM, [2.0] + [0.5] * (DIM - 1)]
BAD_LISTS = {
    "another dimension": [[1.0] * DIM, [1.0] * (DIM - 1)],
    "NaN": [[1.0] * DIM, [float("nan")] * DIM],
    "infinite": [[1.0] * DIM, [float("inf")] + [1.0] * (DIM - 1)],
    "a null": [[1.0] * DIM, None],
    "a null component": [[1.0] * DIM, [None] + [1.0] * (DIM - 1)],
    "zero": [[1.0] * DIM, [0.0] * DIM],
}


@pytest.mark.parametrize("what", BAD_LISTS)
@pytest.mark.parametrize("encode", [False, True])
def test_bad_lists_are_refused_by_row_before_anything_is_written(store, what, encode):
    version = store.version
    rows = [{"id": 900, "vector": GOOD}, {"id": 901, "vector": BAD_LISTS[what]}]
    with pytest.raises(InvalidInputError, match=r"rows? 1"):
        store.add(rows, encode=encode)
    arrow = pa.table(
        {"id": [900, 901], "vector": pa.array([GOOD, BAD_LISTS[what]], pa.list_(pa.list_(pa.float32())))}
    )
    with pytest.raises(InvalidInputError, match="rows 1 "):
        store.add(arrow, encode=encode)
    assert store.version == version and store.count_rows() == 300
    assert store.add(arrow, on_bad_vectors="drop") == 1
    assert store.add(arrow, on_bad_vectors="null") == 2
    assert store.count_rows("id = 901 AND vector IS NULL") == 1
    with pytest.raises(InvalidInputError, match="fill"):
        store.add(arrow, on_bad_vectors="fill")


def test_rows_without_vectors_and_with_thousands(store):
    many = np.random.default_rng(0).normal(size=(5_000, DIM)).astype(np.float32)
    store.add([{"id": 800, "vector": []}, {"id": 801, "vector": None}, {"id": 802, "vector": many}])
    store.add([{"id": 803, "vector": []}, {"id": 804, "vector": None}])
    store.add([{"id": 805, "vector": None}, {"id": 806}])
    assert store.count_rows("vector IS NULL") == 6
    found = store.search(many[:40]).limit(1).to_list()
    assert found[0]["id"] == 802
    assert len(store.search().where("id = 802").select(["vector"]).to_list()[0]["vector"]) == 5_000


def test_single_vectors_are_refused_in_such_a_table_and_lists_in_others(db, store):
    with pytest.raises(InvalidInputError, match="lists of vectors"):
        store.add([{"id": 1, "vector": [1.0] * DIM}])
    one = rqs.create_table(db, "one", [{"id": 1, "vector": [1.0] * DIM}])
    with pytest.raises(InvalidInputError, match="expected vectors of 8 numbers"):
        one.add([{"id": 1, "vector": GOOD}])


def test_settings_that_do_not_fit(db):
    rows = make_rows(3)
    with pytest.raises(InvalidInputError, match="metric='l2'"):
        rqs.create_table(db, "bad", rows, schema=SCHEMA, config=rqs.CodecConfig(metric="l2"))
    with pytest.raises(InvalidInputError, match="num_partitions=4"):
        config = rqs.CodecConfig(metric="cosine", num_partitions=4)
        rqs.create_table(db, "bad", rows, schema=SCHEMA, config=config)
    with pytest.raises(InvalidInputError, match="one vector each"):
        rqs.create_table(db, "bad", [{"vector": [1.0, 2.0]}], multi_vector=ENCODING)
    with pytest.raises(InvalidInputError, match="so that the dimension is known"):
        rqs.create_table(db, "bad", schema=pa.schema([("vector", pa.list_(pa.list_(pa.float32())))]))
    assert db.list_tables().tables == [] or "bad" not in db.list_tables().tables
    table = rqs.create_table(db, "few", rows[:1], schema=SCHEMA, config=CONFIG, multi_vector=ENCODING)
    with pytest.raises((TableError, InvalidInputError)):
        table.train(QUICK, progress=False)


def test_the_schema_is_inferred_from_lists(db):
    store = rqs.create_table(db, "inferred", make_rows(5))
    assert store.dim == DIM and store.metric == "cosine"
    again = rqs.create_table(
        db, "inferred", make_rows(5, 5), exist_ok=True, multi_vector=rqs.MultiVectorConfig()
    )
    assert again.count_rows() == 10
    with pytest.raises(TableError, match="multi_vector"):
        rqs.create_table(db, "inferred", exist_ok=True, multi_vector=ENCODING)
    with pytest.raises(TableError, match="many vectors a row"):
        rqs.create_table(
            db, "inferred", exist_ok=True, schema=pa.schema([("vector", pa.list_(pa.float32(), DIM))])
        )


def test_codecs_of_vectors_are_kept_as_long_as_rows_need_them(db, store):
    import datetime

    first = store.codecs.metadata.generations[0]
    with pytest.warns(UserWarning, match="codes only"):
        store.retrain(QUICK, vectors="decoded", progress=False)
    report = store.optimize(
        progress=False,
        cleanup_older_than=datetime.timedelta(0),
        codecs_older_than=datetime.timedelta(0),
    )
    assert report.removed.codecs == 2
    assert rqs.open_table(db, "raw").search(make_query()).limit(1).to_list()
    assert first.fingerprints.isdisjoint(store.codecs.metadata.generations[-1].fingerprints)


@pytest.mark.parametrize("metric", ["cosine", "dot"])
@pytest.mark.parametrize("has_means", [False, True])
def test_look_up_tables_give_the_distances_of_decoded_vectors(has_means, metric):
    from rqmoe_store.search.coded_max_sim import CodedRows
    from rqmoe_store.store.ragged import Ragged

    generator = np.random.default_rng(3)
    vectors = generator.normal(size=(600, DIM)).astype(np.float32)
    means = generator.normal(size=(4, DIM)).astype(np.float32)
    means[1], means[2] = 0, 1e-12 * means[2]
    for kind, refine, codebook in (("pq", 0, 256), ("saq", 0, 256), ("pq", 4, 256), ("rq", 0, 16)):
        config = rqs.CodecConfig(
            kind=kind,
            metric="dot" if has_means else metric,
            code_bytes=3,
            codebook_size=codebook,
            refine_bytes=refine,
            num_partitions=0,
        )
        codec = rqs.train(vectors, config=config, training=QUICK)
        lengths = np.array([1, 5, 60, 34])
        codes = codec.encode(vectors[:100])
        both = codes.codes if codes.refine is None else np.concatenate([codes.codes, codes.refine], axis=1)
        tokens = Ragged(np.ascontiguousarray(both).ravel(), lengths * both.shape[1])
        rows = CodedRows(tokens, codec, metric, GivenMeans(means) if has_means else None)
        assert rows.have_tables == (metric == "cosine" or kind == "rq")
        assert rows.need_decoding(True) == (refine > 0 or not rows.have_tables)
        for count in (1, 7, 20) if rows.have_tables else ():
            query = generator.normal(size=(count, DIM))
            query = (query / np.linalg.norm(query, axis=1, keepdims=True)).astype(np.float32)
            expected = rows.decoded_distances(query, refined=False)
            np.testing.assert_allclose(rows.table_distances(query), expected, atol=2e-5 * count)
            decoded = np.split(codec.decode(codes.unrefined[:100]), np.cumsum(lengths)[:-1])
            products = [
                (query @ (each + mean).T).max(axis=1).sum()
                for each, mean in zip(decoded, has_means * means, strict=True)
            ]
            found = rows.product_distances(query)
            np.testing.assert_allclose(found, count - np.array(products), atol=1e-4 * count)
            some = np.array([2, 0])
            for distances_of in (CodedRows.table_distances, CodedRows.product_distances):
                np.testing.assert_array_equal(
                    distances_of(rows[some], query), distances_of(rows, query)[some]
                )


@pytest.mark.parametrize("kind", ["experts", "refine codes"])
def test_rows_that_tables_place_first_are_decoded_and_have_a_place_whatever_the_page(db, kind):
    from rqmoe_store.search.coded_max_sim import CodedRows

    has_experts = kind == "experts"
    config = rqs.CodecConfig(
        kind="rqmoe" if has_experts else "rq",
        metric="cosine",
        code_bytes=4,
        codebook_size=16,
        refine_bytes=0 if has_experts else 4,
        hidden_dim=8,
    )
    table = rqs.create_table(db, "t", make_rows(300), schema=SCHEMA, config=config, multi_vector=ENCODING)
    table.train(rqs.TrainConfig(epochs=1, validation_rows=100, progress=False), progress=False)
    codecs, query = table.codecs, make_query()
    unit = query / np.linalg.norm(query, axis=1, keepdims=True)
    read = table.table.to_lance().to_table(with_row_id=True)
    codes, has_codes = codecs.read(read)
    assert has_codes.all()
    (generation,) = codecs.generations
    means = generation.row_means(codes, codecs.metadata.multi_vector)
    rows = CodedRows(codes.tokens, generation.vector_codec, "cosine", means)
    assert rows.need_decoding(True)
    row_ids = read["_rowid"].to_numpy()
    near = np.lexsort((row_ids, rows.product_distances(unit)))[:100]
    near = near[np.lexsort((row_ids[near], rows[near].table_distances(unit)))][: 20 if has_experts else 30]
    distances_S = rows.decoded_distances(unit, refined=True)
    expected = near[np.lexsort((near, distances_S[near]))][:10]
    found = table.search(query).limit(10).select(["id"]).to_arrow()
    np.testing.assert_allclose(found["_distance"], distances_S[expected], atol=1e-5)
    assert found["id"].to_pylist() == read["id"].to_numpy()[expected].tolist()
    # Pages continue each other, and all rows of a shortlist are decoded that a page returns.
    pages = [table.search(query).limit(10).offset(start).select(["id"]).to_list() for start in (0, 10, 20)]
    whole = table.search(query).limit(30).select(["id"]).to_list()
    assert [row["id"] for page in pages for row in page] == [row["id"] for row in whole]
    every = table.search(query).limit(300).to_arrow()
    np.testing.assert_allclose(np.sort(every["_distance"]), np.sort(distances_S), atol=1e-5)


def test_codes_beyond_the_codebook_are_refused(store):
    from rqmoe_store.search.coded_max_sim import CodedRows
    from rqmoe_store.store.ragged import Ragged

    (generation,) = store.codecs.generations
    tokens = Ragged(np.full(8, 16, np.uint8), np.array([4, 4]))
    rows = CodedRows(tokens, generation.vector_codec, "cosine", GivenMeans(np.zeros((2, DIM), np.float32)))
    for distances_of in (rows.table_distances, rows.product_distances):
        with pytest.raises(TableError, match="codes that none of its codecs wrote"):
            distances_of(make_query())


def test_codes_of_what_means_leave_over_come_nearer(db):
    generator = np.random.default_rng(0)
    lists = [
        (generator.normal(size=DIM) + 0.3 * generator.normal(size=(number % 5 + 2, DIM))).astype(np.float32)
        for number in range(300)
    ]
    rows = [{"id": number, "text": "", "vector": vectors} for number, vectors in enumerate(lists)]
    units = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in lists]

    def error(name, encoding):
        config = rqs.CodecConfig(kind="pq", metric="cosine", code_bytes=3)
        table = rqs.create_table(db, name, rows, schema=SCHEMA, config=config, multi_vector=encoding)
        table.train(QUICK, progress=False)
        found = sorted(table.search().select(["id", "vector"]).to_list(), key=lambda row: row["id"])
        decoded = [np.array(row["vector"]) for row in found]
        assert table.verify().ok
        return np.mean(
            [np.square(each - unit).sum(axis=1).mean() for each, unit in zip(decoded, units, strict=True)]
        )

    whole = error("whole", dataclasses.replace(ENCODING, subtract_mean=False))
    assert error("left", ENCODING) < 0.7 * whole


@pytest.mark.parametrize("kind", ["rq", "pq"])
def test_distances_are_those_of_the_vectors_that_rows_decode_to(db, kind):
    config = rqs.CodecConfig(kind=kind, metric="dot", code_bytes=4, codebook_size=256 if kind == "pq" else 16)
    table = rqs.create_table(db, kind, make_rows(300), schema=SCHEMA, config=config, multi_vector=ENCODING)
    table.train(QUICK, progress=False)
    query = make_query()
    for row in table.search(query).limit(20).select(["id", "vector"]).to_list():
        expected = distances(query, np.array(row["vector"]), "dot")
        assert row["_distance"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("scale", "shift"), [(1, 0), (1e-9, 0), (1e9, 0), (1, 1e4)])
def test_means_of_rows_are_those_of_their_decoded_encodings(scale, shift):
    from rqmoe_store.store.multivector import encoder_of, encodings_of, multi_vector_metadata, row_means
    from rqmoe_store.store.ragged import Ragged
    from rqmoe_store.training.encodings import fit_encoding_codec

    config = rqs.CodecConfig(kind="pq", metric="dot", code_bytes=4)
    metadata = multi_vector_metadata("vector", "none", DIM, config, ENCODING)
    vectors = np.concatenate([row["vector"] for row in make_rows(300)])
    lists = Ragged(
        (scale * vectors + shift).astype(np.float32), np.array([len(row["vector"]) for row in make_rows(300)])
    )
    encodings = encodings_of(lists, metadata.multi_vector)
    codec = fit_encoding_codec(encodings, metadata.config)
    codes = codec.encode(encodings)
    expected = encoder_of(metadata.multi_vector).estimate_means(codec.decode(codes))
    means = row_means(codes, metadata.multi_vector, codec)
    np.testing.assert_allclose(means.values_BD, expected, atol=1e-5 * np.abs(expected).max())
    queries_DP = make_query().T.copy()
    products = means[np.arange(7, 90)].products(queries_DP)
    wanted = expected[7:90].astype(np.float64) @ queries_DP
    np.testing.assert_allclose(products, wanted, atol=1e-5 * DIM * np.abs(expected).max())
