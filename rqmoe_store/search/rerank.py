"""Rerank: the shortlists are decoded in parallel and ordered by exact distance to the reconstruction.

Shape suffixes: Q queries, S shortlisted rows of one query, U distinct rows, D vector dimension.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.search.distances import exact_and_finer
from rqmoe_store.search.segments import CodeBatch, concatenated
from rqmoe_store.store.table_codec import TableCodec

MAX_DECODED = 2**16
"""Shortlisted rows decoded together; queries whose shortlists exceed it are reranked in turns."""


@dataclasses.dataclass(frozen=True)
class Hits:
    """Rows of one query in result order."""

    row_ids_S: npt.NDArray[np.uint64]
    distances_S: Float32Array
    vectors_SD: Float32Array | None = None
    """Decoded vectors; only where somebody needs them."""
    finer_S: npt.NDArray[np.float64] | None = None
    """What orders rows of equal distance, NaN where float32 tells the distance; None where it tells all."""

    def __len__(self) -> int:
        return len(self.row_ids_S)

    def __getitem__(self, rows: slice | npt.NDArray[np.bool_ | np.integer]) -> "Hits":
        vectors_SD = None if self.vectors_SD is None else self.vectors_SD[rows]
        finer_S = None if self.finer_S is None else self.finer_S[rows]
        return Hits(self.row_ids_S[rows], self.distances_S[rows], vectors_SD, finer_S)

    def joined(self, other: "Hits") -> "Hits":
        """These and then the others; with vectors if these have them, which the others then must have."""
        vectors_SD = None
        if self.vectors_SD is not None:
            assert other.vectors_SD is not None, "hits with vectors are joined with others that have them"
            vectors_SD = np.concatenate([self.vectors_SD, other.vectors_SD])
        return Hits(
            np.concatenate([self.row_ids_S, other.row_ids_S]),
            np.concatenate([self.distances_S, other.distances_S]),
            vectors_SD,
            _joined_finer(self, other),
        )

    def without_vectors(self) -> "Hits":
        """The same rows in less memory."""
        return dataclasses.replace(self, vectors_SD=None)


def rerank(
    codecs: TableCodec,
    queries_QD: Float32Array,
    shortlists: Sequence[CodeBatch],
    *,
    with_vectors: bool = False,
) -> list[Hits]:
    """Every query's shortlist ordered by (exact distance, row id).

    Rows whose distance is undefined (NaN) are left out, as LanceDB does.

    Args:
        codecs: decode the union of the shortlists, each row once.
        queries_QD: float32 (Q, D), checked by `as_vectors`.
        shortlists: one per query.
        with_vectors: keep the decoded vectors, of `decoded_together` queries at most.
    """
    hits: list[Hits] = []
    for turn in decoded_together(shortlists):
        filled = [shortlist for shortlist in shortlists[turn] if len(shortlist)]
        if filled:
            row_ids_U, vectors_UD = _decode_union(codecs, filled)
        for query_D, shortlist in zip(queries_QD[turn], shortlists[turn], strict=True):
            if len(shortlist) == 0:
                none_SD = np.empty((0, codecs.dim), np.float32) if with_vectors else None
                hits.append(Hits(np.empty(0, np.uint64), np.empty(0, np.float32), none_SD))
                continue
            vectors_SD = vectors_UD[np.searchsorted(row_ids_U, shortlist.row_ids_N)]
            distances_S, finer_S = exact_and_finer(query_D, vectors_SD, codecs.metric)
            kept_SD = vectors_SD if with_vectors else None
            hits.append(ordered(Hits(shortlist.row_ids_N, distances_S, kept_SD, finer_S)))
    return hits


def page(hits: Hits, *, lower: float | None, upper: float | None, offset: int, limit: int) -> Hits:
    """The hits with lower <= distance < upper, of which `offset` are skipped and `limit` returned."""
    return within(hits, lower, upper)[offset : offset + limit]


def within(hits: Hits, lower: float | None, upper: float | None) -> Hits:
    """The hits with lower <= distance < upper; None leaves a side open."""
    # Python floats are compared in float32 precision with float32 arrays, as LanceDB compares them.
    if lower is not None:
        hits = hits[hits.distances_S >= np.float32(lower)]
    if upper is not None:
        hits = hits[hits.distances_S < np.float32(upper)]
    return hits


def decoded_together(shortlists: Sequence[CodeBatch]) -> Iterator[slice]:
    """The queries in turns of up to MAX_DECODED shortlisted rows, or of one query."""
    start, rows = 0, 0
    for position, shortlist in enumerate(shortlists):
        size = len(shortlist)
        if position > start and rows + size > MAX_DECODED:
            yield slice(start, position)
            start, rows = position, 0
        rows += size
    yield slice(start, len(shortlists))


def _decode_union(
    codecs: TableCodec, shortlists: Sequence[CodeBatch]
) -> tuple[npt.NDArray[np.uint64], Float32Array]:
    rows = concatenated(shortlists)
    row_ids_U, first_U = np.unique(rows.row_ids_N, return_index=True)
    return row_ids_U, codecs.decode(rows.codes[first_U])


def ordered(hits: Hits) -> Hits:
    """By (distance, row id), less those whose distance is undefined."""
    hits = hits[~np.isnan(hits.distances_S)]
    if hits.finer_S is None:
        return hits[np.lexsort((hits.row_ids_S, hits.distances_S))]
    return hits[np.lexsort((hits.row_ids_S, hits.finer_S, hits.distances_S))]


def _joined_finer(first: Hits, second: Hits) -> npt.NDArray[np.float64] | None:
    if first.finer_S is None and second.finer_S is None:
        return None
    return np.concatenate(
        [np.full(len(hits), np.nan) if hits.finer_S is None else hits.finer_S for hits in (first, second)]
    )
