"""Pieces into blocks: every row once, from wherever each piece was left, in blocks of a bounded size."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_sources import rows_of

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.ingestion.blocks import BlockReader, RowChecker
from rqmoe_store.ingestion.pieces import Chunk, Piece
from rqmoe_store.store.ingest_log import PieceProgress
from rqmoe_store.store.row_encoder import RowEncoder


class TablePiece(Piece):
    """Rows in memory, read in chunks of at most `chunk_rows`."""

    def __init__(self, name, rows, chunk_rows=1000, *, may_grow=False):
        super().__init__(name, "stamp", rows.num_rows * 10)
        self.rows, self.chunk_rows, self.may_grow = rows, chunk_rows, may_grow

    def read(self, start, columns, batch_rows):
        for batch in self.rows.slice(start).to_batches(min(self.chunk_rows, batch_rows)):
            yield Chunk(batch.select(columns), batch.num_rows * 10)


@pytest.fixture
def make_reader(store, codec):
    checker = RowChecker(
        RowEncoder(store.table.schema, store.codecs, table_name=store.name, encode=True),
        "vector",
        dim=codec.dim,
        metric="l2",
    )

    def make(*, block_rows=10, done=None, quarantined=None):
        return BlockReader(
            checker=checker,
            columns=["id", "text", "vector"],
            block_rows=block_rows,
            done=done or {},
            quarantined=quarantined,
        )

    return make


def ids(blocks):
    return [row for block in blocks for row in block.checked.others["id"].to_pylist()]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(0, 25), max_size=6),
    block_rows=st.integers(1, 12),
    chunk_rows=st.integers(1, 30),
    data=st.data(),
)
def test_rows_that_are_left_in_blocks(make_reader, sizes, block_rows, chunk_rows, data):
    firsts = [sum(sizes[:place]) for place in range(len(sizes))]
    pieces = [
        TablePiece(f"piece {place}", rows_of(size, first), chunk_rows)
        for place, (size, first) in enumerate(zip(sizes, firsts, strict=True))
    ]
    counts = [data.draw(st.one_of(st.none(), st.integers(0, size))) for size in sizes]
    done = {piece.key: PieceProgress(piece.state, count) for piece, count in zip(pieces, counts, strict=True)}
    blocks = list(make_reader(block_rows=block_rows, done=done).read(pieces))
    left = [
        row
        for first, size, count in zip(firsts, sizes, counts, strict=True)
        if count is not None
        for row in range(first + count, first + size)
    ]
    assert ids(blocks) == left
    assert all(block.rows <= block_rows for block in blocks)
    assert all(len(block.checked.vectors_VD) == block.rows for block in blocks)
    finished = {key: value for block in blocks for key, value in block.pieces.items()}
    assert finished == {
        piece.key: PieceProgress(piece.state, None)
        for piece, count in zip(pieces, counts, strict=True)
        if count is not None
    }
    expected_bytes = sum(size * 10 for size, count in zip(sizes, counts, strict=True) if count is not None)
    assert sum(block.source_bytes for block in blocks) == expected_bytes


def test_every_block_says_how_far_it_goes(make_reader):
    pieces = [TablePiece("a", rows_of(15), 5), TablePiece("b", rows_of(10, 15), 5, may_grow=True)]
    blocks = list(make_reader().read(pieces))
    first, second = (piece.key for piece in pieces)
    state = pieces[0].state
    assert [dict(block.pieces) for block in blocks] == [
        {first: PieceProgress(state, 10)},
        {first: PieceProgress(state, None), second: PieceProgress(state, 5)},
        {second: PieceProgress(state, 10)},
    ]


def with_defects(count, *bad):
    rows = rows_of(count).to_pylist()
    for row in bad:
        rows[row]["vector"][0] = float("nan")
    return pa.Table.from_pylist(rows, schema=rows_of(0).schema)


@pytest.mark.parametrize(("known", "expected"), [(0, [2, 13, 14]), (3, [13, 14]), (14, [14]), (None, [])])
def test_bad_rows_that_are_not_in_quarantine_yet(make_reader, known, expected):
    piece = TablePiece("a", with_defects(20, 2, 13, 14), 7)
    blocks = list(make_reader(quarantined={piece.key: PieceProgress(piece.state, known)}).read([piece]))
    bad = [row for block in blocks for row in block.bad]
    assert [row.position for row in bad] == expected
    assert sum(block.rows for block in blocks) == 20
    assert ids(blocks) == [row for row in range(20) if row not in (2, 13, 14)]
    for row in bad:
        assert (row.source, row.reason) == ("a", "vector with missing, NaN or infinite values (as float32)")
        kept = json.loads(row.row)
        assert (kept["id"], kept["vector"][0]) == (row.position, "nan")


def test_positions_count_from_where_the_piece_begins(make_reader):
    piece = TablePiece("a", with_defects(20, 2, 13), 7)
    done = {piece.key: PieceProgress(piece.state, 5)}
    (bad,) = (row for block in make_reader(done=done, quarantined={}).read([piece]) for row in block.bad)
    assert bad.position == 13


def test_a_bad_row_can_be_an_error(make_reader):
    blocks = make_reader().read([TablePiece("a", with_defects(20, 13))])
    assert next(blocks).rows == 10
    with pytest.raises(InvalidInputError, match=r"Row 13 of a cannot .* NaN .* on_bad_rows="):
        next(blocks)


def test_pieces_that_cannot_be_read(make_reader, tmp_path):
    from rqmoe_store.ingestion.files import dataset_at, open_files

    for name in ("a.parquet", "b.parquet"):
        pq.write_table(rows_of(10), tmp_path / name)
    source = open_files(*dataset_at(str(tmp_path), None))
    (tmp_path / "b.parquet").write_bytes((tmp_path / "b.parquet").read_bytes()[:500])
    blocks = make_reader(block_rows=5).read(source.pieces)
    assert next(blocks).rows == 5
    with pytest.raises(InvalidInputError, match=r"b\.parquet cannot be read .* ingest again"):
        list(blocks)


def test_pieces_without_the_columns_of_the_table(make_reader):
    piece = TablePiece("odd one", rows_of(3).rename_columns({"vector": "vectors"}))
    piece.read = lambda *_: [Chunk(piece.rows.to_batches()[0], 0)]
    with pytest.raises(InvalidInputError, match=r"odd one: .*unknown: vectors; missing: vector"):
        list(make_reader().read([piece]))


def test_one_block_is_read_at_a_time(make_reader):
    asked = []

    class Watched(TablePiece):
        def read(self, start, columns, batch_rows):
            for chunk in super().read(start, columns, batch_rows):
                asked.append(chunk.rows.num_rows)
                yield chunk

    blocks = make_reader().read([Watched("a", rows_of(100), 5)])
    next(blocks)
    assert sum(asked) <= 15
