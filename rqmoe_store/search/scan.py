"""Look-up-table scan: codes in, one shortlist of promising rows per query out.

Shape suffixes: Q queries, P partitions, R runs of rows, S rows of a shortlist.

Rows are ordered by (score, row id), a total order, so a shortlist depends neither on how rows are cut
into segments nor on how many threads scan them.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch

from rqmoe_store.codecs.additive import LookupTables
from rqmoe_store.codecs.parallel import side_by_side
from rqmoe_store.search.kernels import nearest_rows
from rqmoe_store.search.segments import Mask, Positions, Selection, no_rows
from rqmoe_store.search.shortlist import Shortlist, Side, sides_of
from rqmoe_store.search.tensor_scan import fits, nearest_on

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
    found = side_by_side(
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
