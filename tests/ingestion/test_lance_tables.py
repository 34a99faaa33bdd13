"""Lance datasets and LanceDB tables, fragment by fragment."""

import lance
import lancedb
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lancedb.index import BTree
from small_sources import all_rows, identities, read, rows_of

from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.ingestion.sources import open_lance_dataset, open_lance_uri


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
