"""Try an installed llama-index-vector-stores-rqmoe: nodes that are compressed, found and deleted."""

import tempfile

import numpy as np
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters, VectorStoreQuery
from llama_index.vector_stores.rqmoe import RQMoEVectorStore

import rqmoe_store as rqs

vectors = np.random.default_rng(0).normal(size=(1200, 64)).tolist()

with tempfile.TemporaryDirectory() as folder:
    store = RQMoEVectorStore(
        uri=folder,
        config=rqs.CodecConfig(code_bytes=8, codebook_size=16, metric="cosine"),
        training=rqs.TrainConfig(epochs=1, seed=0, progress=False),
        train_from=1200,
    )
    store.add(
        [
            TextNode(id_=str(n), text=f"text {n}", metadata={"page": n}, embedding=vectors[n])
            for n in range(1200)
        ]
    )
    assert store.table.stats().raw_rows == 0
    assert store.query(VectorStoreQuery(query_embedding=vectors[7], similarity_top_k=1)).ids == ["7"]
    late = MetadataFilters(filters=[MetadataFilter(key="page", operator=">", value=9)])
    found = store.query(VectorStoreQuery(query_embedding=vectors[7], similarity_top_k=3, filters=late))
    assert all(node.metadata["page"] > 9 for node in found.nodes)
    assert len(found.nodes) == 3
    store.delete_nodes(["7"])
    assert store.table.count_rows() == 1199
