"""Choosing how far searches of a table look: the least work that finds enough of the nearest rows."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from rqmoe_store.arguments import whole_number
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.search.filters import matching_row_ids
from rqmoe_store.search.options import share
from rqmoe_store.search.source import TableState
from rqmoe_store.search.tuning_measures import ROUNDS, Advance, Measures
from rqmoe_store.search.tuning_queries import given_queries, queries_from_rows
from rqmoe_store.search.tuning_report import MeasuredSetting, TimedSetting, TuningReport
from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.progress import progress_bar
from rqmoe_store.store.sql import quoted
from rqmoe_store.store.tuning import TunedSearch

_LONGEST, _LONGEST_PER_ROW = 4_096, 16
"""Shortlists are tried up to this many rows or this many times the limit, whichever is more."""

_AS_FAST = 1.05
"""Settings up to this many times as slow as the fastest are taken for as fast: the clock is no better."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuningGoal:
    """What searches of a table shall reach."""

    target_recall: float
    """Share of the nearest rows that they find, mean over the queries."""
    limit: int
    """How many nearest rows."""
    sample: int
    """Queries it is measured with at most."""
    seed: int
    """Of the sample."""

    def __post_init__(self) -> None:
        # Kept as Python's own numbers: they are written into the table.
        object.__setattr__(self, "target_recall", share("target_recall", self.target_recall))
        if self.target_recall == 0:
            raise InvalidInputError("Got target_recall=0; expected more, such as 0.95.")
        for name, low in (("limit", 1), ("sample", 1), ("seed", 0)):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), low))


def tune_search(
    state: TableState, columns: CodeColumns, queries: Any, goal: TuningGoal, *, progress: bool
) -> TuningReport:
    """The setting of least time that reaches the goal in one version of a table; nothing is written.

    Args:
        state: the version.
        columns: of the table.
        queries: (Q, D) or (D,); None to make some from rows of the table.
        goal: what to reach.
        progress: show a progress bar.

    Raises:
        InvalidInputError: queries that cannot be used, or no setting tried reaches the goal.
        TableError: too few rows.
    """
    table = state.snapshot.table
    row_ids = matching_row_ids(state.snapshot.dataset, f"{quoted(columns.code)} IS NOT NULL")
    if len(row_ids) == 0:
        raise TableError(f"Table {table.name!r} has no rows with a vector; add some before tuning it.")
    if queries is None:
        asked = queries_from_rows(state.snapshot, row_ids, columns, sample=goal.sample, seed=goal.seed)
    else:
        asked = given_queries(queries, state.snapshot.codecs, sample=goal.sample, seed=goal.seed)
    measures = Measures(state, columns, asked, goal.limit)
    measured, timed = _measure(measures, goal, len(row_ids), progress)
    chosen = cheapest(timed)
    return TuningReport(
        setting=TunedSearch(
            nprobes=chosen.nprobes,
            shortlist=chosen.shortlist,
            limit=goal.limit,
            target_recall=goal.target_recall,
        ),
        recall=chosen.recall,
        milliseconds=chosen.milliseconds,
        queries=len(asked),
        own_rows=asked.own_Q is not None,
        num_partitions=state.snapshot.codecs.num_partitions,
        measured=tuple(measured),
        timed=tuple(timed),
    )


def _measure(
    measures: Measures, goal: TuningGoal, rows: int, progress: bool
) -> tuple[list[MeasuredSetting], list[TimedSetting]]:
    """The recall of all settings, and the time of those that may be the cheapest."""
    numbers = geometric(1, measures.state.snapshot.codecs.most_partitions, math.sqrt(2))
    longest = min(rows, max(_LONGEST, _LONGEST_PER_ROW * goal.limit))
    sizes = geometric(goal.limit, max(goal.limit, longest), 2)
    with progress_bar(progress) as bar:

        def task(description: str, total: int) -> Advance:
            started = bar.add_task(description, total=total)
            return lambda done: bar.advance(started, done)

        nearest = measures.nearest(task("Decoding all rows", rows))
        measured = measures.recalls(nearest, numbers, sizes, task("Measuring recall", len(numbers)))
        enough = candidates(measured, goal)
        return measured, measures.times(enough, task("Measuring time", ROUNDS))


def candidates(measured: Sequence[MeasuredSetting], goal: TuningGoal) -> list[MeasuredSetting]:
    """The shortest shortlists that find enough, as long as more partitions make them shorter still.

    Args:
        measured: by ascending partitions, then by ascending shortlists.
        goal: what is enough.

    Raises:
        InvalidInputError: nothing is.
    """
    found: list[MeasuredSetting] = []
    for each in measured:
        if each.recall >= goal.target_recall and (not found or each.shortlist < found[-1].shortlist):
            found.append(each)
    if not found:
        most = measured[-1]
        raise InvalidInputError(
            f"Got target_recall={goal.target_recall:g}, but all {most.nprobes:,} partitions with a shortlist "
            f"of {most.shortlist:,} rows find {most.recall:.4f} of the {goal.limit} nearest. Ask for no more "
            "than that, or use a codec with more bytes."
        )
    return found


def cheapest(timed: Sequence[TimedSetting]) -> TimedSetting:
    """The fastest; of several about as fast, the one that looks at the fewest rows."""
    slowest = _AS_FAST * min(each.milliseconds for each in timed)
    fast = [each for each in timed if each.milliseconds <= slowest]
    return min(fast, key=lambda each: (each.shortlist, each.nprobes))


def geometric(low: int, high: int, ratio: float) -> list[int]:
    """Whole numbers from `low` to `high`, both included, each about `ratio` times the one before."""
    steps = math.ceil(math.log(high / low, ratio))
    return sorted({*(min(high, round(low * ratio**step)) for step in range(steps)), high})
