"""Files and arrays of every format: the same rows from any start, and the same pieces again."""

import gzip
import os

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.dataset as pads
import pyarrow.feather as feather
import pyarrow.orc as orc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_sources import DIM, all_rows, identities, read, rows_of

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.ingestion.files import dataset_at, open_array, open_files

ROWS = 50


def opened(path):
    return open_files(*dataset_at(str(path), None))


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    """A file of 50 rows in row groups of 7."""
    path = tmp_path_factory.mktemp("parquet") / "rows.parquet"
    pq.write_table(rows_of(ROWS), path, row_group_size=7)
    return path


def write(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(rows, path)
    elif path.suffix == ".arrow":
        feather.write_feather(rows, path)
    elif path.suffix == ".orc":
        orc.write_table(rows.set_column(2, "vector", rows["vector"].cast(pa.list_(pa.float32()))), path)
    else:
        lines = "\n".join(str(row).replace("'", '"') for row in rows.to_pylist())
        with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w") as file:
            file.write(lines)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.orc", "a.jsonl", "a.jsonl.gz"])
def test_every_format_gives_its_rows(tmp_path, name):
    write(tmp_path / name, rows_of(ROWS))
    source = opened(tmp_path / name)
    assert set(source.schema.names) == {"id", "text", "vector"}
    (piece,) = source.pieces
    assert piece.source_bytes == (tmp_path / name).stat().st_size
    expected = rows_of(ROWS).to_pylist()
    assert [row["id"] for row in read(piece).to_pylist()] == list(range(ROWS))
    for start in (0, 17, ROWS - 1):
        found = read(piece, start, batch_rows=9)
        assert found["text"].to_pylist() == [row["text"] for row in expected[start:]]
        np.testing.assert_allclose(found["vector"].to_pylist(), [row["vector"] for row in expected[start:]])


@given(start=st.integers(0, ROWS), batch_rows=st.integers(1, 60))
def test_parquet_from_any_row(parquet, start, batch_rows):
    (piece,) = opened(parquet).pieces
    expected = rows_of(ROWS).slice(start)
    chunks = list(piece.read(start, ["id", "vector"], batch_rows))
    assert all(0 < chunk.rows.num_rows <= batch_rows for chunk in chunks)
    ids = [row for chunk in chunks for row in chunk.rows["id"].to_pylist()]
    assert ids == expected["id"].to_pylist()
    share = sum(chunk.source_bytes for chunk in chunks)
    assert share == pytest.approx(piece.source_bytes * (ROWS - start) / ROWS, abs=len(chunks))


def test_only_the_columns_asked_for(parquet):
    (piece,) = opened(parquet).pieces
    assert read(piece, columns=["vector", "id"]).schema.names == ["vector", "id"]
    assert read(piece, columns=["id", "absent"]).schema.names == ["id"]


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path):
    for name, first in {"b.parquet": 20, "a.parquet": 0, "c/d.parquet": 30}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, rows_of(10, first))
    for name in ("_SUCCESS", ".hidden.parquet", "_metadata/x.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"no rows")
    source = opened(tmp_path)
    assert [os.path.basename(piece.name) for piece in source.pieces] == [
        "a.parquet",
        "b.parquet",
        "d.parquet",
    ]
    assert all_rows(source)["id"].to_pylist() == [*range(10), *range(20, 40)]


@pytest.mark.parametrize("kind", ["parquet", "ipc"])
def test_columns_that_folders_name(tmp_path, kind):
    rows = rows_of(20).append_column("lang", pa.array(["en", "de"] * 10))
    partitioning = pads.partitioning(pa.schema([("lang", pa.string())]), flavor="hive")
    pads.write_dataset(rows, tmp_path, format=kind, partitioning=partitioning)
    source = opened(tmp_path)
    assert source.schema.field("lang").type == pa.string()
    german = read(source.pieces[0], 3, ["lang", "id"])
    assert german["lang"].to_pylist() == ["de"] * 7
    assert german["id"].to_pylist() == list(range(7, 20, 2))


def test_pieces_are_known_again_until_they_change(tmp_path):
    for name in ("a.parquet", "b.parquet"):
        write(tmp_path / name, rows_of(10))
    before = identities(opened(tmp_path))
    assert len(set(before)) == 2
    write(tmp_path / "aa.parquet", rows_of(10))
    os.utime(tmp_path / "b.parquet", ns=(0, 1))
    after = identities(opened(tmp_path))
    assert after[0] == before[0]
    assert after[2][0] == before[1][0] and after[2][1] != before[1][1]


def test_datasets_and_unions_of_them(tmp_path):
    for name, first in {"one/a.parquet": 0, "two/b.parquet": 10}.items():
        (tmp_path / name).parent.mkdir()
        write(tmp_path / name, rows_of(10, first))
    one, two = (pads.dataset(tmp_path / name) for name in ("one", "two"))
    source = open_files(pads.dataset([two, one]))
    assert all_rows(source)["id"].to_pylist() == list(range(20))
    assert source.location == f"files {tmp_path}"
    assert identities(source)[:1] == identities(opened(tmp_path / "one"))
    with pytest.raises(InvalidInputError, match="twice"):
        open_files(pads.dataset([one, one]))
    with pytest.raises(InvalidInputError, match=r"to_reader"):
        open_files(one.filter(pads.field("id") > 3))
    with pytest.raises(InvalidInputError, match="InMemoryDataset"):
        open_files(pads.dataset(rows_of(3)))


def test_notes_of_the_file_format_are_left_out(tmp_path):
    metadata = {"PARQUET:field_id": "7", "unit": "metres"}
    field = pa.field("height", pa.float64(), metadata=metadata)
    pq.write_table(pa.table([[1.5]], schema=pa.schema([field], metadata={"a": "b"})), tmp_path / "a.parquet")
    schema = opened(tmp_path / "a.parquet").schema
    assert schema.metadata is None
    assert schema.field("height").metadata == {b"unit": b"metres"}


def test_what_cannot_be_read(tmp_path):
    with pytest.raises(InvalidInputError, match="nothing at"):
        opened(tmp_path / "absent.parquet")
    with pytest.raises(InvalidInputError, match="0 files"):
        opened(tmp_path)
    write(tmp_path / "a.parquet", rows_of(3))
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(InvalidInputError, match=r"\.parquet, \.txt"):
        opened(tmp_path)
    (tmp_path / "notes.txt").rename(tmp_path / "broken.parquet")
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(InvalidInputError, match="cannot be read"):
        opened(tmp_path)


COUNT = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arrays")
    rows = rows_of(COUNT)
    np.save(folder / "vectors.npy", vectors_of(rows))
    pq.write_table(rows.drop_columns("vector"), folder / "rows.parquet", row_group_size=6)
    csv.write_csv(rows.drop_columns("vector"), folder / "rows.csv")
    return folder


def vectors_of(rows):
    return np.array(rows["vector"].to_pylist(), dtype=np.float32).reshape(-1, DIM)


def opened_arrays(path, metadata=None, vector_column="vector"):
    return open_array(str(path), None if metadata is None else str(metadata), vector_column, None)


@given(
    start=st.integers(0, COUNT), batch_rows=st.integers(1, 50), metadata=st.sampled_from(["parquet", "csv"])
)
def test_rows_go_together_from_any_start(folder, start, batch_rows, metadata):
    source = opened_arrays(folder / "vectors.npy", folder / f"rows.{metadata}")
    assert source.schema.names == ["id", "text", "vector"]
    chunks = list(source.pieces[0].read(start, ["vector", "id", "text"], batch_rows))
    assert all(0 < chunk.rows.num_rows <= batch_rows for chunk in chunks)
    found = [row for chunk in chunks for row in chunk.rows.to_pylist()]
    assert found == [
        {"id": row["id"], "text": row["text"], "vector": row["vector"]}
        for row in rows_of(COUNT).slice(start).to_pylist()
    ]
    assert sum(chunk.source_bytes for chunk in chunks) == (COUNT - start) * DIM * 4


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("numbers", ["float16", "float64", ">f4", "int8", "uint16"])
def test_vectors_alone_in_any_numbers_and_order(tmp_path, numbers, order):
    vectors = np.arange(60).reshape(12, 5).astype(numbers, order=order)
    np.save(tmp_path / "v.npy", vectors)
    source = opened_arrays(tmp_path / "v.npy", vector_column="embedding")
    assert source.schema.field("embedding").type.list_size == 5
    found = read(source.pieces[0], 7, ["embedding"], 2)
    assert found["embedding"].to_pylist() == vectors[7:].tolist()


def test_known_again_until_one_of_the_files_changes(folder, tmp_path):
    before = identities(opened_arrays(folder / "vectors.npy", folder / "rows.csv"))
    assert before == identities(opened_arrays(folder / "vectors.npy", folder / "rows.csv"))
    assert before != identities(opened_arrays(folder / "vectors.npy", folder / "rows.parquet"))


def test_metadata_that_does_not_fit(folder, tmp_path):
    pq.write_table(rows_of(COUNT - 1).drop_columns("vector"), tmp_path / "short.parquet")
    with pytest.raises(InvalidInputError, match="39 rows for the 40 vectors"):
        opened_arrays(folder / "vectors.npy", tmp_path / "short.parquet")
    with pytest.raises(InvalidInputError, match="has a column 'id'"):
        opened_arrays(folder / "vectors.npy", folder / "rows.csv", vector_column="id")
    pq.write_table(rows_of(1), tmp_path / "more.parquet")
    with pytest.raises(InvalidInputError, match="2 files, as metadata"):
        opened_arrays(folder / "vectors.npy", tmp_path)


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
        opened_arrays(tmp_path / "v.npy")


def test_files_that_are_no_arrays(tmp_path):
    with pytest.raises(InvalidInputError, match="cannot be read"):
        opened_arrays(tmp_path / "absent.npy")
    (tmp_path / "text.npy").write_text("not an array at all")
    with pytest.raises(InvalidInputError, match="cannot be read"):
        opened_arrays(tmp_path / "text.npy")
