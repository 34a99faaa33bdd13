"""Synthetic rows: the same rows for a seed, in files of bounded size."""

import pyarrow as pa
import pyarrow.parquet as pq

from rqmoe_store.evaluation.ingest_benchmark import synthetic_rows, vectors_of, write_parquet


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
