"""Stores that tests write to, and what holds for all tests."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from haystack_integrations.document_stores.rqmoe import RQMoEDocumentStore

# How long an example takes says how busy the machine is; tables are made once for all.
settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("untimed")

# Before Haystack is imported, which is why fixtures import it: tests report to nobody, and ask no model hub.
os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def database(tmp_path: Path) -> str:
    return str(tmp_path / "database")


@pytest.fixture
def small_store(database: str) -> "RQMoEDocumentStore":
    """A store without documents, for embeddings of 8 components."""
    from small_stores import new_store

    return new_store(database, embedding_dims=8)


@pytest.fixture
def raw_document_store(database: str) -> "RQMoEDocumentStore":
    """A store for the documents of Haystack's tests, whose embeddings stay as they are."""
    from small_stores import new_store

    return new_store(database, embedding_dims=768)


@pytest.fixture(scope="session")
def coded_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with a table for embeddings of 768 components that has a codec, and no documents any
    more."""
    from haystack.dataclasses import Document
    from small_stores import new_store

    path, vectors = tmp_path_factory.mktemp("coded"), np.random.default_rng(0).random((200, 768))
    store = new_store(path, train_from=200)
    store.write_documents([Document(id=str(row), embedding=vectors[row].tolist()) for row in range(200)])
    store.delete_all_documents()
    return path


@pytest.fixture
def coded_document_store(coded_database: Path, tmp_path: Path) -> "RQMoEDocumentStore":
    """A store for the documents of Haystack's tests, whose embeddings are encoded as they are written."""
    from small_stores import new_store

    shutil.copytree(coded_database, tmp_path / "copied")
    return new_store(tmp_path / "copied", embedding_dims=768)
