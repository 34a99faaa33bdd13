"""Rerank: decode shortlists and order them by exact distance.

Distances are computed in float64 and returned as float32. Squared distances and inner products of float32
vectors can overflow or underflow float32, and 1 minus a tiny inner product is 1. Such a distance is returned
as the nearest finite float32 number, together with a tie break that orders rows by the distance itself.

Shape legend: Q queries, S rows of one query, U distinct rows, n codes, D vector dimension.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.device import PrecisionChoice
from rqmoe_store.codecs.frame import LARGEST, to_float32
from rqmoe_store.codecs.selection import EVERY_ROW, order_rows
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import Metric
from rqmoe_store.search.segments import CodeBatch, Positions
from rqmoe_store.search.shortlists import Candidates
from rqmoe_store.store.table_codec import TableCodec

Float64Array = npt.NDArray[np.float64]

MAX_DECODED = 2**16
"""Most rows decoded together; queries whose shortlists exceed it are reranked in turns."""
_MAX_COMPONENTS = 2**22
"""Most float64 components processed at a time."""
_SMALLEST = float(np.finfo(np.float32).tiny)
_TINY_PRODUCT = 2.0**-12
"""1 minus an inner product below this has lost half of the product's bits."""


def exact_distances(query_D: Float32Array, vectors_SD: Float32Array, metric: Metric) -> Float32Array:
    """Distances of one query to every vector as LanceDB defines them: float32 (S,), smaller is nearer.

    "l2" is the squared Euclidean distance, "cosine" 1 - cos, "dot" 1 - inner product. The cosine distance of
    a zero vector is NaN, since it has no direction. Distances beyond float32 become its largest number.
    """
    return exact_with_tie_breaks(query_D, vectors_SD, metric)[0]


