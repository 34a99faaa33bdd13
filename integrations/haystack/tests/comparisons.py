"""Whether documents are what was written."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from haystack.dataclasses import Document

Compared = Callable[[list[float], list[float]], None]


def same_single_floats(received: Sequence[float], expected: Sequence[float]) -> None:
    """Embeddings that are kept as they are."""
    np.testing.assert_array_equal(np.float32(received), np.float32(expected))


def same_direction(received: Sequence[float], expected: Sequence[float]) -> None:
    """Embeddings that were encoded by the codec of the tests, which makes them of unit length."""
    cosine = np.dot(received, expected) / np.linalg.norm(received) / np.linalg.norm(expected)
    assert cosine > 0.8


def assert_same_documents(
    received: list[Document], expected: list[Document], embeddings: Compared = same_single_floats
) -> None:
    """Raise unless all documents are there, in any order, exactly but for their embeddings."""
    assert len(received) == len(expected)
    for one, other in zip(_by_id(received), _by_id(expected), strict=True):
        assert (one.embedding is None) == (other.embedding is None)
        if one.embedding is not None and other.embedding is not None:
            embeddings(one.embedding, other.embedding)
        assert dataclasses.replace(one, embedding=None) == dataclasses.replace(other, embedding=None)


def _by_id(documents: list[Document]) -> list[Document]:
    return sorted(documents, key=lambda document: document.id)
