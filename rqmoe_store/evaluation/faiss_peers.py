"""FAISS codecs and indexes to compare with. Needs `faiss-cpu`, from the extra `bench`.

FAISS runs on the CPU, with as many threads as this package. It answers a single query on one thread.

Shape suffixes: N vectors, Q queries, K neighbors, P probed partitions, D vector dimension, M code bytes.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from rqmoe_store.codecs.parallel import num_threads
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import Metric
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.contenders import SearchedCodec
from rqmoe_store.evaluation.peer_names import FAISS_SYSTEMS, family_of, form_of
from rqmoe_store.evaluation.recall import Indices
from rqmoe_store.evaluation.search_measurement import (
    NEIGHBORS,
    Corpus,
    IndexResult,
    Scan,
    SearchedIndex,
    SearchSetting,
    probe_counts,
)
from rqmoe_store.search.request import DEFAULT_SHORTLIST

_BITS = 8
_CODEWORDS = 2**_BITS

_TRAINING_ROWS = 65_536
_TRAINING_BEAM = 1
_ROW_ID_BYTES = 8

_IVF_PQ, _IVF_OPQ, _IVF_RQ = FAISS_SYSTEMS
_RABITQ, _TURBOQUANT = "faiss-rabitq", "faiss-turboquant"
_FACTORY = {
    _RABITQ: "RR,RaBitQ{}",
    "faiss-eden": "RR,EDEN{}BIASED",
    _TURBOQUANT: "RR,SQtqmse{}",
    "faiss-sq": "SQ{}",
}
"""Families of codecs of so many bits per component -> what FAISS calls them. RR: a random rotation first."""
_QUERY_BITS = 8
"""Bits per component of queries for RaBitQ; FAISS's default is 4. Unquantized queries find as much and take a
hundred times as long."""


@dataclasses.dataclass(frozen=True)
class FaissCodec:
    """A trained FAISS index without vectors, as a codec."""

    index: Any
    settings: dict[str, Any]
    """Settings that it was made with."""

    @property
    def artifact_bytes(self) -> int:
        return len(faiss.serialize_index(self.index))

    @property
    def epochs(self) -> float | None:
        return None

    def encode(self, vectors_ND: Float32Array) -> Any:
        """Codes, uint8 (N, M)."""
        return self.index.sa_encode(vectors_ND)

    def decode(self, codes: Any) -> Float32Array:
        return np.asarray(self.index.sa_decode(codes), dtype=np.float32)

    def save(self, path: Path) -> None:
        """Write the index to `path` with the suffix .faiss, for `faiss.read_index`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        faiss.write_index(self.index, f"{path}.faiss")


def check_trainable(name: str, rows: int) -> None:
    """Raise InvalidInputError unless there are enough vectors to train a FAISS codec on."""
    if rows < _CODEWORDS:
        raise InvalidInputError(
            f"Got {rows} vectors to train {name} on; expected at least {_CODEWORDS}, one per codeword. "
            "Give more vectors, hold fewer out, or leave it away."
        )


def train_peer(name: str, training_ND: Float32Array, *, code_bytes: int, beam: int) -> FaissCodec:
    """Train a FAISS codec, with 256 codewords per code byte.

    - "faiss-pq": product quantization. The dimension need not be a multiple of the bytes: components of zero
      are put behind it.
    - "opq": the same after a learned rotation. If the dimension is not a multiple of the bytes,
      the rotation maps to the nearest dimension that is.
    - "faiss-rq": residual quantization, encoded with our beam. It is trained with a beam of 1: on embeddings
      that gave better recall than FAISS's beam of 5, in less time.
    - "lsq": local search quantization. Training and encoding are slow, with FAISS's parameters; none of these
      limits the number of training vectors.

    All get the same training vectors. K-means and the rotation use at most 65,536 of them, drawn by FAISS.

    Args:
        name: "faiss-pq", "opq", "faiss-rq" or "lsq".
        training_ND: at least 256 vectors.
        code_bytes: number of codebooks.
        beam: partial encodings that "faiss-rq" keeps per vector when it encodes.
    """
    faiss.omp_set_num_threads(num_threads())
    makers = {"faiss-pq": _train_pq, "opq": _train_opq, "faiss-rq": _train_rq, "lsq": _train_lsq}
    return makers[name](training_ND, code_bytes, beam)


