"""MaxSim of rows by the codes of their vectors: by look-up tables, or by decoded vectors.

The look-up tables of a codec have vectors that sum to what its codes stand for: exactly unless experts deform
them, and approximately then. Inner products with them sum likewise, at a fraction of the work; for cosines,
the lengths of the sums are needed, too.

Shape legend: Q queries, K vectors of one, S rows, T vectors of all rows, n vectors of a block, M steps,
D components of a vector, E entries of look-up tables, P columns for query vectors.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rqmoe_store.codecs.additive import SMALLEST_SQUARE, AdditiveTables
from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.coder import ResidualCoder
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.parallel import compiled, run_chunks, run_parallel
from rqmoe_store.codecs.products import multiply_rows
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.multivector.max_sim import checked_max_sim, document_shares, max_sim_tensor, padded_columns
from rqmoe_store.store.multivector import RowMeans, codes_of_tables, decode_lists, token_codes
from rqmoe_store.store.ragged import Ragged
from rqmoe_store.store.vector_lists import unit_vectors

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK_VECTORS = 16
"""Vectors summed at a time; they stay in the cache."""
_TASK_WORK = 2**21
"""Least additions of a task. Less is not worth another thread."""


def distances_to(query_KD: Float32Array, vectors: Ragged, metric: str) -> Float32Array:
    """The distances (B,) of rows to one query: float32, smaller is nearer."""
    vectors_TD = unit_vectors(vectors.values, metric)
    scores_1B = checked_max_sim(query_KD, np.array([len(query_KD)]), vectors_TD, vectors.lengths_B)
    return np.asarray(np.float32(len(query_KD)) - scores_1B[0], dtype=np.float32)


@dataclasses.dataclass(frozen=True)
class CodedRows:
    """Rows whose vectors one codec has encoded."""

    tokens: Ragged
    """The bytes of the codes of all vectors of every row."""
    codec: Codec
    """Their codec."""
    metric: str
    """Metric of the table."""
    means: RowMeans | None
    """What was taken off the vectors of every row before they were encoded; None for nothing."""

    def __getitem__(self, rows: npt.NDArray[np.int64]) -> "CodedRows":
        means = None if self.means is None else self.means[rows]
        return dataclasses.replace(self, tokens=self.tokens[rows], means=means)

    @property
    def have_tables(self) -> bool:
        """Whether look-up tables give distances."""
        is_residual = isinstance(self.codec.coder, ResidualCoder)
        return self.codec.frame.is_plain and (is_residual or self.metric == "cosine")

    def need_decoding(self, refined: bool) -> bool:
        """Whether look-up tables give other distances than those of decoded vectors.

        Args:
            refined: whether vectors are decoded with refine codes, if there are any.
        """
        coder = self.codec.coder
        has_experts = isinstance(coder, ResidualCoder) and coder.weights.deformation_dim > 0
        return not self.have_tables or has_experts or (refined and coder.config.refine_bytes > 0)

    def decoded_distances(self, query_KD: Float32Array, *, refined: bool) -> Float32Array:
        """The distances (S,) of the rows to one query by their decoded vectors. What a codec on a GPU decodes
        is compared there.

        Args:
            query_KD: vectors of the query.
            refined: whether to use refine codes, if there are any.

        Raises:
            TableError: the bytes are not codes of the codec.
            InvalidInputError: a GPU has no memory for a single row.
        """
        if self.codec.device_name != "cpu":
            return self._distances_on_gpu(query_KD, refined)
        decoded = decode_lists(self.tokens, self.codec, refined=refined, means=self.means)
        return distances_to(query_KD, decoded, self.metric)

    def product_distances(self, query_KD: Float32Array) -> Float32Array:
        """The distances (S,) of the rows to one query by look-up tables, with inner products in place of
        cosines, and without refine codes. Under "dot", these are `table_distances`.

        Raises:
            TableError: the bytes are not codes of the codec.
        """
        codes, lengths_S = self._checked_codes()
        entries_EP, first_SP = _products_with(query_KD, self.codec, self.means)
        row_work = entries_EP.shape[1] * codes.codes.shape[1]
        return _distances(query_KD, codes, lengths_S, row_work, _sum_best_products, entries_EP, first_SP)

    def table_distances(self, query_KD: Float32Array) -> Float32Array:
        """The distances (S,) of the rows to one query by look-up tables, without refine codes.

        Raises:
            TableError: the bytes are not codes of the codec.
        """
        if self.metric != "cosine":
            return self.product_distances(query_KD)
        codes, lengths_S = self._checked_codes()
        steps, coder = codes.codes.shape[1], self.codec.coder
        means_SD = None if self.means is None else self.means.values_BD
        if isinstance(coder, ResidualCoder):
            summed = _SummedVectors.of(query_KD, coder.tables, means_SD)
            row_work = summed.queries_DP.size + steps * self.codec.dim
            return _distances(query_KD, codes, lengths_S, row_work, _sum_best_of_summed, summed)
        tables = _coded_products(query_KD, codes, self.codec, self.means, means_SD)
        row_work = tables.first_SP.shape[1] * steps
        return _distances(query_KD, codes, lengths_S, row_work, _sum_best, tables)

    def _checked_codes(self) -> tuple[Codes, npt.NDArray[np.int64]]:
        """The codes of all vectors, and how many each row has.

        Raises:
            TableError: the bytes are not codes of the codec.
        """
        codes, lengths_S = token_codes(self.tokens, self.codec)
        with codes_of_tables():
            return self.codec.checked(codes), lengths_S

    def _distances_on_gpu(self, query_KD: Float32Array, refined: bool) -> Float32Array:
        """`decoded_distances` by vectors that stay on the codec's GPU, of fewer rows at a time where it runs
        out of memory.

        Raises:
            InvalidInputError: the GPU has no memory for a single row.
        """
        codes, lengths_S = token_codes(self.tokens, self.codec)
        with codes_of_tables():
            codes = self.codec.checked(codes if refined else codes.unrefined)
        starts_S1, distances_S = (
            Ragged(codes.codes, lengths_S).starts_B1,
            np.empty(len(lengths_S), np.float32),
        )

        def compare(start: int, stop: int, _: int) -> None:
            vectors_TD = self.codec.decode_checked(codes[starts_S1[start] : starts_S1[stop]], "auto")
            means_SD = None if self.means is None else self.means.values_BD[start:stop]
            distances_S[start:stop] = _distances_of_tensor(
                query_KD, vectors_TD, lengths_S[start:stop], means_SD, self.metric
            )

        run_chunks(len(lengths_S), len(lengths_S), compare)
        return distances_S


def _distances_of_tensor(
    query_KD: Float32Array,
    vectors_TD: "Tensor",
    lengths_S: npt.NDArray[np.int64],
    means_SD: Float32Array | None,
    metric: str,
) -> Float32Array:
    """The distances (S,) of rows to one query by decoded vectors on a GPU, less the means of rows."""
    import torch

    device = vectors_TD.device
    if means_SD is not None:
        rows_T = torch.from_numpy(np.repeat(np.arange(len(lengths_S)), lengths_S)).to(device)
        vectors_TD = vectors_TD + torch.from_numpy(means_SD).to(device)[rows_T]
    if metric == "cosine":
        lengths_T1 = torch.linalg.vector_norm(vectors_TD, dim=1, keepdim=True, dtype=torch.float64)
        vectors_TD = (vectors_TD / torch.where(lengths_T1 > 0, lengths_T1, 1)).to(torch.float32)
    queries_KD = torch.from_numpy(query_KD).to(device)
    scores_1S = max_sim_tensor(queries_KD, np.array([len(query_KD)]), vectors_TD, lengths_S)
    return np.asarray(np.float32(len(query_KD)) - scores_1S[0].cpu().numpy(), dtype=np.float32)


def _distances(
    query_KD: Float32Array,
    codes: Codes,
    lengths_S: npt.NDArray[np.int64],
    row_work: int,
    sum_best: Callable[..., None],
    *tables: Any,
) -> Float32Array:
    """The distances (S,) of rows to a query, whose MaxSim a compiled loop sums, on all cores if that is much.

    Args:
        query_KD: vectors of the query.
        codes: the codes of all vectors of the rows.
        lengths_S: how many vectors each row has.
        row_work: additions for a vector.
        sum_best: the loop.
        tables: its first arguments.
    """
    starts_S1, sums_S = Ragged(codes.codes, lengths_S).starts_B1, np.empty(len(lengths_S), np.float32)
    codes_TM = np.ascontiguousarray(codes.codes)
    run_parallel(
        functools.partial(sum_best, *tables, codes_TM, starts_S1, start, stop, len(query_KD), sums_S)
        for start, stop in document_shares(starts_S1, row_work, _TASK_WORK)
    )
    return np.float32(len(query_KD)) - sums_S


def _products_with(
    query_KD: Float32Array, codec: Codec, means: RowMeans | None
) -> tuple[Float32Array, Float32Array]:
    """Inner products of every entry of the look-up tables with the query's vectors, padded (E, P), and what
    all vectors of a row have in common of them (S, P), in one row if it is the same for all rows."""
    of_query_KE, first_K = _entry_products(query_KD, codec)
    entries_EP = padded_columns(of_query_KE)
    first_1P = np.zeros((1, entries_EP.shape[1]), np.float32)
    first_1P[0, : len(query_KD)] = first_K
    if means is None:
        return entries_EP, first_1P
    return entries_EP, first_1P + means.products(padded_columns(query_KD))


class _SummedVectors(NamedTuple):
    """What compiled loops sum to the vectors of rows and compare with those of the query."""

    rows_ED: Float32Array
    """The rows of the look-up tables."""
    codebook_size: int
    means_SD: Float32Array
    """What was taken off the vectors of every row; without rows for nothing."""
    queries_DP: Float32Array
    """The vectors of the query, as columns, padded."""

    @classmethod
    def of(
        cls, query_KD: Float32Array, tables: AdditiveTables, means_SD: Float32Array | None
    ) -> "_SummedVectors":
        """What to sum for a query and rows."""
        nothing_SD = np.empty((0, query_KD.shape[1]), np.float32)
        given_SD = nothing_SD if means_SD is None else means_SD
        return cls(tables.rows_TD, tables.codebook_size, given_SD, padded_columns(query_KD))


class _CodedProducts(NamedTuple):
    """What compiled loops add up to cosines of the query's vectors with all vectors of rows."""

    entries_EP: Float32Array
    first_SP: Float32Array
    """As `_products_with` gives them."""
    squares_n: Float32Array
    """Squared length of what the code of every vector stands for."""
    means_SE: Float32Array
    """Inner products of what was taken off the vectors of rows with every entry; without rows for nothing."""
    squares_S: Float32Array
    """What all vectors of a row have in common of their squared lengths."""


