"""LangChain's own tests of vector stores, unmodified."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from langchain_core.vectorstores import VectorStore
from langchain_rqmoe import RQMoEVectorStore
from langchain_tests.integration_tests import VectorStoreIntegrationTests


class TestRQMoEVectorStore(VectorStoreIntegrationTests):
    """Blocking and awaited, with documents by id."""

    @pytest.fixture
    def vectorstore(self, tmp_path: Path) -> Iterator[VectorStore]:
        yield RQMoEVectorStore(self.get_embeddings(), uri=tmp_path)


def test_nothing_is_skipped() -> None:
    suite = TestRQMoEVectorStore()
    assert suite.has_sync and suite.has_async and suite.has_get_by_ids
    own = [name for name in vars(TestRQMoEVectorStore) if name.startswith(("test_", "has_"))]
    assert own == []
