"""Tables, readers, frames and iterators as streams that are read once."""

import polars
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_sources import read, rows_of

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.ingestion.sources import open_stream

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