def _coded_products(
    query_KD: Float32Array,
    codes: Codes,
    codec: Codec,
    means: RowMeans | None,
    means_SD: Float32Array | None,
) -> _CodedProducts:
    """The tables for one query and rows, whose means may have been computed."""
    entries_EP, first_SP = _products_with(query_KD, codec, means)
    squares_n = codec.coder.estimate_squares(codes)
    if means_SD is None:
        nothing = np.empty((0, 0), np.float32)
        return _CodedProducts(entries_EP, first_SP, squares_n, nothing, np.zeros(1, np.float32))
    means_SE, first_S = _entry_products(means_SD, codec)
    squares_S = np.einsum("sd,sd->s", means_SD, means_SD) + 2 * first_S
    return _CodedProducts(entries_EP, first_SP, squares_n, np.ascontiguousarray(means_SE), squares_S)


def _entry_products(vectors_QD: Float32Array, codec: Codec) -> tuple[Float32Array, Float32Array]:
    """Inner products of vectors with every entry of a codec's look-up tables (Q, E), and with what all codes
    have in common (Q,). The codec's frame is plain."""
    tables = codec.lookup_tables(vectors_QD)
    # Under "dot", tables have distances, in units of the query if it is very short or long.
    factors_Q = np.float32(1 if tables.metric == "cosine" else -1) * np.exp2(
        tables.units.exponents_Q.astype(np.float32)
    )
    return factors_Q[:, None] * tables.by_codeword, factors_Q * tables.by_partition[:, 0]


