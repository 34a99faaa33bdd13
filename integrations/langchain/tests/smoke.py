"""Try an installed langchain-rqmoe: documents that are compressed, found and deleted."""

import tempfile

from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_rqmoe import RQMoEVectorStore

import rqmoe_store as rqs

with tempfile.TemporaryDirectory() as folder:
    store = RQMoEVectorStore(
        DeterministicFakeEmbedding(size=64),
        uri=folder,
        config=rqs.CodecConfig(code_bytes=8, codebook_size=16, metric="cosine"),
        training=rqs.TrainConfig(epochs=1, seed=0, progress=False),
        train_from=1200,
    )
    store.add_documents([Document(f"text {n}", id=str(n), metadata={"page": n}) for n in range(1200)])
    assert store.table.stats().raw_rows == 0
    assert [found.id for found in store.similarity_search("text 7", k=1)] == ["7"]
    assert store.as_retriever().invoke("text 8")[0].metadata == {"page": 8}
    late = store.similarity_search("text 7", k=3, filter={"page": {"$gt": 9}})
    assert len(late) == 3
    assert all(found.metadata["page"] > 9 for found in late)
    store.delete(["7"])
    assert store.table.count_rows() == 1199
