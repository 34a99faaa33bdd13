"""Decoding any number of codes in bounded memory.

Shape legend: n codes, B codes of one chunk, M steps, D dimension.
"""

import torch
from torch import Tensor

from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.experts import FoldedExperts
from rqmoe_store.codecs.quantizer import ResidualQuantizer

_CHUNK = 512  # small enough to stay in a CPU's cache


@torch.inference_mode()
def decode(
    quantizer: ResidualQuantizer,
    folded: FoldedExperts | None,
    codes: Codes,
    *,
    sequential: bool = False,
) -> Tensor:
    """Reconstructions (n, D), float32, of checked codes, on the quantizer's device.

    `sequential` follows the definition step after step instead of computing all steps at once.
    """
    device = quantizer.codebooks_MKD.device
    decoded_nD = torch.empty(len(codes), quantizer.dim, device=device)
    for start in range(0, len(codes), _CHUNK):
        chunk = codes[start : start + _CHUNK]
        codes_BM = torch.from_numpy(chunk.codes).to(device).long()
        partitions_B = torch.from_numpy(chunk.partitions).to(device).long()
        decoded_nD[start : start + len(chunk)] = (
            quantizer.decode_sequentially(codes_BM, partitions_B)
            if sequential
            else quantizer.decode(codes_BM, partitions_B, folded)
        )
    return decoded_nD
