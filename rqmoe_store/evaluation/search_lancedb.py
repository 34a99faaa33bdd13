"""LanceDB's own compressed indexes, which need the raw vectors beside them.

- IVF_PQ: as many sub-vectors as there are code bytes, 8 bits each.
- IVF_RQ: one bit per dimension (RaBitQ), so its size follows from the dimension and from nothing else.

Both are asked with and without ordering 10 times as many rows again by their raw vectors.
"""

import time
from typing import Any

from lancedb.index import IvfPq, IvfRq

from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.evaluation.recall import Indices
from rqmoe_store.evaluation.search_index import (
    ID,
    LANCEDB_PQ,
    LANCEDB_RQ,
    NEIGHBOURS,
    VECTOR,
    Corpus,
    SearchedIndex,
    positions_of,
    probe_counts,
)
from rqmoe_store.evaluation.search_results import IndexResult, SearchSetting
from rqmoe_store.store.statistics import column_bytes

REFINE_FACTOR = 10

RQ_DIMENSIONS = 8
"""Dimensions whose bits share a byte of an IVF_RQ code; LanceDB takes whole bytes only."""


def rq_code_bytes(dim: int) -> int:
    """Bytes of an IVF_RQ code of one bit per dimension; its factors of scale come on top."""
    return dim // RQ_DIMENSIONS


def build_lancedb_pq(corpus: Corpus, code_bytes: int) -> SearchedIndex:
    """An IVF_PQ index with codes of so many bytes, a divisor of the dimension; replaces the one there is."""
    config = IvfPq(
        distance_type=corpus.metric, num_partitions=corpus.num_partitions, num_sub_vectors=code_bytes
    )
    return _build(corpus, LANCEDB_PQ, code_bytes, config)


def build_lancedb_rq(corpus: Corpus) -> SearchedIndex:
    """An IVF_RQ index of one bit per dimension; replaces the one there is."""
    config = IvfRq(distance_type=corpus.metric, num_partitions=corpus.num_partitions)
    return _build(corpus, LANCEDB_RQ, rq_code_bytes(corpus.vectors_ND.shape[1]), config)


def _build(corpus: Corpus, system: str, code_bytes: int, config: IvfPq | IvfRq) -> SearchedIndex:
    docs, rows = corpus.docs, len(corpus.vectors_ND)
    started = time.perf_counter()
    docs.create_index(VECTOR, config=config, replace=True)
    seconds = time.perf_counter() - started
    index_bytes = sum(index.size_bytes or 0 for index in docs.list_indices())

    def search(queries_QD: Float32Array, setting: SearchSetting) -> Indices:
        # A batch of one would be answered without `query_index`, as a single query is.
        queries: Any = queries_QD if len(queries_QD) > 1 else queries_QD[0]
        query: Any = docs.search(queries, vector_column_name=VECTOR)
        query = query.distance_type(corpus.metric).nprobes(setting.nprobes).limit(NEIGHBOURS)
        if setting.refine_factor is not None:
            query = query.refine_factor(setting.refine_factor)
        # Distances are returned anyway; not to name them brings a warning with every query.
        return positions_of(query.select([ID, "_distance"]).to_arrow(), len(queries_QD))

    return SearchedIndex(
        result=IndexResult(
            system=system,
            code_bytes=code_bytes,
            num_partitions=corpus.num_partitions,
            build_seconds=seconds,
            index_bytes=index_bytes / rows,
            total_bytes=(index_bytes + column_bytes(docs, [VECTOR])) / rows,
            resident_bytes=None,
            exhaustive_recall=None,
        ),
        settings=[
            SearchSetting(nprobes=nprobes, refine_factor=factor)
            for factor in (None, REFINE_FACTOR)
            for nprobes in probe_counts(corpus.nprobes, corpus.num_partitions)
        ],
        search=search,
    )
