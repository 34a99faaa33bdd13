"""A few nodes, and stores to put them in."""

import string
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.schema import BaseNode, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)

from rqmoe_store import CodecConfig, TrainConfig

DIM = 8
EMPTY = VectorStoreQueryResult(nodes=[], similarities=[], ids=[])
SMALL_CODEC = CodecConfig(kind="rq", metric="cosine", code_bytes=4, codebook_size=16)
QUICKLY = TrainConfig(epochs=1, progress=False)
TROUBLE = [
    "'",
    '"',
    "`",
    "''",
    "\\",
    ";",
    "--",
    "/*",
    "$",
    "%",
    "_",
    ") OR (1=1",
    "' OR '1'='1",
    "null",
    "10",
    "\n",
    "\0",
    "{content}",
    "é",
    "日本",
    "\U0001f600",
    "\u2028",
]
TEXTS = st.lists(st.sampled_from([*TROUBLE, "a", "A"]), max_size=4).map("".join) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=8
)
NUMBERS = st.sampled_from([0, 1, 1.0, 2, -3, 0.5, 10, 2**53 + 1, 2**63, 1e300]) | st.integers(
    -(2**63), 2**64 - 1
)


def node(
    name: str,
    embedding: Sequence[float] = (1.0, 0.0),
    *,
    document: str | None = None,
    text: str | None = None,
    **metadata: Any,
) -> TextNode:
    """A node of a document, its text its name unless said otherwise."""
    source = {} if document is None else {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=document)}
    return TextNode(
        id_=name,
        text=name if text is None else text,
        embedding=list(embedding),
        metadata=metadata,
        relationships=source,
    )


def many_nodes(count: int, *, seed: int = 0) -> list[TextNode]:
    """Nodes with random embeddings (DIM,) of single precision, and a document for every two of them."""
    vectors = np.random.default_rng(seed).normal(size=(count, DIM)).astype("float32")
    return [
        node(f"n{place}", vector.tolist(), document=f"d{place // 2}", place=place)
        for place, vector in enumerate(vectors)
    ]


def where(*filters: tuple[str, str, Any] | MetadataFilters, condition: str | None = "and") -> MetadataFilters:
    """Filters from (key, operator, value)."""
    return MetadataFilters(
        filters=[
            part
            if isinstance(part, MetadataFilters)
            else MetadataFilter(key=part[0], operator=FilterOperator(part[1]), value=part[2])
            for part in filters
        ],
        condition=None if condition is None else FilterCondition(condition),
    )


def asked(
    embedding: Sequence[float] | None = (1.0, 0.0), *, top: int = 10, mode: str = "default", **options: Any
) -> VectorStoreQuery:
    """A query."""
    given = None if embedding is None else list(embedding)
    return VectorStoreQuery(
        query_embedding=given, similarity_top_k=top, mode=VectorStoreQueryMode(mode), **options
    )


def ids(nodes: Iterable[BaseNode]) -> list[str]:
    return [found.node_id for found in nodes]


class LetterEmbedding(BaseEmbedding):
    """Embeds a text as how often it has each letter: equal texts are alike, and no network is needed."""

    def _get_text_embedding(self, text: str) -> list[float]:
        return [1.0, *(float(text.lower().count(letter)) for letter in string.ascii_lowercase)]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)
