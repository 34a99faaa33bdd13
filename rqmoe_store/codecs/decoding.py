"""Decoding: any number of codes in bounded memory. On a CPU, compiled loops decode in float32 and torch in
bfloat16. On a GPU, small batches are decoded by CUDA graphs.

Shape legend: n codes, B codes of one chunk, M steps, D dimension.
"""

import dataclasses

import torch
import torch.nn.functional as functional
from torch import Tensor

from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.device import as_tensor
from rqmoe_store.codecs.encoding import EncodingTables
from rqmoe_store.codecs.experts import FoldedExperts
from rqmoe_store.codecs.parallel import Lock, num_threads, rows_in_budget, run_chunks, run_chunks_parallel
from rqmoe_store.codecs.quantizer import ResidualQuantizer
from rqmoe_store.errors import warn_caller

LARGEST_BATCH = 4096
"""Largest batch that a CUDA graph decodes: beyond it, kernels take longer than their launches."""

_CPU_BYTES, _GPU_BYTES = 2**24, 2**30
"""Memory for one chunk: about a CPU's last-level cache, a small part of a GPU's memory."""

_MOST_ROWS = 2**16

FEW_ROWS, MANY_ROWS = 32, 256
"""Codes that a CPU decodes at once in bfloat16, padded to that number: a default shortlist or a part of many.
Products of one shape sum a row in one order. Whether both shapes do is found by trial (`precision`)."""

_WARM_UPS = 3  # runs before recording, so that libraries have chosen their kernels and workspaces


@torch.inference_mode()
def decode(
    quantizer: ResidualQuantizer,
    tables: EncodingTables,
    codes: Codes,
    *,
    sequential: bool = False,
    converted: FoldedExperts | None = None,
    graphed: "GraphedDecoder | None" = None,
) -> Tensor:
    """Decode checked codes to reconstructions (n, D), float32, on the quantizer's device.

    Args:
        quantizer: the codec's parameters.
        tables: its encoding tables.
        codes: checked codes.
        sequential: decode one step after the other, as the definition reads, instead of all at once.
        converted: its folded experts in another number format than float32, to compute in that.
        graphed: decodes the small batches; CUDA only.
    """
    if quantizer.codebooks_MKD.device.type == "cpu" and not sequential and converted is None:
        return torch.from_numpy(tables.compiled.decode(codes))
    folded = tables.folded if converted is None else converted
    return decode_with_torch(quantizer, folded, codes, sequential=sequential, graphed=graphed)


def decode_with_torch(
    quantizer: ResidualQuantizer,
    folded: FoldedExperts | None,
    codes: Codes,
    *,
    sequential: bool = False,
    graphed: "GraphedDecoder | None" = None,
    rows: int | None = None,
) -> Tensor:
    """Decode checked codes chunk by chunk, `rows` at a time; None for a number that suits the device.

    The number format of `folded` is that of matrix products.
    """
    device = quantizer.codebooks_MKD.device
    decoded_nD = torch.empty(len(codes), quantizer.dim, device=device, dtype=torch.float32)
    is_padded = device.type == "cpu" and folded is not None and folded.condition_SEF.dtype != torch.float32
    if rows is None and is_padded:
        rows = MANY_ROWS if len(codes) >= MANY_ROWS * num_threads() else FEW_ROWS

    @torch.inference_mode()  # a setting of every thread
    def decode_chunk(start: int, stop: int, rows: int) -> None:
        codes_BM = as_tensor(codes.codes[start:stop]).to(device).long()
        partitions_B = as_tensor(codes.partitions[start:stop]).to(device).long()
        if is_padded:
            codes_BM = functional.pad(codes_BM, (0, 0, 0, rows - len(codes_BM)))
            partitions_B = functional.pad(partitions_B, (0, rows - len(partitions_B)))
        if sequential:
            decoded_BD = quantizer.decode_sequentially(codes_BM, partitions_B)
        elif graphed is not None and stop - start <= LARGEST_BATCH:
            decoded_BD = graphed.decode(codes_BM, partitions_B)
        else:
            decoded_BD = quantizer.decode(codes_BM, partitions_B, folded)
        decoded_nD[start:stop] = decoded_BD[: stop - start]

    if device.type == "cpu":
        run_chunks_parallel(len(codes), rows or chunk_rows(quantizer), decode_chunk, one_core=True)
    else:
        run_chunks(len(codes), rows or chunk_rows(quantizer), decode_chunk)
    return decoded_nD


