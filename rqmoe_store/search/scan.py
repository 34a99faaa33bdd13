"""Scan by look-up tables, on CPU or GPU: codes in, a shortlist of promising rows per query out.

A row's score is the sum of one table entry per step, an approximate distance. Rows are ordered by (score, row
id), a total order, so that a shortlist depends neither on how rows are divided into segments nor on the
number of threads nor on the device.

On a CPU, a compiled loop reads codes in place and keeps the S best rows in a heap, so that nothing is sorted
and there is no array of scores. It releases the interpreter's lock: queries of several threads, and the parts
of one query, run in parallel. On a GPU, the same look-ups are array operations over codes that stay on the
device, summed in the same order as on a CPU.

Shape legend: Q queries, P partitions, N rows of a segment, R runs of rows, C rows of a chunk, M code bytes,
K codewords, S rows kept, G sides (ranges of scores).
"""

import dataclasses
import functools
import itertools
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rqmoe_store.codecs.additive import SMALLEST_SQUARE, LookupTables
from rqmoe_store.codecs.parallel import compiled, num_threads, run_parallel
from rqmoe_store.search.row_ids import row_id_at
from rqmoe_store.search.segments import (
    Mask,
    Positions,
    Segment,
    Selection,
    Shortlist,
    Side,
    no_rows,
    sides_of,
)

CPU = torch.device("cpu")

_ONE = np.float32(1)

_ROWS_PER_TASK = 65_536
"""Least rows of a part of a query; smaller parts would cost more in handing out work than they save."""

_SCORES = 2**26
"""Most scores held at a time on a GPU (256 MiB)."""

_SHARE_OF_FREE_MEMORY = 2
"""A segment is copied to a GPU if it takes at most one part in this many of the free memory there."""


def scan(
    selections: Iterable[Selection],
    tables: Mapping[int, LookupTables],
    probed_QP: Mask,
    size: int,
    lower: float | None = None,
    device: torch.device = CPU,
) -> list[Shortlist]:
    """Scan for the shortlist of every query: the `size` rows of smallest approximate distance.

    With `lower`, the shortlist has the `size` nearest rows beyond that distance and the `size` farthest rows
    within it: scores are approximate, and exact distances decide later on which side a row is.

    Args:
        selections: rows to scan; read once, so that they may come from a stream.
        tables: first partition of a codec -> look-up tables of Q queries for it; at least one.
        probed_QP: bool (Q, P), the partitions that every query probes.
        size: rows kept per query, and with `lower` per side.
        lower: a distance in the codec's metric.
        device: device to scan on; segments are copied to a GPU once, as far as they fit.

    Returns:
        One shortlist per query.
    """
    found = scan_sides(selections, tables, probed_QP, size, lower, device)
    return [functools.reduce(Shortlist.joined, parts) for parts in found]


def scan_sides(
    selections: Iterable[Selection],
    tables: Mapping[int, LookupTables],
    probed_QP: Mask,
    size: int,
    lower: float | None = None,
    device: torch.device = CPU,
) -> list[list[Shortlist]]:
    """Scan as `scan` does; returns a shortlist for either side of `lower`, or a single one without it."""
    sides = sides_of(lower)
    (num_steps,) = {each.num_steps for each in tables.values()}
    none = Shortlist(np.empty(0, np.float32), no_rows(num_steps))
    best = [[none for _ in sides] for _ in probed_QP]
    for selection in selections:
        for first, each in tables.items():
            partitions = slice(first, first + each.num_partitions)
            seen, probed = selection.of_partitions(partitions), probed_QP[:, partitions]
            for query, side, part in _parts(seen, each, probed, sides, size, device):
                best[query][side] = best[query][side].joined(part.shifted(first)).best(size)
    return best