def exact_with_tie_breaks(
    query_D: Float32Array, vectors_SD: Float32Array, metric: Metric
) -> tuple[Float32Array, Float64Array | None]:
    """Exact distances, and tie breaks (S,) that order rows of equal distance; None if float32 is enough."""
    step = max(1, _MAX_COMPONENTS // len(query_D))
    # Differences in float64, not the expanded square: near ties must be ordered as brute force orders them.
    query = query_D.astype(np.float64)
    parts = [
        _values(query, vectors_SD[start : start + step].astype(np.float64), metric)
        for start in range(0, len(vectors_SD), step)
    ]
    return rounded(np.concatenate([np.empty(0), *parts]), metric)


def rounded(values_S: Float64Array, metric: Metric) -> tuple[Float32Array, Float64Array | None]:
    """Distances and tie breaks, given distances in float64, or inner products under "dot"."""
    return to_float32(1 - values_S if metric == "dot" else values_S), _tie_breaks(values_S, metric)


def decoded_distances(
    codecs: TableCodec,
    queries_QD: Float32Array,
    codes: Codes,
    queries_n: Positions,
    *,
    precision: PrecisionChoice = "float32",
) -> Float32Array:
    """The exact distances (n,) of decoded codes, each to a query of its own, computed where they are decoded.

    Args:
        codecs: codecs of the table.
        queries_QD: checked queries.
        codes: codes; those that have refine codes are decoded with these, on the CPU.
        queries_n: for every code, the number of its query; ascending.
        precision: that of `Codec.decode`.
    """
    metric, values_n = codecs.metric, None
    if codes.refine is None:
        values_n = codecs.distances_on_gpu(codes, queries_QD, queries_n, precision=precision)
    if values_n is not None:
        return rounded(values_n, metric)[0]
    decoded_nD = codecs.decode(codes, precision=precision)
    ends = np.searchsorted(queries_n, np.arange(len(queries_QD) + 1)).tolist()
    return np.concatenate(
        [
            exact_distances(query_D, decoded_nD[start:stop], metric)
            for query_D, start, stop in zip(queries_QD, ends[:-1], ends[1:], strict=True)
        ]
    )


def exact_values(
    distances_S: Float32Array, tie_breaks_S: Float64Array | None, metric: Metric
) -> Float64Array:
    """Distances in float64, or inner products under "dot", from the result of `exact_with_tie_breaks`."""
    values_S = distances_S.astype(np.float64)
    if metric == "dot":
        values_S = 1 - values_S
    if tie_breaks_S is None:
        return values_S
    return np.where(np.isnan(tie_breaks_S), values_S, tie_breaks_S if metric == "l2" else -tie_breaks_S)


def _values(query_D: Float64Array, vectors_SD: Float64Array, metric: Metric) -> Float64Array:
    """Distances, or inner products under "dot"."""
    if metric == "l2":
        differences_SD = vectors_SD - query_D
        squares_S: Float64Array = np.einsum("sd,sd->s", differences_SD, differences_SD)
        return squares_S
    products_S: Float64Array = np.einsum("sd,d->s", vectors_SD, query_D)
    if metric == "dot":
        return products_S
    norms_S = np.linalg.norm(vectors_SD, axis=1) * np.linalg.norm(query_D)
    norms_S[norms_S == 0] = np.nan
    return np.asarray(1 - products_S / norms_S, dtype=np.float64)


def _tie_breaks(values_S: Float64Array, metric: Metric) -> Float64Array | None:
    """Smaller for nearer rows where float32 cannot represent distances, NaN elsewhere."""
    if metric == "cosine":
        return None
    sizes_S = np.abs(values_S)
    inexact_S = (sizes_S > LARGEST) | (sizes_S < (_SMALLEST if metric == "l2" else _TINY_PRODUCT))
    if not (inexact_S & (sizes_S > 0)).any():
        return None
    # Rounded to the bits of float32, so that rounding errors do not order rows with the same vector.
    mantissas_S, exponents_S = np.frexp(values_S if metric == "l2" else -values_S)
    rounded_S = np.ldexp(mantissas_S.astype(np.float32).astype(np.float64), exponents_S)
    return np.where(inexact_S, rounded_S, np.nan)


@dataclasses.dataclass(frozen=True)
class Hits:
    """Rows of one query in result order."""

    row_ids_S: npt.NDArray[np.uint64]
    distances_S: Float32Array
    vectors_SD: Float32Array | None = None
    """Decoded vectors, where they are needed later."""
    tie_breaks_S: npt.NDArray[np.float64] | None = None
    """Order of rows with equal distance; NaN where float32 represents the distance, None if all are NaN."""
    stages_S: Positions | None = None
    """First stage of the ranking that considers the row; None once rows are ranked."""
    estimates_S: npt.NDArray[np.float64] | None = None
    """Approximate distances by which rows were selected, minus infinity for rows that needed no selection;
    None once rows are ranked."""

    def __len__(self) -> int:
        return len(self.row_ids_S)

    def __getitem__(self, rows: slice | npt.NDArray[np.bool_ | np.integer]) -> "Hits":
        return Hits(
            self.row_ids_S[rows],
            self.distances_S[rows],
            None if self.vectors_SD is None else self.vectors_SD[rows],
            None if self.tie_breaks_S is None else self.tie_breaks_S[rows],
            None if self.stages_S is None else self.stages_S[rows],
            None if self.estimates_S is None else self.estimates_S[rows],
        )

    def joined(self, other: "Hits") -> "Hits":
        """These hits followed by others, which must have vectors, stages and estimates if these have them."""
        columns: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            own, others = getattr(self, field.name), getattr(other, field.name)
            if field.name != "tie_breaks_S" and own is not None:
                assert others is not None, f"joined with hits that have {field.name}"
                columns[field.name] = np.concatenate([own, others])
        return Hits(**columns, tie_breaks_S=_joined_tie_breaks(self, other))

    def ranked(self, places: Positions | slice) -> "Hits":
        """The rows at these places as the final ranking, with row ids and distances only."""
        return Hits(self.row_ids_S[places], self.distances_S[places])


def rerank(
    codecs: TableCodec,
    queries_QD: Float32Array,
    candidates: Candidates,
    *,
    refined: bool = False,
    with_vectors: bool = False,
    most: int = EVERY_ROW,
) -> list[Hits]:
    """Decode the candidates of every query and order them by (exact distance, row id).

    Rows whose distance is undefined (NaN) are left out, as in LanceDB. On a CPU, a row is decoded once for
    all queries of a turn. A GPU decodes each candidate and returns its distance, unless vectors are needed.

    Args:
        codecs: codecs of the table.
        queries_QD: float32 (Q, D), checked by `as_vectors`.
        candidates: candidates of every query.
        refined: decode refine codes, too, which the candidates then have.
        with_vectors: keep the decoded vectors; for the queries of one of the `query_turns` at most.
        most: how many of the nearest rows that a stage considers matter, as in `ordered_hits`.
    """
    hits: list[Hits] = []
    for turn in query_turns(candidates):
        some, values_H = candidates[turn], None
        if not refined and not with_vectors:
            values_H = codecs.distances_on_gpu(
                some.rows.codes, queries_QD[turn], some.queries_H, precision="auto"
            )
        if values_H is None:
            hits += _rerank_decoded(codecs, queries_QD[turn], some, refined, with_vectors)
        else:
            distances_H, tie_breaks_H = rounded(values_H, codecs.metric)
            hits += ordered_hits(some, distances_H, most, tie_breaks_H)
    return hits


def _rerank_decoded(
    codecs: TableCodec,
    queries_QD: Float32Array,
    candidates: Candidates,
    refined: bool,
    with_vectors: bool,
) -> list[Hits]:
    """`rerank` of the queries of one turn, by vectors that are decoded to memory."""
    hits: list[Hits] = []
    row_ids_U, vectors_UD = _decode_union(codecs, candidates.rows, refined=refined)
    for query_D, run in zip(queries_QD, _runs(candidates.starts_Q), strict=True):
        row_ids_S = candidates.rows.row_ids_N[run]
        vectors_SD = vectors_UD[np.searchsorted(row_ids_U, row_ids_S)]
        distances_S, tie_breaks_S = exact_with_tie_breaks(query_D, vectors_SD, codecs.metric)
        found = Hits(
            row_ids_S,
            distances_S,
            vectors_SD if with_vectors else None,
            tie_breaks_S,
            candidates.stages_H[run],
            candidates.estimates_H[run],
        )
        hits.append(ordered(found))
    return hits


def within(hits: Hits, lower: float | None, upper: float | None) -> Hits:
    """The hits with lower <= distance < upper; None for no bound."""
    # Bounds are rounded to float32, as LanceDB does.
    if lower is not None:
        hits = hits[hits.distances_S >= np.float32(lower)]
    if upper is not None:
        hits = hits[hits.distances_S < np.float32(upper)]
    return hits


def query_turns(candidates: Candidates) -> Iterator[slice]:
    """Divide the queries into turns of up to MAX_DECODED candidates, or of a single query."""
    start, rows = 0, 0
    for position, size in enumerate(candidates.counts_Q.tolist()):
        if position > start and rows + size > MAX_DECODED:
            yield slice(start, position)
            start, rows = position, 0
        rows += size
    yield slice(start, len(candidates))


def _decode_union(
    codecs: TableCodec, rows: CodeBatch, *, refined: bool
) -> tuple[npt.NDArray[np.uint64], Float32Array]:
    if len(rows) == 0:
        return rows.row_ids_N, np.empty((0, codecs.dim), np.float32)
    row_ids_U, first_U = np.unique(rows.row_ids_N, return_index=True)
    codes = rows.codes if refined else rows.codes.unrefined
    return row_ids_U, codecs.decode(codes[first_U], precision="auto")


def ordered_hits(
    candidates: Candidates,
    distances_H: Float32Array,
    most: int,
    tie_breaks_H: Float64Array | None = None,
    stages_H: Positions | None = None,
) -> list[Hits]:
    """The candidates of every query in the order of (distance, row id), without undefined distances.

    Rows that are not among the `most` nearest of those that any stage considers may be left out. With tie
    breaks, they decide before row ids. With stages, these are the first ones to consider the rows, not those
    of the candidates.
    """
    row_ids_H, estimates_H = candidates.rows.row_ids_N, candidates.estimates_H
    stages_H = candidates.stages_H if stages_H is None else stages_H
    if tie_breaks_H is not None:
        return [
            ordered(
                Hits(
                    row_ids_H[run], distances_H[run], None, tie_breaks_H[run], stages_H[run], estimates_H[run]
                )
            )
            for run in _runs(candidates.starts_Q)
        ]
    order_H, starts_Q = order_rows(candidates.starts_Q, distances_H, row_ids_H, stages_H, most)
    row_ids_H, distances_H, stages_H = row_ids_H[order_H], distances_H[order_H], stages_H[order_H]
    estimates_H = estimates_H[order_H]
    return [
        Hits(row_ids_H[run], distances_H[run], stages_S=stages_H[run], estimates_S=estimates_H[run])
        for run in _runs(starts_Q)
    ]


def _runs(starts_Q: Positions) -> list[slice]:
    """The rows of every query."""
    return [slice(start, stop) for start, stop in itertools.pairwise(starts_Q.tolist())]


def ordered(hits: Hits) -> Hits:
    """The hits in the order of (distance, row id), without those whose distance is undefined."""
    undefined_S = np.isnan(hits.distances_S)
    if undefined_S.any():
        hits = hits[~undefined_S]
    if hits.tie_breaks_S is None:
        return hits[np.lexsort((hits.row_ids_S, hits.distances_S))]
    return hits[np.lexsort((hits.row_ids_S, hits.tie_breaks_S, hits.distances_S))]


def _joined_tie_breaks(first: Hits, second: Hits) -> npt.NDArray[np.float64] | None:
    if first.tie_breaks_S is None and second.tie_breaks_S is None:
        return None
    return np.concatenate(
        [
            np.full(len(hits), np.nan) if hits.tie_breaks_S is None else hits.tie_breaks_S
            for hits in (first, second)
        ]
    )
