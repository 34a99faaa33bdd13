"""Prepared quantizers: residual quantizers that encode and decode on a device, with torch.

Shape legend: n vectors, D dimension.
"""

import functools
import time
from typing import Self

import numpy as np
import torch
from torch import Tensor

from rqmoe_store.codecs.additive_fit import fit_tables
from rqmoe_store.codecs.coder import ResidualCoder
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.decoding import (
    MANY_ROWS,
    DecodeChunk,
    chunk_rows,
    decode,
    decode_with_torch,
    graphed_decoder,
    leave_frame,
    unit_and_offset,
)
from rqmoe_store.codecs.device import Precision, as_tensor, has_bfloat16_units
from rqmoe_store.codecs.distances import FLOATS_PER_COMPONENT, DecodeRows, GpuDistances
from rqmoe_store.codecs.encoding import Encoder, exact_tables
from rqmoe_store.codecs.experts import FoldedExperts
from rqmoe_store.codecs.frame import Frame
from rqmoe_store.codecs.graphs import GraphedDecoder
from rqmoe_store.codecs.kernels import has_kernels, run_kernel
from rqmoe_store.codecs.kinds import make_quantizer
from rqmoe_store.codecs.parallel import Lock, run_chunks, run_parallel
from rqmoe_store.codecs.precision import TRIAL_ROWS, PrecisionTrial, try_precisions
from rqmoe_store.codecs.quantizer import ResidualQuantizer
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.codecs.weights import QuantizerWeights


