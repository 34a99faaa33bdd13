"""Codecs of FAISS, to compare with. Needs `faiss-cpu`, from the extra `bench`.

Shape suffixes: N vectors, D vector dimension, M code bytes.

- "opq": product quantization after a learned rotation. Where the dimension is no multiple of the bytes,
  the rotation leads to the nearest dimension that is one.
- "faiss-rq": residual quantization, trained with FAISS's own beam and encoded with ours.
- "lsq": local search quantization. Training and encoding are slow; their parameters are FAISS's, which has
  none for the number of training vectors: it uses all of them.

Every code byte has 256 codewords. All get the same training vectors; k-means and the rotation use at most
65,536 of them, drawn by FAISS. FAISS runs on the CPU, with as many threads as torch.
"""

import dataclasses
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch

from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.errors import InvalidInputError

_BITS = 8
_CODEWORDS = 2**_BITS


@dataclasses.dataclass(frozen=True)
class FaissCodec:
    """A trained FAISS index without vectors in it."""

    index: Any
    settings: dict[str, Any]
    """What it was made with."""

    @property
    def artefact_bytes(self) -> int:
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
    """Raise InvalidInputError unless there are enough vectors to train a peer on."""
    if rows < _CODEWORDS:
        raise InvalidInputError(
            f"Got {rows} vectors to train {name} on; expected at least {_CODEWORDS}, one per codeword. "
            "Give more vectors, hold fewer out, or leave it away."
        )


def train_peer(name: str, training_ND: Float32Array, *, code_bytes: int, beam: int) -> FaissCodec:
    """Train "opq", "faiss-rq" or "lsq".

    Args:
        training_ND: at least 256 vectors.
        code_bytes: one codebook each.
        beam: partial encodings that "faiss-rq" keeps per vector when it encodes.
    """
    faiss.omp_set_num_threads(torch.get_num_threads())
    makers = {"opq": _train_opq, "faiss-rq": _train_rq, "lsq": _train_lsq}
    return makers[name](training_ND, code_bytes, beam)


def rotated_dim(dim: int, code_bytes: int) -> int:
    """The multiple of `code_bytes` nearest to `dim`, the larger one of two; at least `code_bytes`."""
    return max(1, (2 * dim + code_bytes) // (2 * code_bytes)) * code_bytes


def _train_opq(training_ND: Float32Array, code_bytes: int, beam: int) -> FaissCodec:
    dim = training_ND.shape[1]
    rotated = rotated_dim(dim, code_bytes)
    # "np": no polysemous training. It only reorders codewords for a search on Hamming distances, for
    # most of the time that all training takes.
    index: Any = faiss.index_factory(dim, f"OPQ{code_bytes}_{rotated},PQ{code_bytes}x{_BITS}np")
    # What the rotation would make for itself, but quiet about few vectors in each of its iterations.
    quantizer = faiss.ProductQuantizer(rotated, code_bytes, _BITS)
    quieten(quantizer.cp)
    rotation: Any = faiss.downcast_VectorTransform(index.chain.at(0))
    rotation.pq = quantizer
    products: Any = faiss.downcast_index(index.index)
    quieten(products.pq.cp)
    index.train(training_ND)
    rotation.pq = None  # it does not belong to the index, and is about to be freed
    return FaissCodec(index, {"rotated_dim": rotated})


def _train_rq(training_ND: Float32Array, code_bytes: int, beam: int) -> FaissCodec:
    index = faiss.IndexResidualQuantizer(training_ND.shape[1], code_bytes, _BITS)
    quieten(index.rq.cp)
    training_beam = index.rq.max_beam_size
    index.train(training_ND)
    index.rq.max_beam_size = beam
    return FaissCodec(index, {"beam": beam, "training_beam": training_beam})


def _train_lsq(training_ND: Float32Array, code_bytes: int, beam: int) -> FaissCodec:
    index = faiss.IndexLocalSearchQuantizer(training_ND.shape[1], code_bytes, _BITS)
    index.train(training_ND)
    quantizer = index.lsq
    return FaissCodec(
        index, {"train_iters": quantizer.train_iters, "encode_ils_iters": quantizer.encode_ils_iters}
    )


def quieten(clustering: Any) -> None:
    """Keep k-means from warning, once per codebook and iteration, about few vectors per codeword."""
    clustering.min_points_per_centroid = 1
