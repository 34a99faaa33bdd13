"""Queries of a table whose embeddings codes have replaced."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from llama_index.vector_stores.rqmoe import RQMoEVectorStore
from small_nodes import QUICKLY, SMALL_CODEC, asked, many_nodes, where


def test_embeddings_of_codes_are_decoded_ones(coded: RQMoEVectorStore) -> None:
    given_nodes = many_nodes(300)
    vectors = np.array([one.embedding for one in given_nodes], dtype=np.float32)
    codec = coded.table.codec
    decoded = codec.decode(codec.encode(vectors))
    everything = {one.node_id: one for one in coded.get_nodes()}
    read = np.array([everything[one.node_id].embedding for one in given_nodes])
    np.testing.assert_allclose(read, decoded, atol=1e-6)
    found = coded.query(asked(given_nodes[7].embedding, top=5))
    for one, similarity in zip(found.nodes or [], found.similarities or [], strict=True):
        assert one.embedding == everything[one.node_id].embedding
        length = float(np.linalg.norm(one.embedding or []) * np.linalg.norm(vectors[7]))
        assert similarity == pytest.approx(float(np.dot(one.embedding or [], vectors[7])) / length, abs=1e-5)
        assert one.model_copy(update={"embedding": None}) == given_nodes[
            int(one.metadata["place"])
        ].model_copy(update={"embedding": None})


def test_refine_codes(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL_CODEC, refine_bytes=6)
    store = RQMoEVectorStore(uri=str(tmp_path), config=config, training=QUICKLY, train_from=100)
    nodes = many_nodes(110)
    store.add(nodes[:100])
    store.add(nodes[100:])
    assert store.table.columns.refine_bytes == 6
    assert store.table.table.count_rows("vector_refine IS NOT NULL") == 110
    assert store.query(asked(nodes[7].embedding, top=1)).ids == ["n7"]
    again = RQMoEVectorStore.from_dict(store.to_dict())
    assert again.table.columns.refine_bytes == 6


@pytest.mark.parametrize("mode", ["default", "mmr", "hybrid", "text_search"])
def test_modes_on_codes(coded: RQMoEVectorStore, mode: str) -> None:
    query = asked(
        many_nodes(300)[5].embedding,
        mode=mode,
        query_str="n5",
        top=3,
        filters=where(("place", "<", 100)),
    )
    found = coded.query(query)
    assert "n5" in (found.ids or [])
    assert all(one.metadata["place"] < 100 and len(one.embedding or []) == 8 for one in found.nodes or [])


def test_more_is_found_with_a_longer_shortlist(coded: RQMoEVectorStore) -> None:
    query = asked(many_nodes(300)[5].embedding, top=3)
    assert coded.query(query, shortlist=300, nprobes=1).ids == coded.query(query, shortlist=299).ids
