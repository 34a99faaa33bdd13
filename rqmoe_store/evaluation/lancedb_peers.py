"""Compressed indexes of LanceDB to compare with: IVF_PQ, and IVF_RQ, which is RaBitQ.

Shape suffixes: N vectors, Q queries, K neighbors, D vector dimension.
"""

import tempfile
import time
from collections.abc import Sequence
from typing import Any

import lancedb
from lancedb.index import IvfPq, IvfRq
from lancedb.table import LanceTable

from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import Metric
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.contenders import SearchedCodec
from rqmoe_store.evaluation.peer_names import LANCEDB_PQ, LANCEDB_RQ, form_of
from rqmoe_store.evaluation.recall import Indices
from rqmoe_store.evaluation.search_measurement import (
    ID,
    NEIGHBORS,
    VECTOR,
    Corpus,
    IndexResult,
    SearchedIndex,
    SearchSetting,
    create_docs,
    default_partitions,
    positions_of,
    probe_counts,
)
from rqmoe_store.store.statistics import column_bytes

REFINE_FACTOR = 10

_RQ_DIMENSIONS = 8
"""Dimensions per byte of a bit each. IVF_RQ takes whole bytes only."""
_RQ_WORD_BITS = 64
"""Bits beyond the first of all components fill words of so many."""
_ROW_ID_BYTES = 8
_RQ_FACTOR_BYTES, _RQ_MORE_FACTOR_BYTES = 20, 8
"""The row id and three factors; two more factors if there are bits beyond the first."""


def build_lancedb_pq(corpus: Corpus, code_bytes: int) -> SearchedIndex:
    """Build an IVF_PQ index in place of an earlier one; the code bytes must divide the dimension.

    It has a sub-vector of 8 bits per code byte.
    """
    config = IvfPq(
        distance_type=corpus.metric, num_partitions=corpus.num_partitions, num_sub_vectors=code_bytes
    )
    return _build(corpus, LANCEDB_PQ, code_bytes, config)


def build_lancedb_rq(corpus: Corpus, name: str = LANCEDB_RQ) -> SearchedIndex:
    """Build an IVF_RQ index in place of an earlier one.

    It has one bit per dimension, or as many as the name says, so its size follows from the dimension.
    """
    bits = 1 if name == LANCEDB_RQ else int(form_of(name))
    config = IvfRq(distance_type=corpus.metric, num_partitions=corpus.num_partitions, num_bits=bits)
    return _build(corpus, name, rq_code_bytes(corpus.vectors_ND.shape[1], bits), config)


def rq_code_bytes(dim: int, bits: int = 1) -> int:
    """Bytes that IVF_RQ keeps per vector in its index: bits of all components, factors, and the row id.

    On disk the row ids, 8 bytes each, may be compressed.
    """
    one_bit = dim // _RQ_DIMENSIONS + _RQ_FACTOR_BYTES
    if bits == 1:
        return one_bit
    words = -(-dim // _RQ_WORD_BITS)
    return one_bit + words * _RQ_WORD_BITS // 8 * (bits - 1) + _RQ_MORE_FACTOR_BYTES


def check_rq_dim(dim: int, name: str) -> None:
    """Raise InvalidInputError unless IVF_RQ takes vectors of this dimension."""
    if dim % _RQ_DIMENSIONS:
        raise InvalidInputError(
            f"LanceDB's IVF_RQ takes dimensions that are a multiple of {_RQ_DIMENSIONS}; got {dim}. "
            f"Leave out {name}."
        )


def pq_code_bytes(sub_vectors: int) -> int:
    """Bytes that IVF_PQ keeps per vector in its index: the code and the row id."""
    return sub_vectors + _ROW_ID_BYTES


def pq_sub_vectors(total_bytes: int, dim: int) -> int | None:
    """The most sub-vectors that IVF_PQ can have within so many bytes per vector; None if not one."""
    most = min(total_bytes - _ROW_ID_BYTES, dim)
    return next((count for count in range(most, 0, -1) if dim % count == 0), None)


def check_pq_dim(dim: int, code_bytes: Sequence[int], names: str) -> None:
    """Raise InvalidInputError unless product quantization divides the dimension into so many parts."""
    uneven = [size for size in code_bytes if dim % size]
    if uneven:
        raise InvalidInputError(
            f"Product quantization of dimension {dim} takes code sizes that divide it; got {uneven}. "
            f"Choose other sizes, or leave out {names}."
        )


def searched_rq(bits: int, metric: Metric) -> SearchedCodec:
    """IVF_RQ of so many bits per component as a codec, as in `_searched`."""
    return _searched({"num_bits": bits}, metric, IvfRq)


def searched_pq(sub_vectors: int, metric: Metric) -> SearchedCodec:
    """IVF_PQ of so many sub-vectors of a byte each as a codec, as in `_searched`."""
    return _searched({"num_sub_vectors": sub_vectors}, metric, IvfPq)


def _searched(settings: dict[str, Any], metric: Metric, kind: type[IvfPq] | type[IvfRq]) -> SearchedCodec:
    """An index as a codec.

    Every search builds an index over the vectors, in a temporary database, and searches all its partitions
    without looking at raw vectors.
    """

    def search(vectors_ND: Float32Array, queries_QD: Float32Array, k: int) -> Indices:
        partitions = default_partitions(len(vectors_ND))
        with tempfile.TemporaryDirectory(prefix="rqmoe-bench-") as folder:
            docs = create_docs(lancedb.connect(folder), vectors_ND)
            config = kind(distance_type=metric, num_partitions=partitions, **settings)
            docs.create_index(VECTOR, config=config)
            return _found(docs, queries_QD, metric, SearchSetting(nprobes=partitions), k)

    return SearchedCodec(settings=settings, search=search)


def _build(corpus: Corpus, system: str, code_bytes: int, config: IvfPq | IvfRq) -> SearchedIndex:
    """Build an index, to be searched with and without refining 10 times as many rows by raw vectors."""
    docs, rows = corpus.docs, len(corpus.vectors_ND)
    started = time.perf_counter()
    docs.create_index(VECTOR, config=config, replace=True)
    seconds = time.perf_counter() - started
    index_bytes = sum(index.size_bytes or 0 for index in docs.list_indices())
    raw_bytes = column_bytes(docs, [VECTOR])

    def search(queries_QD: Float32Array, setting: SearchSetting) -> Indices:
        return _found(docs, queries_QD, corpus.metric, setting, NEIGHBORS)

    return SearchedIndex(
        result=IndexResult(
            system=system,
            code_bytes=code_bytes,
            num_partitions=corpus.num_partitions,
            build_seconds=seconds,
            index_bytes=index_bytes / rows,
            raw_bytes=raw_bytes / rows,
            total_bytes=(index_bytes + raw_bytes) / rows,
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


def _found(
    docs: LanceTable, queries_QD: Float32Array, metric: Metric, setting: SearchSetting, k: int
) -> Indices:
    """Positions of the nearest vectors by the index (Q, k), filled up with -1."""
    # LanceDB returns no `query_index` for a batch of one, as for a single query.
    queries: Any = queries_QD if len(queries_QD) > 1 else queries_QD[0]
    query: Any = docs.search(queries, vector_column_name=VECTOR)
    query = query.distance_type(metric).nprobes(setting.nprobes).limit(k)
    if setting.refine_factor is not None:
        query = query.refine_factor(setting.refine_factor)
    # LanceDB returns distances in any case, and warns with every query that does not select them.
    return positions_of(query.select([ID, "_distance"]).to_arrow(), len(queries_QD), k)
