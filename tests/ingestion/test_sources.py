"""Every kind of source is told from what the user passes."""

import lancedb
import numpy as np
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from small_sources import rows_of

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
