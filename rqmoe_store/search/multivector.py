"""Queries of many vectors: their encodings, which scans score, and MaxSim of a shortlist's vectors.

The distance of a row is the sum, over the vectors of the query, of the distance to the nearest vector of the
row, as LanceDB defines it for multivectors: the number of query vectors minus MaxSim.

Shape legend: Q queries, K vectors of one, S rows of one query, B rows of a batch, D components of a vector, F
of an encoding.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from rqmoe_store.codecs.additive import SMALLEST_SQUARE
from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.parallel import compiled, run_parallel
from rqmoe_store.codecs.vectors import Float32Array, as_vectors, is_tensor, listed
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.multivector.max_sim import checked_max_sim, document_shares, max_sim_tensor
from rqmoe_store.search.rerank import Hits, ordered, ordered_hits
from rqmoe_store.search.segments import RowIds
from rqmoe_store.search.shortlists import Candidates
from rqmoe_store.store.handle import Handle
from rqmoe_store.store.lance import take_rows_of_version
from rqmoe_store.store.metadata import MultiVector
from rqmoe_store.store.multivector import codes_of_tables, decode_lists, encoder_of, token_codes
from rqmoe_store.store.ragged import Ragged
from rqmoe_store.store.snapshot import Snapshot
from rqmoe_store.store.vector_lists import unit_vectors

_LANES = 16
"""Query vectors are padded to a multiple of this, so that compiled loops have no single ones left."""
_TASK_WORK = 2**21
"""Least additions of a task. Less is not worth another thread."""

Matrices = tuple[Float32Array, ...]
"""The vectors (K, D) of every query, of length 1 under cosine."""


def as_matrices(query: Any, many: MultiVector) -> Matrices:
    """One matrix (K, D), one vector (D,), or a list of matrices as checked queries.

    Raises:
        InvalidInputError: vectors of another dimension, NaN or infinite, or zero under cosine; a query
            without vectors; an empty batch.
    """
    matrices = _listed_matrices(query)
    if len(matrices) == 0:
        raise InvalidInputError("Got an empty batch of queries; expected at least one matrix of vectors.")
    checked = tuple(as_vectors(matrix, dim=many.dim, metric=many.config.metric) for matrix in matrices)
    empty = [place for place, matrix_KD in enumerate(checked) if len(matrix_KD) == 0]
    if empty:
        raise InvalidInputError(
            f"Got query {empty[0]} (counted from 0) without vectors; expected at least one of "
            f"{many.dim} numbers."
        )
    return checked


def _listed_matrices(query: Any) -> list[Any]:
    """The matrices of the queries, not checked yet."""
    query = listed(query)
    if is_tensor(query) or isinstance(query, np.ndarray):
        return list(query) if query.ndim == 3 else [query[None] if query.ndim == 1 else query]
    if not isinstance(query, list | tuple) or len(query) == 0:
        return [query]
    depth, first = 1, query[0]
    while isinstance(first, list | tuple) and len(first) and depth < 3:
        depth, first = depth + 1, first[0]
    depth += getattr(first, "ndim", 1 if isinstance(first, list | tuple) else 0)
    return list(query) if depth >= 3 else [[query] if depth == 1 else query]


def query_encodings(matrices: Matrices, many: MultiVector) -> Float32Array:
    """The fixed dimensional encodings (Q, F) of queries."""
    return encoder_of(many).encode_queries(
        np.concatenate(matrices), np.array([len(matrix_KD) for matrix_KD in matrices], np.int64)
    )


def require_one_vector(handle: Handle, what: str, instead: str) -> None:
    """Raise InvalidInputError if rows have many vectors each, for which something is not defined."""
    if handle.metadata.multi_vector is not None:
        raise InvalidInputError(
            f"Got {what} for table {handle.name!r}, whose rows have many vectors each; expected a table "
            f"of one vector a row. {instead}"
        )


def distances_to(query_KD: Float32Array, vectors: Ragged, metric: str) -> Float32Array:
    """The distances (B,) of rows to one query: float32, smaller is nearer."""
    vectors_TD = unit_vectors(vectors.values, metric)
    scores_1B = checked_max_sim(query_KD, np.array([len(query_KD)]), vectors_TD, vectors.lengths_B)
    return np.asarray(np.float32(len(query_KD)) - scores_1B[0], dtype=np.float32)


def rank_by_max_sim(
    snapshot: Snapshot, matrices: Matrices, candidates: Candidates, *, refined: bool, most: int
) -> list[Hits]:
    """Order the candidates of every query by (distance of their decoded vectors, row id).

    Args:
        snapshot: the version that has the rows.
        matrices: vectors of the queries.
        candidates: candidates of every query.
        refined: whether to decode refine codes, too.
        most: how many of the nearest rows that a stage considers matter, as in `ordered_hits`.
    """
    distances = [np.empty(0, np.float32)]
    for query_KD, some in zip(matrices, candidates.each(), strict=True):
        distances_S = np.empty(len(some.rows), np.float32)
        tokens = _take_tokens(snapshot, some.rows.row_ids_N)
        for generation, rows in snapshot.codecs.by_generation(some.rows.codes) if len(some.rows) else ():
            distances_S[rows] = coded_distances(query_KD, tokens[rows], generation.vector_codec, refined)
        distances.append(distances_S)
    return ordered_hits(candidates, np.concatenate(distances), most)


def coded_distances(query_KD: Float32Array, tokens: Ragged, codec: Codec, refined: bool) -> Float32Array:
    """The distances (S,) of rows to one query by what the codes of their vectors stand for.

    Look-up tables of a transform code are exact, so that nothing is decoded under cosine. What a codec on a
    GPU decodes is compared there.

    Args:
        query_KD: vectors of the query.
        tokens: bytes of the codes of all vectors of the rows.
        codec: their codec.
        refined: whether to use refine codes, if there are any.

    Raises:
        TableError: the bytes are not codes of the codec.
    """
    config = codec.config
    if not config.is_transform or config.metric != "cosine" or (refined and config.refine_bytes):
        if codec.device_name != "cpu":
            return _distances_on_gpu(query_KD, tokens, codec, refined)
        return distances_to(query_KD, decode_lists(tokens, codec, refined=refined), config.metric)
    codes, lengths_S = token_codes(tokens, codec)
    tables, starts_S1 = codec.lookup_tables(query_KD), Ragged(codes.codes, lengths_S).starts_B1
    lanes = -(-len(query_KD) // _LANES) * _LANES
    scores_TP = np.zeros((tables.by_codeword.shape[1], lanes), np.float32)
    scores_TP[:, : len(query_KD)] = tables.by_codeword.T
    first_P, codes_nM = np.zeros(lanes, np.float32), np.ascontiguousarray(codes.codes)
    first_P[: len(query_KD)] = tables.by_partition[:, 0]
    norms_T, sums_S = tables.norms_T, np.empty(len(lengths_S), np.float32)
    run_parallel(
        functools.partial(
            _sum_best, scores_TP, first_P, norms_T, codes_nM, starts_S1, start, stop, len(query_KD), sums_S
        )
        for start, stop in document_shares(starts_S1, lanes * config.code_bytes, _TASK_WORK)
    )
    return np.float32(len(query_KD)) - sums_S


def _distances_on_gpu(query_KD: Float32Array, tokens: Ragged, codec: Codec, refined: bool) -> Float32Array:
    """The distances (S,) of rows to one query by decoded vectors, which stay on the codec's GPU."""
    import torch

    codes, lengths_S = token_codes(tokens, codec)
    with codes_of_tables():
        vectors_TD = codec.decode_tensor(codes if refined else codes.unrefined, precision="auto")
    if codec.config.metric == "cosine":
        lengths_T1 = torch.linalg.vector_norm(vectors_TD, dim=1, keepdim=True, dtype=torch.float64)
        vectors_TD = (vectors_TD / torch.where(lengths_T1 > 0, lengths_T1, 1)).to(torch.float32)
    queries_KD = torch.from_numpy(query_KD).to(vectors_TD.device)
    scores_1S = max_sim_tensor(queries_KD, np.array([len(query_KD)]), vectors_TD, lengths_S)
    return np.float32(len(query_KD)) - scores_1S[0].cpu().numpy()