@compiled
def _sum_best(
    tables: Any, codes_nM: Any, starts_S1: Any, start: int, stop: int, queries: int, sums_S: Any
) -> None:
    """Fill in the MaxSim of rows from `start` to `stop`: cosines of all their vectors, by look-up tables."""
    entries_EP, first_SP, squares_n, means_SE, squares_S = tables
    lanes, has_means = entries_EP.shape[1], len(means_SE) > 0
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
                products_P = entries_EP[entry]
                for lane in range(lanes):
                    sums_P[lane] += products_P[lane]
            factor = np.float32(1 / np.sqrt(max(square, SMALLEST_SQUARE)))
            for lane in range(lanes):
                best_P[lane] = max(best_P[lane], factor * sums_P[lane])
        total = 0.0
        for lane in range(queries):
            total += best_P[lane]
        sums_S[row] = total


@compiled
def _sum_best_products(
    entries_EP: Any,
    first_SP: Any,
    codes_nM: Any,
    starts_S1: Any,
    start: int,
    stop: int,
    queries: int,
    sums_S: Any,
) -> None:
    """Fill in the MaxSim of rows from `start` to `stop` with inner products in place of cosines."""
    lanes = entries_EP.shape[1]
    sums_P, best_P = np.empty(lanes, np.float32), np.empty(lanes, np.float32)
    for row in range(start, stop):
        best_P[:] = -np.inf
        first_P = first_SP[min(row, len(first_SP) - 1)]
        for vector in range(starts_S1[row], starts_S1[row + 1]):
            sums_P[:] = first_P
            for step in range(codes_nM.shape[1]):
                products_P = entries_EP[256 * step + codes_nM[vector, step]]
                for lane in range(lanes):
                    sums_P[lane] += products_P[lane]
            for lane in range(lanes):
                best_P[lane] = max(best_P[lane], sums_P[lane])
        total = 0.0
        for lane in range(queries):
            total += best_P[lane]
        sums_S[row] = total


