"""A small run of the ingestion benchmark, and the synthetic rows that it ingests."""

import io
import json
import tempfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.ingest_benchmark import (
    IngestBenchmarkSettings,
    benchmark_ingest,
    ingest_table,
    synthetic_rows,
    vectors_of,
    write_parquet,
)

TRAINING = TrainConfig(epochs=0, progress=False, device="cpu")

SMALL = {
    "rows": 3_000, "dim": 32, "config": CodecConfig(kind="rq", code_bytes=4, codebook_size=16, beam=1),
    "training": TRAINING, "training_rows": 500, "encoded_rows": 500, "commit_rows": 1_000,
}  # fmt: skip


def run(**changes):
    settings = IngestBenchmarkSettings(**{**SMALL, **changes})
    return benchmark_ingest(settings, Console(file=io.StringIO()))


def test_everything_is_measured(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    report = run()
    assert (report.rows, report.dim, report.codec, report.code_bytes) == (3_000, 32, "rq", 4)
    assert report.parquet_bytes > 3_000 * 32 * 4
    assert report.rows_per_second == pytest.approx(3_000 / report.seconds)
    before, after = report.encode_rows_per_second
    assert report.rows_per_second / report.share_of_encoding == pytest.approx(2 / (1 / before + 1 / after))
    assert len(report.memory_quarters) == 4
    assert max(growth for _, growth in report.memory_seconds) == max(report.memory_quarters)
    assert 4 < report.disk_bytes_per_row < 32 * 4
    assert json.loads(json.dumps(report.to_dict()))["share_of_encoding"] == report.share_of_encoding
    assert "3,000 rows of dimension 32" in ingest_table(report).title
    assert list(tmp_path.iterdir()) == []


def test_raw_rows_take_their_vectors() -> None:
    assert run(encode=False).disk_bytes_per_row > 32 * 4


def test_a_codec_that_is_there(tmp_path) -> None:
    from small_codecs import DIM, as_codec, small_config, stirred

    as_codec(stirred(small_config())).save(tmp_path / "codec")
    report = run(codec=tmp_path / "codec", rows=500)
    assert (report.dim, report.codec) == (DIM, "rqmoe")


def test_settings_that_cannot_be_used() -> None:
    with pytest.raises(InvalidInputError, match="rows=0"):
        run(rows=0)
    with pytest.raises(InvalidInputError, match="TMPDIR"):
        run(rows=10**13)


def test_fewer_rows_are_the_first_of_more() -> None:
    few, many = (pa.concat_tables(synthetic_rows(rows, dim=6, seed=3)) for rows in (100, 9_000))
    assert few.equals(many.slice(0, 100))
    assert many["id"].to_pylist() == list(range(9_000))
    assert {len(text) for text in few["text"].to_pylist()} == {100}
    assert len(set(many["text"].to_pylist())) == 9_000
    other = pa.concat_tables(synthetic_rows(100, dim=6, seed=4))
    assert not few["vector"].equals(other["vector"])


def test_vectors_are_clustered() -> None:
    (table,) = synthetic_rows(2_000, dim=32, seed=0)
    vectors = vectors_of(table)
    assert vectors.shape == (2_000, 32)
    nearest = sorted(((vectors[1:] - vectors[0]) ** 2).sum(axis=1))
    assert nearest[0] < nearest[1_000] / 2


def test_files(tmp_path) -> None:
    size = write_parquet(tmp_path, 20_000, dim=4, seed=0, rows_per_file=8_192)
    paths = sorted(tmp_path.iterdir())
    assert [pq.read_metadata(path).num_rows for path in paths] == [8_192, 8_192, 3_616]
    assert size == sum(path.stat().st_size for path in paths)
    assert pq.read_table(tmp_path)["id"].to_pylist() == list(range(20_000))
