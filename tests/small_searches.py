"""A small corpus, a codec for it, and a report with made-up figures, for the tests of comparing searches."""

from pathlib import Path

import lancedb
import numpy as np

from rqmoe_store.codecs.base import Codec
from rqmoe_store.config import CodecConfig, Metric, TrainConfig
from rqmoe_store.evaluation.search_measurement import (
    Corpus,
    IndexResult,
    ScanResult,
    SearchReport,
    SearchResult,
    SearchSetting,
    SyntheticResult,
    create_docs,
)
from rqmoe_store.training.trainer import train

ROWS, DIM, PARTITIONS = 600, 16, 2
CONFIG = CodecConfig(kind="rq", code_bytes=4, codebook_size=16, num_partitions=PARTITIONS, beam=2)
TRAINING = TrainConfig(epochs=0, progress=False, device="cpu")


def clustered(rows: int = ROWS, seed: int = 0) -> np.ndarray:
    """Unit vectors around thirty centers."""
    generator = np.random.default_rng(seed)
    centers = np.random.default_rng(99).normal(size=(30, DIM))
    vectors = centers[generator.integers(30, size=rows)] + generator.normal(scale=0.3, size=(rows, DIM))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def small_corpus(folder: Path, metric: Metric = "l2") -> Corpus:
    """The vectors in a database in `folder`."""
    vectors = clustered()
    docs = create_docs(lancedb.connect(folder), vectors)
    return Corpus(docs=docs, vectors_ND=vectors, metric=metric, num_partitions=PARTITIONS, nprobes=(1, 9))


def small_codec(**changes: object) -> Codec:
    """Plain RQ of the vectors."""
    config = CodecConfig(**{**CONFIG.to_dict(), **changes})
    return train(clustered(), config=config, training=TRAINING)


def index_result(system: str, code_bytes: int, **changes: object) -> IndexResult:
    values = {
        "system": system, "code_bytes": code_bytes, "num_partitions": 64, "build_seconds": 12.3,
        "index_bytes": code_bytes + 1.25, "raw_bytes": 0.0, "total_bytes": 1234.5,
        "resident_bytes": code_bytes + 8, "exhaustive_recall": None,
    }  # fmt: skip
    return IndexResult(**{**values, **changes})


def search_result(system: str, code_bytes: int, recall: float, p50: float, **changes: object) -> SearchResult:
    setting = SearchSetting(**{"nprobes": 20, **changes})
    return SearchResult(
        system=system, code_bytes=code_bytes, setting=setting, recall=recall,
        share_of_exhaustive=0.98 if system == "rqmoe" else None, p50_ms=p50, p99_ms=2 * p50,
        queries_per_second=5000 / p50,
    )  # fmt: skip


def small_search_report() -> SearchReport:
    """Ours with three settings, LanceDB with and without raw vectors, a scan, and two synthetic tables."""
    synthetic = {
        "system": "rqmoe", "code_bytes": 8, "cache": "memory", "table_bytes": 8.1, "open_ms": 96.7,
        "load_growth_bytes": 15_000_000, "refresh_ms": 9.9, "first_query_ms": 51.2,
        "p99_ms": 30.0, "memory_bytes": 250_000_000, "memory_growth_bytes": 12_000_000,
    }  # fmt: skip
    return SearchReport(
        settings={},
        machine={},
        indexes=[
            index_result("rqmoe", 8, exhaustive_recall=0.54),
            index_result("lancedb-ivf-pq", 8, resident_bytes=None),
        ],
        results=[
            search_result("rqmoe", 8, 0.5, 2.0, shortlist=200),
            search_result("rqmoe", 8, 0.4, 3.0, shortlist=50),  # slower and worse than the first
            search_result("rqmoe", 8, 0.53, 10.0, shortlist=1000, nprobes=None),
            search_result("lancedb-ivf-pq", 8, 0.3, 2.5),
            search_result("lancedb-ivf-pq", 8, 0.7, 3.5, refine_factor=10),
        ],
        scans=[
            ScanResult(system="faiss-ivf-pq", code_bytes=8, threads=2, share=0.1, rows_per_second=34.56e6)
        ],
        synthetic=[
            SyntheticResult(rows=1_000_000, nprobes=20, p50_ms=12.345, **synthetic),
            SyntheticResult(rows=10_000_000, nprobes=None, p50_ms=45.678, **synthetic),
        ],
    )
