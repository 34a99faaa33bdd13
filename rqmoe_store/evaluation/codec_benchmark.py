"""Codecs side by side on one set of vectors: distortion, and recall over reconstructions.

Shape suffixes: N vectors, Q queries, D vector dimension, K neighbours.
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.vectors import Float32Array, as_vectors
from rqmoe_store.config import CodecConfig, CodecKind, TrainConfig
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.recall import Indices, exact_neighbours, k_recall_at_k, one_recall_at
from rqmoe_store.training.trainer import train

_NEIGHBOURS = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodecResult:
    """One codec's figures."""

    kind: CodecKind
    code_bytes: int
    training_seconds: float
    """Wall-clock time of `train`, codebook initialisation included."""
    epochs: float
    """Passes over the training vectors."""
    validation_mse: float
    """Mean of ||x - x_hat||^2 over the held-out vectors."""
    relative_to_rq: float
    """The same divided by plain RQ's, with the same bytes and beam."""
    one_recall_1: float
    """Share of queries whose true nearest vector comes first among all reconstructions."""
    one_recall_10: float
    """... comes among the first 10."""
    one_recall_100: float
    """... comes among the first 100."""
    ten_recall_10: float
    """Mean share of the 10 true neighbours among the first 10."""
    unseen_ten_recall_10: float
    """The same when only the held-out vectors are searched."""


def benchmark_codecs(
    vectors: Any,
    queries: Any,
    *,
    kinds: Sequence[CodecKind],
    code_bytes: Sequence[int],
    config: CodecConfig,
    training: TrainConfig,
    held_out: int = 5_000,
) -> list[CodecResult]:
    """Train every kind of codec at every size and measure it.

    The last `held_out` vectors are never trained on; errors are measured on them. Recall is that of
    exhaustive search over the reconstructions of all vectors, and of the held-out ones alone, against
    exhaustive search over the vectors themselves.

    Args:
        vectors: (N, D).
        queries: (Q, D).
        config: every other setting of the codecs.
        training: how each of them is trained.

    Raises:
        InvalidInputError: unusable vectors, or too few of them to hold `held_out` out.
    """
    vectors_ND = as_vectors(vectors, metric=config.metric)
    queries_QD = as_vectors(queries, dim=vectors_ND.shape[1], metric=config.metric)
    if not _NEIGHBOURS <= held_out <= len(vectors_ND) - _NEIGHBOURS:
        raise InvalidInputError(
            f"Got {len(vectors_ND)} vectors to hold {held_out} out of; expected at least "
            f"{_NEIGHBOURS} on either side. Give more vectors or change the number held out."
        )
    data = _Data(vectors_ND, queries_QD, held_out, config)
    results = []
    for size in code_bytes:
        for kind in kinds:
            chosen = dataclasses.replace(config, kind=kind, code_bytes=size)
            started = time.perf_counter()
            codec = train(
                vectors_ND[:-held_out], config=chosen, training=training, validation=vectors_ND[-held_out:]
            )
            results.append(data.measure(codec, time.perf_counter() - started))
    return results


class _Data:
    """Vectors, queries and the true neighbours among all and among the held-out vectors."""

    def __init__(
        self, vectors_ND: Float32Array, queries_QD: Float32Array, held_out: int, config: CodecConfig
    ) -> None:
        self.vectors_ND, self.queries_QD = vectors_ND, queries_QD
        self.held_out, self.metric = held_out, config.metric
        self.truth_QK = self._neighbours(vectors_ND)
        self.unseen_truth_QK = self._neighbours(vectors_ND[-held_out:])

    def _neighbours(self, vectors_ND: Float32Array) -> Indices:
        return exact_neighbours(self.queries_QD, vectors_ND, _NEIGHBOURS, metric=self.metric)[0]

    def measure(self, codec: Codec, seconds: float) -> CodecResult:
        decoded_ND = codec.decode(codec.encode(self.vectors_ND))
        found_QK = self._neighbours(decoded_ND)
        unseen_ND = self.vectors_ND[-self.held_out :]
        errors_N = np.square(unseen_ND - decoded_ND[-self.held_out :]).sum(axis=1)
        return CodecResult(
            kind=codec.config.kind,
            code_bytes=codec.config.code_bytes,
            training_seconds=seconds,
            epochs=codec.report.epochs,
            validation_mse=float(errors_N.mean()),
            relative_to_rq=float(errors_N.mean()) / codec.report.rq_validation_mse,
            one_recall_1=one_recall_at(found_QK, self.truth_QK, 1),
            one_recall_10=one_recall_at(found_QK, self.truth_QK, 10),
            one_recall_100=one_recall_at(found_QK, self.truth_QK, 100),
            ten_recall_10=k_recall_at_k(found_QK, self.truth_QK, 10),
            unseen_ten_recall_10=k_recall_at_k(
                self._neighbours(decoded_ND[-self.held_out :]), self.unseen_truth_QK, 10
            ),
        )