@compiled
def _sum_best(
    scores_TP: Any,
    first_P: Any,
    norms_T: Any,
    codes_nM: Any,
    starts_S1: Any,
    start: int,
    stop: int,
    queries: int,
    sums_S: Any,
) -> None:
    """Fill in the MaxSim of rows from `start` to `stop`: cosines of all their vectors, by look-up tables."""
    lanes = scores_TP.shape[1]
    sums_P, best_P = np.empty(lanes, np.float32), np.empty(lanes, np.float32)
    for row in range(start, stop):
        best_P[:] = -np.inf
        for vector in range(starts_S1[row], starts_S1[row + 1]):
            square = norms_T[0]
            for lane in range(lanes):
                sums_P[lane] = first_P[lane]
            for step in range(codes_nM.shape[1]):
                entry = 256 * step + codes_nM[vector, step]
                square += norms_T[1 + entry]
                scores_P = scores_TP[entry]
                for lane in range(lanes):
                    sums_P[lane] += scores_P[lane]
            factor = np.float32(1 / np.sqrt(max(square, SMALLEST_SQUARE)))
            for lane in range(lanes):
                best_P[lane] = max(best_P[lane], factor * sums_P[lane])
        total = 0.0
        for lane in range(queries):
            total += best_P[lane]
        sums_S[row] = total


