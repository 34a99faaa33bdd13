"""Plain reads against LanceDB's own, on the same rows."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rqmoe_store.async_table import AsyncCompressedTable
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.search.plain import PlainQuery
from rqmoe_store.tables import create_table

WHERE = [None, "lang = 'en'", "id >= 480 -- the last", "id < 0", "text = 'it''s; $1'"]
COLUMNS = [None, ["id"], ["text", "id"], ["_rowid"], ["_rowid", "id"]]


@settings(max_examples=30, deadline=None)
@given(
    where=st.lists(st.sampled_from(WHERE[1:]), max_size=2),
    limit=st.none() | st.integers(1, 600),
    offset=st.integers(0, 600),
    columns=st.sampled_from(COLUMNS),
    with_row_id=st.booleans(),
)
def test_results_are_those_of_lancedb(worlds, where, limit, offset, columns, with_row_id) -> None:
    world = worlds("l2", 4)
    found, awaited = world.store.search(), AsyncCompressedTable(world.store).query()
    plain = world.store.table.search().select(columns or ["id", "lang", "text"])
    plain.limit(limit).offset(offset).with_row_id(with_row_id)
    for query in (found, awaited):
        query.select(columns).limit(limit).offset(offset).with_row_id(with_row_id)
        for condition in where:
            query.where(condition)
    if where:
        plain.where(" AND ".join(f"({condition}\n)" for condition in where))
    expected = plain.to_arrow().replace_schema_metadata()
    assert found.to_arrow().equals(expected)
    assert found.to_batches(7).read_all().equals(expected)
    assert asyncio.run(awaited.to_arrow()).equals(expected)


def test_every_row_in_all_user_columns_by_default(world) -> None:
    search = world.store.search()
    assert isinstance(search, PlainQuery)
    assert search.to_arrow().schema == world.store.schema.remove_metadata()
    assert set(search.limit(3).limit(None).to_arrow()["id"].to_pylist()) == set(range(500))
    number = world.ids[0]
    found = search.limit(2).to_list()
    assert found[0] == {"id": number, "lang": "en" if number % 3 == 0 else "de", "text": f"text {number}"}
    ids = world.ids[:2].tolist()
    assert search.to_pandas()["id"].tolist() == search.to_polars()["id"].to_list() == ids


@pytest.mark.parametrize("length", [None, 1, 7, 1000])
def test_batches(world, length) -> None:
    reader = world.store.search().where("id < 20").select(["id", "vector"]).to_batches(length)
    batches = list(reader)
    assert {number for batch in batches for number in batch["id"].to_pylist()} == set(range(20))
    assert all(0 < len(batch) <= (length or 20) for batch in batches)


def test_json_and_rows_written_since(tmp_path) -> None:
    schema = pa.schema([("meta", pa.json_(pa.string())), ("vector", pa.list_(pa.float32(), 4))])
    store = create_table(lancedb.connect(tmp_path), "notes", schema=schema)
    assert store.search().to_arrow().num_rows == 0
    store.add([{"meta": json.dumps({"a": row}), "vector": [row] * 4} for row in range(3)])
    assert [json.loads(row["meta"]) for row in store.search().to_list()] == [{"a": 0}, {"a": 1}, {"a": 2}]
    store.checkout(store.version - 1)
    assert store.search().to_list() == []


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda query: query.limit(0), "limit=0"),
        (lambda query: query.limit(True), "limit=True"),
        (lambda query: query.offset(-1), "offset=-1"),
        (lambda query: query.to_batches(0), "max_batch_length=0"),
        (lambda query: query.where("id <").to_arrow(), "sql parser error"),
        (lambda query: query.where("nope = 1").to_batches(), "No field named nope"),
        (lambda query: query.where("id > 0) OR (1 = 1").to_arrow(), "parentheses"),
        (lambda query: query.select(["nope"]).to_arrow(), "unknown column 'nope'"),
        (lambda query: query.select(["_distance"]).to_arrow(), "unknown column '_distance'"),
    ],
)
def test_unusable_options(world, build: Callable[[Any], Any], reason: str) -> None:
    with pytest.raises(InvalidInputError, match=reason):
        build(world.store.search())


def test_it_is_no_search(world) -> None:
    with pytest.raises(InvalidInputError, match="fts_columns='text'"):
        world.store.search(fts_columns="text")
    with pytest.raises(InvalidInputError, match="Got None"):
        world.store.search(None, query_type="vector")
    assert world.store.search().where("lang = 'en'", prefilter=False).limit(2).to_arrow().num_rows == 2
    assert not np.isin("_distance", world.store.search().to_arrow().column_names)
