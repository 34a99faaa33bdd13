"""Rerank: the shortlists are decoded in parallel and ordered by exact distance to the reconstruction.

Shape suffixes: Q queries, S shortlisted rows of one query, U distinct rows, D vector dimension.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.search.distances import exact_and_finer
from rqmoe_store.search.segments import Positions, concatenated
from rqmoe_store.search.shortlist import Candidates
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
    stages_S: Positions | None = None
    """By which stage of the ranking every row is considered first; None for rows that are ranked."""
    estimates_S: npt.NDArray[np.float64] | None = None
    """Distances by which rows were chosen before these were known, minus infinity where none was needed; None
    for rows that are ranked."""

    def __len__(self) -> int:
        return len(self.row_ids_S)

    def __getitem__(self, rows: slice | npt.NDArray[np.bool_ | np.integer]) -> "Hits":
        columns: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            column = getattr(self, field.name)
            columns[field.name] = None if column is None else column[rows]
        return Hits(**columns)

    def joined(self, other: "Hits") -> "Hits":
        """These and then the others; with vectors, stages and estimates if these have them, which the others
        then must have."""
        columns: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            own, others = getattr(self, field.name), getattr(other, field.name)
            if field.name != "finer_S" and own is not None:
                assert others is not None, f"joined with hits that have {field.name}"
                columns[field.name] = np.concatenate([own, others])
        return Hits(**columns, finer_S=_joined_finer(self, other))

    def ranked(self, places: Positions) -> "Hits":
        """The rows of a ranking, without what was needed to make it."""
        return Hits(self.row_ids_S[places], self.distances_S[places])


def rerank(
    codecs: TableCodec,
    queries_QD: Float32Array,
    candidates: Sequence[Candidates],
    *,
    with_vectors: bool = False,
) -> list[Hits]:
    """Every query's candidates ordered by (exact distance, row id).

    Rows whose distance is undefined (NaN) are left out, as LanceDB does.

    Args:
        codecs: decode the union of the candidates, each row once.
        queries_QD: float32 (Q, D), checked by `as_vectors`.
        candidates: of every query.
        with_vectors: keep the decoded vectors, of `decoded_together` queries at most.
    """
    hits: list[Hits] = []
    for turn in decoded_together(candidates):
        filled = [each for each in candidates[turn] if len(each)]
        if filled:
            row_ids_U, vectors_UD = _decode_union(codecs, filled)
        for query_D, each in zip(queries_QD[turn], candidates[turn], strict=True):
            row_ids_S = each.rows.row_ids_N
            if len(each) == 0:
                none_SD = np.empty((0, codecs.dim), np.float32) if with_vectors else None
                hits.append(
                    Hits(row_ids_S, np.empty(0, np.float32), none_SD, None, each.stages_S, each.estimates_S)
                )
                continue
            vectors_SD = vectors_UD[np.searchsorted(row_ids_U, row_ids_S)]
            distances_S, finer_S = exact_and_finer(query_D, vectors_SD, codecs.metric)
            kept_SD = vectors_SD if with_vectors else None
            found = Hits(row_ids_S, distances_S, kept_SD, finer_S, each.stages_S, each.estimates_S)
            hits.append(ordered(found))
    return hits


def within(hits: Hits, lower: float | None, upper: float | None) -> Hits:
    """The hits with lower <= distance < upper; None leaves a side open."""
    # Python floats are compared in float32 precision with float32 arrays, as LanceDB compares them.
    if lower is not None:
        hits = hits[hits.distances_S >= np.float32(lower)]
    if upper is not None:
        hits = hits[hits.distances_S < np.float32(upper)]
    return hits


def decoded_together(candidates: Sequence[Candidates]) -> Iterator[slice]:
    """The queries in turns of up to MAX_DECODED candidates, or of one query."""
    start, rows = 0, 0
    for position, each in enumerate(candidates):
        size = len(each)
        if position > start and rows + size > MAX_DECODED:
            yield slice(start, position)
            start, rows = position, 0
        rows += size
    yield slice(start, len(candidates))


def _decode_union(
    codecs: TableCodec, candidates: Sequence[Candidates]
) -> tuple[npt.NDArray[np.uint64], Float32Array]:
    rows = concatenated([each.rows for each in candidates])
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
