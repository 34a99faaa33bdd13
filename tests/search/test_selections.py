"""Selections of expressions, paths into structs and renamed columns, and the order of plain reads: as LanceDB
has them, in every kind of search, before and after training."""

import asyncio
import dataclasses
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lancedb.expr import col
from lancedb.query import ColumnOrdering

from rqmoe_store import AsyncCompressedTable, CodecConfig, InvalidInputError, TrainConfig, create_table
from rqmoe_store.table import CompressedTable

ROWS, DIM = 40, 8
VECTORS = np.random.default_rng(0).normal(size=(ROWS, DIM)).astype(np.float32)
HAS_VECTOR = np.arange(ROWS) % 5 != 0


def rows() -> pa.Table:
    n = range(ROWS)
    return pa.table(
        {
            "id": pa.array(n, pa.int64()),
            "camelCase": pa.array([row % 7 for row in n], pa.int32()),
            "share": pa.array([None if row % 6 == 5 else row % 4 / 4 for row in n], pa.float32()),
            "text": pa.array([f"word {row % 3}" for row in n]),
            "within": pa.array([{"a": row, "B c": {"d": str(row)}} for row in n]),
            "tags": pa.array([["x", "y"][: row % 3] for row in n]),
            "json": pa.array(['{"k": 1}' for row in n], pa.json_()),
            "vector": pa.array(
                [VECTORS[row].tolist() if HAS_VECTOR[row] else None for row in n], pa.list_(pa.float32(), DIM)
            ),
        }
    )


@dataclasses.dataclass(frozen=True)
class World:
    plain: Any
    stores: tuple[CompressedTable, ...]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    db = lancedb.connect(tmp_path_factory.mktemp("db"))
    plain = db.create_table("plain", rows(), on_bad_vectors="null")
    config = CodecConfig(kind="rq", code_bytes=2, codebook_size=8, num_partitions=2)
    stores = tuple(create_table(db, name, rows(), config=config) for name in ("raw", "coded"))
    stores[1].train(TrainConfig(epochs=0, progress=False), progress=False)
    for table in (plain, *stores):
        table.create_fts_index("text")
    return World(plain, stores)


SELECTIONS: list[Any] = [
    ["within.a"],
    ["id", "within.`B c`.d", "within"],
    ["Within.a", "`id`"],
    {"id": "id", "double": "2 * id"},
    {"id": "camelCase", "camelCase": "id + 1", "again": "`id`"},
    {"a.b": "within.a", "share": "share > 0.25"},
    {"double": col("id") * 2, "half": col("share") * 0.5, "Case": col("camelCase")},
    {"tag": "tags[1]", "json": "json", "key": "json_get_int(json, 'k')"},
    {"one": "1", "text": "upper(text)", "quoted": '"camelCase"'},
    {"there": "vector IS NOT NULL", "id": "id"},
]


def by_kind(table: Any, selection: Any) -> dict[str, pa.Table]:
    """What plain reads and searches of every kind return; of rows that none can confuse."""
    hybrid = table.search(query_type="hybrid").vector(VECTORS[7]).text("word").where("id = 7")
    return {
        "read": table.search().where("id < 3").select(selection).with_row_id(True).to_arrow(),
        "vector": table.search(VECTORS[7]).where("id = 7").select(selection).limit(1).to_arrow(),
        "text": table.search("word", query_type="fts").where("id = 7").select(selection).to_arrow(),
        "hybrid": hybrid.select(selection).limit(1).to_arrow(),
    }


@pytest.mark.parametrize("selection", SELECTIONS, ids=str)
def test_selections_are_those_of_lancedb(world: World, selection: Any) -> None:
    own = {"_distance", "_score", "_relevance_score", "_rowid"}
    expected = by_kind(world.plain, selection)
    for store in world.stores:
        for kind, found in by_kind(store, selection).items():
            wanted = expected[kind]
            assert [(field.name, field.type) for field in found.schema] == [
                (field.name, field.type) for field in wanted.schema
            ]
            users = [name for name in wanted.column_names if name not in own]
            assert found.select(users).to_pylist() == wanted.select(users).to_pylist(), (store.name, kind)
        awaited = AsyncCompressedTable(store).query().where("id < 3").select(selection)
        assert asyncio.run(awaited.to_arrow()).num_rows == 3


