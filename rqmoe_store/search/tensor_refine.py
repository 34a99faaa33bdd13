"""Scores by refine codes on a GPU, of the rows that a scan finds there.

Refine codes stay on the device, as codes do. Table entries are summed in the order of `RefineTables.score`,
so that rows are ordered as on a CPU. Only additive bases are scored: decoded ones need vectors, which
`Codec.refined_scores` decodes.

Shape legend: Q queries, H rows of all queries, M code bytes, P partitions, K codewords, R bytes of a refine
code, B of them for the transform code, X entries of a table.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from rqmoe_store.codecs.additive import SMALLEST_SQUARE, LookupTables
from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.refine import LENGTH_BYTES, RefineTables
from rqmoe_store.codecs.transform import CODEWORDS
from rqmoe_store.errors import InvalidInputError, warn_caller
from rqmoe_store.search.device_copies import (
    copy_of,
    device_of,
    fits,
    refine_codes_fit,
    sent,
    upload,
    upload_codes,
)
from rqmoe_store.search.scan import Refinement
from rqmoe_store.search.segments import Segment

if TYPE_CHECKING:
    from rqmoe_store.search.tensor_scan import Scorer

_TABLE_BYTES = 2**26
"""Memory for tables of refine codes: queries take turns."""

_CHUNK_BYTES = 2**27
"""Memory for rows that are scored together."""

_BYTES_PER_ENTRY = 24
"""Of a row and byte: the byte, its place in a table, that in int64 on the way there, and the entry."""


def prepare(name: str, segments: Sequence[Segment], codecs: Sequence[Codec]) -> bool:
    """Copy codes and refine codes of segments to the device of this name, unless they are there.

    Returns:
        Whether the device can score the refine codes of these codecs: bases are additive, and there is room.

    Raises:
        InvalidInputError: this process cannot use the device; or there was room for codes and then was not.
    """
    if not all(codec.has_additive_refine_codes for codec in codecs):
        return False
    device = device_of(name)
    for segment in segments:
        if len(segment) == 0:
            continue
        if segment.refine_NR is None or not fits(segment, device):
            return False
        copy_of(segment.codes_NM, device, upload_codes)
        if not refine_codes_fit(segment, device):
            return False
        try:
            copy_of(segment.refine_NR, device, upload)
        except InvalidInputError as error:
            warn_caller(f"Refine codes are ordered by on the CPU. {error}")
            return False
    return True


class RefineScorer:
    """Scores rows by their refine codes, each for the query that found it."""

    def __init__(self, scorer: "Scorer", segment: Segment, refinement: Refinement) -> None:
        """Prepare to score rows of a segment whose refine codes are on the scorer's device."""
        assert segment.refine_NR is not None, "prepared"
        self._scorer, self._refinement = scorer, refinement
        self._refine_NR = copy_of(segment.refine_NR, scorer.device, upload)
        self._turn = max(1, _TABLE_BYTES // (4 * CODEWORDS * segment.refine_NR.shape[1]))
        self._tables: tuple[slice, _Tables] | None = None
        row_bytes = _BYTES_PER_ENTRY * (scorer.steps + segment.refine_NR.shape[1])
        self._chunk_rows = max(1, _CHUNK_BYTES // row_bytes)

    def scores(self, queries_H: Tensor, rows_H: Tensor) -> Tensor:
        """Refined scores (H,) of rows at some positions, for the queries with some numbers."""
        queries, turn = self._scorer.queries, self._turn
        if queries <= turn:
            return self._scores_of_turn(slice(0, queries), queries_H, rows_H)
        refined_H = torch.empty(len(rows_H), device=rows_H.device)
        for start in range(0, queries, turn):
            places = ((queries_H >= start) & (queries_H < start + turn)).nonzero()[:, 0]
            some = slice(start, min(start + turn, queries))
            refined_H[places] = self._scores_of_turn(some, queries_H[places], rows_H[places])
        return refined_H

    def _scores_of_turn(self, turn: slice, queries_H: Tensor, rows_H: Tensor) -> Tensor:
        tables, chunk = self._tables_of(turn), self._chunk_rows
        parts = [
            self._scores_by(tables, queries, queries - turn.start, rows)
            for queries, rows in zip(queries_H.split(chunk), rows_H.split(chunk), strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _tables_of(self, turn: slice) -> "_Tables":
        """The tables of a turn, which stay for the next rows of the same queries."""
        if self._tables is None or self._tables[0] != turn:
            self._tables = None  # its memory is free for the next ones
            codec, queries_QD = self._refinement
            lookup = self._scorer.tables
            refine = codec.refine_tables(queries_QD[turn], lookup.units.select(turn))
            self._tables = turn, _Tables.of(refine, lookup, self._scorer.device)
        return self._tables[1]

    def _scores_by(self, tables: "_Tables", queries_H: Tensor, own_H: Tensor, rows_H: Tensor) -> Tensor:
        """Scores (H,) of rows, for queries that have the numbers `own_H` in the tables of their turn."""
        scorer = self._scorer
        partitions_H, codes_MH = scorer.partitions_of(rows_H), scorer.codes_of(rows_H).T.long()
        steps_M1 = torch.arange(len(codes_MH), device=rows_H.device)[:, None]
        places_MH = (steps_M1 * scorer.queries + queries_H) * CODEWORDS + codes_MH
        entries_MH = scorer.entries_MQK.reshape(-1)[places_MH]
        sums_H = _sum_in_order(scorer.scores_QP[queries_H, partitions_H], entries_MH)
        refine_RH = self._refine_NR[rows_H].T.long()
        bytes_B1 = torch.arange(tables.num_bytes, device=rows_H.device)[:, None]
        places_BH = (own_H * tables.num_bytes + bytes_B1) * CODEWORDS + refine_RH[: tables.num_bytes]
        sums_H += _sum_in_order(torch.zeros_like(sums_H), tables.products_X[places_BH])
        if tables.differences_X is None:
            return sums_H
        low_H, high_H = refine_RH[-LENGTH_BYTES:]
        differences_H = tables.differences_X[low_H + 256 * high_H]
        if tables.norms_P is None or tables.norms_X is None:
            return sums_H.add_(differences_H * tables.square_factors_Q[own_H])
        places_MH = steps_M1 * tables.codebook_size + codes_MH
        squares_H = _sum_in_order(tables.norms_P[partitions_H], tables.norms_X[places_MH]) + differences_H
        return 1 - sums_H / squares_H.clamp_(min=float(SMALLEST_SQUARE)).sqrt_()


def _sum_in_order(first_H: Tensor, entries_XH: Tensor) -> Tensor:
    """The sums (H,) of a first entry and all others, one after the other."""
    sums_H = first_H.clone()
    for entries_H in entries_XH.unbind():
        sums_H += entries_H
    return sums_H


class _Tables(NamedTuple):
    """Tables of some queries on a device."""

    products_X: Tensor
    """Q times B times K entries."""
    num_bytes: int
    square_factors_Q: Tensor
    differences_X: Tensor | None
    """What the 2^16 codes of squared lengths add to these; None under "dot"."""
    codebook_size: int
    norms_P: Tensor | None
    norms_X: Tensor | None
    """Squared lengths of M times `codebook_size` codewords, under "cosine"."""

    @classmethod
    def of(cls, refine: RefineTables, lookup: LookupTables, device: torch.device) -> "_Tables":
        """The tables of some queries, of which those for codes are on the device already."""
        norms_P, norms_MK = lookup.norms
        differences_X = None
        if refine.square_code is not None:
            differences_X = copy_of(refine.square_code.all_differences, device, upload)
        return cls(
            sent(refine.products_QBK.reshape(-1), device),
            refine.products_QBK.shape[1],
            sent(refine.square_factors_Q, device),
            differences_X,
            lookup.codebook_size,
            sent(norms_P, device) if len(norms_P) else None,
            sent(norms_MK.reshape(-1), device) if len(norms_P) else None,
        )
