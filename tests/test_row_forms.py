"""Rows of every form, read once and whole, in every call that takes rows."""

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lance
import lancedb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as pads
import pydantic
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from lancedb.pydantic import LanceModel, Vector
from word_embedding import DIM as WORD_DIM
from word_embedding import NAME as WORDS

from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import compress, create_table, open_table, open_table_async
from rqmoe_store.training.trainer import train

DIM = 4
ROWS = 30
META = pa.struct([("author", pa.string()), ("years", pa.list_(pa.struct([("year", pa.int64())])))])


class OnlyAStream:
    """Somebody else's table, such as DuckDB's: Arrow's protocol and nothing more."""

    def __init__(self, table: pa.Table) -> None:
        self._reader = table.to_reader(max_chunksize=7)

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._reader.__arrow_c_stream__(requested_schema)


class Doc(pydantic.BaseModel):
    id: int
    text: str | None
    meta: dict[str, Any]
    vector: list[float]


def rows_of(count: int = ROWS) -> pa.Table:
    vectors = np.random.default_rng(5).normal(size=(count, DIM)).astype(np.float32)
    return pa.table(
        {
            "id": pa.array(range(count), pa.int64()),
            "text": pa.array([None if row % 3 else f"text {row}" for row in range(count)], pa.string()),
            "meta": pa.array(
                [{"author": "Ann", "years": [{"year": row}]} for row in range(count)], type=META
            ),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), DIM),
        }
    )


def models(table: pa.Table) -> list[Doc]:
    return [Doc(**row) for row in table.to_pylist()]


def lance_scanner(table: pa.Table, folder: Path) -> Any:
    return lance.write_dataset(table, str(folder / f"{os.urandom(4).hex()}.lance")).scanner(batch_size=7)


FORMS: dict[str, Callable[[pa.Table, Path], Any]] = {
    "reader": lambda table, _: table.to_reader(max_chunksize=7),
    "scanner": lambda table, _: pads.dataset(table).scanner(batch_size=7),
    "dataset": lambda table, _: pads.dataset(table),
    "Lance scanner": lance_scanner,
    "protocol": lambda table, _: OnlyAStream(table),
    "generator of dicts": lambda table, _: (row for row in table.to_pylist()),
    "generator of lists": lambda table, _: (table.slice(at, 7).to_pylist() for at in range(0, len(table), 7)),
    "generator of batches": lambda table, _: iter(table.to_batches(max_chunksize=7)),
    "generator of tables": lambda table, _: (table.slice(at, 7) for at in range(0, len(table), 7)),
    "generator of readers": lambda table, _: (
        table.slice(at, 7).to_reader() for at in range(0, len(table), 7)
    ),
    "generator of models": lambda table, _: iter(models(table)),
    "models": lambda table, _: models(table),
    "map": lambda table, _: map(dict, table.to_pylist()),
    "dicts and tables": lambda table, _: iter([*table.slice(0, 9).to_pylist(), table.slice(9)]),
    "list of readers": lambda table, _: [table.slice(0, 9).to_reader(), table.slice(9).to_reader()],
    "frame": lambda table, _: pd.DataFrame(
        {name: list(table[name].to_pylist()) for name in table.column_names}
    ),
    "frame of arrays": lambda table, _: table.to_pandas(),
    "polars": lambda table, _: pl.from_arrow(table),
    "polars, lazily": lambda table, _: pl.from_arrow(table).lazy(),
    "tensors": lambda table, _: table.set_column(
        3,
        "vector",
        pa.FixedShapeTensorArray.from_numpy_ndarray(np.array(table["vector"].to_pylist(), dtype=np.float32)),
    ),
    "views": lambda table, _: table.set_column(
        3, "vector", pa.array(table["vector"].to_pylist(), pa.list_view(pa.float64()))
    ),
    "halves": lambda table, _: table.set_column(
        3, "vector", table["vector"].combine_chunks().cast(pa.list_(pa.float16(), DIM))
    ),
    "large lists": lambda table, _: table.set_column(
        3, "vector", table["vector"].combine_chunks().cast(pa.large_list(pa.float64()))
    ),
}


