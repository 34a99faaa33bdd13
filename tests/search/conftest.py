"""Small compressed tables, one per metric and number of partitions, shared by the whole session."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from small_tables import source_table, tiny_codec

from rqmoe_store.codecs.base import Codec
from rqmoe_store.config import Metric
from rqmoe_store.table import CompressedTable, compress

ROWS, DIM, PARTITIONS = 500, 16, 4


@dataclasses.dataclass(frozen=True)
class World:
    """A compressed table and the plain table of its reconstructions, row by row the same."""

    store: CompressedTable
    plain: lancedb.table.LanceTable
    ids: np.ndarray
    row_ids: np.ndarray
    vectors: np.ndarray
    metric: Metric

    @property
    def codec(self) -> Codec:
        return self.store.codec


def reconstructions(store: CompressedTable) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """User ids, row ids and decoded vectors of every row, read without any search."""
    rows = store.table.search().with_row_id(True).to_arrow()
    codes, valid = store.columns.from_arrow(rows)
    assert valid.all()
    return rows["id"].to_numpy(), rows["_rowid"].to_numpy(), store.codec.decode(codes)


def build_world(folder: Path, metric: Metric, partitions: int) -> World:
    vectors = np.random.default_rng(7).normal(size=(ROWS, DIM)).astype(np.float32)
    db = lancedb.connect(folder)
    docs = db.create_table("docs", source_table(vectors))
    store = compress(docs, tiny_codec(vectors, metric, partitions), "docs_compressed", progress=False)
    ids, row_ids, decoded = reconstructions(store)
    columns = store.table.search().select(["id", "lang", "text"]).to_arrow()
    lists = pa.FixedSizeListArray.from_arrays(pa.array(decoded.ravel()), DIM)
    plain = db.create_table("plain", columns.append_column("vector", lists))
    return World(store, plain, ids, row_ids, decoded, metric)


@pytest.fixture(scope="session")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Metric, int], World]:
    """`worlds(metric, partitions)`: built on first use. Tests must not write to it."""
    built: dict[tuple[str, int], World] = {}

    def get(metric: Metric, partitions: int) -> World:
        key = metric, partitions
        if key not in built:
            built[key] = build_world(tmp_path_factory.mktemp(f"{metric}{partitions}"), metric, partitions)
        return built[key]

    return get


@pytest.fixture(params=["l2", "cosine", "dot"])
def metric(request: pytest.FixtureRequest) -> Metric:
    chosen: Metric = request.param
    return chosen


@pytest.fixture
def world(worlds: Callable[[Metric, int], World]) -> World:
    """The table most tests use: l2, four partitions."""
    return worlds("l2", PARTITIONS)
