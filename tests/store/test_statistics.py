"""stats(): what is measured is what is on disk and in the codes."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from rqmoe_store.tables import compress

CODE_BYTES = 4
DIM = 16


def test_sizes_are_measured(store, codec):
    stats = store.stats()
    files = [path for path in Path(store.table.uri).rglob("*") if path.is_file()]
    assert stats.disk_bytes == sum(path.stat().st_size for path in files)
    assert (stats.rows, stats.dim, stats.raw_bytes) == (300, DIM, 300 * DIM * 4)
    assert 300 * CODE_BYTES <= stats.code_disk_bytes < stats.disk_bytes
    assert stats.bytes_per_vector == stats.code_disk_bytes / 300
    assert stats.compression_ratio == pytest.approx(stats.raw_bytes / stats.code_disk_bytes)
    artifact = codec.to_artifact()
    assert stats.codec_bytes == len(artifact.weights) + len(artifact.config_json)
    assert stats.bytes_per_vector_with_codec == pytest.approx(
        stats.bytes_per_vector + stats.codec_bytes / 300
    )


def test_from_the_break_even_on_codes_and_codec_are_smaller(store, docs_table, vectors):
    stats = store.stats()
    assert stats.break_even_rows is not None

    def with_codec(rows):
        return rows * stats.bytes_per_vector + stats.codec_bytes

    assert with_codec(stats.break_even_rows) <= stats.break_even_rows * DIM * 4
    assert with_codec(stats.break_even_rows - 1) > (stats.break_even_rows - 1) * DIM * 4
    assert f"from {stats.break_even_rows:,} rows" in str(stats)


def test_codes_as_large_as_the_vectors_never_pay(db, vector_array, make_codec):
    codec = make_codec(code_bytes=4 * DIM)
    rows = np.random.default_rng(0).normal(size=(50, DIM)).astype(np.float32)
    docs = db.create_table("docs", pa.table({"vector": vector_array(rows)}))
    stats = compress(docs, codec, "store", progress=False).stats()
    assert stats.bytes_per_vector > 4 * DIM
    assert stats.break_even_rows is None
    assert "never" in str(stats)


def test_sizes_follow_the_table(store, vectors, docs_table):
    before = store.stats()
    store.add(docs_table(vectors))
    after = store.stats()
    assert after.rows == 600
    assert after.code_disk_bytes >= before.code_disk_bytes + 300 * CODE_BYTES
    assert after.disk_bytes > before.disk_bytes


def test_quality_comes_from_training(store, codec):
    stats = store.stats()
    assert stats.mse_estimate == codec.report.validation_mse
    assert stats.relative_mse == pytest.approx(codec.report.validation_mse / codec.report.variance)
    assert 0 < stats.relative_mse < 1


def test_utilisation_counts_stored_codewords(docs, db, plain_codec, vectors):
    store = compress(docs, plain_codec, "store", progress=False)
    codes = plain_codec.encode(vectors).codes
    expected = np.mean([len(set(codes[:, step])) / 16 for step in range(CODE_BYTES)])
    assert store.stats().codeword_utilisation == pytest.approx(expected)
    store.delete("id > 0")
    assert store.stats().codeword_utilisation == pytest.approx(1 / 16)


def test_an_empty_table_and_rows_without_vectors(store):
    store.delete("true")
    stats = store.stats()
    assert (stats.rows, stats.raw_bytes, stats.bytes_per_vector) == (0, 0, 0.0)
    assert (stats.compression_ratio, stats.codeword_utilisation) == (0.0, 0.0)
    assert (stats.bytes_per_vector_with_codec, stats.break_even_rows) == (0.0, None)
    assert "unknown without rows" in str(stats)
    store.add([{"id": 1, "vector": None}])
    assert store.stats().codeword_utilisation == 0.0


def test_stats_are_frozen_and_readable(store):
    stats = store.stats()
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.rows = 1  # type: ignore[misc]
    text = str(stats)
    for expected in ("300", "per vector", "to 1", "of the variance", "codewords in use"):
        assert expected in text
    large = str(dataclasses.replace(stats, raw_bytes=123_456_789_000, disk_bytes=10**17))
    assert "123,456.8 MB" in large or "123.5 GB" in large
    assert "100,000.0 TB" in large
