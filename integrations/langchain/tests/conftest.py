"""Stores that several test files use."""

import os
from pathlib import Path

# Set before torch is imported: on tensors as small as the tests' a second thread only waits for the first.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from langchain_rqmoe import RQMoEVectorStore
from small_stores import BY_L2, PointEmbedding, filled


@pytest.fixture
def empty(tmp_path: Path) -> RQMoEVectorStore:
    """A store whose table does not exist yet."""
    return RQMoEVectorStore(PointEmbedding(), uri=tmp_path, config=BY_L2)


@pytest.fixture
def store(tmp_path: Path) -> RQMoEVectorStore:
    """A store with the documents of `POINTS`."""
    return filled(tmp_path)


@pytest.fixture
def project() -> Path:
    """The folder of this integration."""
    return Path(__file__).parent.parent