def rotated_dim(dim: int, code_bytes: int) -> int:
    """The multiple of `code_bytes` nearest to `dim`, rounded up if in doubt; at least `code_bytes`."""
    return max(1, (2 * dim + code_bytes) // (2 * code_bytes)) * code_bytes


def _train_pq(training_ND: Float32Array, code_bytes: int, beam: int) -> FaissCodec:
    dim = training_ND.shape[1]
    padded = -(-dim // code_bytes) * code_bytes
    index: Any = faiss.index_factory(dim, f"Pad{padded},PQ{code_bytes}x{_BITS}np")
    products: Any = faiss.downcast_index(index.index)
    silence_warnings(products.pq.cp)
    index.train(training_ND)
    return FaissCodec(index, {"padded_dim": padded})


def _train_opq(training_ND: Float32Array, code_bytes: int, beam: int) -> FaissCodec:
    dim = training_ND.shape[1]
    rotated = rotated_dim(dim, code_bytes)
    # "np": no polysemous training, which takes most of the training time and only reorders codewords for
    # searches by Hamming distance.
    index: Any = faiss.index_factory(dim, f"OPQ{code_bytes}_{rotated},PQ{code_bytes}x{_BITS}np")
    products: Any = faiss.downcast_index(index.index)
    silence_warnings(products.pq.cp)
    _train_rotated(index, training_ND, rotated, code_bytes)
    return FaissCodec(index, {"rotated_dim": rotated})


def _train_rotated(index: Any, training_ND: Float32Array, rotated: int, code_bytes: int) -> None:
    """Train an index behind the rotation of OPQ, without its warnings of few vectors."""
    rotation: Any = faiss.downcast_VectorTransform(index.chain.at(0))
    # The quantizer that the rotation would create for itself.
    quantizer = faiss.ProductQuantizer(rotated, code_bytes, _BITS)
    silence_warnings(quantizer.cp)
    rotation.pq = quantizer
    index.train(training_ND)
    rotation.pq = None  # the index does not own it, and it is about to be freed


def _train_rq(training_ND: Float32Array, code_bytes: int, beam: int) -> FaissCodec:
    return first_steps(train_rq(training_ND, code_bytes), code_bytes, beam)


def train_rq(training_ND: Float32Array, steps: int) -> Any:
    """Train a residual quantizer, step by step."""
    faiss.omp_set_num_threads(num_threads())
    index = faiss.IndexResidualQuantizer(training_ND.shape[1], steps, _BITS)
    silence_warnings(index.rq.cp)
    index.rq.max_beam_size = _TRAINING_BEAM
    index.train(training_ND)
    return index


def first_steps(trained: Any, steps: int, beam: int) -> FaissCodec:
    """The first steps of a residual quantizer that `train_rq` made, as if it had been trained for no more."""
    index = faiss.IndexResidualQuantizer(trained.d, steps, _BITS)
    codebooks = faiss.vector_to_array(trained.rq.codebooks)[: steps * _CODEWORDS * trained.d]
    faiss.copy_array_to_vector(codebooks, index.rq.codebooks)
    index.rq.is_trained = index.is_trained = True
    index.rq.max_beam_size = beam
    return FaissCodec(index, {"beam": beam, "training_beam": _TRAINING_BEAM})


def _train_lsq(training_ND: Float32Array, code_bytes: int, beam: int) -> FaissCodec:
    index = faiss.IndexLocalSearchQuantizer(training_ND.shape[1], code_bytes, _BITS)
    index.train(training_ND)
    quantizer = index.lsq
    return FaissCodec(
        index, {"train_iters": quantizer.train_iters, "encode_ils_iters": quantizer.encode_ils_iters}
    )


def check_metric(name: str, family: str, metric: Metric) -> None:
    """Raise InvalidInputError unless the codec is for vectors as they are under the metric."""
    if family == _TURBOQUANT and metric != "cosine":
        raise InvalidInputError(
            f"{name} is for vectors of length 1, as under the metric 'cosine'; got {metric!r}. Measure under "
            "cosine, or leave it away."
        )


def bits_index(family: str, bits: int, dim: int, metric: Metric) -> Any:
    """An untrained index of so many bits per component, which knows how many bytes it takes per vector."""
    return faiss.index_factory(dim, _FACTORY[family].format(bits), _metric(metric))


def train_with_bits(
    family: str, bits: int, training_ND: Float32Array, *, metric: Metric
) -> FaissCodec | SearchedCodec:
    """Train a FAISS codec of so many bits per component.

    - "faiss-rabitq": RaBitQ, with factors per vector. Its multi-bit codes are not decoded by FAISS, so FAISS
      searches them, by its own estimator, which takes queries of 8 bits per component.
    - "faiss-eden": EDEN with the scale of least error. A length and a scale per vector.
    - "faiss-turboquant": TurboQuant for least error, of vectors of length 1. No factors.
    - "faiss-sq": levels at equal distances between the least and the largest value of every component.

    Reconstructions of the last three are compared with queries like those of any codec. Under cosine that
    finds more than FAISS's own search, which does not divide by their lengths.

    Args:
        family: one of the above.
        bits: per component, as in `FORMS` of `peer_names`.
        training_ND: vectors to train on, which takes seconds.
        metric: what RaBitQ searches by.
    """
    faiss.omp_set_num_threads(num_threads())
    index = bits_index(family, bits, training_ND.shape[1], metric)
    index.train(training_ND)
    settings = {"factory": _FACTORY[family].format(bits)}
    return _searched(index, settings) if family == _RABITQ else FaissCodec(index, settings)


def _searched(index: Any, settings: dict[str, Any]) -> SearchedCodec:
    rabitq: Any = faiss.downcast_index(index.index)
    rabitq.qb = _QUERY_BITS

    def search(vectors_ND: Float32Array, queries_QD: Float32Array, k: int) -> Indices:
        index.reset()
        index.add(vectors_ND)
        return np.asarray(index.search(queries_QD, k)[1], dtype=np.int64)

    return SearchedCodec(settings=settings, search=search)


def build_faiss(corpus: Corpus, name: str, code_bytes: int | None = None) -> SearchedIndex:
    """Train an index with partitions, and add the vectors.

    - "faiss-ivf-pq": product quantization of residuals to the partition (IndexIVFPQ). Its code bytes must
      divide the dimension.
    - "faiss-ivf-opq": the same after a learned rotation.
    - "faiss-ivf-rq": residual quantization of these (IndexIVFResidualQuantizer), 8 bits per step. Under l2
      every code has one byte more, its norm, to be scored by look-up tables. Training takes long, so it uses
      at most 65,536 vectors and a beam of 1. On embeddings that gave better recall than FAISS's beam of 5, in
      less than half the time. Encoding uses FAISS's 5.
    - "faiss-ivf-rabitq-2" and the like: the families of `train_with_bits`, of residuals, after one rotation.

    Under cosine (unit vectors) and dot, all search by inner product.

    Args:
        corpus: the vectors.
        name: one of the above.
        code_bytes: number of codebooks, where it does not follow from the dimension.
    """
    faiss.omp_set_num_threads(num_threads())
    started = time.perf_counter()
    index, partitioned = _train_partitioned(corpus, name, code_bytes)
    index.add(corpus.vectors_ND)
    seconds = time.perf_counter() - started

    def search(queries_QD: Float32Array, setting: SearchSetting) -> Indices:
        partitioned.nprobe = setting.nprobes
        return np.asarray(index.search(queries_QD, NEIGHBORS)[1], dtype=np.int64)

    rows = len(corpus.vectors_ND)
    file_bytes = len(faiss.serialize_index(index)) / rows
    return SearchedIndex(
        result=IndexResult(
            system=name,
            code_bytes=partitioned.code_size if code_bytes is None else code_bytes,
            num_partitions=corpus.num_partitions,
            build_seconds=seconds,
            index_bytes=file_bytes,
            raw_bytes=0.0,
            total_bytes=file_bytes,
            resident_bytes=partitioned.code_size + _ROW_ID_BYTES,
            exhaustive_recall=None,
        ),
        settings=[
            SearchSetting(nprobes=nprobes) for nprobes in probe_counts(corpus.nprobes, corpus.num_partitions)
        ],
        search=search,
        scan=_scan(index) if name in (_IVF_PQ, _IVF_RQ) else None,
    )


def _train_partitioned(corpus: Corpus, name: str, code_bytes: int | None) -> tuple[Any, Any]:
    """A trained index without vectors, and the part of it that has the partitions: the same, or what a
    rotation leads to."""
    if name == _IVF_RQ:
        index = _train_ivf_rq(corpus, code_bytes)
        return index, index
    dim = corpus.vectors_ND.shape[1]
    if code_bytes is None:
        family, bits = family_of(name).replace("-ivf", ""), form_of(name)
        check_metric(name, family, corpus.metric)
        *rotation, codes = _FACTORY[family].format(bits).split(",")
    else:
        rotation = [f"OPQ{code_bytes}_{rotated_dim(dim, code_bytes)}"] if name == _IVF_OPQ else []
        codes = f"PQ{code_bytes}x{_BITS}np"
    index = _untrained(corpus, rotation, codes)
    partitioned: Any = faiss.downcast_index(faiss.extract_index_ivf(index))
    if code_bytes is not None:
        silence_warnings(partitioned.pq.cp)
    elif hasattr(partitioned, "qb"):
        partitioned.qb = _QUERY_BITS
    if name == _IVF_OPQ and code_bytes is not None:
        _train_rotated(index, corpus.vectors_ND, rotated_dim(dim, code_bytes), code_bytes)
    else:
        index.train(corpus.vectors_ND)
    return index, partitioned


def _train_ivf_rq(corpus: Corpus, code_bytes: int | None) -> Any:
    with_norm = "_Nqint8" if corpus.metric == "l2" else "_Nnone"
    index = _untrained(corpus, [], f"RQ{code_bytes}x8{with_norm}")
    silence_warnings(index.rq.cp)
    encoding_beam = index.rq.max_beam_size
    index.rq.max_beam_size = _TRAINING_BEAM
    index.train(_sample(corpus.vectors_ND))
    index.rq.max_beam_size = encoding_beam
    return index


def _untrained(corpus: Corpus, rotation: list[str], codes: str) -> Any:
    dim = corpus.vectors_ND.shape[1]
    factory = ",".join([*rotation, f"IVF{corpus.num_partitions}", codes])
    index: Any = faiss.index_factory(dim, factory, _metric(corpus.metric))
    silence_warnings(faiss.extract_index_ivf(index).cp)
    return index


def _metric(metric: Metric) -> int:
    # Under "cosine" vectors have unit length.
    return int(faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT)


def _sample(vectors_ND: Float32Array) -> Float32Array:
    if len(vectors_ND) <= _TRAINING_ROWS:
        return vectors_ND
    chosen = np.random.default_rng(0).choice(len(vectors_ND), size=_TRAINING_ROWS, replace=False)
    return vectors_ND[np.sort(chosen)]


def _scan(index: Any) -> Scan:
    def prepare(queries_QD: Float32Array, share: float, threads: int) -> Callable[[], int]:
        counted: Any = faiss.cvar.indexIVF_stats  # type: ignore[attr-defined]  # exists at run time
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


def silence_warnings(clustering: Any) -> None:
    """Silence the warnings of k-means, one per codebook and iteration, of few vectors per codeword."""
    clustering.min_points_per_centroid = 1
