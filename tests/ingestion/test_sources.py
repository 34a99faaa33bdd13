"""Every kind of source is told from what the user passes: files, streams, Lance tables."""

import lance
import lancedb
import numpy as np
import polars
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lancedb.index import BTree
from small_sources import all_rows, identities, read, rows_of

from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.ingestion.sources import open_lance_dataset, open_lance_uri, open_source, open_stream


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    (folder / "files").mkdir()
    pq.write_table(rows_of(10), folder / "files" / "a.parquet")
    np.save(folder / "vectors.npy", np.zeros((10, 4), dtype=np.float32))
    lancedb.connect(folder).create_table("docs", rows_of(10))
    return folder


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda folder: folder / "files", "files"),
        (lambda folder: f"{folder}/files/", "files"),
        (lambda folder: str(folder / "files" / "a.parquet"), "files"),
        (lambda folder: (folder / "files" / "a.parquet").as_uri(), "files"),
        (lambda folder: pads.dataset(folder / "files"), "files"),
        (lambda folder: folder / "vectors.npy", "array"),
        (lambda folder: folder / "docs.lance", "lance"),
        (lambda folder: lancedb.connect(folder).open_table("docs"), "lance"),
        (lambda folder: lancedb.connect(folder).open_table("docs").to_lance(), "lance"),
        (lambda folder: rows_of(10), "stream"),
    ],
)
def test_kinds(folder, make, kind):
    source = open_source(make(folder), vector_column="vector", job="mine")
    assert source.location.split()[0] == kind
    assert sum(len(list(piece.read(0, ["id", "vector"], 1000))) for piece in source.pieces) == 1


def test_one_place_is_one_location(folder, monkeypatch):
    monkeypatch.chdir(folder)
    locations = {
        open_source(name, vector_column="vector").location
        for name in ("files", "./files/", folder / "files", pads.dataset(str(folder / "files")))
    }
    assert locations == {f"files {folder / 'files'}"}
    tables = {
        open_source(name, vector_column="vector").location
        for name in ("docs.lance", folder / "docs.lance", lancedb.connect(folder).open_table("docs"))
    }
    assert len(tables) == 1


def test_arguments_that_belong_to_other_sources(folder):
    with pytest.raises(InvalidInputError, match="metadata='x'"):
        open_source(folder / "files", vector_column="vector", metadata="x")
    for source in (rows_of(1), folder / "files"):
        with pytest.raises(InvalidInputError, match="storage_options"):
            open_source(source, vector_column="vector", storage_options={"region": "x"})
    with pytest.raises(InvalidInputError, match="type int"):
        open_source(3, vector_column="vector")


# Patterns and several paths.


@pytest.fixture
def tree(tmp_path):
    """Files of one row each: a/0 to a/2, a/deep/3, b/4, one that is hidden, and one named like a pattern."""
    for row, name in enumerate(["a/0", "a/1", "a/2", "a/deep/3", "b/4", "a/_5", "[ab]6"]):
        path = tmp_path / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows_of(1, row), path)
        np.save(path.with_suffix(".npy"), np.full((1, 4), row, dtype=np.float32))
    return tmp_path


def ids_of(source):
    return [row for piece in source.pieces for row in read(piece)["id"].to_pylist()]


