"""Partitioned indexes of FAISS. Needs `faiss-cpu`, from the extra `bench`.

Shape suffixes: N vectors, Q queries, D vector dimension.

- "pq": product quantization of residuals to the partition (IndexIVFPQ).
- "rq": residual quantization of the same (IndexIVFResidualQuantizer), 8 bits per step. To score by look-up
  tables under l2 every code has its norm in one byte more. Training takes long: it sees at most 65,536
  vectors and keeps one partial encoding per vector, which on embeddings gave better recall than FAISS's 5 and
  takes less than half the time; encoding keeps FAISS's 5.

Under cosine (unit vectors) and dot both search by inner product. FAISS runs on as many threads as torch; it
answers one query on one thread.
"""

import time
from collections.abc import Callable
from typing import Any, Literal

import faiss
import numpy as np
import torch

from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.evaluation.faiss_codecs import quieten
from rqmoe_store.evaluation.recall import Indices
from rqmoe_store.evaluation.scan_speed import Scan
from rqmoe_store.evaluation.search_index import NEIGHBOURS, Corpus, SearchedIndex, probe_counts
from rqmoe_store.evaluation.search_results import IndexResult, SearchSetting
from rqmoe_store.search.reach import DEFAULT_SHORTLIST

_TRAINING_ROWS = 65_536
_TRAINING_BEAM = 1
_ROW_ID_BYTES = 8


def build_faiss(corpus: Corpus, form: Literal["pq", "rq"], code_bytes: int) -> SearchedIndex:
    """Train an index and fill it.

    Args:
        form: "pq", whose code bytes must divide the dimension, or "rq".
        code_bytes: one codebook each.
    """
    faiss.omp_set_num_threads(torch.get_num_threads())
    started = time.perf_counter()
    index = _trained_pq(corpus, code_bytes) if form == "pq" else _trained_rq(corpus, code_bytes)
    index.add(corpus.vectors_ND)
    seconds = time.perf_counter() - started

    def search(queries_QD: Float32Array, setting: SearchSetting) -> Indices:
        index.nprobe = setting.nprobes
        return np.asarray(index.search(queries_QD, NEIGHBOURS)[1], dtype=np.int64)

    rows = len(corpus.vectors_ND)
    file_bytes = len(faiss.serialize_index(index)) / rows
    return SearchedIndex(
        result=IndexResult(
            system=f"faiss-ivf-{form}",
            code_bytes=code_bytes,
            num_partitions=corpus.num_partitions,
            build_seconds=seconds,
            index_bytes=file_bytes,
            total_bytes=file_bytes,
            resident_bytes=index.code_size + _ROW_ID_BYTES,
            exhaustive_recall=None,
        ),
        settings=[
            SearchSetting(nprobes=nprobes) for nprobes in probe_counts(corpus.nprobes, corpus.num_partitions)
        ],
        search=search,
        scan=_scan(index),
    )


def _trained_pq(corpus: Corpus, code_bytes: int) -> Any:
    index = _untrained(corpus, f"PQ{code_bytes}x8np")
    quieten(index.pq.cp)
    index.train(corpus.vectors_ND)
    return index


def _trained_rq(corpus: Corpus, code_bytes: int) -> Any:
    with_norm = "_Nqint8" if corpus.metric == "l2" else "_Nnone"
    index = _untrained(corpus, f"RQ{code_bytes}x8{with_norm}")
    quieten(index.rq.cp)
    encoding_beam = index.rq.max_beam_size
    index.rq.max_beam_size = _TRAINING_BEAM
    index.train(_sample(corpus.vectors_ND))
    index.rq.max_beam_size = encoding_beam
    return index


def _untrained(corpus: Corpus, codes: str) -> Any:
    metric = faiss.METRIC_L2 if corpus.metric == "l2" else faiss.METRIC_INNER_PRODUCT
    dim = corpus.vectors_ND.shape[1]
    index: Any = faiss.index_factory(dim, f"IVF{corpus.num_partitions},{codes}", metric)
    quieten(index.cp)
    return index


def _sample(vectors_ND: Float32Array) -> Float32Array:
    if len(vectors_ND) <= _TRAINING_ROWS:
        return vectors_ND
    chosen = np.random.default_rng(0).choice(len(vectors_ND), size=_TRAINING_ROWS, replace=False)
    return vectors_ND[np.sort(chosen)]


def _scan(index: Any) -> Scan:
    def prepare(queries_QD: Float32Array, share: float, threads: int) -> Callable[[], int]:
        counted: Any = faiss.cvar.indexIVF_stats  # type: ignore[attr-defined]  # there when looked for
        index.nprobe = max(1, round(share * index.nlist))
        distances_QP, partitions_QP = index.quantizer.search(queries_QD, index.nprobe)

        def work() -> int:
            before = faiss.omp_get_max_threads()
            faiss.omp_set_num_threads(threads)
            counted.reset()
            try:
                index.search_preassigned(queries_QD, DEFAULT_SHORTLIST, partitions_QP, distances_QP)
            finally:
                faiss.omp_set_num_threads(before)
            return int(counted.ndis)

        return work

    return prepare