@compiled
def _sum_best_of_summed(
    summed: Any, codes_TM: Any, starts_S1: Any, start: int, stop: int, queries: int, sums_S: Any
) -> None:
    """Fill in the MaxSim of rows from `start` to `stop`: cosines of the vectors that table rows sum to."""
    rows_ED, codebook_size, means_SD, queries_DP = summed
    dim, lanes = queries_DP.shape
    block_nD, products_nP = (
        np.empty((_BLOCK_VECTORS, dim), np.float32),
        np.empty((_BLOCK_VECTORS, lanes), np.float32),
    )
    first_D, best_P = np.empty(dim, np.float32), np.empty(lanes, np.float32)
    for row in range(start, stop):
        best_P[:] = -np.inf
        for place in range(dim):
            first_D[place] = rows_ED[0, place] + (means_SD[row, place] if len(means_SD) else np.float32(0))
        for begin in range(starts_S1[row], starts_S1[row + 1], _BLOCK_VECTORS):
            count = min(_BLOCK_VECTORS, starts_S1[row + 1] - begin)
            for vector in range(count):
                _sum_entries(rows_ED, codebook_size, first_D, codes_TM[begin + vector], block_nD[vector])
            multiply_rows(block_nD[:count], queries_DP, products_nP[:count])
            for vector in range(count):
                factor = np.float32(1 / np.sqrt(max(_square(block_nD[vector]), SMALLEST_SQUARE)))
                for lane in range(lanes):
                    best_P[lane] = max(best_P[lane], factor * products_nP[vector, lane])
        total = 0.0
        for lane in range(queries):
            total += best_P[lane]
        sums_S[row] = total


@compiled
def _sum_entries(rows_ED: Any, codebook_size: int, first_D: Any, codes_M: Any, summed_D: Any) -> None:
    """Fill in the sum of a vector and the table rows that a code selects, after the first row."""
    for place in range(len(summed_D)):
        summed_D[place] = first_D[place]
    for step in range(len(codes_M)):
        row_D = rows_ED[1 + codebook_size * step + codes_M[step]]
        for place in range(len(summed_D)):
            summed_D[place] += row_D[place]


@compiled
def _square(vector_D: Any) -> Any:
    """The squared length of a vector."""
    sums = np.zeros(16, np.float32)
    whole = len(vector_D) - len(vector_D) % 16
    for start in range(0, whole, 16):
        for lane in range(16):
            sums[lane] += vector_D[start + lane] * vector_D[start + lane]
    for place in range(whole, len(vector_D)):
        sums[0] += vector_D[place] * vector_D[place]
    return sums.sum()
