"""Coders: what turns vectors into code bytes and back, by a residual quantizer or by transform coding.

Vectors are in the frame of a codec, which has one coder. Look-up tables are arrays, so that queries need no
torch. What encodes and decodes with torch is made when it is first needed.

Shape legend: n vectors, D dimension, M code bytes, K codewords, P partitions, Q queries, T table rows, C
chosen ones of X values.
"""

import functools
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
import numpy.typing as npt

from rqmoe_store.codecs.additive import AdditiveTables, LookupTables, tables_of_products
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.device import Precision, require_usable
from rqmoe_store.codecs.frame import Frame, FramedQueries, ScoreUnits, clamp_vectors
from rqmoe_store.codecs.panels import in_panels, product_with_panels
from rqmoe_store.codecs.parallel import Lock
from rqmoe_store.codecs.precision import PrecisionTrial
from rqmoe_store.codecs.selection import mark_smallest, smallest
from rqmoe_store.codecs.transform import CODEWORDS, TransformQuantizer
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.codecs.weights import QuantizerWeights
from rqmoe_store.config import CodecConfig

if TYPE_CHECKING:
    import torch

    from rqmoe_store.codecs.distances import GpuDistances
    from rqmoe_store.codecs.prepared import PreparedQuantizer
    from rqmoe_store.codecs.quantizer import ResidualQuantizer


class Coder(Protocol):
    """Codes vectors of one dimension; codes do not depend on how vectors are batched."""

    @property
    def config(self) -> CodecConfig:
        """The configuration of the codec."""

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""

    @property
    def num_partitions(self) -> int:
        """Partitions; 0 without any."""

    @property
    def device(self) -> str:
        """The device on which codes are scanned, and experts computed: "cpu" or "cuda:<number>"."""

    def clamp(self, frame: Frame, vectors_nD: Float32Array) -> Float32Array:
        """Checked vectors in the frame, moved nearer if they are too far off to be coded."""

    def encode(self, vectors_nD: Float32Array, *, beam: int, preselect: int | None) -> Codes:
        """Encode clamped vectors. A transform code has no use for the settings of the search."""

    def decode(self, codes: Codes, *, sequential: bool, precision: Precision) -> Float32Array:
        """Decode checked codes to vectors (n, D)."""

    def decode_on_gpu(self, codes: Codes, frame: Frame, precision: Precision) -> "torch.Tensor | None":
        """Decode checked codes to vectors (n, D) on a GPU, in the units of the input; None if the coder
        decodes on the CPU."""

    def distances(self, frame: Frame, precision: Precision) -> "GpuDistances | None":
        """What computes distances of codes to queries on a GPU; None if the coder decodes on the CPU."""

    def try_precisions(self, codes: Codes, error: float) -> PrecisionTrial | None:
        """Compare decoding in both precisions, on some of the codes, given the codec's mean squared error.
        None where bfloat16 has nothing to gain."""

    def approximate(self, codes: Codes) -> Float32Array:
        """The vectors (n, D) whose distances look-up tables score."""

    def estimate_squares(self, codes: Codes) -> Float32Array:
        """The squared lengths (n,) that look-up tables have for codes."""

    def nearest_partitions(self, frame: Frame, queries_QD: Float32Array, count: int) -> npt.NDArray[np.int64]:
        """The partitions (Q, count) nearest to checked queries, nearest first: those whose centroids have the
        smallest distances by the metric."""

    def probed(self, frame: Frame, queries_QD: Float32Array, count: int) -> npt.NDArray[np.bool_]:
        """Whether a partition (Q, P) is one of the `count` nearest."""

    def lookup_tables(self, queries: FramedQueries, units: ScoreUnits) -> LookupTables:
        """Look-up tables for queries in the frame, with scores in `units`."""

    def truncate(self, config: CodecConfig, calibration: Codes) -> "Coder":
        """The coder of the first bytes, given codes of so many bytes to fit tables to."""

    def with_config(self, config: CodecConfig) -> "Coder":
        """The same coder for another configuration, which may differ in refine codes only."""

    def to(self, device: str) -> Self:
        """Move to a device, and return self."""


