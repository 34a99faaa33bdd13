"""Scan by look-up tables: codes in, a shortlist of promising rows per query out.

A row's score is the sum of one table entry per step, an approximate distance. Rows are ordered by (score, row
id), a total order, so that a shortlist depends neither on how rows are divided into segments nor on the
number of threads nor on the device.

On a CPU, compiled loops (`scan_loops`) read codes in place and keep a few times the best rows at most, so
that there is no array of all scores. They release the interpreter's lock: queries of several threads, and the
parts of one query, run in parallel. For GPUs, see `tensor_scan`.

Shape legend: Q queries, P partitions, N rows of a segment, M code bytes, W words of eight code bytes, H rows
of all queries, X rows in a buffer.
"""

import functools
import itertools
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rqmoe_store.codecs.additive import LookupTables
from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.norms import Norms, sum_norms
from rqmoe_store.codecs.parallel import num_threads, run_parallel
from rqmoe_store.codecs.selection import order_rows
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.search.lanes import LANES, MAX_CODE_BYTES, Lanes
from rqmoe_store.search.scan_loops import (
    BLOCK,
    WORD,
    Kept,
    Rows,
    Scored,
    copy_kept,
    scan_each,
    scan_together,
)
from rqmoe_store.search.segments import Mask, Segment, Selection
from rqmoe_store.search.shortlists import Shortlists, Side, sides_of

_LEAST_LANES, _LEAST_PROBING = 8, 2
"""Fewest queries whose tables are put side by side, and fewest of these that a partition is scanned for
together; for fewer it would take longer."""

_MOST_KEPT = 2**20
"""Most rows that a task keeps, of all its queries, unless a single query needs more."""

_ROWS_PER_TASK = 2**18
"""Least rows of a part of a query; smaller parts would cost more in handing out work than they save."""


class Refinement(NamedTuple):
    """What a GPU needs to score the rows that it finds by their refine codes, too."""

    codec: Codec
    """The codec of the rows."""
    queries_QD: Float32Array
    """The queries, as for look-up tables."""


Refinements = Mapping[int, Refinement]
"""First partition of a codec -> what scores its refine codes."""


def scan(
    selections: Iterable[Selection],
    tables: Mapping[int, LookupTables],
    probed_QP: Mask,
    size: int,
    lower: float | None = None,
    device: str = "cpu",
    refinements: Refinements | None = None,
    *,
    ordered: bool = True,
) -> list[Shortlists]:
    """Scan for the shortlist of every query: the `size` rows of smallest approximate distance.

    With `lower`, there are two shortlists, of the `size` nearest rows beyond that distance and of the `size`
    farthest rows within it: scores are approximate, and exact distances decide later on which side a row is.

    Args:
        selections: rows to scan; read once, so that they may come from a stream.
        tables: first partition of a codec -> look-up tables of Q queries for it; at least one.
        probed_QP: bool (Q, P), the partitions that every query probes.
        size: rows kept per query, and with `lower` per side.
        lower: a distance in the codec's metric.
        device: device to scan on; segments are copied to a GPU once, as far as they fit.
        refinements: what scores refine codes, of as many codecs as there are tables. A GPU scores the rows of
            shortlists by them as well if it has room for those of all selections.
        ordered: whether the rows of a query must be best first. It takes time, which is wasted where they are
            ranked anew.

    Returns:
        The shortlists of all queries, query after query, for either side of `lower`, or for a single side
        without.
    """
    sides = sides_of(lower)
    if refinements is not None:
        selections = list(selections)
        refinements = refinements if _refines_on(device, selections, refinements) else None
    (num_steps,) = {each.num_steps for each in tables.values()}
    best = [Shortlists.none(num_steps) for _ in sides]
    for selection in selections:
        for first, each in tables.items():
            partitions = slice(first, first + each.num_partitions)
            seen, probed = selection.of_partitions(partitions), probed_QP[:, partitions]
            refinement = None if refinements is None else refinements[first]
            of_sides = _parts(seen, each, probed, sides, size, device, refinement, ordered)
            for side, parts in enumerate(of_sides):
                found = [part.shifted(first) for part in parts if len(part)]
                if found:
                    earlier = [best[side]] if len(best[side]) else []
                    joined = Shortlists.joined([*earlier, *found])
                    is_done = not ordered and joined.are_short(size)
                    best[side] = joined if is_done else joined.best(size)
    return best


def _refines_on(device: str, selections: list[Selection], refinements: Refinements) -> bool:
    """Whether a device scores refine codes of these rows."""
    if device == "cpu":
        return False
    from rqmoe_store.search import tensor_refine

    codecs = [each.codec for each in refinements.values()]
    return tensor_refine.prepare(device, [each.segment for each in selections], codecs)


