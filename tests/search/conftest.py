"""Small compressed tables, one per metric and number of partitions, shared by the whole session."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pytest
import word_embedding
from lancedb.index import FTS
from small_tables import source_table, tiny_codec

from rqmoe_store.codecs.base import Codec
from rqmoe_store.config import Metric
from rqmoe_store.table import CompressedTable
from rqmoe_store.tables import compress

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


@dataclasses.dataclass(frozen=True)
class TextWorld:
    """A compressed table of texts embedded by a function, and the plain table of its reconstructions."""

    store: CompressedTable
    plain: lancedb.table.LanceTable
    texts: list[str]
    vectors: np.ndarray

    @property
    def codec(self) -> Codec:
        return self.store.codec


def build_text_world(folder: Path, metric: Metric = "l2") -> TextWorld:
    """Both tables with full-text indexes on `text` and `title`; rows in the same order."""
    db = lancedb.connect(folder)
    texts = word_embedding.sentences(300)
    docs = word_embedding.text_table(db, "docs", texts)
    vectors = np.stack(docs.to_pandas()["vector"].to_list())
    store = compress(docs, tiny_codec(vectors, metric, PARTITIONS), "texts", progress=False)
    db.drop_table("docs")
    _, _, decoded = reconstructions(store)
    columns = store.table.search().select(["id", "lang", "title", "text"]).to_arrow()
    lists = pa.FixedSizeListArray.from_arrays(pa.array(decoded.ravel()), DIM)
    plain = db.create_table("plain", columns.replace_schema_metadata().append_column("vector", lists))
    store.create_fts_index(["text", "title"])
    for name in ("text", "title"):
        plain.create_index(name, config=FTS())
    return TextWorld(store, plain, texts, vectors)


@pytest.fixture(scope="session")
def text_world(tmp_path_factory: pytest.TempPathFactory) -> TextWorld:
    """Tests must not write to it."""
    return build_text_world(tmp_path_factory.mktemp("texts"))


@pytest.fixture
def own_text_world(tmp_path: Path) -> TextWorld:
    """For tests that write."""
    return build_text_world(tmp_path)


@pytest.fixture(scope="session")
def refinable(tmp_path_factory: pytest.TempPathFactory) -> CompressedTable:
    """A table that keeps its vectors."""
    vectors = np.random.default_rng(7).normal(size=(300, 16)).astype(np.float32)
    docs = lancedb.connect(tmp_path_factory.mktemp("refinable")).create_table("docs", source_table(vectors))
    return compress(docs, tiny_codec(vectors, "l2", 4), "small", keep_vectors="float32", progress=False)
