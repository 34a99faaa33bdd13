"""Vectors from files and tables: rows, order, and refused input."""

import lancedb
import numpy as np
import pyarrow as pa
import pytest

from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.evaluation.data import VectorSource, read_all

ROWS = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)


def read(location, rows=100, column="numbers", metric="l2"):
    return VectorSource.open("--vectors", str(location), column).read(rows=rows, metric=metric, seed=5)


@pytest.fixture
def file(tmp_path):
    np.save(tmp_path / "rows.npy", ROWS)
    return tmp_path / "rows.npy"


@pytest.fixture
def table(tmp_path):
    """The rows, with two nulls among them; LanceDB would refuse those in a column called "vector"."""
    values = [row.tolist() for row in ROWS]
    values[3:3] = [None, None]
    column = pa.array(values, type=pa.list_(pa.float32(), 3))
    lancedb.connect(tmp_path / "db").create_table("docs", pa.table({"id": range(52), "numbers": column}))
    return tmp_path / "db" / "docs.lance"


def test_a_file_keeps_its_order(file) -> None:
    vectors, rows = read(file)
    np.testing.assert_array_equal(vectors, ROWS)
    assert rows == 50


def test_rows_drawn_from_a_file_keep_its_order_too(file) -> None:
    vectors, rows = read(file, rows=20)
    positions = [int(np.flatnonzero((vector == ROWS).all(axis=1))[0]) for vector in vectors]
    assert rows == 50 and len(positions) == 20
    assert positions == sorted(positions)
    assert positions != list(range(20)) and positions != list(range(30, 50))
    np.testing.assert_array_equal(read(file, rows=20)[0], vectors)


def test_a_table_gives_its_vectors_without_nulls(table) -> None:
    for location in (table, f"{table}/"):
        vectors, rows = read(location)
        assert rows == 52
        assert sorted(map(tuple, vectors)) == sorted(map(tuple, ROWS))
    assert len(read(table, rows=10)[0]) <= 10


def test_a_table_in_the_working_directory(table, monkeypatch) -> None:
    monkeypatch.chdir(table.parent)
    assert len(read("docs.lance")[0]) == 50


def test_cosine_scales_to_unit_length(file) -> None:
    np.testing.assert_allclose(np.linalg.norm(read(file, metric="cosine")[0], axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("name", ["rows.txt", "rows", "docs", "rows.npz"])
def test_neither_file_nor_table(name) -> None:
    with pytest.raises(InvalidInputError, match=r"expected a \.npy file, or a LanceDB table"):
        read(name)


def test_missing_and_unreadable(tmp_path) -> None:
    with pytest.raises(InvalidInputError, match=r"Cannot read --vectors '.*no\.npy'"):
        read(tmp_path / "no.npy")
    (tmp_path / "bad.npy").write_bytes(b"no array")
    with pytest.raises(InvalidInputError, match="Cannot read"):
        read(tmp_path / "bad.npy")
    with pytest.raises(TableError, match="There is no table"):
        read(tmp_path / "nowhere" / "docs.lance")
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "empty.lance").mkdir()
    with pytest.raises(TableError, match="There is no table"):
        read(tmp_path / "empty.lance")


def test_messages_name_the_source(table, tmp_path) -> None:
    with pytest.raises(TableError, match=r"--vectors '.*docs\.lance': .*no column 'embedding'"):
        read(table, column="embedding")
    with pytest.raises(TableError, match="expected a list"):
        read(table, column="id")
    np.save(tmp_path / "flat.npy", ROWS[0])
    with pytest.raises(InvalidInputError, match=r"--vectors '.*flat\.npy': .*two dimensions"):
        read(tmp_path / "flat.npy")
    np.save(tmp_path / "nan.npy", np.where(np.arange(50)[:, None] == 7, np.nan, ROWS))
    with pytest.raises(InvalidInputError, match="rows 7"):
        read(tmp_path / "nan.npy")


def test_all_are_opened_before_any_is_read(file, table, tmp_path) -> None:
    wanted = {"--vectors": (str(table), 100), "--queries": (str(file), 20)}
    read = read_all(wanted, vector_column="numbers", metric="l2", seed=5)
    assert [len(read[option][0]) for option in wanted] == [50, 20]
    assert [read[option][1] for option in wanted] == [52, 50]
    np.save(tmp_path / "nan.npy", np.full((2, 3), np.nan))
    wanted = {"--vectors": (str(tmp_path / "nan.npy"), 100), "--queries": ("missing.npy", 20)}
    with pytest.raises(InvalidInputError, match="Cannot read --queries"):
        read_all(wanted, vector_column="numbers", metric="l2", seed=5)
