"""Coders: what turns vectors into code bytes and back, by a residual quantizer or by transform coding.

Vectors are in the frame of a codec, which has one coder.

Shape legend: n vectors, D dimension, M code bytes, K codewords, P partitions, Q queries, T table rows.
"""

import copy
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt
import torch

from rqmoe_store.codecs.additive import AdditiveTables, LookupTables, fit_tables, tables_of_products
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.decoding import GraphedDecoder, decode
from rqmoe_store.codecs.device import Precision, as_tensor
from rqmoe_store.codecs.encoding import clamp_vectors, encode_block, encoding_tables
from rqmoe_store.codecs.experts import FoldedExperts
from rqmoe_store.codecs.frame import Frame, FramedQueries, ScoreUnits
from rqmoe_store.codecs.kinds import make_quantizer
from rqmoe_store.codecs.quantizer import ResidualQuantizer
from rqmoe_store.codecs.transform import CODEWORDS, TransformQuantizer
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import CodecConfig


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
    def device(self) -> torch.device:
        """The device on which codes are scanned, and experts computed."""

    def clamp(self, frame: Frame, vectors_nD: Float32Array) -> Float32Array:
        """Checked vectors in the frame, moved nearer if they are too far off to be coded."""

    def encode(self, vectors_nD: Float32Array, *, beam: int, preselect: int | None) -> Codes:
        """Encode clamped vectors. A transform code has no use for the settings of the search."""

    def decode(self, codes: Codes, *, sequential: bool, precision: Precision) -> Float32Array:
        """Decode checked codes to vectors (n, D)."""

    def approximate(self, codes: Codes) -> Float32Array:
        """The vectors (n, D) whose distances look-up tables score."""

    def estimate_squares(self, codes: Codes) -> Float32Array:
        """The squared lengths (n,) that look-up tables have for codes."""

    def nearest_partitions(self, frame: Frame, queries_QD: Float32Array, count: int) -> npt.NDArray[np.int64]:
        """The partitions (Q, count) nearest to checked queries, nearest first."""

    def lookup_tables(self, queries: FramedQueries, units: ScoreUnits) -> LookupTables:
        """Look-up tables for queries in the frame, with scores in `units`."""

    def truncate(self, config: CodecConfig, calibration: Codes) -> "Coder":
        """The coder of the first bytes, given codes of so many bytes to fit tables to."""

    def with_config(self, config: CodecConfig) -> "Coder":
        """The same coder for another configuration, which may differ in refine codes only."""

    def to(self, device: torch.device) -> Self:
        """Move to a device, and return self."""