@pytest.fixture
def db(tmp_path: Path) -> lancedb.DBConnection:
    return lancedb.connect(tmp_path / "db")


def contents(store: CompressedTable) -> pa.Table:
    return store.search().select(["id", "text", "meta", "vector"]).to_arrow().sort_by("id")


def assert_same(store: CompressedTable, rows: pa.Table, atol: float = 0.0) -> None:
    found = contents(store)
    for name in ("id", "text", "meta"):
        assert found[name].to_pylist() == rows[name].to_pylist()
    expected = np.array(rows["vector"].to_pylist(), dtype=np.float32)
    np.testing.assert_allclose(np.array(found["vector"].to_pylist()), expected, atol=atol)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_in_every_call(db, tmp_path, form):
    rows, atol = rows_of(), 2e-3 if form == "halves" else 0.0
    made = create_table(db, "made", FORMS[form](rows, tmp_path))
    assert_same(made, rows, atol)
    assert_same(
        create_table(db, "keyed", FORMS[form](rows, tmp_path), schema=rows.schema, key="id"), rows, atol
    )
    store = create_table(db, "added", FORMS[form](rows, tmp_path), schema=rows.schema, exist_ok=True)
    store.delete("id >= 0")
    create_table(db, "added", FORMS[form](rows, tmp_path), exist_ok=True)
    assert_same(open_table(db, "added"), rows, atol)
    store.delete("id >= 10")
    merge = store.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
    done = merge.execute(FORMS[form](rows, tmp_path))
    assert (done.num_updated_rows, done.num_inserted_rows) == (10, ROWS - 10)
    assert_same(store, rows, atol)

    async def awaited() -> None:
        table = await open_table_async(db, "made")
        assert await table.add(FORMS[form](rows, tmp_path)) == ROWS
        upsert = table.merge_insert("id").when_matched_update_all()
        assert (await upsert.execute(FORMS[form](rows, tmp_path))).num_updated_rows == 2 * ROWS

    asyncio.run(awaited())


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), max_size=6), form=st.sampled_from(["tables", "lists", "dicts", "mixed"])
)
@example(sizes=[0, 0], form="mixed")  # an empty table has a schema
def test_streams_of_any_parts_are_read_whole(tmp_path, sizes, form):
    rows = rows_of(sum(sizes))
    starts = np.cumsum([0, *sizes])
    parts = [rows.slice(start, size) for start, size in zip(starts[:-1], sizes, strict=True)]

    def stream() -> Iterator[Any]:
        for place, part in enumerate(parts):
            if form == "tables" or (form == "mixed" and place % 2):
                yield part
            elif form == "lists":
                yield part.to_pylist()
            else:
                yield from part.to_pylist()

    db = lancedb.connect(tmp_path / os.urandom(4).hex())
    tables = len(sizes) if form == "tables" else len(sizes) // 2 if form == "mixed" else 0
    if not rows.num_rows and not tables:
        with pytest.raises(InvalidInputError, match="schema="):
            create_table(db, "docs", stream())
        return
    store = create_table(db, "docs", stream())
    assert_same(store, rows)
    assert store.add(stream()) == rows.num_rows
    store.merge_insert("id").when_not_matched_insert_all().execute(stream())
    assert len(store) == 2 * rows.num_rows


def test_a_stream_that_fails_leaves_no_table(db):
    def stream() -> Iterator[Any]:
        yield rows_of()
        raise OSError("connection lost")

    for arguments in ({}, {"schema": rows_of().schema}, {"exist_ok": True}):
        with pytest.raises(OSError, match="connection lost"):
            create_table(db, "docs", stream(), **arguments)
        assert db.list_tables().tables == []


