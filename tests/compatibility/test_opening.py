"""Codecs and tables that earlier commits wrote open, are searched and can be changed."""

import shutil
from pathlib import Path

import lancedb
import numpy as np
import pytest

from rqmoe_store.codecs.base import load_codec
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.config import TrainConfig
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import open_table

FOLDERS = sorted(path.parent for path in Path(__file__).parent.glob("*/vectors.npy"))
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
"""Processors and versions of torch round otherwise."""


@pytest.fixture(params=FOLDERS, ids=[folder.name for folder in FOLDERS])
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a folder: opening a database may change it."""
    return Path(shutil.copytree(request.param, tmp_path / "written"))


def opened(written: Path, name: str) -> CompressedTable:
    return open_table(lancedb.connect(written / "database"), name)


def vectors_of(store: CompressedTable) -> np.ndarray:
    rows = store.search().select(["id", "vector"]).to_list()
    return np.array([row["vector"] for row in sorted(rows, key=lambda row: row["id"])])


def test_there_are_some() -> None:
    assert FOLDERS


def test_codecs(written: Path) -> None:
    codec, stored = load_codec(written / "codec", device="cpu"), np.load(written / "codes.npz")
    vectors, decoded = np.load(written / "vectors.npy"), np.load(written / "decoded.npy")
    codes = Codes(stored["codes"], stored["partitions"])
    np.testing.assert_allclose(codec.decode(codes), decoded, **CLOSE)
    again = codec.decode(codec.encode(vectors))
    errors, errors_then = (np.square(each - vectors).sum() for each in (again, decoded))
    assert errors == pytest.approx(errors_then, rel=0.02)


def test_tables(written: Path) -> None:
    store, vectors = opened(written, "docs"), np.load(written / "vectors.npy")
    assert (len(store), store.key, len(store.codecs.generations)) == (60, "id", 2)
    np.testing.assert_allclose(vectors_of(store), np.load(written / "table_vectors.npy"), **CLOSE)
    for row in range(50, 55):  # raw
        assert store.search(vectors[row]).limit(1).to_list()[0]["id"] == row
    found = store.search(vectors[0]).limit(60).nprobes(2).to_list()
    nearest = [row["_distance"] for row in found[:10]]
    assert {row["id"] for row in found} == set(range(60)) and nearest == sorted(nearest)
    report = store.verify(progress=False)
    assert report.ok, report


def test_tables_go_on(written: Path) -> None:
    store, vectors = opened(written, "docs"), np.load(written / "vectors.npy")
    store.add([{"id": 60, "text": "new", "vector": vectors[0]}])
    store.merge_insert().when_matched_update_all().when_not_matched_insert_all().execute(
        [{"id": row, "text": "merged", "vector": vectors[row % 60]} for row in (3, 61)]
    )
    store.update("id = 4", {"text": "updated"})
    assert store.delete("id = 5") == 1
    store.optimize(progress=False)
    assert store.table.count_rows(store.columns.raw_filter) == 0
    assert len(opened(written, "docs")) == 61
    assert store.verify(progress=False).ok


def test_a_table_with_a_sum_that_no_reader_took(written: Path) -> None:
    store, vectors = opened(written, "far"), np.load(written / "vectors.npy")
    store.add([{"id": 41, "vector": vectors[1]}])
    assert store.health().rows >= 1
    store.delete("id = 40")
    store.optimize(progress=False)
    store.retrain(TrainConfig(epochs=0, progress=False), vectors=np.tile(vectors, (3, 1)), progress=False)
    assert len(store) == 41 and store.verify(progress=False).ok
