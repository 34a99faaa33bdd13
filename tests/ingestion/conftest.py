"""A codec, databases and tables to ingest into."""

from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_sources import BAD, COUNT, DIM, rows_of
from small_tables import tiny_codec

from rqmoe_store.codecs.base import Codec
from rqmoe_store.store.creation import create_coded
from rqmoe_store.store.handle import Handle
from rqmoe_store.store.table_codec import TableCodec
from rqmoe_store.table import CompressedTable


@pytest.fixture(scope="session")
def codec() -> Codec:
    """With refine codes."""
    return _codec("l2", refine_bytes=8)


@pytest.fixture(scope="session")
def cosine_codec() -> Codec:
    return _codec("cosine")


def _codec(metric: Any, refine_bytes: int = 0) -> Codec:
    vectors = np.random.default_rng(7).normal(size=(400, DIM)).astype(np.float32)
    return tiny_codec(vectors, metric, partitions=3, refine_bytes=refine_bytes)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of 70, 0, 50 and 30 rows, some of them bad."""
    folder = tmp_path_factory.mktemp("source")
    rows = rows_of(COUNT).to_pylist()
    for row in BAD:
        rows[row]["vector"][0] = float("nan")
    table = pa.Table.from_pylist(rows, schema=rows_of(0).schema)
    for name, (start, stop) in {"a": (0, 70), "b": (70, 70), "c": (70, 120), "d": (120, 150)}.items():
        pq.write_table(table.slice(start, stop - start), folder / f"{name}.parquet", row_group_size=11)
    return folder


@pytest.fixture
def db(tmp_path: Path) -> lancedb.DBConnection:
    return lancedb.connect(tmp_path / "db")


@pytest.fixture
def store(db: lancedb.DBConnection, codec: Codec) -> CompressedTable:
    """An empty table `docs` for `rows_of`."""
    table, metadata = create_coded(
        db, "docs", rows_of(0).schema, codec=codec, vector_column="vector", keep_vectors="none"
    )
    return CompressedTable(Handle(table, TableCodec.of(metadata, [codec])))
