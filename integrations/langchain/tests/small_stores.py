"""Embedding models whose vectors can be told from the text, and small vector stores."""

import re
from pathlib import Path
from typing import Any

from langchain_core.embeddings import Embeddings
from langchain_rqmoe import RQMoEVectorStore

from rqmoe_store import CodecConfig

DIM = 4
BY_L2 = CodecConfig(metric="l2")
"""Points are as far from each other as they look, and zero is one of them."""

POINTS = {"a": "apple at 0 0", "b": "banana at 1 0", "c": "cherry at 3 0", "d": "date at 0 4"}
"""Texts by id; the distances from (0, 0) grow."""


class PointEmbedding(Embeddings):
    """The numbers in a text, filled up with zeros."""

    def __init__(self, dim: int = DIM) -> None:
        self.dim = dim
        self.batches: list[int] = []
        """Texts of each call."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.batches.append(len(texts))
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        numbers = [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", text)][: self.dim]
        return numbers + [0.0] * (self.dim - len(numbers))


class AsyncOnlyEmbedding(PointEmbedding):
    """A model that refuses to keep anybody waiting."""

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        return PointEmbedding(self.dim).embed_documents(texts)

    async def aembed_query(self, text: str) -> list[float]:
        return PointEmbedding(self.dim).embed_query(text)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        raise AssertionError("the blocking method was called")

    def embed_query(self, text: str) -> list[float]:
        raise AssertionError("the blocking method was called")


def filled(folder: Path, **settings: Any) -> RQMoEVectorStore:
    """A store with `POINTS`, each with its place in the metadata."""
    store = RQMoEVectorStore(PointEmbedding(), uri=folder, **({"config": BY_L2} | settings))
    metadatas = [{"place": place, "fruit": text.split()[0]} for place, text in enumerate(POINTS.values())]
    store.add_texts(POINTS.values(), metadatas, ids=list(POINTS))
    return store


def ids_of(documents: list[Any]) -> list[str | None]:
    """Ids of documents, or of documents with scores."""
    return [item[0].id if isinstance(item, tuple) else item.id for item in documents]
