"""The vector column in results: every row's vector, wherever it comes from."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest

from rqmoe_store.async_table import AsyncCompressedTable
from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.store import metadata
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import create_table

DIM, CODED, RAW = 16, 300, 40
VECTORS = np.random.default_rng(5).normal(size=(CODED + RAW, DIM)).astype(np.float32)
TYPE = pa.list_(pa.float32(), DIM)
NO_VECTOR = CODED + RAW


def rows(first: int, last: int) -> list[dict[str, Any]]:
    return [
        {"id": row, "text": f"word {row}", "meta": json.dumps({"row": row}), "My Vec": VECTORS[row]}
        for row in range(first, last)
    ]


@pytest.fixture(scope="module", params=["none", "float32"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CompressedTable:
    """Rows with codes, raw rows, and one without a vector."""
    return built(tmp_path_factory.mktemp("db"), request.param)


def built(folder: Path, keep: Any) -> CompressedTable:
    schema = pa.schema(
        [("id", pa.int64()), ("text", pa.string()), ("meta", pa.json_(pa.string())), ("My Vec", TYPE)]
    )
    store = create_table(
        lancedb.connect(folder),
        "notes",
        rows(0, CODED),
        schema=schema,
        config=CodecConfig(kind="rq", code_bytes=4, codebook_size=16, num_partitions=2, beam=2),
        vector_column="My Vec",
        keep_vectors=keep,
    )
    store.train(TrainConfig(epochs=0, progress=False), progress=False)
    store.add(rows(CODED, NO_VECTOR), encode=False)
    store.add([{"id": NO_VECTOR, "text": "word none", "meta": "{}", "My Vec": None}])
    store.create_fts_index("text")
    return store


def expected(store: CompressedTable) -> dict[int, np.ndarray]:
    """The vectors by id, from codes read without any search."""
    if store.kept.kept:
        return dict(enumerate(VECTORS))
    stored = store.table.search().select(["id", *store.columns.names]).to_arrow()
    codes, coded = store.columns.from_arrow(stored)
    assert coded.sum() == CODED
    vectors = dict(enumerate(VECTORS))
    return vectors | dict(zip(stored["id"].to_numpy()[coded], store.codecs.decode(codes), strict=True))


NAMES = [["id", "My Vec"], ["My Vec", "id", "My Vec_code"], ["meta", "My Vec", "id"]]
QUERIES: dict[str, Callable[[Any], Any]] = {
    "plain": lambda store: store.search(),
    "vector": lambda store: store.search(VECTORS[0]).nprobes(9).limit(NO_VECTOR),
    "batch": lambda store: store.search(VECTORS[[0, CODED]]).limit(60),
    "fts": lambda store: store.search("word", query_type="fts").limit(999),
    "hybrid": lambda store: store.search(query_type="hybrid").vector(VECTORS[0]).text("word").limit(999),
}


@pytest.mark.parametrize("kind", QUERIES)
@pytest.mark.parametrize(
    "names", [["id", "My Vec"], ["My Vec", "id", "My Vec_code"], ["My Vec", "meta", "id"]]
)
def test_vectors_are_those_of_the_rows(store, kind, names, monkeypatch) -> None:
    monkeypatch.setattr(metadata, "rows_per_batch", lambda dim: 47)  # several parts
    found = QUERIES[kind](store).select(names).to_arrow()
    assert [name for name in found.column_names if name in store.table.schema.names] == names
    assert found.schema.field("My Vec").type == TYPE
    vectors = expected(store)
    for number, vector in zip(found["id"].to_pylist(), found["My Vec"].to_pylist(), strict=True):
        if number == NO_VECTOR:
            assert vector is None
        else:
            np.testing.assert_allclose(vector, vectors[number], rtol=1e-5, atol=1e-6)
    if kind != "batch":
        everything = set(range(NO_VECTOR + (kind != "vector")))
        assert set(found["id"].to_pylist()) == everything


@pytest.mark.parametrize("kind", QUERIES)
def test_only_when_selected(store, kind) -> None:
    names = QUERIES[kind](store).to_arrow().column_names
    assert ("My Vec" in names) == store.kept.kept
    assert "My Vec_code" not in names


def test_no_rows(store) -> None:
    found = store.search().where("id < 0").select(["My Vec"]).to_arrow()
    assert found.num_rows == 0 and found.schema.field("My Vec").type == TYPE
    found = store.search(VECTORS[0]).where("id < 0").select(["My Vec"]).to_arrow()
    assert found.num_rows == 0 and found.schema.field("My Vec").type == TYPE


def test_awaited(store) -> None:
    table = AsyncCompressedTable(store)

    async def main() -> list[pa.Table]:
        plain = table.query().select(["id", "My Vec"]).to_arrow()
        near = table.vector_search(VECTORS[0]).select(["id", "My Vec"]).to_arrow()
        return [await plain, await near, await (await table.search()).select(["id", "My Vec"]).to_arrow()]

    plain, near, again = asyncio.run(main())
    assert plain.equals(store.search().select(["id", "My Vec"]).to_arrow()) and plain.equals(again)
    assert near.equals(store.search(VECTORS[0]).select(["id", "My Vec"]).to_arrow())


def test_distances_are_those_to_these_vectors(tmp_path) -> None:
    found = built(tmp_path, "none").search(VECTORS[1]).select(["My Vec"]).limit(20).to_arrow()
    distances = ((np.array(found["My Vec"].to_pylist()) - VECTORS[1]) ** 2).sum(axis=1)
    np.testing.assert_allclose(found["_distance"].to_numpy(), distances, rtol=1e-4)
