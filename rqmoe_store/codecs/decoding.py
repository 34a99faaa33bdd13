"""Decoding any number of codes in bounded memory.

Shape legend: n codes, B codes of one chunk, M steps, D dimension.
"""

import torch
from torch import Tensor

from rqmoe_store.codecs.chunks import in_chunks, rows_in_budget
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.device import as_tensor
from rqmoe_store.codecs.experts import FoldedExperts
from rqmoe_store.codecs.graphs import LARGEST_BATCH, GraphedDecoder
from rqmoe_store.codecs.quantizer import ResidualQuantizer

_CPU_BYTES, _GPU_BYTES = 2**24, 2**30
"""What one chunk may occupy: about a CPU's last-level cache, a small part of a GPU's memory."""

_MOST_ROWS = 2**16


@torch.inference_mode()
def decode(
    quantizer: ResidualQuantizer,
    folded: FoldedExperts | None,
    codes: Codes,
    *,
    sequential: bool = False,
    graphed: GraphedDecoder | None = None,
) -> Tensor:
    """Reconstructions (n, D), float32, of checked codes, on the quantizer's device.

    The number format of `folded` is that of the experts' matrix products. `sequential` follows the
    definition step after step instead of computing all steps at once. `graphed` (CUDA only) takes
    over small batches.
    """
    device = quantizer.codebooks_MKD.device
    decoded_nD = torch.empty(len(codes), quantizer.dim, device=device)

    def decode_chunk(start: int, stop: int, _: int) -> None:
        codes_BM = as_tensor(codes.codes[start:stop]).to(device).long()
        partitions_B = as_tensor(codes.partitions[start:stop]).to(device).long()
        if sequential:
            decoded_BD = quantizer.decode_sequentially(codes_BM, partitions_B)
        elif graphed is not None and stop - start <= LARGEST_BATCH:
            decoded_BD = graphed.decode(codes_BM, partitions_B)
        else:
            decoded_BD = quantizer.decode(codes_BM, partitions_B, folded)
        decoded_nD[start:stop] = decoded_BD

    in_chunks(len(codes), chunk_rows(quantizer), decode_chunk)
    return decoded_nD


def chunk_rows(quantizer: ResidualQuantizer) -> int:
    """Codes decoded at once: as many as fit the memory budget of the device."""
    budget = _CPU_BYTES if quantizer.codebooks_MKD.device.type == "cpu" else _GPU_BYTES
    floats_per_row = 2 * quantizer.dim
    if quantizer.mixture is not None:
        features = quantizer.mixture.num_layers * quantizer.mixture.num_experts * quantizer.mixture.hidden_dim
        floats_per_row += quantizer.num_steps * (features + quantizer.condition_dim)
    return rows_in_budget(budget, floats_per_row, _MOST_ROWS)
