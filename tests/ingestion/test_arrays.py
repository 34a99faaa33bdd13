"""Vectors in .npy files with their other columns beside them."""

import numpy as np
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_sources import DIM, identities, read, rows_of

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.ingestion.files import open_array

ROWS = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arrays")
    rows = rows_of(ROWS)
    np.save(folder / "vectors.npy", vectors_of(rows))
    pq.write_table(rows.drop_columns("vector"), folder / "rows.parquet", row_group_size=6)
    csv.write_csv(rows.drop_columns("vector"), folder / "rows.csv")
    return folder


def vectors_of(rows):
    return np.array(rows["vector"].to_pylist(), dtype=np.float32).reshape(-1, DIM)


def opened(path, metadata=None, vector_column="vector"):
    return open_array(str(path), None if metadata is None else str(metadata), vector_column, None)


@given(
    start=st.integers(0, ROWS), batch_rows=st.integers(1, 50), metadata=st.sampled_from(["parquet", "csv"])
)
def test_rows_go_together_from_any_start(folder, start, batch_rows, metadata):
    source = opened(folder / "vectors.npy", folder / f"rows.{metadata}")
    assert source.schema.names == ["id", "text", "vector"]
    chunks = list(source.pieces[0].read(start, ["vector", "id", "text"], batch_rows))
    assert all(0 < chunk.rows.num_rows <= batch_rows for chunk in chunks)
    found = [row for chunk in chunks for row in chunk.rows.to_pylist()]
    assert found == [
        {"id": row["id"], "text": row["text"], "vector": row["vector"]}
        for row in rows_of(ROWS).slice(start).to_pylist()
    ]
    assert sum(chunk.source_bytes for chunk in chunks) == (ROWS - start) * DIM * 4


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("numbers", ["float16", "float64", ">f4", "int8", "uint16"])
def test_vectors_alone_in_any_numbers_and_order(tmp_path, numbers, order):
    vectors = np.arange(60).reshape(12, 5).astype(numbers, order=order)
    np.save(tmp_path / "v.npy", vectors)
    source = opened(tmp_path / "v.npy", vector_column="embedding")
    assert source.schema.field("embedding").type.list_size == 5
    found = read(source.pieces[0], 7, ["embedding"], 2)
    assert found["embedding"].to_pylist() == vectors[7:].tolist()


def test_known_again_until_one_of_the_files_changes(folder, tmp_path):
    before = identities(opened(folder / "vectors.npy", folder / "rows.csv"))
    assert before == identities(opened(folder / "vectors.npy", folder / "rows.csv"))
    assert before != identities(opened(folder / "vectors.npy", folder / "rows.parquet"))


def test_metadata_that_does_not_fit(folder, tmp_path):
    pq.write_table(rows_of(ROWS - 1).drop_columns("vector"), tmp_path / "short.parquet")
    with pytest.raises(InvalidInputError, match="39 rows for the 40 vectors"):
        opened(folder / "vectors.npy", tmp_path / "short.parquet")
    with pytest.raises(InvalidInputError, match="has a column 'id'"):
        opened(folder / "vectors.npy", folder / "rows.csv", vector_column="id")
    pq.write_table(rows_of(1), tmp_path / "more.parquet")
    with pytest.raises(InvalidInputError, match="2 files, as metadata"):
        opened(folder / "vectors.npy", tmp_path)


@pytest.mark.parametrize(
    ("array", "problem"),
    [
        (np.zeros(3), "shape"),
        (np.zeros((2, 0)), "shape"),
        (np.zeros((2, 2, 2)), "shape"),
        (np.zeros((2, 2), dtype=complex), "complex"),
        (np.zeros((2, 2), dtype="U3"), "U3"),
        (np.zeros((2, 2), dtype=[("é", "f4")]), "records|shape|array of"),
    ],
)
def test_arrays_that_hold_no_vectors(tmp_path, array, problem):
    np.save(tmp_path / "v.npy", array)
    with pytest.raises(InvalidInputError, match=problem):
        opened(tmp_path / "v.npy")


def test_files_that_are_no_arrays(tmp_path):
    with pytest.raises(InvalidInputError, match="cannot be read"):
        opened(tmp_path / "absent.npy")
    (tmp_path / "text.npy").write_text("not an array at all")
    with pytest.raises(InvalidInputError, match="cannot be read"):
        opened(tmp_path / "text.npy")