class ResidualCoder:
    """Codes by a residual quantizer; look-up tables approximate what it decodes."""

    def __init__(self, weights: QuantizerWeights, tables: AdditiveTables, device: str = "cpu") -> None:
        self.config: CodecConfig = weights.config
        self.num_partitions: int = weights.num_partitions
        """Partitions; 0 without any."""
        self.weights, self.tables, self.device = weights, tables, device
        self._prepared: PreparedQuantizer | None = None
        self._lock = Lock()

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        return self.weights.dim

    @property
    def quantizer(self) -> "ResidualQuantizer":
        """The quantizer on the device of the coder."""
        return self._ready().quantizer

    def _ready(self) -> "PreparedQuantizer":
        """What encodes and decodes, made at its first use."""
        from rqmoe_store.codecs.prepared import PreparedQuantizer

        require_usable(self.device)
        with self._lock:
            if self._prepared is None:
                self._prepared = PreparedQuantizer.of(self.weights, self.device)
            return self._prepared

    def clamp(self, frame: Frame, vectors_nD: Float32Array) -> Float32Array:
        """Checked vectors in the frame, clamped to a maximum distance from the mean."""
        return clamp_vectors(vectors_nD, frame, self.weights.mean_D, float(self.weights.scale))

    def encode(self, vectors_nD: Float32Array, *, beam: int, preselect: int | None) -> Codes:
        """Encode clamped vectors."""
        return self._ready().encode(vectors_nD, beam=beam, preselect=preselect)

    def decode(self, codes: Codes, *, sequential: bool, precision: Precision) -> Float32Array:
        """Decode checked codes."""
        return self._ready().decode(codes, sequential=sequential, precision=precision)

    def decode_on_gpu(self, codes: Codes, frame: Frame, precision: Precision) -> "torch.Tensor | None":
        """Decode checked codes to vectors that stay on the coder's GPU, if it has one."""
        return None if self.device == "cpu" else self._ready().decode_on_gpu(codes, frame, precision)

    def distances(self, frame: Frame, precision: Precision) -> "GpuDistances | None":
        """What computes distances of codes to queries, on the coder's GPU if it has one."""
        return None if self.device == "cpu" else self._ready().distances(frame, precision)

    def try_precisions(self, codes: Codes, error: float) -> PrecisionTrial | None:
        """Compare decoding in both precisions; None where bfloat16 has nothing to gain."""
        return self._ready().try_precisions(codes, error)

    def approximate(self, codes: Codes) -> Float32Array:
        """The sums of the table rows that codes select."""
        return self.tables.approximate(codes)

    def estimate_squares(self, codes: Codes) -> Float32Array:
        """The sums of the table entries of squared lengths."""
        return self.tables.estimate_squares(codes)

    @functools.cached_property
    def _centroids(self) -> tuple[Float32Array, Float32Array]:
        """The centroids, one below the other (D, P), and their squared lengths (P,); under "cosine", of
        length 1."""
        centroids_PD = self.weights.centroids_PD
        if self.config.metric == "cosine":
            lengths_P1 = np.linalg.norm(centroids_PD, axis=1, keepdims=True)
            centroids_PD = np.asarray(centroids_PD / np.where(lengths_P1 > 0, lengths_P1, 1), np.float32)
        return in_panels(np.ascontiguousarray(centroids_PD.T)), np.square(centroids_PD).sum(axis=1)

    def nearest_partitions(self, frame: Frame, queries_QD: Float32Array, count: int) -> npt.NDArray[np.int64]:
        """The partitions (Q, count) nearest to checked queries, nearest first."""
        if not self.num_partitions:
            return np.zeros((len(queries_QD), 1), dtype=np.int64)
        return smallest(self._partition_scores(frame, queries_QD), min(count, self.num_partitions))

    def probed(self, frame: Frame, queries_QD: Float32Array, count: int) -> npt.NDArray[np.bool_]:
        """Whether a partition (Q, P) is one of the `count` nearest."""
        if count >= self.num_partitions:
            return np.ones((len(queries_QD), max(1, self.num_partitions)), dtype=bool)
        probed_QP = np.empty((len(queries_QD), self.num_partitions), dtype=bool)
        mark_smallest(self._partition_scores(frame, queries_QD), count, probed_QP)
        return probed_QP

    def _partition_scores(self, frame: Frame, queries_QD: Float32Array) -> Float32Array:
        """Scores (Q, P), smaller for partitions that are nearer.

        Under "cosine", centroids are compared by their directions. Their lengths tell how alike the rows of a
        partition are, and say nothing about a query: those of wide partitions are short, and would be nearer.
        """
        metric = self.config.metric
        by_distance = metric == "l2"
        if by_distance:
            queries_QD = self.clamp(frame, queries_QD)
        elif metric == "dot":
            queries_QD = FramedQueries.of(queries_QD, frame, metric).queries_QD
        panels_XDW, squares_P = self._centroids
        scores_QP = -2 * product_with_panels(np.ascontiguousarray(queries_QD), panels_XDW, len(squares_P))
        if by_distance:
            scores_QP += squares_P
        return scores_QP

    def lookup_tables(self, queries: FramedQueries, units: ScoreUnits) -> LookupTables:
        """Look-up tables for queries in the frame, with scores in `units`."""
        return self.tables.for_queries(queries, units)

    def truncate(self, config: CodecConfig, calibration: Codes) -> "ResidualCoder":
        """The coder of the first steps, with tables fitted to the calibration codes."""
        from rqmoe_store.codecs.prepared import fit_coder

        return fit_coder(self.weights.truncate(config), calibration, self.device)

    def with_config(self, config: CodecConfig) -> "ResidualCoder":
        """The same coder for another configuration, which may differ in refine codes only."""
        return ResidualCoder(QuantizerWeights(config, self.weights.arrays), self.tables, self.device)

    def to(self, device: str) -> Self:
        """Encode and decode on a device from now on."""
        with self._lock:
            self.device, self._prepared = device, None
        return self


