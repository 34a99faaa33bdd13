"""MaxSim (Chamfer similarity): for every vector of a query its largest inner product with a document, summed.

On a CPU by compiled loops, which load no torch; on a GPU by `max_sim_tensor`. A score depends neither on the
documents beside it nor on the number of threads.

Shape legend: Q queries, K vectors of all queries, B documents, T vectors of all documents,
D vector dimension, n vectors of a block, P columns of a matrix of query vectors, padded.
"""

import functools
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from rqmoe_store.codecs.parallel import compiled, num_threads, run_parallel
from rqmoe_store.codecs.products import multiply_rows
from rqmoe_store.codecs.vectors import Float32Array, as_vectors
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.multivector.vector_lists import Lengths, as_vector_lists, starts_of

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK_VECTORS = 64
"""Vectors multiplied with the query vectors at a time; their products stay in the cache."""

_TASK_WORK = 2**21
"""Least multiply-adds of a task. Less is not worth another thread."""

_LANES = 16
"""Columns of query vectors are padded to a multiple of this, so that no loop has single columns left."""

_TENSOR_PRODUCTS = 2**26
"""Most inner products in memory at a time, on a GPU."""


def max_sim(query: Any, vectors: Any, lengths: Any = None, *, query_lengths: Any = None) -> Float32Array:
    """MaxSim of one query, or of several, with every document.

    The inner product is that of the vectors as they are given. For cosines, normalize both sides.

    Args:
        query: vectors (K, D) of one query. With `query_lengths`, those of all queries one after the other.
        vectors: vectors (T, D) of all documents one after the other; without `lengths`, a list of matrices.
        lengths: number of vectors of each document (B).
        query_lengths: number of vectors of each query (Q), at least one.

    Returns:
        Scores (B,), float32, the larger the more similar; (Q, B) with `query_lengths`. Documents without
        vectors have minus infinity.

    Raises:
        InvalidInputError: vectors of different dimensions, that are not numbers, or NaN or infinite; a query
            without vectors; lengths that do not add up.
    """
    one = query_lengths is None
    queries_KD = as_vectors(query)
    queries = as_vector_lists(queries_KD, [len(queries_KD)] if one else query_lengths)
    if not queries.lengths_B.all():
        raise InvalidInputError(
            "Got a query without vectors; expected at least one vector of every query, as MaxSim is a sum "
            "over them."
        )
    documents = as_vector_lists(vectors, lengths, dim=queries.vectors_TD.shape[1])
    scores_QB = checked_max_sim(
        queries.vectors_TD, queries.lengths_B, documents.vectors_TD, documents.lengths_B
    )
    return scores_QB[0] if one else scores_QB


def checked_max_sim(
    queries_KD: Float32Array, query_lengths_Q: Lengths, vectors_TD: Float32Array, lengths_B: Lengths
) -> Float32Array:
    """`max_sim` (Q, B) of arrays that were checked before, C-contiguous and float32."""
    starts_B1 = starts_of(lengths_B)
    scores_QB = np.empty((len(query_lengths_Q), len(lengths_B)), np.float32)
    queries_DP = padded_columns(queries_KD)
    run_parallel(
        functools.partial(
            _score_documents, queries_DP, query_lengths_Q, vectors_TD, starts_B1, first, last, scores_QB
        )
        for first, last in document_shares(starts_B1, queries_DP.size, _TASK_WORK)
    )
    return scores_QB


def document_shares(starts_B1: Lengths, work_per_vector: int, least_work: int) -> list[tuple[int, int]]:
    """Ranges of documents with about equally many vectors, one for each thread that it is worth to use."""
    documents = len(starts_B1) - 1
    total = int(starts_B1[-1])
    shares = max(1, min(4 * num_threads(), total * work_per_vector // least_work, documents))
    if num_threads() == 1:
        shares = 1
    inner = np.searchsorted(starts_B1, np.arange(1, shares) * total / shares)
    edges = [0, *(min(int(edge), documents) for edge in inner), documents]
    return [(first, last) for first, last in itertools.pairwise(edges) if first < last]


def padded_columns(queries_KD: Float32Array) -> Float32Array:
    """Vectors as columns (D, P), with columns of zeros up to a multiple of the lanes."""
    padded = -(-len(queries_KD) // _LANES) * _LANES
    queries_DP = np.zeros((queries_KD.shape[1], padded), np.float32)
    queries_DP[:, : len(queries_KD)] = queries_KD.T
    return queries_DP


@compiled
def _score_documents(
    queries_DP: Any,
    query_lengths_Q: Any,
    vectors_TD: Any,
    starts_B1: Any,
    first: int,
    last: int,
    scores_QB: Any,
) -> None:
    """Fill in the scores of the documents from `first` to `last`."""
    columns = queries_DP.shape[1]
    products_nP = np.empty((_BLOCK_VECTORS, columns), np.float32)
    best_P = np.empty(columns, np.float32)
    for document in range(first, last):
        best_P[:] = -np.inf
        for start in range(starts_B1[document], starts_B1[document + 1], _BLOCK_VECTORS):
            rows = min(_BLOCK_VECTORS, starts_B1[document + 1] - start)
            multiply_rows(vectors_TD[start : start + rows], queries_DP, products_nP[:rows])
            for row in range(rows):
                products_P = products_nP[row]
                for column in range(columns):
                    best_P[column] = max(best_P[column], products_P[column])
        column = 0
        for query in range(len(query_lengths_Q)):
            total = 0.0
            for _ in range(query_lengths_Q[query]):
                total += best_P[column]
                column += 1
            scores_QB[query, document] = total


def max_sim_tensor(
    queries_KD: "Tensor", query_lengths_Q: Lengths, vectors_TD: "Tensor", lengths_B: Lengths
) -> "Tensor":
    """`max_sim` (Q, B) of tensors on one device, by its matrix products, checked before.

    Documents are computed in parts, as many at a time as there is memory for their inner products.
    """
    import torch

    from rqmoe_store.codecs.device import full_precision

    starts_B1, device = starts_of(lengths_B), vectors_TD.device
    scores_QB = torch.empty((len(query_lengths_Q), len(lengths_B)), dtype=torch.float32, device=device)
    most = max(1, _TENSOR_PRODUCTS // max(1, len(queries_KD)))
    first = 0
    while first < len(lengths_B):
        fits = int(np.searchsorted(starts_B1, starts_B1[first] + most, side="right")) - 1
        last = max(first + 1, fits)
        part_TD = vectors_TD[int(starts_B1[first]) : int(starts_B1[last])]
        counts_B = torch.from_numpy(lengths_B[first:last]).to(device)
        documents_T = torch.arange(last - first, device=device).repeat_interleave(
            counts_B, output_size=len(part_TD)
        )
        with full_precision(device):
            products_KT = queries_KD @ part_TD.T
        best_KB = products_KT.new_full((len(queries_KD), last - first), -torch.inf)
        best_KB.scatter_reduce_(1, documents_T.expand_as(products_KT), products_KT, "amax")
        parts = best_KB.to(torch.float64).split(query_lengths_Q.tolist())
        scores_QB[:, first:last] = torch.stack([part.sum(dim=0) for part in parts])
        first = last
    return scores_QB
