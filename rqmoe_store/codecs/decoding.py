"""Decoding: any number of codes in bounded memory. On a CPU, compiled loops decode in float32 and torch in
bfloat16. On a GPU, a kernel decodes in bfloat16, and CUDA graphs the small batches of everything else.

Shape legend: n codes, B codes of one chunk, M steps, D dimension.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad

from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.device import as_tensor, full_precision
from rqmoe_store.codecs.encoding import EncodingTables
from rqmoe_store.codecs.experts import FoldedExperts
from rqmoe_store.codecs.frame import LARGEST, Frame
from rqmoe_store.codecs.graphs import GraphedDecoder
from rqmoe_store.codecs.parallel import num_threads, rows_in_budget, run_chunks, run_chunks_parallel
from rqmoe_store.codecs.quantizer import ResidualQuantizer

_CPU_BYTES, _GPU_BYTES = 2**24, 2**30
"""Memory for one chunk: about a CPU's last-level cache, a small part of a GPU's memory."""

_MOST_ROWS = 2**16

DecodeChunk = Callable[[Tensor, Tensor], Tensor | None]
"""Function from codes (B, M), uint8, and partition ids (B,), int64, on a device to reconstructions (B, D), or
None if these have to be computed in another way."""

FEW_ROWS, MANY_ROWS = 32, 256
"""Codes that a CPU decodes at once in bfloat16, padded to that number: a default shortlist or a part of many.
Products of one shape sum a row in one order. Whether both shapes do is found by trial (`precision`)."""

_GRAPH_BYTES = 2**28
"""Memory for a batch that a CUDA graph decodes. The recordings of all batch sizes share it."""


class HostCopy(NamedTuple):
    """A tensor on its way from a GPU to pinned memory, which takes it while the GPU goes on."""

    pinned: Tensor
    copied: torch.cuda.Event

    @classmethod
    def of(cls, tensor: Tensor) -> "HostCopy":
        """Begin to copy a tensor, on the current stream of its device."""
        pinned = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
        pinned.copy_(tensor, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(tensor.device))
        return cls(pinned, copied)

    def wait(self) -> npt.NDArray[Any]:
        """The numbers, in pinned memory."""
        self.copied.synchronize()
        return np.asarray(self.pinned.numpy())


class _Output:
    """The vectors of all chunks. Those in the CPU's memory come there one chunk behind the GPU."""

    def __init__(self, decoded_nD: Tensor) -> None:
        self._decoded_nD = decoded_nD
        self._copy: tuple[slice, HostCopy] | None = None

    def put(self, rows: slice, chunk_BD: Tensor) -> None:
        """Take the vectors of a chunk."""
        if self._decoded_nD.device == chunk_BD.device:
            self._decoded_nD[rows] = chunk_BD
            return
        copy = HostCopy.of(chunk_BD)
        self.finish()
        self._copy = rows, copy

    def finish(self) -> None:
        """Wait for the last chunk."""
        if self._copy is not None:
            rows, copy = self._copy
            self._decoded_nD.numpy()[rows] = copy.wait()
            self._copy = None