def test_a_stream_survives_that_another_process_makes_the_table(db):
    """It is half read when the table appears."""

    def stream() -> Iterator[Any]:
        yield rows_of().slice(0, 10)
        create_table(db, "docs", rows_of(3), exist_ok=True)
        yield rows_of().slice(10)

    store = create_table(db, "docs", stream(), exist_ok=True)
    assert len(store) == ROWS + 3
    with pytest.raises(TableError, match="exists already"):
        create_table(db, "docs", stream())


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (iter([]), "Got no rows"),
        ([], "Got no rows"),
        ([{"id": 1}], "no vectors in column 'vector'"),
        ([{"id": 1, "vector": None}], "nulls only in the first 1 rows; pass schema="),
        ([{"id": 1, "vector": [1.0]}, {"id": "a", "vector": [1.0]}], r"several types \(int, str\)"),
        ([{1: 2, "vector": [1.0]}], "the column 1"),
        (5, "Got rows of type int"),
        ({"id": 1}, "Put a single row in a list"),
        (Doc(id=1, text=None, meta={}, vector=[1.0]), "Put a single row in a list"),
        (pa.chunked_array([[1.0]]), "no Arrow table"),
        (pd.Series([[1.0]]), "Got rows of type Series"),
        (np.ones((2, 2)), "Got rows of type ndarray"),
        ("rows", "Got rows of type str"),
    ],
)
def test_rows_that_make_no_table(db, rows, message):
    with pytest.raises(InvalidInputError, match=message):
        create_table(db, "docs", rows)
    assert db.list_tables().tables == []


@given(keys=st.lists(st.sets(st.sampled_from("abc")), min_size=1, max_size=8))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_keys_that_some_dicts_lack_are_null_there(tmp_path, keys):
    rows = [
        {"id": row, "vector": [float(row)] * DIM} | dict.fromkeys(sorted(given), row)
        for row, given in enumerate(keys)
    ]
    names = sorted(set().union(*keys))
    for given_rows in (rows, iter(rows)):
        store = create_table(lancedb.connect(tmp_path / os.urandom(4).hex()), "docs", given_rows)
        assert sorted(store.schema.names) == sorted(["id", *names])
        found = store.search().to_arrow().sort_by("id").to_pylist()
        assert [{name: row[name] for name in names} for row in found] == [
            {name: row.get(name) for name in names} for row in rows
        ]


# LanceDB's models.


class Author(pydantic.BaseModel):
    name: str
    born: int | None = None


class Note(LanceModel):
    id: int
    title: str | None = None
    author: Author | None = None
    vector: Vector(DIM)


def notes() -> list[Note]:
    return [
        Note(id=0, vector=[1.0] * DIM),
        Note(id=1, title="one", author=Author(name="Ann", born=1900), vector=[2.0] * DIM),
    ]


def test_models_describe_tables_and_rows(db):
    expected = [
        {"id": 0, "title": None, "author": None},
        {"id": 1, "title": "one", "author": {"name": "Ann", "born": 1900}},
    ]
    plain = db.create_table("plain", schema=Note)
    stores = [
        create_table(db, "schema", schema=Note),
        create_table(db, "both", notes(), schema=Note, key="id"),
        create_table(db, "rows", notes()),
        create_table(db, "stream", iter(notes())),
        create_table(db, "stream", schema=Note, exist_ok=True),
    ]
    stores[0].add(notes())
    for store in stores:
        assert store.search().select(["id", "title", "author"]).to_list() == expected
        assert store.schema == pa.schema([field for field in plain.schema if field.name != "vector"])
        merge = store.merge_insert("id").when_matched_update_all()
        assert merge.execute(notes()).num_updated_rows == 2


