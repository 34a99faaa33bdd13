"""Queries of many vectors: their encodings, which scans score, and MaxSim of a shortlist's vectors.

The distance of a row is the sum, over the vectors of the query, of the distance to the nearest vector of the
row, as LanceDB defines it for multivectors: the number of query vectors minus MaxSim.

Shape legend: Q queries, K vectors of one, S rows of one query, B rows of a batch, n vectors of rows,
D components of a vector, F of an encoding, E entries of look-up tables, P columns for query vectors.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from rqmoe_store.codecs.additive import SMALLEST_SQUARE
from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.parallel import compiled, run_parallel
from rqmoe_store.codecs.products import product
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
    distances, many = [np.empty(0, np.float32)], snapshot.codecs.metadata.multi_vector
    assert many is not None, "rows have many vectors"
    for query_KD, some in zip(matrices, candidates.each(), strict=True):
        distances_S = np.empty(len(some.rows), np.float32)
        tokens = _take_tokens(snapshot, some.rows.row_ids_N)
        for generation, rows in snapshot.codecs.by_generation(some.rows.codes) if len(some.rows) else ():
            distances_S[rows] = coded_distances(
                query_KD,
                tokens[rows],
                generation.vector_codec,
                refined,
                metric=snapshot.codecs.metadata.metric,
                means_SD=generation.row_means(some.rows.codes[rows], many),
            )
        distances.append(distances_S)
    return ordered_hits(candidates, np.concatenate(distances), most)


def coded_distances(
    query_KD: Float32Array,
    tokens: Ragged,
    codec: Codec,
    refined: bool,
    *,
    metric: str,
    means_SD: Float32Array | None,
) -> Float32Array:
    """The distances (S,) of rows to one query by what the codes of their vectors stand for.

    Look-up tables of a transform code are exact, so that nothing is decoded under cosine. What a codec on a
    GPU decodes is compared there.

    Args:
        query_KD: vectors of the query.
        tokens: bytes of the codes of all vectors of the rows.
        codec: their codec.
        refined: whether to use refine codes, if there are any.
        metric: metric of the table.
        means_SD: what was taken off the vectors of every row before they were encoded; None for nothing.

    Raises:
        TableError: the bytes are not codes of the codec.
    """
    config = codec.config
    by_tables = config.is_transform and metric == "cosine" and codec.frame.is_plain
    if not by_tables or (refined and config.refine_bytes):
        if codec.device_name != "cpu":
            return _distances_on_gpu(query_KD, tokens, codec, refined, metric, means_SD)
        decoded = decode_lists(tokens, codec, refined=refined, means_BD=means_SD)
        return distances_to(query_KD, decoded, metric)
    codes, lengths_S = token_codes(tokens, codec)
    starts_S1 = Ragged(codes.codes, lengths_S).starts_B1
    lanes = -(-len(query_KD) // _LANES) * _LANES
    tables = _coded_products(query_KD, codes, codec, lanes, means_SD)
    codes_nM, sums_S = np.ascontiguousarray(codes.codes), np.empty(len(lengths_S), np.float32)
    run_parallel(
        functools.partial(_sum_best, tables, codes_nM, starts_S1, start, stop, len(query_KD), sums_S)
        for start, stop in document_shares(starts_S1, lanes * config.code_bytes, _TASK_WORK)
    )
    return np.float32(len(query_KD)) - sums_S


class _CodedProducts(NamedTuple):
    """What compiled loops add up to cosines of the query's vectors with all vectors of rows."""

    products_EP: Float32Array
    """Inner products of every entry of the look-up tables with the query's vectors, padded to the lanes."""
    first_SP: Float32Array
    """What all vectors of a row have in common of them."""
    squares_n: Float32Array
    """Squared length of what the code of every vector stands for."""
    means_SE: Float32Array
    """Inner products of what was taken off the vectors of rows with every entry; without rows for nothing."""
    squares_S: Float32Array
    """What all vectors of a row have in common of their squared lengths."""