class PreparedQuantizer:
    """A quantizer, and the tables that follow from its weights, computed once on their device."""

    @torch.no_grad()
    def __init__(self, quantizer: ResidualQuantizer) -> None:
        self.quantizer = quantizer.eval().requires_grad_(False)
        self._tables = exact_tables(quantizer)
        self._encoder = Encoder(quantizer, self._tables)
        self._converted: dict[Precision, FoldedExperts | None] = {"float32": None}
        self._graphed: dict[Precision, GraphedDecoder] = {}
        self._distances: dict[tuple[Precision, Frame], GpuDistances] = {}
        self._lock = Lock()  # threads that need the same for the first time share it, with its recordings

    @classmethod
    def of(cls, weights: QuantizerWeights, device: str) -> Self:
        """Prepare a quantizer with the given weights. On a CPU it has them in the same memory."""
        return cls(quantizer_of(weights).to(device))

    def encode(self, vectors_nD: Float32Array, *, beam: int, preselect: int | None) -> Codes:
        """Encode clamped vectors."""
        return self._encoder.encode(vectors_nD, beam=beam, preselect=preselect)

    def decode(self, codes: Codes, *, sequential: bool, precision: Precision) -> Float32Array:
        """Decode checked codes to vectors (n, D)."""
        out_nD = None
        if self._device.type != "cpu":
            out_nD = torch.empty(len(codes), self.quantizer.dim, dtype=torch.float32, device="cpu")
        decoded_nD = self._decode(codes, sequential, precision, out_nD)
        return np.asarray(decoded_nD.numpy(), dtype=np.float32)

    def decode_on_gpu(self, codes: Codes, frame: Frame, precision: Precision) -> Tensor:
        """Decode checked codes to vectors (n, D) that stay on the GPU, in the units of the input."""
        decoded_nD = torch.empty(len(codes), self.quantizer.dim, dtype=torch.float32, device=self._device)
        self._decode(codes, False, precision, decoded_nD)
        if not frame.is_plain:
            values_F = unit_and_offset(frame, self._device)

            def leave(start: int, stop: int, _: int) -> None:
                decoded_nD[start:stop] = leave_frame(decoded_nD[start:stop], values_F)

            run_chunks(len(codes), chunk_rows(self.quantizer), leave)
        return decoded_nD

    def _decode(self, codes: Codes, sequential: bool, precision: Precision, out_nD: Tensor | None) -> Tensor:
        exact, converted = self._tables.folded, self._folded_in(precision)
        with self._lock:
            if self._device.type == "cuda" and precision not in self._graphed:
                self._graphed[precision] = graphed_decoder(self.quantizer, converted or exact)
        return decode(
            self.quantizer,
            self._tables,
            codes,
            sequential=sequential,
            converted=converted,
            graphed=self._graphed.get(precision),
            fused=self._fused if precision == "bfloat16" else None,
            out=out_nD,
        )

    @property
    def _device(self) -> torch.device:
        return self.quantizer.codebooks_MKD.device

    def distances(self, frame: Frame, precision: Precision) -> GpuDistances:
        """What computes distances of codes to queries, on a GPU; vectors are in this frame."""
        key = precision, frame
        with self._lock:
            if key not in self._distances:
                rows = chunk_rows(self.quantizer, FLOATS_PER_COMPONENT * self.quantizer.dim)
                decode_rows, metric = self._decode_rows_in(precision), self.quantizer.config.metric
                self._distances[key] = GpuDistances(decode_rows, frame, metric, self._device, rows=rows)
            return self._distances[key]

    def _decode_rows_in(self, precision: Precision) -> DecodeRows:
        folded = self._folded_in(precision) or self._tables.folded
        fused = self._fused if precision == "bfloat16" else None

        def decode_rows(codes_BM: Tensor, partitions_B: Tensor) -> Tensor:
            decoded_BD = None if fused is None else fused(codes_BM, partitions_B)
            if decoded_BD is None:
                return self.quantizer.decode(codes_BM.long(), partitions_B, folded)
            return decoded_BD

        return decode_rows

    @functools.cached_property
    def _fused(self) -> DecodeChunk | None:
        """Decodes in bfloat16 by a kernel; None where there is none for the device and the quantizer."""
        exact, quantizer = self._tables.folded, self.quantizer
        if exact is None or not has_kernels(self._device):
            return None
        return run_kernel(_KERNEL, functools.partial(_fused_decoding, quantizer, exact))

    def try_precisions(self, codes: Codes, error: float) -> PrecisionTrial | None:
        """Compare decoding in both precisions; None where bfloat16 has nothing to gain."""
        if self._tables.folded is None or not len(codes):
            return None
        if self._device.type == "cuda":
            return self._try_kernel(codes, error)
        if not has_bfloat16_units(self._device):
            return None

        def measure() -> PrecisionTrial:
            many = codes[np.arange(MANY_ROWS) % len(codes)]
            folded = self._folded_in("bfloat16")
            batched_nD = decode_with_torch(self.quantizer, folded, many, rows=MANY_ROWS).numpy()
            return try_precisions(self._decode_as, many[:TRIAL_ROWS], batched_nD[:TRIAL_ROWS], error)

        return run_parallel([measure], one_core=True)[0]

    def _try_kernel(self, codes: Codes, error: float) -> PrecisionTrial | None:
        """Compare the kernel for bfloat16 with float32, on a GPU; None without the kernel."""
        if self._fused is None:
            return None
        many = codes[np.arange(MANY_ROWS) % len(codes)]
        batched_nD = self._decode_as(many, "bfloat16")[:TRIAL_ROWS]
        return try_precisions(self._decode_as, many[:TRIAL_ROWS], batched_nD, error, time.perf_counter)

    def _decode_as(self, codes: Codes, precision: Precision) -> Float32Array:
        return self.decode(codes, sequential=False, precision=precision)

    def _folded_in(self, precision: Precision) -> FoldedExperts | None:
        """The experts in another number format than float32; None for those of the tables."""
        if precision not in self._converted:
            exact = self._tables.folded
            self._converted[precision] = None if exact is None else exact.to(torch.bfloat16)
        return self._converted[precision]


_KERNEL = "decoding of codes"


@torch.inference_mode()
def _fused_decoding(quantizer: ResidualQuantizer, folded: FoldedExperts) -> DecodeChunk | None:
    from rqmoe_store.codecs.decoding_kernel import FusedDecoder, supports

    if not supports(quantizer):
        return None
    decoder = FusedDecoder(quantizer, folded)

    def decode_chunk(codes_BM: Tensor, partitions_B: Tensor) -> Tensor | None:
        return run_kernel(_KERNEL, lambda: decoder.decode(codes_BM, partitions_B))

    return decode_chunk


def quantizer_of(weights: QuantizerWeights) -> ResidualQuantizer:
    """A quantizer on the CPU with the given weights, in the same memory."""
    with torch.device("meta"):  # shapes without memory
        quantizer = make_quantizer(weights.config, weights.dim)
    state = {name: as_tensor(array) for name, array in weights.arrays.items()}
    quantizer.load_state_dict(state, assign=True)
    return quantizer


def fit_coder(weights: QuantizerWeights, calibration: Codes, device: str) -> ResidualCoder:
    """A coder of the weights, with look-up tables fitted to the calibration codes."""
    tables = fit_tables(quantizer_of(weights).to(device), calibration)
    return ResidualCoder(weights, tables, device)
