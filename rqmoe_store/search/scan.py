"""Scan by look-up tables, compiled: codes in, a shortlist of promising rows per query out.

Shape suffixes: Q queries, P partitions, R runs of rows, S rows of a shortlist.

Rows are ordered by (score, row id), a total order, so a shortlist depends neither on how rows are cut
into segments nor on how many threads scan them.

Shape suffixes: N rows, M code bytes, K codewords, R runs of rows,
S rows kept.

The loop reads code bytes where they lie and keeps the S best rows in a heap, so nothing is ever sorted
and no array of scores exists. It releases the interpreter's lock: queries of several threads, and the
parts of one, run side by side.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from rqmoe_store.codecs.additive import SMALLEST_SQUARE, LookupTables
from rqmoe_store.codecs.parallel import compiled, run_parallel
from rqmoe_store.search.segments import Mask, Positions, Selection, no_rows
from rqmoe_store.search.shortlist import Shortlist, Side, sides_of
from rqmoe_store.search.tensor_scan import fits, nearest_on

_ONE = np.float32(1)


@compiled
def _after(scores_S: Any, positions_S: Any, row_ids_N: Any, first: int, second: int) -> bool:
    """Whether heap entry `first` comes after entry `second` in the order of (score, row id)."""
    if scores_S[first] != scores_S[second]:
        return bool(scores_S[first] > scores_S[second])
    return bool(row_ids_N[positions_S[first]] > row_ids_N[positions_S[second]])


@compiled
def _swap(scores_S: Any, positions_S: Any, first: int, second: int) -> None:
    scores_S[first], scores_S[second] = scores_S[second], scores_S[first]
    positions_S[first], positions_S[second] = positions_S[second], positions_S[first]


@compiled
def _rise(scores_S: Any, positions_S: Any, row_ids_N: Any, entry: int) -> None:
    while entry > 0:
        parent = (entry - 1) >> 1
        if not _after(scores_S, positions_S, row_ids_N, entry, parent):
            break
        _swap(scores_S, positions_S, entry, parent)
        entry = parent


@compiled
def _sink(scores_S: Any, positions_S: Any, row_ids_N: Any, filled: int) -> None:
    entry = 0
    while True:
        child = 2 * entry + 1
        if child >= filled:
            break
        if child + 1 < filled and _after(scores_S, positions_S, row_ids_N, child + 1, child):
            child += 1
        if not _after(scores_S, positions_S, row_ids_N, child, entry):
            break
        _swap(scores_S, positions_S, child, entry)
        entry = child


@compiled
def nearest_rows(
    codes_NM: Any,
    row_ids_N: Any,
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
        row_ids_N: uint64 (N,); they decide between equal scores.
        allowed_N: bool (N,), or empty when all rows may be found.
        starts_R, stops_R: int64 (R,), runs of rows of one partition each.
        scores_R: float32 (R,), what every score of a run begins with.
        scores_MK: float32 (M, K), what a codeword adds to it.
        norms_R, norms_MK: the same for squared lengths, or both empty; given, the score is
            1 - sum / sqrt(sum of norms).
        low, high: float32.
        sign: float32, 1 or -1.
        size: rows kept at most.

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
                _rise(kept_scores, kept_positions, row_ids_N, filled)
                filled += 1
            elif score < kept_scores[0] or (
                score == kept_scores[0] and row_ids_N[row] < row_ids_N[kept_positions[0]]
            ):
                kept_scores[0], kept_positions[0] = score, row
                _sink(kept_scores, kept_positions, row_ids_N, filled)
    return kept_scores[:filled], kept_positions[:filled]


CPU = torch.device("cpu")

_ROWS_PER_TASK = 65_536
"""A query is not split into parts smaller than this: handing out work costs time, too."""


@dataclasses.dataclass(frozen=True)
class _Runs:
    """Runs of rows, each within one partition."""

    starts_R: Positions
    stops_R: Positions
    partitions_R: Positions

    @property
    def rows(self) -> int:
        return int((self.stops_R - self.starts_R).sum())

    def cut(self, parts: int) -> "Iterator[_Runs]":
        """The same rows in parts of about equal size."""
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


def scan(
    selections: Iterable[Selection],
    tables: Mapping[int, LookupTables],
    probed_QP: Mask,
    size: int,
    lower: float | None = None,
    device: torch.device = CPU,
) -> list[Shortlist]:
    """The shortlist of every query: the `size` rows of smallest approximate distance.

    With `lower` a query keeps the `size` nearest rows beyond that distance and the `size` farthest
    within it: scores are approximate, so exact distances decide later on which side a row belongs.

    Args:
        selections: rows to consider; read once, so that they may come from a stream.
        tables: of Q queries, for every codec, by the first of its partitions; at least one.
        probed_QP: bool (Q, P), the partitions that every query considers.
        size: rows kept per query, and with `lower` per side.
        lower: a distance in the codec's metric.
        device: where to scan; segments are copied to a GPU once, as far as they fit beside what it holds.

    Returns:
        One per query.
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
    """As `scan`, with a shortlist for either side of `lower`, or only one without it."""
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
    """Queries, sides, and rows that have all of the best ones among them."""
    if device.type != "cpu" and fits(selection.segment, device):
        yield from nearest_on(device, selection, tables, probed_QP, sides, size)
        return
    tasks = list(_tasks(selection, probed_QP, len(sides)))
    found = run_parallel(
        functools.partial(_nearest, selection, tables, task, sides[task.side], size) for task in tasks
    )
    for task, part in zip(tasks, found, strict=True):
        yield task.query, task.side, part


def _tasks(selection: Selection, probed_QP: Mask, num_sides: int) -> Iterator[_Task]:
    """What can be done side by side: every query, in parts where there are more threads than queries."""
    parts_wanted = -(-torch.get_num_threads() // (len(probed_QP) * num_sides))
    for query, probed_P in enumerate(probed_QP):
        partitions_R = np.flatnonzero(probed_P)
        starts_P = selection.segment.starts_P
        runs = _Runs(starts_P[partitions_R], starts_P[partitions_R + 1], partitions_R)
        parts = min(parts_wanted, 1 + runs.rows // _ROWS_PER_TASK)
        for part in runs.cut(parts):
            for side in range(num_sides):
                yield _Task(query, side, part)


def _nearest(selection: Selection, tables: LookupTables, task: _Task, side: Side, size: int) -> Shortlist:
    segment, runs = selection.segment, task.runs
    by_partition, by_step = tables.scores_of(task.query)
    norms_P, norms_MK = tables.norms
    scores_S, positions_S = nearest_rows(
        segment.codes_NM,
        segment.row_ids_N,
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