def _take_tokens(snapshot: Snapshot, row_ids_S: RowIds) -> Ragged:
    """The codes of all vectors of rows."""
    if len(row_ids_S) == 0:
        return Ragged(np.empty(0, np.uint8), np.empty(0, np.int64))
    name = snapshot.codecs.columns.tokens
    taken = take_rows_of_version(snapshot.dataset, [name], row_ids_S)[name].combine_chunks()
    return Ragged.of_binary(taken)


def rank_by_encodings(hits: Sequence[Hits], matrices: Matrices) -> list[Hits]:
    """Hits by inner products of encodings alone, with the distances that these approximate."""
    return [
        dataclasses.replace(each, distances_S=each.distances_S + np.float32(len(query_KD) - 1))
        for each, query_KD in zip(hits, matrices, strict=True)
    ]


def refine_by_max_sim(snapshot: Snapshot, matrices: Matrices, hits: Sequence[Hits]) -> list[Hits]:
    """Order the hits of every query by (distance of their raw vectors, row id), without rows of none."""
    metadata = snapshot.codecs.metadata
    refined = []
    for query_KD, some in zip(matrices, hits, strict=True):
        distances_S = np.full(len(some), np.nan, np.float32)
        if len(some):
            taken = take_rows_of_version(snapshot.dataset, [metadata.vector_column], some.row_ids_S)
            vectors, valid_S = metadata.kept.stored(taken[metadata.vector_column].combine_chunks())
            distances_S[valid_S] = distances_to(query_KD, vectors, metadata.metric)
        exact = dataclasses.replace(
            some, distances_S=distances_S, estimates_S=some.distances_S.astype(np.float64)
        )
        refined.append(ordered(exact))
    return refined


def nearest_raw_rows(
    batches: Iterator[tuple[RowIds, pa.Array]], matrices: Matrices, snapshot: Snapshot, most: int
) -> list[Hits]:
    """The `most` rows nearest to every query by their raw vectors.

    Args:
        batches: ids and lists of vectors of rows.
        matrices: vectors of the queries.
        snapshot: the version that has the rows.
        most: rows to keep.
    """
    metadata = snapshot.codecs.metadata
    best = [Hits(np.empty(0, np.uint64), np.empty(0, np.float32)) for _ in matrices]
    for row_ids_B, column in batches:
        vectors, _ = metadata.kept.stored(column)
        for place, query_KD in enumerate(matrices):
            more = Hits(row_ids_B, distances_to(query_KD, vectors, metadata.metric))
            best[place] = ordered(best[place].joined(more))[:most]
    return best
