"""Every kind of source is told from what the user passes."""

import lancedb
import numpy as np
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from small_sources import read, rows_of

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.ingestion.sources import open_source


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
    for given in sources:
        source = open_source(given, vector_column="vector")
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
