"""Codecs trained once and small tables for the storage tests; everything on a real LanceDB on disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest

from rqmoe_store.codecs.base import Codec
from rqmoe_store.config import CodecConfig, Metric, TrainConfig
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import compress
from rqmoe_store.training.trainer import train

DIM = 16
CODE_BYTES = 4


def _make_codec(*, num_partitions: int = 0, metric: Metric = "l2", code_bytes: int = CODE_BYTES) -> Codec:
    """A plain RQ codec for 16-d vectors, trained on 500 random ones."""
    vectors = np.random.default_rng(7).normal(size=(500, DIM)).astype(np.float32)
    config = CodecConfig(
        kind="rq",
        metric=metric,
        code_bytes=code_bytes,
        codebook_size=16,
        num_partitions=num_partitions,
        beam=1,
    )
    return train(vectors, config=config, training=TrainConfig(epochs=0, progress=False))


@pytest.fixture(scope="session")
def plain_codec() -> Codec:
    return _make_codec()


@pytest.fixture(scope="session")
def codec() -> Codec:
    """With four partitions."""
    return _make_codec(num_partitions=4)


@pytest.fixture(scope="session")
def cosine_codec() -> Codec:
    return _make_codec(metric="cosine")


@pytest.fixture
def db(tmp_path: Path) -> lancedb.DBConnection:
    return lancedb.connect(tmp_path / "db")


@pytest.fixture(scope="session")
def vectors() -> np.ndarray[Any, Any]:
    return np.random.default_rng(3).normal(size=(300, DIM)).astype(np.float32)


def _vector_array(vectors: Any) -> pa.FixedSizeListArray:
    """Fixed-size list<float> of the rows of `vectors`; None is a row without a vector."""
    rows = [None if row is None else [float(value) for value in row] for row in vectors]
    return pa.array(rows, type=pa.list_(pa.float32(), DIM))


def _docs_table(vectors: Any) -> pa.Table:
    """Rows with id, nullable text and vector, and metadata of the user's own."""
    schema = pa.schema(
        [
            pa.field("id", pa.int64(), nullable=False),
            pa.field("text", pa.string(), metadata={"language": "en"}),
            pa.field("vector", pa.list_(pa.float32(), DIM)),
        ],
        metadata={"owner": "ann"},
    )
    rows = range(len(vectors))
    return pa.table([list(rows), [f"row {row}" for row in rows], _vector_array(vectors)], schema=schema)


@pytest.fixture
def docs(db: lancedb.DBConnection, vectors: np.ndarray[Any, Any]) -> Any:
    return db.create_table("docs", _docs_table(vectors))


@pytest.fixture
def store(docs: Any, codec: Codec) -> CompressedTable:
    return compress(docs, codec, "store", progress=False)


@pytest.fixture
def table_names(db: lancedb.DBConnection) -> Callable[[], set[str]]:
    """Names of the tables and of whatever folders are left beside them."""
    return lambda: {path.name.removesuffix(".lance") for path in Path(db.uri).iterdir()}


def _by_id(table: pa.Table | Any) -> pa.Table:
    """The rows of a table in the order of their ids."""
    return (table if isinstance(table, pa.Table) else table.to_arrow()).sort_by("id")


@pytest.fixture(scope="session")
def make_codec() -> Callable[..., Codec]:
    return _make_codec


@pytest.fixture(scope="session")
def vector_array() -> Callable[..., pa.FixedSizeListArray]:
    return _vector_array


@pytest.fixture(scope="session")
def docs_table() -> Callable[..., pa.Table]:
    return _docs_table


@pytest.fixture(scope="session")
def by_id() -> Callable[..., pa.Table]:
    return _by_id