def _parts(
    selection: Selection,
    tables: LookupTables,
    probed_QP: Mask,
    sides: list[Side],
    size: int,
    device: str,
    refinement: Refinement | None,
    ordered: bool,
) -> list[list[Shortlists]]:
    """For every side, rows of a selection that include the best ones."""
    if device != "cpu":
        from rqmoe_store.search import tensor_scan

        if tensor_scan.fits(selection.segment, device):
            return tensor_scan.nearest(device, selection, tables, probed_QP, sides, size, refinement)
    scan_one = functools.partial(_scan_task, selection, tables, probed_QP, size, ordered)
    tasks = list(_tasks(len(selection.segment), len(probed_QP), sides, size))
    found = run_parallel(functools.partial(scan_one, task) for task in tasks)
    return [[part for task, part in zip(tasks, found, strict=True) if task.side is side] for side in sides]


class _Task(NamedTuple):
    """Some queries, for which a thread scans a part of the rows."""

    queries: slice
    side: Side
    first_row: int
    last_row: int


def _tasks(rows: int, queries: int, sides: list[Side], size: int) -> Iterator[_Task]:
    """The tasks to run in parallel: of some queries each, or of parts of the rows if queries are fewer than
    threads."""
    threads = num_threads()
    parts = max(1, min(-(-threads // (queries * len(sides))), rows // _ROWS_PER_TASK))
    edges = [rows * part // parts for part in range(parts + 1)]
    # Queries that are scanned together share the work, as far as they leave some for every thread.
    step = max(1, min(LANES, max(-(-queries // threads), _LEAST_LANES), _MOST_KEPT // size))
    for start in range(0, queries, step):
        for side in sides:
            for low, high in itertools.pairwise(edges):
                yield _Task(slice(start, min(start + step, queries)), side, low, high)


def _scan_task(
    selection: Selection, tables: LookupTables, probed_QP: Mask, size: int, ordered: bool, task: _Task
) -> Shortlists:
    segment, side, few = selection.segment, task.side, tables.select(task.queries)
    norms_N, queries, size = norms_of(segment, tables), len(few.scores_QT), min(size, len(segment))
    scanned = Rows(
        segment.codes_NM,
        words_of(segment.codes_NM),
        segment.row_id_map.arrays,
        _EVERY_ROW if selection.allowed_N is None else selection.allowed_N,
        segment.starts_P,
        norms_N,
        task.first_row,
        task.last_row,
    )
    lows_Q, highs_Q = few.units.scores_of(side.low), few.units.scores_of(side.high)
    scored = Scored(probed_QP[task.queries], few.by_partition, *few.entries, lows_Q, highs_Q, side.sign)
    shape = queries, 2 * size + BLOCK
    kept = Kept(
        np.empty(shape, np.float32),
        np.empty(shape, np.int64),
        np.zeros(queries, np.int64),
        np.empty(queries, np.float32),
    )
    kept.worst_Q.fill(np.inf)
    if queries >= _LEAST_LANES and few.num_steps <= MAX_CODE_BYTES:
        lanes = Lanes.of(scored.entries_QX, scored.first_entry, -side.sign if len(norms_N) else side.sign)
        scan_together(scanned, scored, lanes, _LEAST_PROBING, kept, size)
    else:
        scan_each(scanned, scored, kept, size)
    most, starts_Q = queries * size, np.empty(queries + 1, np.int64)
    queries_H, scores_H, positions_H = (
        np.empty(most, np.int64),
        np.empty(most, np.float32),
        np.empty(most, np.int64),
    )
    found = copy_kept(kept, task.queries.start, starts_Q, queries_H, scores_H, positions_H)
    queries_H, scores_H, positions_H = queries_H[:found], scores_H[:found], positions_H[:found]
    if ordered:
        order_H, _ = order_rows(starts_Q, scores_H, segment.row_ids(positions_H))
        scores_H, positions_H = scores_H[order_H], positions_H[order_H]
    return Shortlists(queries_H, scores_H, segment.rows(positions_H))


_EVERY_ROW = np.empty(0, dtype=bool)
_NO_NORMS: Norms = np.empty(0, np.uint16)

_norms: "weakref.WeakKeyDictionary[Segment, Norms]" = weakref.WeakKeyDictionary()
"""Norms of all segments that were scanned under cosine. Codecs never change, so these stay right."""


def norms_of(segment: Segment, tables: LookupTables) -> Norms:
    """Norms of the rows of a segment that are in any of the tables' partitions; none unless under cosine."""
    if tables.metric != "cosine":
        return _NO_NORMS
    norms_N = _norms.get(segment)
    if norms_N is None:
        norms_N = _norms[segment] = sum_norms(*tables.norms, segment.starts_P, segment.codes_NM)
    return norms_N


def norm_bytes(segment: Segment) -> int:
    """Bytes of memory that norms of a segment take now."""
    return sum(_norms[each].nbytes for each in (segment, *segment.views) if each in _norms)


def words_of(codes_NM: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """The code bytes of every row in words of eight, in the same memory; without the bytes that remain."""
    rows, code_bytes = codes_NM.shape
    if code_bytes < WORD or rows == 0:
        return np.empty((rows, 0), np.uint64)
    if code_bytes % WORD == 0:
        return codes_NM.view(np.uint64)
    shape, strides = (rows, code_bytes // WORD), (code_bytes, WORD)
    return np.ndarray(shape, np.uint64, buffer=codes_NM, strides=strides)