@pytest.mark.parametrize(
    ("names", "ids", "location"),
    [
        ("a/*.parquet", [0, 1, 2], "/a"),
        ("a/[01].parquet", [0, 1], "/a"),
        ("a/?.parquet", [0, 1, 2], "/a"),
        ("*/*.parquet", [0, 1, 2, 4], ""),
        ("**/*.parquet", [6, 0, 1, 2, 3, 4], ""),
        ("a/**/[3].parquet", [3], "/a"),
        ("./*/deep/*.parquet", [3], ""),
        ("[ab]6.parquet", [6], "/[ab]6.parquet"),
        (["a/0.parquet"], [0], "/a/0.parquet"),
        (["a/2.parquet", "a/0.parquet"], [0, 2], "/a"),
        (["b/4.parquet", "a/0.parquet"], [0, 4], ""),
        (["a/*.parquet", "b/*.parquet"], [0, 1, 2, 4], ""),
    ],
)
def test_patterns_and_lists(tree, monkeypatch, names, ids, location):
    monkeypatch.chdir(tree)
    listed = [names] if isinstance(names, str) else names
    whole = [str(tree / name) for name in listed]
    uris = [f"file://{path}" for path in whole]
    sources = [names, tuple(listed), set(whole), iter(whole), (tree / name for name in listed)]
    for form in sources:
        source = open_source(form, vector_column="vector")
        assert ids_of(source) == ids
        assert source.location == f"files {tree}{location}"
    assert ids_of(open_source(uris, vector_column="vector")) == ids
    arrays = open_source([name.replace(".parquet", ".npy") for name in listed], vector_column="vector")
    found = [row for piece in arrays.pieces for row in read(piece, columns=["vector"])["vector"].to_pylist()]
    assert found == [[float(row)] * 4 for row in ids]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a/0.parquet", "a/9.parquet"], r"nothing at 'a/9\.parquet'"),
        ("a/*.csv", r"No file matches 'a/\*\.csv'"),
        (["a/0.parquet", "c/*.parquet"], r"No file matches 'c/"),
        ("c/*/x.npy", "No file matches"),
        (["a/0.parquet", "a/*.parquet"], "twice"),
        (["a/0.npy", "a/0.npy"], "twice"),
        (["a/0.parquet", "a/0.npy"], "cannot be read"),
        (["a/0.parquet", "docs.lance"], "expected one of those alone"),
        (["a/0.parquet", 5], "Got int among paths"),
        ("a/*", "endings: .npy, .parquet; expected files of one format"),
    ],
)
def test_paths_that_name_no_source(tree, monkeypatch, names, message):
    monkeypatch.chdir(tree)
    with pytest.raises(InvalidInputError, match=message):
        open_source(names, vector_column="vector")


ROWS = 30


def nested():
    yield rows_of(10)
    yield rows_of(10, 10).to_batches()
    yield rows_of(10, 20).to_reader(4)


KINDS = {
    "table": rows_of(ROWS),
    "reader": rows_of(ROWS).to_reader,
    "batches": lambda: iter(rows_of(ROWS).to_batches(7)),
    "one batch": lambda: rows_of(ROWS).to_batches()[0],
    "nested": nested,
    "pandas": rows_of(ROWS).to_pandas,
    "polars": lambda: polars.from_arrow(rows_of(ROWS)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_everything_that_gives_batches(kind):
    rows = KINDS[kind]() if callable(KINDS[kind]) else KINDS[kind]
    source = open_stream(rows, None, "vector")
    assert source.schema.names == ["id", "text", "vector"]
    assert source.location is None
    assert read(source.pieces[0])["id"].to_pylist() == list(range(ROWS))


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=8),
    data=st.data(),
    batch_rows=st.integers(1, 12),
)
def test_any_batches_from_any_start(sizes, data, batch_rows):
    rows = rows_of(sum(sizes))
    firsts = [sum(sizes[:place]) for place in range(len(sizes))]
    batches = [rows_of(size, first).combine_chunks() for size, first in zip(sizes, firsts, strict=True)]
    start = data.draw(st.integers(0, sum(sizes)))
    (piece,) = open_stream(iter(batches), "mine", "vector").pieces
    chunks = list(piece.read(start, ["id"], batch_rows))
    found = [row for chunk in chunks for row in chunk.rows["id"].to_pylist()]
    assert found == rows.slice(start)["id"].to_pylist()
    assert all(0 < chunk.rows.num_rows <= batch_rows for chunk in chunks)


def test_a_stream_shorter_than_what_was_ingested():
    (piece,) = open_stream(rows_of(ROWS), "mine", "vector").pieces
    with pytest.raises(InvalidInputError, match=r"stream mine has 30 rows, but 31 .* job="):
        read(piece, ROWS + 1)