def chunk_rows(quantizer: ResidualQuantizer) -> int:
    """Codes decoded at once: as many as fit the device's memory budget."""
    budget = _CPU_BYTES if quantizer.codebooks_MKD.device.type == "cpu" else _GPU_BYTES
    floats_per_row = 2 * quantizer.dim
    if quantizer.mixture is not None:
        features = quantizer.mixture.num_layers * quantizer.mixture.num_experts * quantizer.mixture.hidden_dim
        floats_per_row += quantizer.num_steps * (features + quantizer.condition_dim)
    return rows_in_budget(budget, floats_per_row, _MOST_ROWS)


@dataclasses.dataclass(frozen=True)
class _Recording:
    """A CUDA graph with its input and output buffers."""

    graph: torch.cuda.CUDAGraph
    codes_BM: Tensor
    partitions_B: Tensor
    decoded_BD: Tensor


class GraphedDecoder:
    """`ResidualQuantizer.decode` on one CUDA device, recorded as a graph for batches of 2, 4, 8, ... codes.

    Launching the few dozen kernels one by one takes far longer than decoding a shortlist. A CUDA graph
    records them once per batch size and replays them with a single launch.
    """

    def __init__(self, quantizer: ResidualQuantizer, folded: FoldedExperts | None) -> None:
        self._quantizer, self._folded = quantizer, folded
        self._recordings: dict[tuple[int, int], _Recording] = {}
        self._lock = Lock()  # a recording has one set of buffers
        self._refused = False

    def decode(self, codes_BM: Tensor, partitions_B: Tensor) -> Tensor:
        """Decode 1 to LARGEST_BATCH codes (int64, on the device) to reconstructions (B, D)."""
        if self._refused:
            return self._quantizer.decode(codes_BM, partitions_B, self._folded)
        with self._lock:
            try:
                recording = self._recording(len(codes_BM), codes_BM.shape[1])
            except torch.OutOfMemoryError:
                raise  # the caller retries with smaller chunks
            except RuntimeError as error:
                self._refused = True
                warn_caller(
                    f"This GPU or driver cannot record CUDA graphs ({error}). Small batches are decoded with "
                    "one launch per kernel instead: slower, with the same vectors as result."
                )
                return self._quantizer.decode(codes_BM, partitions_B, self._folded)
            recording.codes_BM[: len(codes_BM)].copy_(codes_BM)
            recording.partitions_B[: len(codes_BM)].copy_(partitions_B)
            recording.graph.replay()
            return recording.decoded_BD[: len(codes_BM)].clone()

    def _recording(self, batch: int, num_steps: int) -> _Recording:
        """The recording for `batch` codes, rounded up to a power of two; made at its first use."""
        rows = max(2, 1 << (batch - 1).bit_length())
        if (rows, num_steps) not in self._recordings:
            self._recordings[rows, num_steps] = self._record(rows, num_steps)
        return self._recordings[rows, num_steps]

    def _record(self, rows: int, num_steps: int) -> _Recording:
        device = self._quantizer.codebooks_MKD.device
        codes_BM = torch.zeros(rows, num_steps, dtype=torch.long, device=device)
        partitions_B = torch.zeros(rows, dtype=torch.long, device=device)
        with torch.cuda.device(device):
            # Recording requires kernels that have run before, on a stream other than the default one.
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    self._quantizer.decode(codes_BM, partitions_B, self._folded)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                decoded_BD = self._quantizer.decode(codes_BM, partitions_B, self._folded)
        return _Recording(graph, codes_BM, partitions_B, decoded_BD)
