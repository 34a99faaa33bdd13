"""Tables whose rows have many vectors each, made by ingestions."""

import dataclasses
import functools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import rqmoe_store as rqs
from rqmoe_store.codecs.base import Codec
from rqmoe_store.config import CodecConfig, MultiVectorConfig, TrainConfig
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.ingestion import writer
from rqmoe_store.ingestion.job import ingest

DIM, ROWS = 6, 330
ENCODING = MultiVectorConfig(code_bytes=4, num_repetitions=2, num_hyperplanes=2, final_dim=None)
BAD = {7: [[1.0] * DIM, [1.0] * (DIM - 1)], 170: [[float("nan")] * DIM], 200: [[1.0] * DIM, None]}
"""Rows of another dimension, with NaN, with a null."""
EMPTY = {3: [], 180: None}


@functools.cache
def many_rows() -> list[list[list[float]] | None]:
    random = np.random.default_rng(0)
    lists = [random.normal(size=(1 + row % 4, DIM)).tolist() for row in range(ROWS)]
    return [EMPTY.get(row, BAD.get(row, each)) for row, each in enumerate(lists)]


def table_of(rows: range) -> pa.Table:
    vectors = pa.array([many_rows()[row] for row in rows], pa.list_(pa.list_(pa.float64())))
    return pa.table({"id": pa.array(rows), "vector": vectors})


@functools.cache
def token_codec(dim: int = DIM, **changes: object) -> Codec:
    settings = {"kind": "rq", "metric": "cosine", "code_bytes": 2, "codebook_size": 16, "num_partitions": 0}
    vectors = np.random.default_rng(1).normal(size=(300, dim)).astype(np.float32)
    training = TrainConfig(epochs=0, progress=False)
    return rqs.train(vectors, config=CodecConfig(**settings | changes), training=training)


@pytest.fixture
def files(tmp_path):
    (tmp_path / "rows").mkdir()
    for number in range(3):
        pq.write_table(table_of(range(number * 110, number * 110 + 110)), tmp_path / f"rows/{number}.parquet")
    return tmp_path / "rows"


def require_all_once(db):
    store = rqs.open_table(db, "docs")
    stored = {row["id"]: row["vector"] for row in store.search().select(["id", "vector"]).to_list()}
    assert store.count_rows() == len(stored) and stored.keys() == set(range(ROWS)) - BAD.keys()
    for row, vectors in stored.items():
        assert len(vectors or []) == len(many_rows()[row] or [])
    quarantined = db.open_table("docs_quarantine").to_arrow()
    assert len(quarantined) == len(BAD)
    assert {110 * int(row["source"][-9]) + row["position"] for row in quarantined.to_pylist()} == set(BAD)
    assert store.stats().raw_rows == 0 and store.verify(progress=False).ok
    return store


def test_files_become_a_table_and_are_found(files, db):
    settings = {"codec": token_codec(), "multi_vector": ENCODING, "progress": False}
    report = ingest(files, (db, "docs"), **settings)
    assert (report.rows, report.quarantined) == (ROWS - len(BAD), len(BAD))
    store = require_all_once(db)
    assert store.codec.fingerprint == token_codec().fingerprint
    whole = dataclasses.replace(ENCODING, subtract_mean=False)  # as the codec was trained
    assert store.handle.metadata.multi_vector.encoding == whole
    for row in (0, 42, 329):
        found = store.search(np.array(many_rows()[row])).shortlist(ROWS).limit(3).to_list()
        assert row in [hit["id"] for hit in found]
    again = ingest(files, (db, "docs"), **settings)
    assert again.rows == 0 and again.skipped == 3
    require_all_once(db)


class Lost(BaseException):
    """A process that is lost."""


def test_a_lost_ingestion_goes_on_where_it_stopped(files, db, monkeypatch):
    settings = {"codec": token_codec(), "multi_vector": ENCODING, "commit_rows": 50, "progress": False}
    for lost_at in (1, 3):
        calls, real = [], writer.commit_rows

        def commit(*arguments, calls=calls, real=real, lost_at=lost_at):
            calls.append(1)
            if len(calls) == lost_at:
                raise Lost
            return real(*arguments)

        with monkeypatch.context() as patch, pytest.raises(Lost):
            patch.setattr(writer, "commit_rows", commit)
            ingest(files, (db, "docs"), **settings)
    assert rqs.open_table(db, "docs").count_rows() > 0
    ingest(files, (db, "docs"), **settings)
    require_all_once(db)


def test_streams_are_looked_at_before_they_are_read(db):
    batches = iter(table_of(range(ROWS)).to_batches(40))
    reader = pa.RecordBatchReader.from_batches(table_of(range(0)).schema, batches)
    report = ingest(reader, (db, "docs"), codec=token_codec(), multi_vector=ENCODING, progress=False)
    assert report.rows == ROWS - len(BAD)
    ids = rqs.open_table(db, "docs").search().select(["id"]).to_arrow()["id"].to_pylist()
    assert sorted(ids) == sorted(set(range(ROWS)) - BAD.keys())


def test_bad_rows_can_be_an_error(files, db):
    with pytest.raises(InvalidInputError, match=r"Row 7 of .*0\.parquet"):
        ingest(files, (db, "docs"), codec=token_codec(), on_bad_rows="error", progress=False)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"codec": None}, TableError, "without a codec"),
        ({"codec": {"dim": DIM + 1}}, InvalidInputError, "dimension"),
        ({"codec": {"metric": "l2"}}, InvalidInputError, "metric='l2'"),
        ({"codec": {"num_partitions": 2}}, InvalidInputError, "num_partitions=2"),
        ({"source": table_of(range(8, 9))}, TableError, "Add rows"),
        ({"source": pa.table({"vector": [[1.0] * DIM]})}, InvalidInputError, "one vector each"),
        ({"columns": ["other"]}, InvalidInputError, "no columns"),
    ],
)
def test_what_makes_no_table(db, changes, error, message):
    settings = {"source": table_of(range(ROWS)), "codec": {}, "multi_vector": ENCODING} | changes
    if settings["codec"] is not None:
        settings["codec"] = token_codec(**settings["codec"])
    with pytest.raises(error, match=message):
        ingest(**settings, into=(db, "docs"), progress=False)
    assert "docs" not in db.list_tables().tables


def test_another_codec_than_the_table_has(files, db):
    settings = {"into": (db, "docs"), "multi_vector": ENCODING, "progress": False}
    ingest(files, codec=token_codec(), **settings)
    with pytest.raises(InvalidInputError, match="another one already"):
        ingest(files, codec=token_codec(code_bytes=3), **settings)
