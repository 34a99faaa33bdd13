"""What codecs say they are of: whole vectors, or what the means of rows leave over."""

import dataclasses
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest

import rqmoe_store as rqs
from rqmoe_store.codecs.subject import RowResiduals
from rqmoe_store.errors import InvalidInputError

DIM = 8
CONFIG = rqs.CodecConfig(kind="rq", metric="cosine", code_bytes=4, codebook_size=16)
ENCODING = rqs.MultiVectorConfig(code_bytes=16, num_repetitions=4, num_hyperplanes=2)
QUICK = rqs.TrainConfig(epochs=0, progress=False)
SCHEMA = pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.list_(pa.float32(), DIM)))])
MATRICES = [
    (center + 0.3 * np.random.default_rng([1, row]).normal(size=(row % 5 + 2, DIM))).astype(np.float32)
    for row, center in enumerate(np.random.default_rng(0).normal(size=(300, DIM)))
]
"""The vectors of rows, around a center of each row."""


@pytest.fixture
def db(tmp_path):
    return lancedb.connect(tmp_path)


def rows_of(matrices) -> pa.Table:
    vectors = pa.array([each.tolist() for each in matrices], SCHEMA.field("vector").type)
    return pa.table({"id": range(len(matrices)), "vector": vectors})


def trained(db, metric="cosine"):
    """A table whose codes are of residuals."""
    config = dataclasses.replace(CONFIG, metric=metric)
    table = rqs.create_table(
        db, "trained", rows_of(MATRICES), schema=SCHEMA, config=config, multi_vector=ENCODING
    )
    table.train(QUICK, progress=False)
    return table


@pytest.fixture
def store(db):
    return trained(db)


def errors_of(table, metric) -> float:
    """Mean squared distance of decoded vectors to the given ones."""
    found = {row["id"]: np.array(row["vector"]) for row in table.search().select(["id", "vector"]).to_list()}
    units = [
        each / np.linalg.norm(each, axis=1, keepdims=True) if metric == "cosine" else each
        for each in MATRICES
    ]
    return np.mean([np.square(found[row] - each).sum(axis=1).mean() for row, each in enumerate(units)])


@pytest.mark.filterwarnings("ignore:.*codes only")
@pytest.mark.parametrize("metric", ["cosine", "dot"])
def test_a_codec_of_residuals_makes_another_table_of_residuals(db, metric):
    table = trained(db, metric)
    codec = table.codec
    assert codec.encodes == RowResiduals(metric=metric, encoding=ENCODING)
    assert "encodes='residuals of row means'" in repr(codec)
    assert table.stats().codes_of == "residuals of row means"
    codec.save(Path(db.uri) / "codec")
    kept = rqs.load_codec(Path(db.uri) / "codec")
    assert kept.encodes == kept.truncate(2).encodes == codec.encodes
    docs = db.create_table("docs", rows_of(MATRICES))
    rqs.compress(docs, kept, into="packed", progress=False)
    rqs.ingest(docs, (db, "ingested"), codec=kept, progress=False)
    for name in ("packed", "ingested"):
        copy = rqs.open_table(db, name)
        assert copy.metric == metric and copy.codec.fingerprint == codec.fingerprint
        assert copy.handle.metadata.multi_vector.encoding == ENCODING
        assert errors_of(copy, metric) < 1.05 * errors_of(table, metric)
        assert copy.verify(progress=False).ok
    copy.add(rows_of(MATRICES[:20]))
    further = copy.retrain(QUICK, vectors=MATRICES, start=kept, progress=False)
    assert further.encodes == codec.encodes


@pytest.mark.filterwarnings("ignore:.*codes only")
def test_a_codec_of_something_else_is_refused_before_anything_is_written(db, store):
    codec, vectors = store.codec, np.concatenate(MATRICES)
    whole = rqs.train(
        vectors, config=dataclasses.replace(CONFIG, metric="dot", num_partitions=0), training=QUICK
    )
    assert (whole.encodes, codec.with_subject(None).encodes) == ("vectors", None)
    docs = db.create_table("docs", rows_of(MATRICES))
    single = db.create_table(
        "single", pa.table({"vector": pa.array(vectors.tolist(), pa.list_(pa.float32(), DIM))})
    )
    before, version = sorted(db.list_tables().tables), store.version
    none = dataclasses.replace(ENCODING, subtract_mean=False)
    calls = [
        lambda: rqs.compress(docs, codec, into="new", multi_vector=none, progress=False),
        lambda: rqs.ingest(docs, (db, "new"), codec=codec, multi_vector=none, progress=False),
        lambda: rqs.compress(single, codec, into="new", progress=False),
        lambda: rqs.compress(single, codec, in_place=True, progress=False),
        lambda: rqs.ingest(single, (db, "new"), codec=codec, progress=False),
        lambda: rqs.train(vectors, training=QUICK, start=codec),
        lambda: rqs.train(docs, training=QUICK, start=codec),
        lambda: rqs.add_refine_codes(codec, vectors, refine_bytes=4),
        lambda: rqs.tune_codec(codec, vectors, vectors[:200]),
        lambda: store.retrain(QUICK, vectors=MATRICES, start=whole, progress=False),
    ]
    for call in calls:
        with pytest.raises(InvalidInputError, match="residuals of row means"):
            call()
    assert sorted(db.list_tables().tables) == before and store.version == version
    assert single.schema.names == ["vector"]
    # What a codec of an earlier release is of is unknown: it may go on, and compresses whole vectors.
    unknown = codec.with_subject(None)
    store.retrain(QUICK, vectors=MATRICES, start=unknown, progress=False)
    packed = rqs.compress(docs, unknown, into="packed", progress=False)
    assert packed.stats().codes_of == "whole vectors"
