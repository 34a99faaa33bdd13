"""Queries of many vectors: their encodings, which scans score, and MaxSim of a shortlist's vectors.

The distance of a row is the sum, over the vectors of the query, of the distance to the nearest vector of the
row, as LanceDB defines it for multivectors: the number of query vectors minus MaxSim.

Shape legend: Q queries, K vectors of one, or stages of a ranking, S rows of one query, B rows of a batch,
D components of a vector, F of an encoding.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from rqmoe_store.codecs.vectors import Float32Array, as_vectors, is_tensor, listed
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.search.coded_max_sim import CodedRows, distances_to
from rqmoe_store.search.rerank import Hits, ordered, ordered_hits
from rqmoe_store.search.segments import Positions, RowIds
from rqmoe_store.search.shortlists import Candidates
from rqmoe_store.store.handle import Handle
from rqmoe_store.store.lance import take_rows_of_version
from rqmoe_store.store.metadata import MultiVector
from rqmoe_store.store.multivector import encoder_of
from rqmoe_store.store.ragged import Ragged
from rqmoe_store.store.snapshot import Snapshot

Matrices = tuple[Float32Array, ...]
"""The vectors (K, D) of every query, of length 1 under cosine."""

Part = tuple[CodedRows, Positions]
"""Candidates that one codec has encoded, and their positions among all of a query."""


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


def rank_by_max_sim(
    snapshot: Snapshot,
    matrices: Matrices,
    candidates: Candidates,
    *,
    refined: bool,
    summed_K: Sequence[int],
    decoded_K: Sequence[int],
    most: int,
) -> list[Hits]:
    """Order the candidates of every query by (distance of their decoded vectors, row id).

    Distances are approximated at little cost, then at more for the nearest rows by these, as far as it takes
    to have those of decoded vectors. Other rows are left out.

    Args:
        snapshot: the version that has the rows.
        matrices: vectors of the queries.
        candidates: candidates of every query.
        refined: whether to decode refine codes, too.
        summed_K: of how many rows every stage knows cosines by look-up tables, those of earlier stages among
            them.
        decoded_K: how many of these it decodes.
        most: how many of the nearest rows that a stage considers matter, as in `ordered_hits`.
    """
    distances, stages = [np.empty(0, np.float32)], [np.empty(0, np.int64)]
    for query_KD, some in zip(matrices, candidates.each(), strict=True):
        row_ids_S = some.rows.row_ids_N
        unknown_S = np.full(len(row_ids_S), np.nan, np.float32)
        ranked = _RankedRows(row_ids_S, unknown_S, some.stages_H, len(decoded_K))
        parts = _coded_rows(snapshot, some)
        tables = [part for part in parts if part[0].have_tables]
        decode = functools.partial(CodedRows.decoded_distances, query_KD=query_KD, refined=refined)
        ranked.measure([part for part in parts if not part[0].have_tables], decode)
        ranked.measure(tables, functools.partial(CodedRows.product_distances, query_KD=query_KD))
        if tables and snapshot.codecs.metadata.metric == "cosine":
            ranked.keep_nearest(summed_K)
            ranked.measure(tables, functools.partial(CodedRows.table_distances, query_KD=query_KD))
        approximate = [part for part in tables if part[0].need_decoding(refined)]
        if approximate:
            ranked.keep_nearest(decoded_K)
            ranked.measure(approximate, decode)
        distances.append(ranked.distances_S)
        stages.append(ranked.stages_S)
    return ordered_hits(candidates, np.concatenate(distances), most, stages_H=np.concatenate(stages))


@dataclasses.dataclass
class _RankedRows:
    """Candidates of one query, with their distances as far as they are known."""

    row_ids_S: RowIds
    distances_S: Float32Array
    """Distances, approximate until they are measured anew; NaN for rows that are left out."""
    stages_S: Positions
    """The first stage that considers each row; the number of stages for rows that are left out."""
    num_stages: int

    def measure(self, parts: Sequence[Part], distances_of: Callable[[CodedRows], Float32Array]) -> None:
        """Set the distances of rows that are not left out."""
        for coded, rows in parts:
            chosen = np.flatnonzero(self.stages_S[rows] < self.num_stages)
            self.distances_S[rows[chosen]] = distances_of(coded[chosen])

    def keep_nearest(self, counts_K: Sequence[int]) -> None:
        """Leave out rows that are not among the nearest of any stage, of which each keeps a number."""
        first_S = np.full(len(self.stages_S), self.num_stages)
        order_S = np.lexsort((self.row_ids_S, self.distances_S))
        for stage in reversed(range(len(counts_K))):
            considered_S = order_S[self.stages_S[order_S] <= stage]
            first_S[considered_S[: counts_K[stage]]] = stage
        self.stages_S = first_S
        self.distances_S[first_S == self.num_stages] = np.nan


def _coded_rows(snapshot: Snapshot, candidates: Candidates) -> list[Part]:
    """The candidates of one query, those of every codec apart, and their positions."""
    metadata, codes = snapshot.codecs.metadata, candidates.rows.codes
    assert metadata.multi_vector is not None, "rows have many vectors"
    if len(codes) == 0:
        return []
    tokens, parts = _take_tokens(snapshot, candidates.rows.row_ids_N), []
    for generation, rows in snapshot.codecs.by_generation(codes):
        means = generation.row_means(codes[rows], metadata.multi_vector)
        coded = CodedRows(tokens[rows], generation.vector_codec, metadata.metric, means)
        parts.append((coded, np.arange(len(codes))[rows]))
    return parts


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