class ResidualCoder:
    """Codes by a residual quantizer; look-up tables approximate what it decodes."""

    def __init__(self, quantizer: ResidualQuantizer, tables: AdditiveTables) -> None:
        self.config: CodecConfig = quantizer.config
        self.quantizer = quantizer.eval().requires_grad_(False)
        self.tables = tables
        self._prepare()

    @torch.no_grad()
    def _prepare(self) -> None:
        """Compute once, on the device of the weights, the tables that follow from them."""
        folded = self.quantizer.fold()
        self._encoding_tables = encoding_tables(self.quantizer, folded)
        self._folded: dict[Precision, FoldedExperts | None] = {"float32": folded}
        self._graphed: dict[Precision, GraphedDecoder] = {}

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        return self.quantizer.dim

    @property
    def num_partitions(self) -> int:
        """Partitions; 0 without any."""
        return self.quantizer.num_partitions

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.quantizer.codebooks_MKD.device

    def clamp(self, frame: Frame, vectors_nD: Float32Array) -> Float32Array:
        """Checked vectors in the frame, clamped to a maximum distance from the mean."""
        return clamp_vectors(self.quantizer, frame, vectors_nD)

    def encode(self, vectors_nD: Float32Array, *, beam: int, preselect: int | None) -> Codes:
        """Encode clamped vectors."""
        return encode_block(self.quantizer, self._encoding_tables, vectors_nD, beam=beam, preselect=preselect)

    def decode(self, codes: Codes, *, sequential: bool, precision: Precision) -> Float32Array:
        """Decode checked codes."""
        if precision not in self._folded:
            exact = self._folded["float32"]
            self._folded[precision] = None if exact is None else exact.to(torch.bfloat16)
        folded = self._folded[precision]
        if self.device.type == "cuda" and precision not in self._graphed:
            self._graphed[precision] = GraphedDecoder(self.quantizer, folded)
        decoded_nD = decode(
            self.quantizer, folded, codes, sequential=sequential, graphed=self._graphed.get(precision)
        )
        return np.asarray(decoded_nD.cpu().numpy(), dtype=np.float32)

    def approximate(self, codes: Codes) -> Float32Array:
        """The sums of the table rows that codes select."""
        return self.tables.approximate(codes)

    def estimate_squares(self, codes: Codes) -> Float32Array:
        """The sums of the table entries of squared lengths."""
        return self.tables.estimate_squares(codes)

    @torch.inference_mode()
    def nearest_partitions(self, frame: Frame, queries_QD: Float32Array, count: int) -> npt.NDArray[np.int64]:
        """The partitions (Q, count) nearest to checked queries, nearest first."""
        if not self.num_partitions:
            return np.zeros((len(queries_QD), 1), dtype=np.int64)
        if self.config.metric == "dot":
            queries_QD = FramedQueries.of(queries_QD, frame, "dot").queries_QD
        else:
            queries_QD = self.clamp(frame, queries_QD)
        centroids_PD = self.quantizer.denormalize(self.quantizer.centroids_PD)
        scores_QP = -2 * as_tensor(queries_QD).to(self.device) @ centroids_PD.T
        if self.config.metric != "dot":
            scores_QP += centroids_PD.square().sum(dim=1)
        nearest_QP = scores_QP.topk(min(count, self.num_partitions), dim=1, largest=False).indices
        return np.asarray(nearest_QP.cpu().numpy(), dtype=np.int64)

    @torch.inference_mode()
    def lookup_tables(self, queries: FramedQueries, units: ScoreUnits) -> LookupTables:
        """Look-up tables for queries in the frame, with scores in `units`."""
        return self.tables.for_queries(queries, units)

    def truncate(self, config: CodecConfig, calibration: Codes) -> "ResidualCoder":
        """The coder of the first steps, with tables fitted to the calibration codes."""
        quantizer = make_quantizer(config, self.dim)
        shapes = {name: tensor.shape for name, tensor in quantizer.state_dict().items()}
        kept = {
            name: tensor[: shapes[name][0]] if shapes[name] != tensor.shape else tensor
            for name, tensor in self.quantizer.state_dict().items()
            if name in shapes
        }
        quantizer.load_state_dict(kept)
        quantizer.to(self.device)
        return ResidualCoder(quantizer, fit_tables(quantizer, calibration))

    def with_config(self, config: CodecConfig) -> "ResidualCoder":
        """The same coder for another configuration, which may differ in refine codes only."""
        # A copy, because moving a coder to another device moves its weights.
        quantizer = copy.deepcopy(self.quantizer)
        quantizer.config = config
        return ResidualCoder(quantizer, self.tables)

    def to(self, device: torch.device) -> Self:
        """Move the weights to a device."""
        self.quantizer.to(device)
        self.tables = self.tables.to(device)
        self._prepare()
        return self


class TransformCoder:
    """Codes by transform coding; look-up tables are exact. It computes on the CPU."""

    def __init__(self, config: CodecConfig, quantizer: TransformQuantizer) -> None:
        self.config = config
        self.quantizer = quantizer
        self.num_partitions = 0
        self.device = torch.device("cpu")
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

    def to(self, device: torch.device) -> Self:
        """Scan codes on a device from now on."""
        self.device = device
        return self


def refine_base(coder: Coder, codes: Codes) -> Float32Array:
    """The vectors (n, D) that the refine codes of a codec are added to."""
    if coder.config.refine_base == "additive":
        return coder.approximate(codes)
    return coder.decode(codes, sequential=False, precision="float32")
