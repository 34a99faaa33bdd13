"""The scan on a GPU: the same look-ups as array operations, over codes that stay there.

Shape suffixes: Q queries, P partitions, N rows of a segment, C rows of a chunk, M code bytes,
K codewords, S sides.

Scores are summed in the order of the compiled scan. Of every chunk those rows come back that are at
least as good as the worst that may be kept, equal ones included; which of these are kept is decided
where row ids are, so that equal scores end as they do on a CPU.
"""

import dataclasses
import weakref
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from rqmoe_store.codecs.additive import SMALLEST_SQUARE, LookupTables
from rqmoe_store.search.segments import Mask, Positions, Segment, Selection
from rqmoe_store.search.shortlist import Shortlist, Side

_SCORES = 2**26
"""Scores held at a time (256 MiB)."""

_SHARE_OF_FREE_MEMORY = 2
"""Codes may take one part in this many of the memory that is free."""


@dataclasses.dataclass(frozen=True)
class _Copy:
    """A segment on a device."""

    codes_NM: Tensor
    partitions_N: Tensor


_copies: "weakref.WeakKeyDictionary[Segment, _Copy]" = weakref.WeakKeyDictionary()
"""What is on a device now; a segment's copy goes when the segment does."""


def fits(segment: Segment, device: torch.device) -> bool:
    """Whether the segment is on the device or may be copied there."""
    if segment in _copies or device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return (segment.codes_NM.nbytes + 4 * len(segment)) * _SHARE_OF_FREE_MEMORY <= free


@torch.inference_mode()
def nearest_on(
    device: torch.device,
    selection: Selection,
    tables: LookupTables,
    probed_QP: Mask,
    sides: list[Side],
    size: int,
) -> Iterator[tuple[int, int, Shortlist]]:
    """Queries, sides, and rows of the selection that have the `size` best ones among them."""
    rows_N = _considered(selection, probed_QP)
    if len(rows_N) == 0:
        return
    bounds = [_bounds_of(side, tables, device) for side in sides]
    copy, scorer = _copy_of(selection.segment, device), _Scorer(tables, probed_QP, device)
    step = max(1, _SCORES // len(probed_QP))
    bounds_SQ = torch.full((len(sides), len(probed_QP)), torch.inf, device=device)
    for start in range(0, len(rows_N), step):
        rows_C = rows_N[start : start + step]
        places_C = torch.from_numpy(rows_C).to(device)
        scores_QC = scorer.scores(copy.codes_NM[places_C], copy.partitions_N[places_C])
        for index, side in enumerate(sides):
            low_Q1, high_Q1 = bounds[index]
            inside_QC = (scores_QC >= low_Q1) & (scores_QC < high_Q1)
            signed_QC = torch.where(inside_QC, scores_QC * float(side.sign), torch.inf)
            worst_Q = signed_QC.topk(min(size, len(rows_C)), dim=1, largest=False).values[:, -1]
            if size <= len(rows_C):
                bounds_SQ[index] = torch.minimum(bounds_SQ[index], worst_Q)
            kept_QC = inside_QC & (signed_QC <= bounds_SQ[index, :, None])
            for query, part in _split(kept_QC, signed_QC, rows_C, selection.segment):
                yield query, index, part


def _bounds_of(side: Side, tables: LookupTables, device: torch.device) -> list[Tensor]:
    """Low and high (Q, 1) of a side as scores of every query."""
    queries = range(len(tables.scores_QT))
    bounds_2Q = [[tables.units.score_of(query, each) for query in queries] for each in (side.low, side.high)]
    return [torch.from_numpy(np.array(bounds_Q)[:, None]).to(device) for bounds_Q in bounds_2Q]


def _considered(selection: Selection, probed_QP: Mask) -> Positions:
    """Positions of the rows that any query considers."""
    partitions = np.flatnonzero(probed_QP.any(axis=0))
    starts_P = selection.segment.starts_P
    runs = [np.arange(starts_P[partition], starts_P[partition + 1]) for partition in partitions]
    rows_N = np.concatenate(runs) if runs else np.empty(0, np.int64)
    return rows_N if selection.allowed_N is None else rows_N[selection.allowed_N[rows_N]]


def _copy_of(segment: Segment, device: torch.device) -> _Copy:
    copy = _copies.get(segment)
    if copy is None or copy.codes_NM.device != device:
        starts_P = segment.starts_P
        filled_N = np.zeros(
            len(segment), dtype=np.int32
        )  # rows of other codecs are in none of its partitions
        filled_N[starts_P[0] : starts_P[-1]] = np.repeat(np.arange(len(starts_P) - 1), np.diff(starts_P))
        partitions_N = torch.from_numpy(filled_N)
        copy = _Copy(torch.from_numpy(segment.codes_NM).to(device), partitions_N.to(device))
        _copies[segment] = copy
    return copy


class _Scorer:
    """Approximate distances of a batch of queries to rows."""

    def __init__(self, tables: LookupTables, probed_QP: Mask, device: torch.device) -> None:
        each = [tables.scores_of(query) for query in range(len(probed_QP))]
        self.scores_QP = torch.from_numpy(np.stack([by_partition for by_partition, _ in each])).to(device)
        self.scores_MQK = torch.from_numpy(np.stack([by_step for _, by_step in each], axis=1)).to(device)
        norms_P, norms_MK = tables.norms
        self.norms_P, self.norms_MK = (
            torch.from_numpy(norms_P).to(device),
            torch.from_numpy(norms_MK).to(device),
        )
        self.probed_QP = torch.from_numpy(probed_QP).to(device)

    def scores(self, codes_CM: Tensor, partitions_C: Tensor) -> Tensor:
        """Scores (Q, C); infinite in partitions that a query does not consider."""
        scores_QC = self.scores_QP[:, partitions_C]
        codes_MC = codes_CM.T.int()
        for scores_QK, codes_C in zip(self.scores_MQK, codes_MC, strict=True):
            scores_QC += scores_QK[:, codes_C]
        if len(self.norms_P):
            squares_C = self.norms_P[partitions_C]
            for norms_K, codes_C in zip(self.norms_MK, codes_MC, strict=True):
                squares_C += norms_K[codes_C]
            scores_QC = 1 - scores_QC / squares_C.clamp_min(float(SMALLEST_SQUARE)).sqrt()
        return scores_QC.masked_fill_(~self.probed_QP[:, partitions_C], torch.inf)


def _split(
    kept_QC: Tensor, scores_QC: Tensor, rows_C: Positions, segment: Segment
) -> Iterator[tuple[int, Shortlist]]:
    """The kept rows, query by query."""
    queries, columns = (places.cpu().numpy() for places in kept_QC.nonzero(as_tuple=True))
    scores = scores_QC[kept_QC].cpu().numpy()
    for query in np.unique(queries):
        own = slice(*np.searchsorted(queries, [query, query + 1]))
        yield int(query), Shortlist(scores[own], segment.rows(rows_C[columns[own]]))
