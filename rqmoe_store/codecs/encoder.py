"""Encoding any number of vectors in bounded memory.

Shape legend: n vectors, B vectors of one chunk, M steps, D dimension.
"""

from typing import Any

import numpy as np
import torch

from rqmoe_store.codecs.chunks import in_chunks, side_by_side_chunks
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.encoding import chunk_rows, encode
from rqmoe_store.codecs.encoding_tables import EncodingTables
from rqmoe_store.codecs.quantizer import ResidualQuantizer
from rqmoe_store.codecs.vectors import Float32Array, as_vectors, is_dense

_BLOCK_ROWS = 8_192
"""Rows checked and converted at a time, so that a memory-mapped input is never read whole."""


def encode_vectors(
    quantizer: ResidualQuantizer, tables: EncodingTables, vectors: Any, *, beam: int, preselect: int | None
) -> Codes:
    """Codes of whatever `as_vectors` accepts; they do not depend on how rows are batched.

    (Unless a GPU ran out of memory: the chunks after that are smaller, and a candidate that is as
    good as another to the last bits may win instead.)
    """
    metric, dim = quantizer.config.metric, quantizer.dim
    if not is_dense(vectors) or vectors.ndim != 2:
        checked_nD = as_vectors(vectors, dim=dim, metric=metric)
        return _encode_block(quantizer, tables, checked_nD, beam=beam, preselect=preselect)
    codes_nM = np.empty((len(vectors), quantizer.num_steps), dtype=np.uint8)
    partitions_n = np.empty(len(vectors), dtype=np.int32)
    for start in range(0, max(1, len(vectors)), _BLOCK_ROWS):
        block = vectors[start : start + _BLOCK_ROWS]
        rows = slice(start, start + len(block))
        checked_nD = as_vectors(block, dim=dim, metric=metric, positions=np.arange(rows.start, rows.stop))
        part = _encode_block(quantizer, tables, checked_nD, beam=beam, preselect=preselect)
        codes_nM[rows], partitions_n[rows] = part.codes, part.partitions
    return Codes(codes_nM, partitions_n)


def _encode_block(
    quantizer: ResidualQuantizer,
    tables: EncodingTables,
    vectors_nD: Float32Array,
    *,
    beam: int,
    preselect: int | None,
) -> Codes:
    device = quantizer.codebooks_MKD.device
    codes_nM = np.empty((len(vectors_nD), quantizer.num_steps), dtype=np.uint8)
    partitions_n = np.empty(len(vectors_nD), dtype=np.int32)

    @torch.inference_mode()
    def encode_chunk(start: int, stop: int, rows: int) -> None:
        padded_BD = torch.zeros(rows, quantizer.dim)
        padded_BD[: stop - start].numpy()[:] = vectors_nD[start:stop]
        normalized_BD = quantizer.normalize(padded_BD.to(device))
        codes_BM, partitions_B = encode(quantizer, tables, normalized_BD, beam=beam, preselect=preselect)
        codes_nM[start:stop] = codes_BM[: stop - start].cpu().numpy()
        partitions_n[start:stop] = partitions_B[: stop - start].cpu().numpy()

    each_chunk = side_by_side_chunks if device.type == "cpu" else in_chunks
    each_chunk(len(vectors_nD), chunk_rows(quantizer, beam=beam, preselect=preselect), encode_chunk)
    return Codes(codes_nM, partitions_n)
