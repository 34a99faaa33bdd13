"""Vector engines in this process to compare with: turbovec, USearch and Qdrant Edge, of the extra `bench`.

Shape suffixes: N vectors, Q queries, K neighbors, D vector dimension, C bytes of a code.
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rqmoe_store.codecs.parallel import num_threads
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import Metric
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.contenders import SearchedCodec
from rqmoe_store.evaluation.peer_names import QDRANT, family_of, form_of
from rqmoe_store.evaluation.recall import Indices
from rqmoe_store.evaluation.search_measurement import (
    NEIGHBORS,
    Corpus,
    IndexResult,
    SearchedIndex,
    SearchSetting,
)

OVERSAMPLING = 10
"""Rows that Qdrant orders again by raw vectors, as a multiple of those returned."""

_CALIBRATION_ROWS = 1024
_UPSERT_ROWS = 1000
_QUERY_ROWS = 100
_QUANTILE = 0.99
_EDGES, _CONSTRUCTION_CANDIDATES = 16, 100
"""Qdrant's defaults."""
_LARGEST_SEGMENT_KB = 2**30

_ROTATED_FACTORS = {"turbovec": 4, f"{QDRANT}-stored": 4, f"{QDRANT}-turbo": 8}
"""Bytes of factors of each vector. Qdrant's with 8 bits have half of them."""


@dataclasses.dataclass(frozen=True)
class EngineIndex:
    """An index that was built."""

    index_bytes: int
    """All bytes on disk, without raw vectors."""
    raw_bytes: int
    """Bytes of raw vectors on disk."""
    rescores: bool
    """Whether searches can order rows again by raw vectors."""
    search: Callable[[Float32Array, int, bool], Indices]
    """Queries (Q, D), k, whether to order rows again -> positions (Q, k), filled up with -1."""


