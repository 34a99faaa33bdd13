"""Scan on a GPU by look-up tables: array operations over codes that stay on the device.

Scores are summed in the same order as in the compiled loop for CPUs, and shortlists are the same.

Shape legend: Q queries, P partitions, N rows of a segment, C rows of a chunk, M code bytes, K codewords,
G sides (ranges of scores).
"""

import dataclasses
import weakref

import numpy as np
import torch
from torch import Tensor

from rqmoe_store.codecs.additive import LookupTables
from rqmoe_store.codecs.norms import squares_of
from rqmoe_store.search.row_ids import Positions
from rqmoe_store.search.scan import norms_of
from rqmoe_store.search.scan_loops import WORD
from rqmoe_store.search.segments import Mask, Segment, Selection
from rqmoe_store.search.shortlists import Shortlists, Side

_SCORES = 2**26
"""Most scores held at a time (256 MiB)."""

_SHARE_OF_FREE_MEMORY = 2
"""A segment is copied to a GPU if it takes at most one part in this many of the free memory there."""


@dataclasses.dataclass(frozen=True)
class _Copy:
    """A copy of a segment on a device."""

    codes_NM: Tensor
    partitions_N: Tensor
    squares_N: Tensor
    """Squared lengths, as they are rounded on a CPU; empty unless under cosine."""


_copies: "weakref.WeakKeyDictionary[Segment, _Copy]" = weakref.WeakKeyDictionary()
"""All copies on devices; a copy is freed together with its segment."""


def fits(segment: Segment, name: str) -> bool:
    """Whether the segment is on the device of this name, or has room there."""
    if segment in _copies or not name.startswith("cuda"):
        return True
    free, _ = torch.cuda.mem_get_info(name)
    return (segment.codes_NM.nbytes + 8 * len(segment)) * _SHARE_OF_FREE_MEMORY <= free


@torch.inference_mode()
def nearest(
    name: str,
    selection: Selection,
    tables: LookupTables,
    probed_QP: Mask,
    sides: list[Side],
    size: int,
) -> list[list[Shortlists]]:
    """For every side, rows of the selection that include the `size` best ones of every query.

    Of every chunk these are the rows that are at least as good as the worst one that may be kept, including
    equal ones. `Shortlists.best` decides by row id which of these are kept, as on a CPU.
    """
    found: list[list[Shortlists]] = [[] for _ in sides]
    device, rows_N = torch.device(name), _probed_rows(selection, probed_QP)
    if len(rows_N) == 0:
        return found
    bounds = [_bounds_of(side, tables, device) for side in sides]
    copy, scorer = _copy_of(selection.segment, tables, device), _Scorer(tables, probed_QP, device)
    step = max(1, _SCORES // len(probed_QP))
    bounds_GQ = torch.full((len(sides), len(probed_QP)), torch.inf, device=device)
    for start in range(0, len(rows_N), step):
        rows_C = rows_N[start : start + step]
        places_C = torch.from_numpy(rows_C).to(device)
        squares_C = copy.squares_N[places_C] if len(copy.squares_N) else None
        scores_QC = scorer.scores(copy.codes_NM[places_C], copy.partitions_N[places_C], squares_C)
        for index, side in enumerate(sides):
            low_Q1, high_Q1 = bounds[index]
            inside_QC = (scores_QC >= low_Q1) & (scores_QC < high_Q1)
            signed_QC = torch.where(inside_QC, scores_QC * float(side.sign), torch.inf)
            worst_Q = signed_QC.topk(min(size, len(rows_C)), dim=1, largest=False).values[:, -1]
            if size <= len(rows_C):
                bounds_GQ[index] = torch.minimum(bounds_GQ[index], worst_Q)
            kept_QC = inside_QC & (signed_QC <= bounds_GQ[index, :, None])
            queries_H, columns_H = (places.cpu().numpy() for places in kept_QC.nonzero(as_tuple=True))
            scores_H = signed_QC[kept_QC].cpu().numpy()
            found[index].append(Shortlists(queries_H, scores_H, selection.segment.rows(rows_C[columns_H])))
    return found


def _bounds_of(side: Side, tables: LookupTables, device: torch.device) -> list[Tensor]:
    """Low and high bounds (Q, 1) of a side, in the units of every query's scores."""
    bounds = tables.units.scores_of(side.low), tables.units.scores_of(side.high)
    return [torch.from_numpy(bounds_Q[:, None]).to(device) for bounds_Q in bounds]


def _probed_rows(selection: Selection, probed_QP: Mask) -> Positions:
    """Positions of the rows in partitions that any query probes."""
    partitions = np.flatnonzero(probed_QP.any(axis=0))
    starts_P = selection.segment.starts_P
    runs = [np.arange(starts_P[partition], starts_P[partition + 1]) for partition in partitions]
    rows_N = np.concatenate(runs) if runs else np.empty(0, np.int64)
    return rows_N if selection.allowed_N is None else rows_N[selection.allowed_N[rows_N]]


def _copy_of(segment: Segment, tables: LookupTables, device: torch.device) -> _Copy:
    copy = _copies.get(segment)
    if copy is None or copy.codes_NM.device != device:
        starts_P = segment.starts_P
        filled_N = np.zeros(len(segment), dtype=np.int32)  # rows of other codecs are never probed
        filled_N[starts_P[0] : starts_P[-1]] = np.repeat(np.arange(len(starts_P) - 1), np.diff(starts_P))
        norms_N, squares_N = norms_of(segment, tables), np.zeros(0, np.float32)
        if len(norms_N):
            squares_N = np.ones(len(segment), np.float32)
            squares_N[starts_P[0] : starts_P[-1]] = squares_of(norms_N)
        copy = _Copy(
            torch.from_numpy(segment.codes_NM).to(device),
            torch.from_numpy(filled_N).to(device),
            torch.from_numpy(squares_N).to(device),
        )
        _copies[segment] = copy
    return copy


class _Scorer:
    """Computes scores of rows for all queries at once."""

    def __init__(self, tables: LookupTables, probed_QP: Mask, device: torch.device) -> None:
        queries, steps = len(probed_QP), tables.num_steps
        entries_QMK = tables.by_codeword.reshape(queries, steps, -1)
        self.scores_QP = torch.from_numpy(tables.by_partition).to(device)
        self.scores_MQK = torch.from_numpy(np.ascontiguousarray(entries_QMK.swapaxes(0, 1))).to(device)
        self.probed_QP = torch.from_numpy(probed_QP).to(device)

    def scores(self, codes_CM: Tensor, partitions_C: Tensor, squares_C: Tensor | None) -> Tensor:
        """Scores (Q, C); infinite in partitions that a query does not probe."""
        scores_QC = self.scores_QP[:, partitions_C]
        entries = [
            scores_QK[:, codes_C]
            for scores_QK, codes_C in zip(self.scores_MQK, codes_CM.T.int(), strict=True)
        ]
        while len(entries) >= WORD:
            first, second, third, fourth = (entries.pop(0) + entries.pop(0) for _ in range(WORD // 2))
            scores_QC += (first + second) + (third + fourth)
        for entries_QC in entries:
            scores_QC += entries_QC
        if squares_C is not None:
            scores_QC = 1 - scores_QC / squares_C.sqrt()
        return scores_QC.masked_fill_(~self.probed_QP[:, partitions_C], torch.inf)
