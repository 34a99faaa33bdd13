"""Distances of decoded vectors to queries by a Triton kernel, in one launch.

It computes what `Distances.by_operations` does, up to the order of sums. That order is the same for every
row.

Shape legend: B pairs of a vector and a query, C vectors, Q queries, D dimension, F the unit of a frame and
its offset.
"""

# mypy: disable-error-code="no-untyped-def"
# Triton takes the annotations of a kernel's arguments for types of its own.

import torch
import triton.language as tl
from torch import Tensor

from rqmoe_store.codecs.kernels import kernel
from rqmoe_store.config import Metric

ROWS, CHUNK, WARPS = 8, 128, 4
"""Pairs of a tile, components that it reads at a time, and warps that compute it."""


def distances_by_kernel(
    decoded_CD: Tensor,
    queries_QD: Tensor,
    places_B: Tensor,
    queries_B: Tensor,
    metric: Metric,
    frame_F: Tensor | None,
) -> Tensor:
    """Distances (B,), float64, of pairs of a vector and a query; inner products under "dot".

    Args:
        decoded_CD: vectors in the frame, float32.
        queries_QD: queries, float32.
        places_B: places of the vectors of pairs, int32.
        queries_B: numbers of the queries of pairs, int32.
        metric: the metric.
        frame_F: the unit of the frame and its offset (1 + D,), float64; None for the plain frame.
    """
    pairs = len(places_B)
    values_B = torch.empty(pairs, dtype=torch.float64, device=decoded_CD.device)
    with torch.cuda.device_of(decoded_CD):
        _distance_kernel[(-(-pairs // ROWS),)](
            *(decoded_CD.contiguous(), queries_QD, places_B, queries_B),
            *(values_B if frame_F is None else frame_F, values_B, pairs),
            DIM=decoded_CD.shape[1],
            ROWS=ROWS,
            CHUNK=CHUNK,
            HAS_FRAME=frame_F is not None,
            IS_L2=metric == "l2",
            IS_COSINE=metric == "cosine",
            num_warps=WARPS,
        )
    return values_B


@kernel("count")
def _distance_kernel(
    decoded_ptr, queries_ptr, places_ptr, numbers_ptr, frame_ptr, values_ptr, count,
    DIM: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, HAS_FRAME: tl.constexpr,
    IS_L2: tl.constexpr, IS_COSINE: tl.constexpr,
):  # fmt: skip
    pairs = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = pairs < count
    places = tl.load(places_ptr + pairs, mask=inside, other=0).to(tl.int64)
    numbers = tl.load(numbers_ptr + pairs, mask=inside, other=0).to(tl.int64)
    sums = tl.zeros([ROWS, CHUNK], tl.float64)
    squares = tl.zeros([ROWS, CHUNK], tl.float64)
    query_squares = tl.zeros([ROWS, CHUNK], tl.float64)
    for start in range(0, DIM, CHUNK):
        columns = start + tl.arange(0, CHUNK)
        within = columns < DIM
        mask = inside[:, None] & within[None, :]
        vectors = tl.load(decoded_ptr + (places * DIM)[:, None] + columns[None, :], mask=mask, other=0.0)
        vectors = vectors.to(tl.float64)
        if HAS_FRAME:
            offsets = tl.load(frame_ptr + 1 + columns, mask=within, other=0.0)
            vectors = vectors * tl.load(frame_ptr) + offsets[None, :]
            vectors = tl.minimum(tl.maximum(vectors, -3.4028234663852886e38), 3.4028234663852886e38)
            vectors = vectors.to(tl.float32).to(tl.float64)
        queries = tl.load(queries_ptr + (numbers * DIM)[:, None] + columns[None, :], mask=mask, other=0.0)
        queries = queries.to(tl.float64)
        if IS_L2:
            vectors -= queries
            sums += vectors * vectors
        else:
            sums += vectors * queries
        if IS_COSINE:
            squares += vectors * vectors
            query_squares += queries * queries
    values = tl.sum(sums, axis=1)
    if IS_COSINE:
        lengths = tl.sqrt(tl.sum(squares, axis=1)) * tl.sqrt(tl.sum(query_squares, axis=1))
        is_long = lengths > 0
        values = tl.where(is_long, 1 - values / tl.where(is_long, lengths, 1.0), float("nan"))
    tl.store(values_ptr + pairs, values, mask=inside)