def test_vectors_and_scores_under_other_names(world: World) -> None:
    for store in world.stores:
        search = store.search(VECTORS[7]).select({"v": "vector", "near": "_distance", "id": "id"}).limit(3)
        plain = store.search(VECTORS[7]).select(["vector", "id"]).limit(3).to_arrow()
        found = search.to_arrow()
        assert found.column_names == ["v", "near", "id", "_distance"]
        assert found["v"].equals(plain["vector"]) and found["near"].equals(plain["_distance"])
        read = store.search().select({"id": "id", "v": "vector"}).to_arrow()
        assert read["v"].is_valid().to_pylist() == HAS_VECTOR.tolist()
        batch = (
            store.search(VECTORS[:2]).select({"of": "query_index", "double": "2 * id"}).limit(2).to_arrow()
        )
        assert batch.column_names == ["query_index", "of", "double", "_distance"]


@pytest.mark.parametrize(
    ("selection", "reason"),
    [
        ({"x": "vector[1]"}, "whether a row has a vector"),
        ({"x": "id + vector_partition"}, "is ours"),
        ({"x": "nope"}, "No field named nope"),
        ({"x": "id; 2"}, "';'"),
        ({"x": "(id"}, "parentheses"),
        ({"_distance": "id"}, "another name"),
        (["nope"], "unknown column 'nope'.*available are id"),
        (["within.nope"], "LanceDB refuses"),
        (["vector.x"], "whether a row has a vector"),
    ],
)
def test_what_cannot_be_selected(world: World, selection: Any, reason: str) -> None:
    for store in world.stores:
        for search in (store.search(), store.search(VECTORS[7]), store.search("word", query_type="fts")):
            with pytest.raises(InvalidInputError, match=reason):
                search.select(selection).to_arrow()


@pytest.mark.parametrize("selection", ["id", 3, {"id": 3}, {3: "id"}, [3], ["id", "id"], [("x", "id")]])
def test_what_is_no_selection(world: World, selection: Any) -> None:
    with pytest.raises(InvalidInputError, match="select"):
        world.stores[0].search().select(selection)


ORDERINGS = st.lists(
    st.builds(
        lambda name, ascending, nulls_first: ColumnOrdering(
            column_name=name, ascending=ascending, nulls_first=nulls_first
        ),
        st.sampled_from(["camelCase", "share", "text"]),
        st.booleans(),
        st.booleans(),
    ),
    max_size=3,
)


@settings(max_examples=20)
@given(orderings=ORDERINGS, limit=st.integers(1, ROWS), offset=st.integers(0, ROWS))
def test_reads_are_ordered_as_lancedb_orders_them(
    world: World, orderings: list[ColumnOrdering], limit: int, offset: int
) -> None:
    whole = [*orderings, ColumnOrdering(column_name="id", ascending=False)]
    every = ["id", "camelCase", "share", "text"]  # LanceDB wants to return what it orders by
    expected = world.plain.search().select(every).order_by(whole).limit(limit).offset(offset).to_arrow()
    for store in world.stores:
        search = store.search().select({"i": "id"}).order_by(whole).limit(limit).offset(offset)
        assert search.to_arrow()["i"].to_pylist() == expected["id"].to_pylist()
        awaited = AsyncCompressedTable(store).query().select(["id"]).limit(limit).offset(offset)
        ordered = awaited.order_by([each.model_dump() for each in whole])
        assert asyncio.run(ordered.to_arrow())["id"].to_pylist() == expected["id"].to_pylist()


@pytest.mark.parametrize(
    "ordering",
    [*("id", ["id"], 3, [3], {"column_name": "id"}, [{"column": "id"}], [{"column_name": "id", "desc": 1}])],
)
def test_what_is_no_order(world: World, ordering: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"lancedb\.query\.ColumnOrdering"):
        world.stores[0].search().order_by(ordering)


@pytest.mark.parametrize("name", ["nope", "vector", "vector_code", "within", "tags", "json", "ID"])
def test_columns_without_an_order(world: World, name: str) -> None:
    for store in world.stores:
        with pytest.raises(InvalidInputError, match=f"column '{name}' to order by; expected one of id"):
            store.search().order_by([{"column_name": name}]).to_list()
    assert len(world.stores[0].search().order_by(None).to_list()) == ROWS
