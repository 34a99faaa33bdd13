"""Stores for tests."""

import os
from pathlib import Path

# Set before torch is imported: on tensors as small as the tests' a second thread only waits for the first.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from llama_index.vector_stores.rqmoe import RQMoEVectorStore
from small_nodes import QUICKLY, SMALL_CODEC, many_nodes


@pytest.fixture
def store(tmp_path: Path) -> RQMoEVectorStore:
    """A store without a table yet."""
    return RQMoEVectorStore(uri=str(tmp_path / "db"))


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> RQMoEVectorStore:
    """A store of 300 nodes whose embeddings codes have replaced; not to be changed."""
    made = RQMoEVectorStore(
        uri=str(tmp_path_factory.mktemp("db")), config=SMALL_CODEC, training=QUICKLY, train_from=300
    )
    made.add(many_nodes(300))
    return made
