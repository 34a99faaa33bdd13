"""Pieces in parts: the same rows, whatever the size of the parts and wherever reading begins."""

import lance
import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_sources import DIM, read, rows_of

from rqmoe_store.ingestion.pieces import parts_of
from rqmoe_store.ingestion.sources import open_source
from rqmoe_store.store.ingest_log import PieceProgress

ROWS = 50


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """A piece of every kind, of the same rows."""
    folder = tmp_path_factory.mktemp("pieces")
    pq.write_table(rows_of(ROWS), folder / "rows.parquet", row_group_size=7)
    pq.write_table(rows_of(ROWS), folder / "whole.parquet")
    feather.write_feather(rows_of(ROWS), folder / "rows.arrow")
    lance.write_dataset(rows_of(ROWS), folder / "rows.lance")
    vectors = np.array(rows_of(ROWS)["vector"].to_pylist(), np.float32)
    np.save(folder / "rows.npy", vectors)
    np.save(folder / "alone.npy", vectors)
    sources = [folder / name for name in ("rows.parquet", "whole.parquet", "rows.arrow", "rows.lance")]
    sources.append(pads.dataset(folder / "rows.parquet"))
    opened = [open_source(source, vector_column="vector") for source in sources]
    opened.append(open_source(folder / "alone.npy", vector_column="vector"))
    pq.write_table(rows_of(ROWS).drop_columns("vector"), folder / "others.parquet")
    metadata = folder / "others.parquet"
    opened.append(open_source(folder / "rows.npy", vector_column="vector", metadata=metadata))
    return [(piece, source.schema.names) for source in opened for piece in source.pieces]


@given(kind=st.integers(0, 6), size=st.integers(1, 8000), first=st.integers(0, ROWS), rows=st.integers(1, 60))
def test_all_rows_of_any_parts(pieces, kind, size, first, rows):
    piece, columns = pieces[kind]
    parts = parts_of([piece], {piece.key: PieceProgress(piece.state, first)}, size)
    expected = read(piece, first, columns) if first < ROWS else None
    found = []
    for place, part in enumerate(parts):
        assert (part.key, part.state) == (piece.key, piece.state)
        assert part.may_grow == (place < len(parts) - 1)
        if part.start < ROWS:
            found.append(read(part, part.start, columns, rows))
            assert part.start == first + sum(table.num_rows for table in found[:-1])
    if expected is not None:
        assert pa.concat_tables(found).to_pydict() == expected.to_pydict()


def test_sizes(pieces):
    (groups, _), (whole, _), (arrow, _), (fragment, _), _, (array, _), (beside, _) = pieces
    assert groups.cuts(groups.source_bytes) == []
    assert groups.cuts(groups.source_bytes // 3) == [14, 35]
    assert groups.cuts(1) == [7, 14, 21, 28, 35, 42, 49]
    assert whole.cuts(1) == arrow.cuts(1) == beside.cuts(1) == []
    assert array.cuts(ROWS * DIM * 4 // 2 + 64) == [25]
    assert array.cuts(1) == fragment.cuts(1) == list(range(1, ROWS))
    assert len(fragment.cuts(fragment.source_bytes // 4)) in (3, 4)


def test_shares_of_the_bytes(pieces):
    piece, columns = pieces[0]
    parts = parts_of([piece], {}, piece.source_bytes // 3)
    assert len(parts) == 3
    assert sum(part.source_bytes for part in parts) == pytest.approx(piece.source_bytes, abs=3)
    read_bytes = [chunk.source_bytes for part in parts for chunk in part.read(part.start, columns, 6)]
    assert sum(read_bytes) == pytest.approx(piece.source_bytes, rel=0.1)


def test_finished_pieces_have_none(pieces):
    piece, _ = pieces[0]
    assert parts_of([piece], {piece.key: PieceProgress(piece.state, None)}, 1) == []