def test_models_with_embedding_functions(db):
    function = lancedb.embeddings.get_registry().get(WORDS).create()

    class Text(LanceModel):
        text: str = function.SourceField()
        vector: Vector(WORD_DIM) = function.VectorField(default=None)

    store = create_table(db, "texts", schema=Text)
    assert (store.embedding.name, store.embedding.source_column) == (WORDS, "text")
    rows = [Text(text="river stone"), Text(text="paper engine")]
    store.add(rows)
    assert store.search("river stone").limit(1).to_list()[0]["text"] == "river stone"
    made = create_table(db, "made", rows)
    assert made.search("paper engine").limit(1).to_list()[0]["text"] == "paper engine"


@pytest.mark.parametrize(
    "schema", [5, "id int", {"id": pa.int64()}, [pa.field("id", pa.int64())], Note(id=1, vector=[1] * 4)]
)
def test_what_is_no_schema(db, schema):
    with pytest.raises(InvalidInputError, match=r"Got schema=.*expected a pyarrow schema or a LanceModel"):
        create_table(db, "docs", schema=schema)


# Vectors to search for and to train on.

FOUND = rows_of(2)["vector"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("query", "ids"),
    [
        (FOUND, [0, 1]),
        (FOUND.combine_chunks(), [0, 1]),
        (FOUND.to_pandas(), [0, 1]),
        (pl.Series(FOUND.to_pylist()), [0, 1]),
        (pd.DataFrame(FOUND.to_pylist()), [0, 1]),
        (pl.DataFrame(np.array(FOUND.to_pylist())), [0, 1]),
        (pa.array(FOUND[1].as_py()), [1]),
        (pd.Series(FOUND[1].as_py()), [1]),
        (pl.Series(FOUND[1].as_py()), [1]),
        (rows_of(1).to_pandas(), None),
        (rows_of(1).select(["vector"]).to_pandas(), None),
        (pl.DataFrame({"vector": FOUND.to_pylist()}), None),
        (rows_of(1).select(["vector"]), None),
        ({"vector": FOUND[0].as_py()}, None),
        (iter(FOUND.to_pylist()), "generator|iterator"),
    ],
)
def test_columns_are_queries_and_frames_are_not(db, query, ids):
    store = create_table(db, "docs", rows_of())
    if isinstance(ids, list):
        assert store.search(query).limit(1).to_arrow()["id"].to_pylist() == ids
        return
    with pytest.raises(InvalidInputError, match=ids or "pass the column of vectors alone"):
        store.search(query)


def test_training_on_columns_and_streams(db):
    config = CodecConfig(kind="rq", code_bytes=2, codebook_size=16)
    training = TrainConfig(epochs=0, progress=False)
    rows = FORMS["tensors"](rows_of(60), Path())
    docs = db.create_table("tensors", rows)
    codecs = [train(data, config=config, training=training) for data in (docs, rows["vector"])]
    assert [codec.dim for codec in codecs] == [DIM, DIM]
    store = compress(docs, codecs[0], "coded", progress=False)
    assert store.add(rows) == 60 and len(store) == 120
    flat = np.array(rows["vector"].combine_chunks().storage.to_pylist(), dtype=np.float32)
    square = rows.set_column(3, "vector", pa.FixedShapeTensorArray.from_numpy_ndarray(flat.reshape(60, 2, 2)))
    squares = db.create_table("squares", square)
    calls = {
        "create": lambda: create_table(db, "none", square),
        "add": lambda: store.add(square),
        "compress": lambda: compress(squares, codecs[0], "none", progress=False),
        "train": lambda: train(squares, config=config, training=training),
    }
    for call in calls.values():
        with pytest.raises((InvalidInputError, TableError), match="vector"):
            call()
    for stream in (rows.to_reader(), iter(flat), (vector for vector in flat)):
        with pytest.raises(
            InvalidInputError, match="Ingest a stream into a table, or put its vectors into an"
        ):
            train(stream, config=config, training=training)
    with pytest.raises(TableError, match="Got RecordBatchReader as the table to compress"):
        compress(rows.to_reader(), codecs[0], "none", key="id", progress=False)
