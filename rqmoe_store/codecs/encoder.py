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
from rqmoe_store.codecs.frame import Frame
from rqmoe_store.codecs.quantizer import ResidualQuantizer
from rqmoe_store.codecs.vectors import Float32Array, as_vectors, is_dense

_BLOCK_ROWS = 8_192
"""Rows checked and converted at a time, so that a memory-mapped input is never read whole."""


_REACH = 2.0**12
"""How far from the mean a vector may lie, in units of the scale. Beyond, float32 would give the same
distance to all codewords."""


def encode_vectors(
    quantizer: ResidualQuantizer,
    tables: EncodingTables,
    frame: Frame,
    vectors: Any,
    *,
    beam: int,
    preselect: int | None,
) -> Codes:
    """Codes of whatever `as_vectors` accepts; they do not depend on how rows are batched.

    (Unless a GPU ran out of memory: the chunks after that are smaller, and a candidate that is as
    good as another to the last bits may win instead.)
    """
    metric, dim = quantizer.config.metric, quantizer.dim
    if not is_dense(vectors) or vectors.ndim != 2:
        checked_nD = as_vectors(vectors, dim=dim, metric=metric)
        return _encode_block(quantizer, tables, frame, checked_nD, beam=beam, preselect=preselect)
    codes_nM = np.empty((len(vectors), quantizer.num_steps), dtype=np.uint8)
    partitions_n = np.empty(len(vectors), dtype=np.int32)
    for start in range(0, max(1, len(vectors)), _BLOCK_ROWS):
        block = vectors[start : start + _BLOCK_ROWS]
        rows = slice(start, start + len(block))
        checked_nD = as_vectors(block, dim=dim, metric=metric, positions=np.arange(rows.start, rows.stop))
        part = _encode_block(quantizer, tables, frame, checked_nD, beam=beam, preselect=preselect)
        codes_nM[rows], partitions_n[rows] = part.codes, part.partitions
    return Codes(codes_nM, partitions_n)


def within_reach(quantizer: ResidualQuantizer, frame: Frame, vectors_nD: Float32Array) -> Float32Array:
    """Checked vectors in the codec's frame; those that lie too far out, drawn in towards the mean.

    In the direction in which they lie, what is nearest to them stays nearest.
    """
    mean_D, scale = quantizer.mean_D.cpu().numpy(), float(quantizer.scale)
    entered_nD = frame.enter(vectors_nD)
    limit = float(np.abs(mean_D).max()) + _REACH * scale
    far_n = np.maximum(entered_nD.max(axis=1), -entered_nD.min(axis=1)) > limit
    if not far_n.any():
        return entered_nD
    away_XD = frame.enter_exactly(vectors_nD[far_n]) - mean_D
    away_XD *= _REACH * scale / np.linalg.norm(away_XD, axis=1, keepdims=True)
    drawn_nD = entered_nD.copy()
    drawn_nD[far_n] = mean_D + away_XD
    return drawn_nD


def _encode_block(
    quantizer: ResidualQuantizer,
    tables: EncodingTables,
    frame: Frame,
    vectors_nD: Float32Array,
    *,
    beam: int,
    preselect: int | None,
) -> Codes:
    device = quantizer.codebooks_MKD.device
    vectors_nD = within_reach(quantizer, frame, vectors_nD)
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
