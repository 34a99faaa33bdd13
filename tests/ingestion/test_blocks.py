"""Pieces into blocks: every row once, in blocks of a bounded size, and bad rows told apart."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_sources import DIM, rows_of

from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.ingestion.blocks import BlockReader, RowChecker
from rqmoe_store.ingestion.pieces import Chunk, Piece
from rqmoe_store.store.creation import create_coded
from rqmoe_store.store.ingest_log import PieceProgress
from rqmoe_store.store.row_encoder import RowEncoder
from rqmoe_store.store.table_codec import TableCodec


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


NUMBER = pa.list_(pa.float32(), DIM)


def checker_of(db, codec, *, keep="none", name="docs", column="vector"):
    schema = pa.schema(
        [
            pa.field("id", pa.int32(), nullable=False),
            pa.field("text", pa.string()),
            pa.field("vector", NUMBER),
        ]
    )
    table, metadata = create_coded(db, name, schema, codec=codec, vector_column="vector", keep_vectors=keep)
    encoder = RowEncoder(table.schema, TableCodec.of(metadata, [codec]), table_name=name, encode=True)
    return RowChecker(encoder, column)


DEFECTS = {
    "short": lambda row: row.update(vector=row["vector"][:5]),
    "empty": lambda row: row.update(vector=[]),
    "nan": lambda row: row["vector"].__setitem__(3, float("nan")),
    "inf": lambda row: row["vector"].__setitem__(0, float("-inf")),
    "hole": lambda row: row["vector"].__setitem__(1, None),
    "null id": lambda row: row.update(id=None),
    "great id": lambda row: row.update(id=2**40),
    "short, null id": lambda row: row.update(id=None, vector=[1.0]),
}


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(defects=st.lists(st.sampled_from([None, None, "no vector", *DEFECTS]), max_size=30))
def test_good_rows_are_told_from_bad_ones(checker, defects):
    rows = rows_of(len(defects)).to_pylist()
    for row, defect in zip(rows, defects, strict=True):
        if defect == "no vector":
            row["vector"] = None
        elif defect is not None:
            DEFECTS[defect](row)
    lists = pa.schema([("id", pa.int64()), ("text", pa.string()), ("vector", pa.list_(pa.float64()))])
    checked, bad = checker.check(pa.Table.from_pylist(rows, schema=lists))
    assert sorted(bad) == [row for row, defect in enumerate(defects) if defect in DEFECTS]
    good = [row for row, defect in enumerate(defects) if defect not in DEFECTS]
    assert checked.others["id"].to_pylist() == good
    assert checked.others.schema.names == ["id", "text"]
    assert checked.valid_N.tolist() == [defects[row] is None for row in good]
    expected = [rows[row]["vector"] for row in good if rows[row]["vector"] is not None]
    np.testing.assert_allclose(checked.vectors_VD, np.array(expected).reshape(-1, DIM), rtol=1e-6)


@pytest.fixture(scope="module")
def checker(tmp_path_factory, codec):
    import lancedb

    return checker_of(lancedb.connect(tmp_path_factory.mktemp("checks")), codec)


def test_reasons(checker):
    rows = rows_of(8).to_pylist()
    for row, defect in zip(rows, DEFECTS, strict=True):
        DEFECTS[defect](row)
    _, bad = checker.check(pa.Table.from_pylist(rows))
    reasons = dict(zip(DEFECTS, (bad[row] for row in range(8)), strict=True))
    assert (
        reasons["short"] == reasons["short, null id"] == "vector with another dimension than the codec's 16"
    )
    assert "NaN or infinite" in reasons["nan"] and "missing" in reasons["hole"]
    assert reasons["null id"] == "column 'id' is null, which it may not be"
    assert "column 'id' cannot be read as int32 (" in reasons["great id"]


def test_zero_under_cosine(db, cosine_codec):
    rows = rows_of(3).to_pylist()
    rows[1]["vector"] = [0.0] * DIM
    _, bad = checker_of(db, cosine_codec).check(pa.Table.from_pylist(rows, schema=rows_of(0).schema))
    assert bad == {1: "vector with zeros only, which have no direction under metric='cosine'"}


def test_what_half_floats_cannot_hold(db, codec):
    rows = rows_of(4).to_pylist()
    rows[2]["vector"][5] = 1e5
    rows[3]["vector"] = None
    checked, bad = checker_of(db, codec, keep="float16").check(pa.Table.from_pylist(rows))
    assert bad == {2: "vector with components beyond 65,504, the range of float16"}
    assert checked.valid_N.tolist() == [True, True, False]


def test_vectors_of_another_name(db, codec):
    checked, bad = checker_of(db, codec, column="embedding").check(
        rows_of(3).rename_columns({"vector": "embedding"})
    )
    assert bad == {} and len(checked.vectors_VD) == 3


def test_text_that_is_numbers_here_and_there(checker):
    rows = rows_of(100)
    ids = [str(row) if row % 10 else "ten" for row in range(100)]
    checked, bad = checker.check(rows.set_column(0, "id", pa.array(ids)))
    assert sorted(bad) == list(range(0, 100, 10))
    assert checked.others["id"].to_pylist() == [row for row in range(100) if row % 10]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda rows: rows.drop_columns("id"), InvalidInputError, "missing: id"),
        (lambda rows: rows.drop_columns("vector"), InvalidInputError, "missing: vector"),
        (lambda rows: rows.append_column("more", rows["id"]), InvalidInputError, "unknown: more"),
        (lambda rows: rows.set_column(2, "vector", rows["id"]), TableError, "expected a vector column"),
        (
            lambda rows: rows.set_column(2, "vector", pa.array([[1.0]] * 3, pa.list_(pa.float32(), 1))),
            InvalidInputError,
            "dimension 1",
        ),
        (
            lambda rows: rows.set_column(0, "id", pa.array([{"a": 1}] * 3)),
            InvalidInputError,
            "cannot be read as int32",
        ),
    ],
)
def test_what_no_row_can_mend_is_refused_at_once(checker, change, error, message):
    with pytest.raises(error, match=message):
        checker.require_schema(change(rows_of(3)).schema)


def test_columns_are_checked_with_every_part(checker):
    checker.require_schema(rows_of(3).schema)
    with pytest.raises(InvalidInputError, match="missing: vector"):
        checker.check(rows_of(3).drop_columns("vector"))
    with pytest.raises(InvalidInputError, match="expected vectors of 16"):
        checker.check(rows_of(3).set_column(2, "vector", rows_of(3)["id"]))
