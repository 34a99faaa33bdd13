"""Filling the places of a ranking, stage after stage.

Shape suffixes: S rows that a query considers, K stages.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from rqmoe_store.search.rerank import Hits
from rqmoe_store.search.segments import Mask, Positions

Choose = Callable[[Mask, int], Positions]
"""Chooses up to so many of the open rows (S,), best first; what it chose before is not open any more."""


class Order(NamedTuple):
    """The rows of one query in their order."""

    places: Positions
    """Positions of the rows."""
    ended: bool
    """No later stage places any more."""


def in_stages(stages_S: Positions, ends: Sequence[int], choose: Choose, last_K: Sequence[bool]) -> Order:
    """Rank rows.

    Args:
        stages_S: by which stage every row is considered first.
        ends: rows that are ranked after each stage.
        choose: chooses them.
        last_K: whether a stage is the last if it has too few rows.
    """
    open_S = np.ones(len(stages_S), dtype=bool)
    chosen: list[Positions] = []
    placed = 0
    for stage, end in enumerate(ends):
        places = choose(open_S & (stages_S <= stage), end - placed)
        open_S[places] = False
        chosen.append(places)
        placed += len(places)
        if placed < end and last_K[stage]:
            return Order(np.concatenate(chosen), ended=True)
    return Order(np.concatenate(chosen), ended=False)


def first_open(open_S: Mask, count: int) -> Positions:
    """The first open rows: the nearest, where rows are in the order of their distances."""
    return np.flatnonzero(open_S)[:count]


def out_of_reach(hits: Hits, sizes_K: Sequence[int], lower: float | None, upper: float) -> list[bool]:
    """Whether no row that a stage does not consider is likely to be nearer than an upper bound, (K,).

    Rows are chosen by estimates of their distances. Those that were not chosen were estimated at least as far
    as the farthest that was; they are nearer than the bound only if they were overestimated by more than any
    row that was chosen.

    Args:
        hits: all that are considered, whatever their distance.
        sizes_K: rows that every stage chose, on either side of `lower` where there is one.
        lower, upper: the bounds.
    """
    assert hits.stages_S is not None and hits.estimates_S is not None, "not ranked yet"
    last: list[bool] = []
    for stage, size in enumerate(sizes_K):
        considered = np.flatnonzero((hits.stages_S <= stage) & np.isfinite(hits.estimates_S))
        estimates = hits.estimates_S[considered]
        farther = np.sort(estimates if lower is None else estimates[estimates >= np.float32(lower)])[:size]
        if len(farther) == 0:
            last.append(len(estimates) == 0)
            continue
        overestimate = float((estimates - hits.distances_S[considered]).max())
        last.append(float(farther[-1]) - overestimate >= upper)
    return last