def engine_code_bytes(name: str, dim: int) -> int:
    """Bytes that the engine keeps of each vector to compare it by: code and factors, no ids and no graph."""
    family, form = family_of(name), form_of(name)
    if family == "usearch":
        return dim if form == "i8" else -(-dim // 8)
    if family == f"{QDRANT}-pq":
        return -(-dim // _pq_chunk(form))
    if family == f"{QDRANT}-scalar":
        return -(-dim // 16) * 16 + 4
    bits = int(np.ceil(dim * float(form)))
    if family == f"{QDRANT}-binary":
        return -(-bits // 128) * 16
    factors = 4 if form == "8" else _ROTATED_FACTORS[family]
    return -(-bits // 8) + factors


def check_engine(name: str, metric: Metric, dim: int) -> None:
    """Raise InvalidInputError unless the engine takes vectors of this dimension under the metric."""
    if family_of(name) == "turbovec" and (metric == "l2" or dim % 8):
        raise InvalidInputError(
            f"{name} takes dimensions that are a multiple of 8 under the metric 'cosine' or 'dot'; got {dim} "
            f"and {metric!r}. Measure under cosine, or leave it away."
        )
    if name == "usearch-i8" and metric != "cosine":
        raise InvalidInputError(
            f"{name} is for vectors of length 1, as under the metric 'cosine'; got {metric!r}. Measure under "
            "cosine, or leave it away."
        )


def searched_engine(name: str, metric: Metric) -> SearchedCodec:
    """The engine's codes as a codec. Every search indexes the vectors, and scores all of their codes."""

    def search(vectors_ND: Float32Array, queries_QD: Float32Array, k: int) -> Indices:
        with tempfile.TemporaryDirectory(prefix="rqmoe-bench-") as folder:
            index = _build(name, vectors_ND, metric, Path(folder), exhaustive=True)
            return index.search(queries_QD, k, False)

    return SearchedCodec(settings={"form": form_of(name)}, search=search)


def build_engine(corpus: Corpus, name: str, folder: Path) -> SearchedIndex:
    """Index the vectors as the engine does by default: turbovec exhaustively, the others by a graph (HNSW).

    Args:
        corpus: the vectors.
        name: name of the index.
        folder: where Qdrant keeps its files; there is nothing yet.
    """
    rows, dim = corpus.vectors_ND.shape
    started = time.perf_counter()
    index = _build(name, corpus.vectors_ND, corpus.metric, folder, exhaustive=False)
    seconds = time.perf_counter() - started

    def search(queries_QD: Float32Array, setting: SearchSetting) -> Indices:
        return index.search(queries_QD, NEIGHBORS, setting.refine_factor is not None)

    factors = (None, OVERSAMPLING) if index.rescores else (None,)
    return SearchedIndex(
        result=IndexResult(
            system=name,
            code_bytes=engine_code_bytes(name, dim),
            num_partitions=0,
            build_seconds=seconds,
            index_bytes=index.index_bytes / rows,
            raw_bytes=index.raw_bytes / rows,
            total_bytes=(index.index_bytes + index.raw_bytes) / rows,
            resident_bytes=None,
            exhaustive_recall=None,
        ),
        settings=[SearchSetting(refine_factor=factor) for factor in factors],
        search=search,
    )


def _build(
    name: str, vectors_ND: Float32Array, metric: Metric, folder: Path, *, exhaustive: bool
) -> EngineIndex:
    if family_of(name) == "turbovec":
        return _build_turbovec(int(form_of(name)), vectors_ND)
    if family_of(name) == "usearch":
        return _build_usearch(form_of(name), vectors_ND, exhaustive)
    return _build_qdrant(name, vectors_ND, metric, folder, exhaustive)


def _build_turbovec(bits: int, vectors_ND: Float32Array) -> EngineIndex:
    """TurboQuant with levels that are calibrated to a sample, which finds more than without."""
    from turbovec import TurboQuantIndex

    rows = len(vectors_ND)
    index = TurboQuantIndex(dim=vectors_ND.shape[1], bit_width=bits)
    chosen = np.random.default_rng(0).choice(rows, size=min(rows, _CALIBRATION_ROWS), replace=False)
    index.calibrate(vectors_ND[np.sort(chosen)])
    index.add(vectors_ND)

    def search(queries_QD: Float32Array, k: int, rescored: bool) -> Indices:
        return _filled(index.search(queries_QD, k=k)[1], k)

    return EngineIndex(len(index.to_bytes()), 0, False, search)


def _build_usearch(form: str, vectors_ND: Float32Array, exhaustive: bool) -> EngineIndex:
    """Components as bytes, or their signs, which are compared with the signs of queries."""
    from usearch.index import Index

    packed_NC = _signs(vectors_ND) if form == "b1" else vectors_ND
    ndim = 8 * packed_NC.shape[1] if form == "b1" else vectors_ND.shape[1]
    index = Index(ndim=ndim, metric="hamming" if form == "b1" else "cos", dtype=form)
    index.add(np.arange(len(vectors_ND)), packed_NC, threads=num_threads())

    def search(queries_QD: Float32Array, k: int, rescored: bool) -> Indices:
        packed_QC = _signs(queries_QD) if form == "b1" else queries_QD
        found: Any = index.search(packed_QC, k, exact=exhaustive, threads=num_threads())
        keys_QK = np.asarray(found.keys, dtype=np.int64).reshape(len(queries_QD), -1)
        counts_Q = np.reshape(getattr(found, "counts", keys_QK.shape[1]), (-1, 1))
        return _filled(np.where(np.arange(keys_QK.shape[1]) < counts_Q, keys_QK, -1), k)

    saved = index.save()
    assert saved is not None, "saved to memory, as no path was given"
    return EngineIndex(len(saved), 0, False, search)


def _signs(vectors_ND: Float32Array) -> Any:
    return np.packbits(vectors_ND > 0, axis=1)


def _build_qdrant(
    name: str, vectors_ND: Float32Array, metric: Metric, folder: Path, exhaustive: bool
) -> EngineIndex:
    """A shard with one segment. Only vectors stored as TurboQuant codes are not there in full besides."""
    import qdrant_edge as qdrant

    folder.mkdir(parents=True, exist_ok=True)
    shard = qdrant.EdgeShard.create(
        str(folder), _qdrant_config(name, vectors_ND.shape[1], metric, exhaustive)
    )
    for start in range(0, len(vectors_ND), _UPSERT_ROWS):
        block_ND = vectors_ND[start : start + _UPSERT_ROWS]
        points = [
            qdrant.Point(id=start + place, vector=vector_D.tolist())
            for place, vector_D in enumerate(block_ND)
        ]
        shard.update(qdrant.UpdateOperation.upsert_points(points))
    shard.optimize()
    shard.flush()

    def search(queries_QD: Float32Array, k: int, rescored: bool) -> Indices:
        quantization = qdrant.QuantizationSearchParams(
            rescore=rescored, oversampling=float(OVERSAMPLING) if rescored else None
        )
        params = qdrant.SearchParams(quantization=quantization)
        found_QK = np.full((len(queries_QD), k), -1, dtype=np.int64)
        for start in range(0, len(queries_QD), _QUERY_ROWS):
            requests = [
                qdrant.QueryRequest(limit=k, query=qdrant.Query.Nearest(query_D.tolist()), params=params)
                for query_D in queries_QD[start : start + _QUERY_ROWS]
            ]
            for place, hits in enumerate(shard.query_batch(qdrant.QueryBatchRequest(requests)), start):
                found_QK[place, : len(hits)] = [hit.id for hit in hits]
        return found_QK

    stored = family_of(name) == f"{QDRANT}-stored"
    raw = 0 if stored else sum(_disk_bytes(path) for path in folder.rglob("matrix.dat"))
    everything = sum(_disk_bytes(path) for path in folder.rglob("*") if path.is_file())
    return EngineIndex(everything - raw, raw, not stored, search)


def _qdrant_config(name: str, dim: int, metric: Metric, exhaustive: bool) -> Any:
    import qdrant_edge as qdrant

    distances = {
        "l2": qdrant.Distance.Euclid, "cosine": qdrant.Distance.Cosine, "dot": qdrant.Distance.Dot
    }  # fmt: skip
    family, form = family_of(name), form_of(name)
    datatype = getattr(qdrant.VectorStorageDatatype, f"Turbo{form}") if family == f"{QDRANT}-stored" else None
    graph = qdrant.HnswIndexConfig(
        m=0 if exhaustive else _EDGES,
        ef_construct=_CONSTRUCTION_CANDIDATES,
        full_scan_threshold=10,
        max_indexing_threads=num_threads(),
    )
    vectors = qdrant.EdgeVectorParams(
        size=dim,
        distance=distances[metric],
        datatype=datatype,
        quantization_config=_quantization(family, form),
        hnsw_config=graph,
    )
    # Vectors are quantized when a segment is optimized, here in any case and all in one.
    optimizers = qdrant.EdgeOptimizersConfig(
        indexing_threshold=1, default_segment_number=1, max_segment_size=_LARGEST_SEGMENT_KB
    )
    return qdrant.EdgeConfig(
        vectors=vectors, optimizers=optimizers, max_search_threads=num_threads(), wal_enabled=False
    )


def _quantization(family: str, form: str) -> Any:
    import qdrant_edge as qdrant

    if family == f"{QDRANT}-turbo":
        bits = getattr(qdrant.TurboQuantBitSize, f"Bits{form.replace('.', '_')}")
        return qdrant.TurboQuantQuantizationConfig(bits=bits)
    if family == f"{QDRANT}-binary":
        encodings = qdrant.BinaryQuantizationEncoding
        encoding = {"1": encodings.OneBit, "1.5": encodings.OneAndHalfBits, "2": encodings.TwoBits}[form]
        # Of queries, 8 bits find more than signs.
        queries = qdrant.BinaryQuantizationQueryEncoding.Scalar8Bits
        return qdrant.BinaryQuantizationConfig(encoding=encoding, query_encoding=queries)
    if family == f"{QDRANT}-scalar":
        return qdrant.ScalarQuantizationConfig(type=qdrant.ScalarType.Int8, quantile=_QUANTILE)
    if family == f"{QDRANT}-pq":
        return qdrant.ProductQuantizationConfig(compression=getattr(qdrant.CompressionRatio, form.upper()))
    return None


def _pq_chunk(form: str) -> int:
    """Components of one byte: as many as many times smaller than float32 vectors."""
    return int(form[1:]) // 4


def _disk_bytes(path: Path) -> int:
    """Bytes of the blocks that the file takes; Qdrant allots more than it writes."""
    return 512 * path.stat().st_blocks


def _filled(found: Any, k: int) -> Indices:
    """Positions (Q, k), filled up with -1."""
    found_QK = np.asarray(found, dtype=np.int64)
    return np.pad(found_QK, ((0, 0), (0, k - found_QK.shape[1])), constant_values=-1)