def test_nothing_is_read_ahead():
    asked = []

    def batches():
        for first in range(0, 100, 10):
            asked.append(first)
            yield rows_of(10, first)

    (piece,) = open_stream(batches(), None, "vector").pieces
    chunks = piece.read(0, ["id"], 1000)
    assert next(chunks).rows.num_rows == 10
    assert asked == [0]


@pytest.mark.parametrize("rows", [3, b"bytes", {"id": 1}, [1, 2], ["a"], [[1]]])
def test_what_is_no_stream(rows):
    with pytest.raises(InvalidInputError, match="expected the path"):
        open_stream(rows, None, "vector")


def test_an_iterator_of_nothing():
    with pytest.raises(InvalidInputError, match="yields nothing"):
        open_stream(iter([]), None, "vector")
    assert open_stream(rows_of(0), None, "vector").schema == rows_of(0).schema


def test_sizes_where_they_are_known():
    assert open_stream(rows_of(5), None, "vector").source_bytes == rows_of(5).nbytes
    assert open_stream(iter([rows_of(5)]), None, "vector").source_bytes is None
    assert (
        open_stream(pa.RecordBatchReader.from_batches(rows_of(0).schema, []), None, "vector").source_bytes
        is None
    )


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Two fragments, of 30 and 20 rows, each without one row that was deleted."""
    table = lancedb.connect(tmp_path_factory.mktemp("lance")).create_table("docs", rows_of(30))
    table.add(rows_of(20, 30))
    table.delete("id in (3, 31)")
    return table


@given(start=st.integers(0, 29), batch_rows=st.integers(1, 40))
def test_rows_from_any_start(table, start, batch_rows):
    first, second = open_lance_uri(table.uri, None).pieces
    left = [row for row in range(30) if row != 3]
    assert read(first, min(start, 28), batch_rows=batch_rows)["id"].to_pylist() == left[min(start, 28) :]
    assert list(first.read(29, ["id"], batch_rows)) == []
    rows = read(second, batch_rows=batch_rows)
    assert rows["id"].to_pylist() == [30, *range(32, 50)]
    assert rows["vector"].to_pylist() == rows_of(50)["vector"].take(rows["id"]).to_pylist()


def test_pieces_are_known_again_until_they_change(tmp_path):
    table = lancedb.connect(tmp_path).create_table("docs", rows_of(10))
    before = open_lance_dataset(table.to_lance())
    table.add(rows_of(10, 10))
    table.create_index("id", config=BTree())
    after = open_lance_uri(table.uri, None)
    assert identities(after)[:1] == identities(before)
    assert len(identities(after)) == 2
    table.delete("id = 3")
    changed = open_lance_uri(table.uri, None)
    assert [key for key, _ in identities(changed)] == [key for key, _ in identities(after)]
    assert [old == new for old, new in zip(identities(after), identities(changed), strict=True)] == [
        False,
        True,
    ]
    again = open_lance_dataset(lance.dataset(table.uri, version=int(before.version_note.split()[-1])))
    assert identities(again) == identities(before)
    assert all_rows(again).num_rows == 10
    assert again.replaces_pieces


def test_types_come_back_as_they_are_written(tmp_path):
    rows = rows_of(5).append_column("note", pa.array(['{"a":1}'] * 5, pa.json_()))
    source = open_lance_dataset(lancedb.connect(tmp_path).create_table("docs", rows).to_lance())
    found = read(source.pieces[0], columns=source.schema.names)
    assert found.schema.types == source.schema.types
    assert found["note"].to_pylist() == ['{"a":1}'] * 5


def test_what_cannot_be_read(tmp_path):
    with pytest.raises(TableError, match="no table"):
        open_lance_uri(str(tmp_path / "absent.lance"), None)
    field = pa.field("file", pa.large_binary(), metadata={"lance-encoding:blob": "true"})
    blobs = lance.write_dataset(pa.table([[b"x"]], schema=pa.schema([field])), tmp_path / "blobs.lance")
    with pytest.raises(InvalidInputError, match=r"blob columns \['file'\]"):
        open_lance_dataset(blobs)