@torch.inference_mode()
def decode(
    quantizer: ResidualQuantizer,
    tables: EncodingTables,
    codes: Codes,
    *,
    sequential: bool = False,
    converted: FoldedExperts | None = None,
    graphed: GraphedDecoder | None = None,
    fused: DecodeChunk | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Decode checked codes to reconstructions (n, D), float32, on the quantizer's device.

    Args:
        quantizer: the codec's parameters.
        tables: its encoding tables.
        codes: checked codes.
        sequential: decode one step after the other, as the definition reads, instead of all at once.
        converted: its folded experts in another number format than float32, to compute in that.
        graphed: decodes the small batches; CUDA only.
        fused: decodes batches of any size, in place of array operations and `graphed`.
        out: a tensor (n, D) to fill, on the device of the quantizer, or, if that is a GPU, in the CPU's
            memory, to which vectors move chunk by chunk: they may take more memory than a GPU has.
    """
    if quantizer.codebooks_MKD.device.type == "cpu" and not sequential and converted is None:
        return torch.from_numpy(tables.compiled.decode(codes))
    folded = tables.folded if converted is None else converted
    return decode_with_torch(
        quantizer, folded, codes, sequential=sequential, graphed=graphed, fused=fused, out=out
    )


def decode_with_torch(
    quantizer: ResidualQuantizer,
    folded: FoldedExperts | None,
    codes: Codes,
    *,
    sequential: bool = False,
    graphed: GraphedDecoder | None = None,
    fused: DecodeChunk | None = None,
    rows: int | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Decode checked codes chunk by chunk, `rows` at a time; None for a number that suits the device.

    The number format of `folded` is that of matrix products.
    """
    decode_otherwise: Callable[[Tensor, Tensor], Tensor] = functools.partial(quantizer.decode, folded=folded)
    if sequential:
        decode_otherwise = quantizer.decode_sequentially
    elif graphed is not None:
        decode_otherwise = graphed.decode
    device = quantizer.codebooks_MKD.device
    decoded_nD = out
    if decoded_nD is None:
        decoded_nD = torch.empty(len(codes), quantizer.dim, device=device, dtype=torch.float32)
    output = _Output(decoded_nD)
    is_padded = device.type == "cpu" and folded is not None and folded.condition_SEF.dtype != torch.float32
    if rows is None and is_padded:
        rows = MANY_ROWS if len(codes) >= MANY_ROWS * num_threads() else FEW_ROWS

    @torch.inference_mode()  # a setting of every thread
    def decode_chunk(start: int, stop: int, rows: int) -> None:
        codes_BM = as_tensor(codes.codes[start:stop]).to(device, non_blocking=True).long()
        partitions_B = as_tensor(codes.partitions[start:stop]).to(device, non_blocking=True).long()
        if is_padded:
            codes_BM = pad(codes_BM, (0, 0, 0, rows - len(codes_BM)))
            partitions_B = pad(partitions_B, (0, rows - len(partitions_B)))
        decoded_BD = None if fused is None or sequential else fused(codes_BM.byte(), partitions_B)
        if decoded_BD is None:
            decoded_BD = decode_otherwise(codes_BM, partitions_B)
        output.put(slice(start, stop), decoded_BD[: stop - start])

    if device.type == "cpu":
        run_chunks_parallel(len(codes), rows or chunk_rows(quantizer), decode_chunk, one_core=True)
    else:
        with full_precision(device):  # the number format is that of `folded`, whatever the caller has set
            run_chunks(len(codes), rows or chunk_rows(quantizer), decode_chunk)
        output.finish()
    return decoded_nD


def unit_and_offset(frame: Frame, device: torch.device) -> Tensor:
    """The unit of a frame and its offset (1 + D,), float64."""
    numbers = [2.0**frame.exponent, *frame.offset_D.tolist()]
    return torch.tensor(numbers, dtype=torch.float64, device=device)


def leave_frame(vectors_nD: Tensor, unit_and_offset: Tensor) -> Tensor:
    """`Frame.inverse_transform` of vectors, float32, on their device."""
    moved_nD = vectors_nD.double().mul_(unit_and_offset[0]).add_(unit_and_offset[1:])
    return moved_nD.clamp_(-LARGEST, LARGEST).float()


def chunk_rows(quantizer: ResidualQuantizer, more_floats: int = 0) -> int:
    """Codes decoded at once: as many as fit the device's memory budget, with more numbers for each."""
    budget = _CPU_BYTES if quantizer.codebooks_MKD.device.type == "cpu" else _GPU_BYTES
    return rows_in_budget(budget, _floats_per_row(quantizer) + more_floats, _MOST_ROWS)


def graphed_decoder(quantizer: ResidualQuantizer, folded: FoldedExperts | None) -> GraphedDecoder:
    """What decodes small batches on a CUDA device, in the number format of `folded`."""
    largest = rows_in_budget(_GRAPH_BYTES, _floats_per_row(quantizer), _MOST_ROWS)
    return GraphedDecoder(quantizer, folded, largest_batch=largest)


def _floats_per_row(quantizer: ResidualQuantizer) -> int:
    """Numbers in memory for each code that is decoded."""
    floats = 2 * quantizer.dim
    if quantizer.mixture is not None:
        features = quantizer.mixture.num_layers * quantizer.mixture.num_experts * quantizer.mixture.hidden_dim
        floats += quantizer.num_steps * (features + quantizer.condition_dim)
    return floats
