"""Haystack's own tests of document stores."""

import pytest
from comparisons import assert_same_documents, same_direction
from haystack.dataclasses import Document
from haystack.document_stores.errors import DuplicateDocumentError
from haystack.document_stores.types import DocumentStore
from haystack.testing.document_store import (
    CountDocumentsByFilterTest,
    CountUniqueMetadataByFilterTest,
    DocumentStoreBaseExtendedTests,
    DocumentStoreBaseTests,
    GetMetadataFieldMinMaxTest,
    GetMetadataFieldsInfoTest,
    GetMetadataFieldUniqueValuesTest,
)
from haystack_integrations.document_stores.rqmoe import RQMoEDocumentStore


class TestRawDocumentStore(
    CountDocumentsByFilterTest,
    CountUniqueMetadataByFilterTest,
    DocumentStoreBaseExtendedTests,
    GetMetadataFieldMinMaxTest,
    GetMetadataFieldsInfoTest,
    GetMetadataFieldUniqueValuesTest,
):
    """All of them, on a table that has no codec yet."""

    @pytest.fixture
    def document_store(self, raw_document_store: RQMoEDocumentStore) -> RQMoEDocumentStore:
        return raw_document_store

    @staticmethod
    def assert_documents_are_equal(received: list[Document], expected: list[Document]) -> None:
        assert_same_documents(received, expected)

    def test_write_documents(self, document_store: DocumentStore) -> None:
        document = Document(content="test doc")
        assert document_store.write_documents([document]) == 1
        with pytest.raises(DuplicateDocumentError):
            document_store.write_documents([document])
        self.assert_documents_are_equal(document_store.filter_documents(), [document])


class TestCodedDocumentStore(DocumentStoreBaseTests):
    """The tests of embeddings and filters, on a table that encodes what is written."""

    @pytest.fixture
    def document_store(self, coded_document_store: RQMoEDocumentStore) -> RQMoEDocumentStore:
        return coded_document_store

    @staticmethod
    def assert_documents_are_equal(received: list[Document], expected: list[Document]) -> None:
        assert_same_documents(received, expected, same_direction)

    def test_write_documents(self, document_store: DocumentStore) -> None:
        document = Document(content="test doc", embedding=[0.5] * 768)
        assert document_store.write_documents([document]) == 1
        self.assert_documents_are_equal(document_store.filter_documents(), [document])