class TransformCoder:
    """Codes by transform coding; look-up tables are exact. It computes on the CPU."""

    def __init__(self, config: CodecConfig, quantizer: TransformQuantizer) -> None:
        self.config = config
        self.quantizer = quantizer
        self.num_partitions = 0
        self.device = "cpu"
        squared_mean, squares_BK = quantizer.squares()
        self._squares_T = np.concatenate([[np.float32(squared_mean)], squares_BK.ravel()])

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        return self.quantizer.dim

    def clamp(self, frame: Frame, vectors_nD: Float32Array) -> Float32Array:
        """Checked vectors in the frame; the quantizer clamps coordinates itself."""
        return frame.transform(vectors_nD)

    def encode(self, vectors_nD: Float32Array, *, beam: int, preselect: int | None) -> Codes:
        """Encode vectors."""
        return Codes(self.quantizer.encode(vectors_nD), np.zeros(len(vectors_nD), np.int32))

    def decode(self, codes: Codes, *, sequential: bool, precision: Precision) -> Float32Array:
        """Decode checked codes; all forms of decoding are the same."""
        return self.quantizer.decode(codes.codes)

    def decode_on_gpu(self, codes: Codes, frame: Frame, precision: Precision) -> "torch.Tensor | None":
        """None: codes are decoded on the CPU, wherever they are scanned."""
        return None

    def distances(self, frame: Frame, precision: Precision) -> "GpuDistances | None":
        """None: codes are decoded on the CPU, wherever they are scanned."""
        return None

    def try_precisions(self, codes: Codes, error: float) -> PrecisionTrial | None:
        """None: there are no matrix products of experts."""
        return None

    def approximate(self, codes: Codes) -> Float32Array:
        """The decoded vectors."""
        return self.quantizer.decode(codes.codes)

    def estimate_squares(self, codes: Codes) -> Float32Array:
        """The squared lengths of the decoded vectors."""
        by_step = self._squares_T[1:].reshape(-1, CODEWORDS)
        steps_M = np.arange(codes.codes.shape[1])
        return np.asarray(by_step[steps_M, codes.codes].sum(axis=1) + self._squares_T[0], dtype=np.float32)

    def nearest_partitions(self, frame: Frame, queries_QD: Float32Array, count: int) -> npt.NDArray[np.int64]:
        """The only partition id (Q, 1)."""
        return np.zeros((len(queries_QD), 1), dtype=np.int64)

    def probed(self, frame: Frame, queries_QD: Float32Array, count: int) -> npt.NDArray[np.bool_]:
        """The only partition is."""
        return np.ones((len(queries_QD), 1), dtype=bool)

    def lookup_tables(self, queries: FramedQueries, units: ScoreUnits) -> LookupTables:
        """Look-up tables for queries in the frame, with scores in `units`."""
        of_mean_Q, products_QBK = self.quantizer.products(queries.queries_QD)
        products_QT = np.concatenate([of_mean_Q[:, None], products_QBK.reshape(len(of_mean_Q), -1)], axis=1)
        return tables_of_products(
            products_QT, self._squares_T, queries, units, num_partitions=1, codebook_size=CODEWORDS
        )

    def truncate(self, config: CodecConfig, calibration: Codes) -> "TransformCoder":
        """The coder of the first bytes."""
        return TransformCoder(config, self.quantizer.truncate(config.code_bytes))

    def with_config(self, config: CodecConfig) -> "TransformCoder":
        """The same coder for another configuration, which may differ in refine codes only."""
        return TransformCoder(config, self.quantizer).to(self.device)

    def to(self, device: str) -> Self:
        """Scan codes on a device from now on."""
        self.device = device
        return self


def refine_base(coder: Coder, codes: Codes) -> Float32Array:
    """The vectors (n, D) that the refine codes of a codec are added to."""
    if coder.config.refine_base == "additive":
        return coder.approximate(codes)
    return coder.decode(codes, sequential=False, precision="float32")
