"""Try an installed rqmoe-haystack: documents that are compressed, found by a pipeline and deleted."""

import tempfile

import numpy as np
from haystack import Document, Pipeline
from haystack_integrations.components.retrievers.rqmoe import RQMoEEmbeddingRetriever
from haystack_integrations.document_stores.rqmoe import RQMoEDocumentStore

import rqmoe_store as rqs

vectors = np.random.default_rng(0).normal(size=(1200, 64)).tolist()

with tempfile.TemporaryDirectory() as folder:
    store = RQMoEDocumentStore(
        folder,
        config=rqs.CodecConfig(code_bytes=8, codebook_size=16, metric="cosine"),
        training=rqs.TrainConfig(epochs=1, seed=0, progress=False),
        train_from=1200,
        progress_bar=False,
    )
    store.write_documents(
        [
            Document(id=str(n), content=f"text {n}", meta={"page": n}, embedding=vectors[n])
            for n in range(1200)
        ]
    )
    assert store.table is not None
    assert store.table.stats().raw_rows == 0
    pipeline = Pipeline()
    pipeline.add_component("retriever", RQMoEEmbeddingRetriever(store, top_k=1))
    found = pipeline.run({"retriever": {"query_embedding": vectors[7]}})["retriever"]["documents"]
    assert [document.id for document in found] == ["7"]
    late = {"field": "meta.page", "operator": ">", "value": 1197}
    assert {document.id for document in store.filter_documents(late)} == {"1198", "1199"}
    store.delete_documents(["7"])
    assert store.count_documents() == 1199