def _coded_products(
    query_KD: Float32Array, codes: Codes, codec: Codec, lanes: int, means_SD: Float32Array | None
) -> _CodedProducts:
    """The tables for one query and rows; `means_SD` is as in `coded_distances`."""
    of_query_KE, first_K = _entry_products(query_KD, codec)
    products_EP = np.zeros((of_query_KE.shape[1], lanes), np.float32)
    products_EP[:, : len(query_KD)] = of_query_KE.T
    squares_n = codec.coder.estimate_squares(codes)
    first_SP = np.zeros((1 if means_SD is None else len(means_SD), lanes), np.float32)
    first_SP[:, : len(query_KD)] = first_K
    if means_SD is None:
        nothing = np.empty((0, 0), np.float32)
        return _CodedProducts(products_EP, first_SP, squares_n, nothing, np.zeros(1, np.float32))
    first_SP[:, : len(query_KD)] += product(means_SD, np.ascontiguousarray(query_KD.T))
    means_SE, first_S = _entry_products(means_SD, codec)
    squares_S = np.einsum("sd,sd->s", means_SD, means_SD) + 2 * first_S
    return _CodedProducts(products_EP, first_SP, squares_n, np.ascontiguousarray(means_SE), squares_S)


def _entry_products(vectors_QD: Float32Array, codec: Codec) -> tuple[Float32Array, Float32Array]:
    """Inner products of vectors with every entry of a codec's look-up tables (Q, E), and with what all codes
    have in common (Q,). The codec is a transform code in a plain frame."""
    tables = codec.lookup_tables(vectors_QD)
    # Under "dot", tables have distances, in units of the query if it is very short or long.
    factors_Q = np.float32(1 if tables.metric == "cosine" else -1) * np.exp2(
        tables.units.exponents_Q.astype(np.float32)
    )
    return factors_Q[:, None] * tables.by_codeword, factors_Q * tables.by_partition[:, 0]


def _distances_on_gpu(
    query_KD: Float32Array,
    tokens: Ragged,
    codec: Codec,
    refined: bool,
    metric: str,
    means_SD: Float32Array | None,
) -> Float32Array:
    """The distances (S,) of rows to one query by decoded vectors, which stay on the codec's GPU."""
    import torch

    codes, lengths_S = token_codes(tokens, codec)
    with codes_of_tables():
        vectors_TD = codec.decode_tensor(codes if refined else codes.unrefined, precision="auto")
    if means_SD is not None:
        rows_T = torch.from_numpy(np.repeat(np.arange(len(lengths_S)), lengths_S)).to(vectors_TD.device)
        vectors_TD = vectors_TD + torch.from_numpy(means_SD).to(vectors_TD.device)[rows_T]
    if metric == "cosine":
        lengths_T1 = torch.linalg.vector_norm(vectors_TD, dim=1, keepdim=True, dtype=torch.float64)
        vectors_TD = (vectors_TD / torch.where(lengths_T1 > 0, lengths_T1, 1)).to(torch.float32)
    queries_KD = torch.from_numpy(query_KD).to(vectors_TD.device)
    scores_1S = max_sim_tensor(queries_KD, np.array([len(query_KD)]), vectors_TD, lengths_S)
    return np.float32(len(query_KD)) - scores_1S[0].cpu().numpy()


@compiled
def _sum_best(
    tables: Any, codes_nM: Any, starts_S1: Any, start: int, stop: int, queries: int, sums_S: Any
) -> None:
    """Fill in the MaxSim of rows from `start` to `stop`: cosines of all their vectors, by look-up tables."""
    products_EP, first_SP, squares_n, means_SE, squares_S = tables
    lanes, has_means = products_EP.shape[1], len(means_SE) > 0
    sums_P, best_P = np.empty(lanes, np.float32), np.empty(lanes, np.float32)
    for row in range(start, stop):
        best_P[:] = -np.inf
        common = row if has_means else 0
        for vector in range(starts_S1[row], starts_S1[row + 1]):
            square = squares_n[vector] + squares_S[common]
            for lane in range(lanes):
                sums_P[lane] = first_SP[common, lane]
            for step in range(codes_nM.shape[1]):
                entry = 256 * step + codes_nM[vector, step]
                if has_means:
                    square += 2 * means_SE[row, entry]
                products_P = products_EP[entry]
                for lane in range(lanes):
                    sums_P[lane] += products_P[lane]
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