def _parts(
    selection: Selection,
    tables: LookupTables,
    probed_QP: Mask,
    sides: list[Side],
    size: int,
    device: torch.device,
) -> Iterator[tuple[int, int, Shortlist]]:
    """Yield queries, sides and rows of a selection that include the best ones."""
    if device.type != "cpu" and fits(selection.segment, device):
        yield from nearest_on(device, selection, tables, probed_QP, sides, size)
        return
    tasks = list(_tasks(selection, probed_QP, len(sides)))
    found = run_parallel(
        functools.partial(_scan_task, selection, tables, task, sides[task.side], size) for task in tasks
    )
    for task, part in zip(tasks, found, strict=True):
        yield task.query, task.side, part


@dataclasses.dataclass(frozen=True)
class _Runs:
    """Runs of consecutive rows, each within one partition."""

    starts_R: Positions
    stops_R: Positions
    partitions_R: Positions

    @property
    def rows(self) -> int:
        return int((self.stops_R - self.starts_R).sum())

    def cut(self, parts: int) -> "Iterator[_Runs]":
        """Divide the rows into parts of about equal size."""
        ends_R = np.cumsum(self.stops_R - self.starts_R)
        before_R = ends_R - (self.stops_R - self.starts_R)
        edges = [self.rows * part // parts for part in range(parts + 1)]
        for low, high in itertools.pairwise(edges):
            starts_R = self.starts_R + np.maximum(low - before_R, 0)
            stops_R = self.stops_R - np.maximum(ends_R - high, 0)
            some = starts_R < stops_R
            yield _Runs(starts_R[some], stops_R[some], self.partitions_R[some])


class _Task(NamedTuple):
    query: int
    side: int
    runs: _Runs


def _tasks(selection: Selection, probed_QP: Mask, num_sides: int) -> Iterator[_Task]:
    """The tasks to run in parallel: every query and side, in parts if there are more threads than these."""
    parts_wanted = -(-num_threads() // (len(probed_QP) * num_sides))
    for query, probed_P in enumerate(probed_QP):
        partitions_R = np.flatnonzero(probed_P)
        starts_P = selection.segment.starts_P
        runs = _Runs(starts_P[partitions_R], starts_P[partitions_R + 1], partitions_R)
        parts = min(parts_wanted, 1 + runs.rows // _ROWS_PER_TASK)
        for part in runs.cut(parts):
            for side in range(num_sides):
                yield _Task(query, side, part)


def _scan_task(selection: Selection, tables: LookupTables, task: _Task, side: Side, size: int) -> Shortlist:
    segment, runs = selection.segment, task.runs
    by_partition, by_step = tables.scores_of(task.query)
    norms_P, norms_MK = tables.norms
    scores_S, positions_S = nearest_rows(
        segment.codes_NM,
        segment.row_id_map.arrays,
        np.empty(0, dtype=bool) if selection.allowed_N is None else selection.allowed_N,
        runs.starts_R,
        runs.stops_R,
        by_partition[runs.partitions_R],
        by_step,
        norms_P[runs.partitions_R] if len(norms_P) else norms_P,
        norms_MK,
        tables.units.score_of(task.query, side.low),
        tables.units.score_of(task.query, side.high),
        side.sign,
        min(size, runs.rows),
    )
    return Shortlist(scores_S, segment.rows(positions_S))


@compiled
def _is_worse(scores_S: Any, positions_S: Any, row_ids: Any, first: int, second: int) -> bool:
    """Whether heap entry `first` follows entry `second` in the order of (score, row id)."""
    if scores_S[first] != scores_S[second]:
        return bool(scores_S[first] > scores_S[second])
    return bool(row_id_at(row_ids, positions_S[first]) > row_id_at(row_ids, positions_S[second]))


@compiled
def _swap(scores_S: Any, positions_S: Any, first: int, second: int) -> None:
    scores_S[first], scores_S[second] = scores_S[second], scores_S[first]
    positions_S[first], positions_S[second] = positions_S[second], positions_S[first]


@compiled
def _sift_up(scores_S: Any, positions_S: Any, row_ids: Any, entry: int) -> None:
    while entry > 0:
        parent = (entry - 1) >> 1
        if not _is_worse(scores_S, positions_S, row_ids, entry, parent):
            break
        _swap(scores_S, positions_S, entry, parent)
        entry = parent


@compiled
def _sift_down(scores_S: Any, positions_S: Any, row_ids: Any, filled: int) -> None:
    entry = 0
    while True:
        child = 2 * entry + 1
        if child >= filled:
            break
        if child + 1 < filled and _is_worse(scores_S, positions_S, row_ids, child + 1, child):
            child += 1
        if not _is_worse(scores_S, positions_S, row_ids, child, entry):
            break
        _swap(scores_S, positions_S, child, entry)
        entry = child


@compiled
def nearest_rows(
    codes_NM: Any,
    row_ids: Any,
    allowed_N: Any,
    starts_R: Any,
    stops_R: Any,
    scores_R: Any,
    scores_MK: Any,
    norms_R: Any,
    norms_MK: Any,
    low: Any,
    high: Any,
    sign: Any,
    size: int,
) -> tuple[Any, Any]:
    """The `size` rows with the smallest sign * score among rows with low <= score < high.

    Args:
        codes_NM: uint8 (N, M), contiguous.
        row_ids: arrays of the segment's RowIdMap; row ids decide between equal scores.
        allowed_N: bool (N,), or empty if all rows may be found.
        starts_R: int64 (R,), first rows of runs within one partition.
        stops_R: int64 (R,), ends of the runs.
        scores_R: float32 (R,), initial score of the rows of a run.
        scores_MK: float32 (M, K), what a codeword adds to the score.
        norms_R: float32 (R,), initial squared length of the rows of a run, or empty.
        norms_MK: float32 (M, K), what a codeword adds to the squared length, or empty; if given, the score
            is 1 - sum / sqrt(sum of norms).
        low: float32, least score.
        high: float32, upper bound of scores.
        sign: float32, 1 or -1.
        size: most rows to keep.

    Returns:
        Signed scores float32 and positions int64 of the rows, in no particular order.
    """
    kept_scores, kept_positions, filled = np.empty(size, np.float32), np.empty(size, np.int64), 0
    num_steps, by_length = codes_NM.shape[1], norms_MK.shape[0] > 0
    for run in range(starts_R.shape[0]):
        for row in range(starts_R[run], stops_R[run]):
            if allowed_N.shape[0] and not allowed_N[row]:
                continue
            score = scores_R[run]
            if by_length:
                square = norms_R[run]
                for step in range(num_steps):
                    code = codes_NM[row, step]
                    score += scores_MK[step, code]
                    square += norms_MK[step, code]
                score = _ONE - score / np.sqrt(max(square, SMALLEST_SQUARE))
            else:
                for step in range(num_steps):
                    score += scores_MK[step, codes_NM[row, step]]
            if not (low <= score < high):  # also passes over NaN
                continue
            score *= sign
            if filled < size:
                kept_scores[filled], kept_positions[filled] = score, row
                _sift_up(kept_scores, kept_positions, row_ids, filled)
                filled += 1
            elif score < kept_scores[0] or (
                score == kept_scores[0] and row_id_at(row_ids, row) < row_id_at(row_ids, kept_positions[0])
            ):
                kept_scores[0], kept_positions[0] = score, row
                _sift_down(kept_scores, kept_positions, row_ids, filled)
    return kept_scores[:filled], kept_positions[:filled]


@dataclasses.dataclass(frozen=True)
class _Copy:
    """A copy of a segment on a device."""

    codes_NM: Tensor
    partitions_N: Tensor


_copies: "weakref.WeakKeyDictionary[Segment, _Copy]" = weakref.WeakKeyDictionary()
"""All copies on devices; a copy is freed together with its segment."""


def fits(segment: Segment, device: torch.device) -> bool:
    """Whether the segment is on the device, or has room there."""
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
    """Yield queries, sides and rows of the selection that include the `size` best ones, by array operations.

    Of every chunk it yields the rows that are at least as good as the worst one that may be kept, including
    equal ones. `Shortlist.best` decides by row id which of these are kept, as on a CPU.
    """
    rows_N = _probed_rows(selection, probed_QP)
    if len(rows_N) == 0:
        return
    bounds = [_bounds_of(side, tables, device) for side in sides]
    copy, scorer = _copy_of(selection.segment, device), _Scorer(tables, probed_QP, device)
    step = max(1, _SCORES // len(probed_QP))
    bounds_GQ = torch.full((len(sides), len(probed_QP)), torch.inf, device=device)
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
                bounds_GQ[index] = torch.minimum(bounds_GQ[index], worst_Q)
            kept_QC = inside_QC & (signed_QC <= bounds_GQ[index, :, None])
            for query, part in _split(kept_QC, signed_QC, rows_C, selection.segment):
                yield query, index, part


def _bounds_of(side: Side, tables: LookupTables, device: torch.device) -> list[Tensor]:
    """Low and high bounds (Q, 1) of a side, in the units of every query's scores."""
    queries = range(len(tables.scores_QT))
    bounds_2Q = [[tables.units.score_of(query, each) for query in queries] for each in (side.low, side.high)]
    return [torch.from_numpy(np.array(bounds_Q)[:, None]).to(device) for bounds_Q in bounds_2Q]


def _probed_rows(selection: Selection, probed_QP: Mask) -> Positions:
    """Positions of the rows in partitions that any query probes."""
    partitions = np.flatnonzero(probed_QP.any(axis=0))
    starts_P = selection.segment.starts_P
    runs = [np.arange(starts_P[partition], starts_P[partition + 1]) for partition in partitions]
    rows_N = np.concatenate(runs) if runs else np.empty(0, np.int64)
    return rows_N if selection.allowed_N is None else rows_N[selection.allowed_N[rows_N]]


def _copy_of(segment: Segment, device: torch.device) -> _Copy:
    copy = _copies.get(segment)
    if copy is None or copy.codes_NM.device != device:
        starts_P = segment.starts_P
        filled_N = np.zeros(len(segment), dtype=np.int32)  # rows of other codecs are never probed
        filled_N[starts_P[0] : starts_P[-1]] = np.repeat(np.arange(len(starts_P) - 1), np.diff(starts_P))
        partitions_N = torch.from_numpy(filled_N)
        copy = _Copy(torch.from_numpy(segment.codes_NM).to(device), partitions_N.to(device))
        _copies[segment] = copy
    return copy


class _Scorer:
    """Computes scores of rows for all queries at once."""

    def __init__(self, tables: LookupTables, probed_QP: Mask, device: torch.device) -> None:
        each = [tables.scores_of(query) for query in range(len(probed_QP))]
        self.scores_QP = torch.from_numpy(np.stack([by_partition for by_partition, _ in each])).to(device)
        self.scores_MQK = torch.from_numpy(np.stack([by_step for _, by_step in each], axis=1)).to(device)
        norms_P, norms_MK = tables.norms
        self.norms_P = torch.from_numpy(norms_P).to(device)
        self.norms_MK = torch.from_numpy(norms_MK).to(device)
        self.probed_QP = torch.from_numpy(probed_QP).to(device)

    def scores(self, codes_CM: Tensor, partitions_C: Tensor) -> Tensor:
        """Scores (Q, C); infinite in partitions that a query does not probe."""
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
    """Yield the kept rows, query by query."""
    queries, columns = (places.cpu().numpy() for places in kept_QC.nonzero(as_tuple=True))
    scores = scores_QC[kept_QC].cpu().numpy()
    for query in np.unique(queries):
        own = slice(*np.searchsorted(queries, [query, query + 1]))
        yield int(query), Shortlist(scores[own], segment.rows(rows_C[columns[own]]))
