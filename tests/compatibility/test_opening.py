"""Codecs and tables that earlier commits wrote open, are searched and can be changed."""

import dataclasses
import datetime
import json
import shutil
from pathlib import Path

import lancedb
import numpy as np
import pytest
import word_embedding
from brute_force import plain_distances

import rqmoe_store as rqs
from rqmoe_store.codecs.base import load_codec
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.config import TrainConfig
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import open_table

FOLDERS = sorted(path.parent for path in Path(__file__).parent.glob("*/vectors.npy"))
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
"""Processors and versions of torch round otherwise."""
TRAINING = TrainConfig(epochs=0, progress=False)


@pytest.fixture(params=FOLDERS, ids=[folder.name for folder in FOLDERS])
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a folder: opening a database may change it."""
    return Path(shutil.copytree(request.param, tmp_path / "written"))


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return Path(shutil.copytree(Path(__file__).parent / "first", tmp_path / "first"))


@pytest.fixture
def second(tmp_path: Path) -> Path:
    return Path(shutil.copytree(Path(__file__).parent / "second", tmp_path / "second"))


@pytest.fixture
def third(tmp_path: Path) -> Path:
    return Path(shutil.copytree(Path(__file__).parent / "third", tmp_path / "third"))


def opened(written: Path, name: str) -> CompressedTable:
    return open_table(lancedb.connect(written / "database"), name)


def vectors_of(store: CompressedTable) -> np.ndarray:
    rows = store.search().select(["id", "vector"]).to_list()
    return np.array([row["vector"] for row in sorted(rows, key=lambda row: row["id"])])


def test_there_are_some() -> None:
    assert FOLDERS


def test_codecs(written: Path) -> None:
    codec, stored = load_codec(written / "codec", device="cpu"), np.load(written / "codes.npz")
    vectors, decoded = np.load(written / "vectors.npy"), np.load(written / "decoded.npy")
    codes = Codes(stored["codes"], stored["partitions"], stored.get("refine"))
    np.testing.assert_allclose(codec.decode(codes), decoded, **CLOSE)
    again = codec.decode(codec.encode(vectors))
    errors, errors_then = (np.square(each - vectors).sum() for each in (again, decoded))
    assert errors == pytest.approx(errors_then, rel=0.02)


def test_tables(written: Path) -> None:
    store, vectors = opened(written, "docs"), np.load(written / "vectors.npy")
    assert (len(store), store.key, len(store.codecs.generations)) == (60, "id", 2)
    np.testing.assert_allclose(vectors_of(store), np.load(written / "table_vectors.npy"), **CLOSE)
    for row in range(50, 55):  # raw
        assert store.search(vectors[row]).limit(1).to_list()[0]["id"] == row
    found = store.search(vectors[0]).limit(60).nprobes(2).to_list()
    nearest = [row["_distance"] for row in found[:10]]
    assert {row["id"] for row in found} == set(range(60)) and nearest == sorted(nearest)
    report = store.verify(progress=False)
    assert report.ok, report


def test_tables_go_on(written: Path) -> None:
    store, vectors = opened(written, "docs"), np.load(written / "vectors.npy")
    store.add([{"id": 60, "text": "new", "vector": vectors[0]}])
    store.merge_insert().when_matched_update_all().when_not_matched_insert_all().execute(
        [{"id": row, "text": "merged", "vector": vectors[row % 60]} for row in (3, 61)]
    )
    store.update("id = 4", {"text": "updated"})
    assert store.delete("id = 5") == 1
    store.optimize(progress=False)
    assert store.table.count_rows(store.columns.raw_filter) == 0
    assert len(opened(written, "docs")) == 61
    assert store.verify(progress=False).ok


def test_tables_get_refine_codes(written: Path) -> None:
    store, vectors = opened(written, "docs"), np.load(written / "vectors.npy")
    config, before = store.codecs.metadata.config, vectors_of(store)
    config = dataclasses.replace(config, refine_bytes=store.columns.refine_bytes or 6)
    training = np.tile(vectors, (3, 1))
    codec = store.retrain(TRAINING, vectors=training, config=config, encode=False, progress=False)
    np.testing.assert_allclose(vectors_of(store), before, **CLOSE)
    store.add([{"id": 60, "text": "new", "vector": vectors[0]}])
    store.optimize(progress=False)
    assert store.table.count_rows(f"{store.columns.refine} IS NOT NULL") == 61
    (hit,) = store.search(vectors[0]).where("id = 60").to_list()
    exact = plain_distances(store.metric, vectors[0], codec.decode(codec.encode(vectors[:1])))
    assert hit["_distance"] == pytest.approx(exact[0], rel=1e-3, abs=1e-2)
    again = opened(written, "docs")
    assert len(again) == 61 and again.verify(progress=False).ok


def test_refine_codes(third: Path) -> None:
    """Rows 0 to 49 have some, of 6 bytes; the codec of rows 55 to 59 gives none."""
    store, vectors = opened(third, "docs"), np.load(third / "vectors.npy")
    rows = store.table.search().select(["id", "vector_refine"]).limit(None).to_list()
    assert {row["id"] for row in rows if row["vector_refine"] is not None} == set(range(50))
    assert {len(row["vector_refine"]) for row in rows if row["vector_refine"] is not None} == {6}
    stored = np.load(third / "codes.npz")
    codec, codes = load_codec(third / "codec", device="cpu"), Codes(stored["codes"], stored["partitions"])
    refined = np.square(np.load(third / "decoded.npy") - vectors).sum()
    assert refined < 0.5 * np.square(codec.decode(codes) - vectors).sum()
    plan = store.search(vectors[0]).limit(5).explain_plan()
    assert "rows with refine codes, memory" in plan
    assert store.search(vectors[0]).limit(1).nprobes(2).to_list()[0]["id"] == 0
    store.optimize(progress=False)
    assert "vector_refine" not in store.table.schema.names and store.verify(progress=False).ok


@pytest.mark.parametrize("kind", ["pq", "saq", "turboquant"])
def test_transform_codes(third: Path, kind: str) -> None:
    store, vectors = opened(third, kind), np.load(third / "vectors.npy")
    assert store.codec.config.kind == kind and len(store) == 20
    np.testing.assert_allclose(vectors_of(store), np.load(third / f"{kind}_vectors.npy"), **CLOSE)
    assert store.search(vectors[7]).limit(1).to_list()[0]["id"] == 7
    store.add([{"id": 20, "text": "new", "vector": vectors[20]}])
    assert store.verify(progress=False).ok


def test_a_table_with_a_sum_that_no_reader_took(first: Path) -> None:
    store, vectors = opened(first, "far"), np.load(first / "vectors.npy")
    store.add([{"id": 41, "vector": vectors[1]}])
    assert store.health().rows >= 1
    store.delete("id = 40")
    store.optimize(progress=False)
    store.retrain(TRAINING, vectors=np.tile(vectors, (3, 1)), progress=False)
    assert len(store) == 41 and store.verify(progress=False).ok


def test_vectors_kept_beside_codes(second: Path) -> None:
    store, vectors = opened(second, "docs"), np.load(second / "vectors.npy")
    np.testing.assert_allclose(vectors_of(store), vectors.astype(np.float16), **CLOSE)
    (hit,) = store.search(vectors[12]).limit(1).refine_factor(60).nprobes(4).to_list()
    assert hit["id"] == 12 and hit["_distance"] == pytest.approx(0, abs=1e-3)


def test_a_json_column(second: Path) -> None:
    store = opened(second, "docs")
    assert store.count_rows(rqs.json_field("meta", "author", "name").eq("bob")) == 30
    rows = store.search().where(rqs.json_field("meta", "number").gt(57)).select(["id"]).to_list()
    assert sorted(row["id"] for row in rows) == [58, 59]


def test_indexes(second: Path) -> None:
    store, vectors = opened(second, "docs"), np.load(second / "vectors.npy")
    assert {tuple(index.columns) for index in store.table.list_indices()} == {("text",), ("id",)}
    found = store.search("river", query_type="fts").limit(10).to_list()
    assert {row["id"] for row in found} == {0, 20, 40}
    hybrid = store.search(query_type="hybrid").vector(vectors[7]).text("river").limit(60).to_list()
    assert {0, 7, 20, 40} <= {row["id"] for row in hybrid}
    store.add([{"id": 60, "text": "a river", "vector": vectors[0]}])
    store.optimize(progress=False)
    found = store.search("river", query_type="fts").limit(10).to_list()
    assert {row["id"] for row in found} == {0, 20, 40, 60}


def test_tags(second: Path) -> None:
    store, vectors = opened(second, "docs"), np.load(second / "vectors.npy")
    store.checkout("trained")
    assert len(store) == 30 and store.search(vectors[3]).limit(30).nprobes(2).to_arrow().num_rows == 30
    store.checkout_latest()
    assert len(store) == 60
    store.optimize(cleanup_older_than=datetime.timedelta(0), progress=False)  # a tag keeps its version
    store.checkout("trained")
    assert len(store) == 30
    store.restore()
    assert len(store) == 30 and store.verify(progress=False).ok


def test_tuned_settings(second: Path) -> None:
    store, vectors = opened(second, "docs"), np.load(second / "vectors.npy")
    plan = store.search(vectors[0]).limit(10).explain_plan()
    assert "2 of 4 partitions (tuned), memory, keep 10 (tuned)" in plan


def test_what_was_ingested_does_not_come_twice(second: Path) -> None:
    """Rows 30 to 49 came in by a job, in a stream whose row 7 had no usable vector."""
    db, vectors = lancedb.connect(second / "database"), np.load(second / "vectors.npy")
    (bad,) = db.open_table("docs_quarantine").to_arrow().to_pylist()
    assert (bad["position"], json.loads(bad["row"])["id"]) == (7, 1000)
    store = open_table(db, "docs")
    stream = [{"id": 30 + row, "text": "again", "vector": vectors[row]} for row in range(21)]
    assert rqs.ingest(stream, store, job="notes", progress=False).rows == 0
    more = [{"id": 100 + row, "text": "more", "vector": vectors[row]} for row in range(5)]
    unusable = {"id": 200, "text": "nowhere", "vector": np.zeros(8)}
    report = rqs.ingest([*stream, *more, unusable], store, job="notes", progress=False)
    assert (report.rows, report.quarantined, len(store)) == (5, 1, 65)
    assert db.open_table("docs_quarantine").count_rows() == 2


def test_an_embedding_function(second: Path) -> None:
    store, text = opened(second, "words"), word_embedding.sentences(30)[4]
    assert store.search(text).limit(30).nprobes(2).to_arrow().num_rows == 30
    store.add([{"id": 30, "lang": "en", "title": "new", "text": "copper silver harbour"}])
    (hit,) = store.search("copper silver harbour").limit(1).to_list()
    assert hit["id"] == 30
    assert store.verify(progress=False).ok


def test_a_table_compressed_in_place(second: Path) -> None:
    store, vectors = opened(second, "placed"), np.load(second / "vectors.npy")
    rows = store.search().select(["id"]).with_row_id(True).to_arrow()
    assert rows["_rowid"].to_pylist() == rows["id"].to_pylist() == list(range(40))
    store.update("id = 3", {"text": "updated"})
    store.merge_insert("id").when_matched_update_all().execute(
        [{"id": 4, "text": "merged", "vector": vectors[50]}]
    )
    store.delete("id = 5")
    store.retrain(TRAINING, vectors=np.tile(vectors, (3, 1)), progress=False)
    assert len(store) == 39 and store.verify(progress=False).ok


def test_a_table_without_a_codec(second: Path) -> None:
    store, vectors = opened(second, "raw"), np.load(second / "vectors.npy")
    found = store.search(vectors[0]).limit(5).to_list()
    products = vectors[:20] @ vectors[0]
    assert [row["id"] for row in found] == list(np.argsort(-products)[:5])
    store.train(TRAINING, vectors=np.tile(vectors, (3, 1)), progress=False)
    store.add([{"id": 20, "text": "new", "vector": vectors[20]}])
    assert len(store) == 21 and store.table.count_rows(store.columns.raw_filter) == 0
    assert store.verify(progress=False).ok


def test_tables_of_many_vectors_whose_codes_are_of_whole_vectors(tmp_path: Path) -> None:
    fifth = Path(shutil.copytree(Path(__file__).parent / "fifth", tmp_path / "fifth"))
    store = opened(fifth, "many")
    lengths, query = np.load(fifth / "lengths.npy"), np.load(fifth / "query.npy")
    rows = sorted(store.search().select(["id", "vector"]).to_list(), key=lambda row: row["id"])
    assert [len(row["vector"]) for row in rows] == lengths.tolist()
    decoded = np.concatenate([np.array(row["vector"]) for row in rows])
    np.testing.assert_allclose(decoded, np.load(fifth / "many_vectors.npy"), **CLOSE)
    found = {row["id"]: row["_distance"] for row in store.search(query).limit(50).to_list()}
    expected = {int(row): distance for row, distance in np.load(fifth / "distances.npy")}
    assert found == {row: pytest.approx(distance, abs=1e-4) for row, distance in expected.items()}
    assert not store.codecs.metadata.multi_vector.encoding.subtract_mean
    assert store.codec.encodes is None and store.stats().codes_of == "whole vectors"
    with pytest.warns(UserWarning, match="codes only"):
        store.retrain(TRAINING, vectors=[row["vector"] for row in rows] * 8, progress=False)
    assert len(store) == 50 and store.verify().ok
