"""Tuning: choose the fastest search parameters that reach a target recall, by measurements on the table.

Recall is measured against an exhaustive search of decoded vectors, refined ones where there are refine codes.
It needs no reranking: a row that is among the nearest of all rows is among the nearest of any shortlist that
has it. What a search finds is therefore what its shortlist has, and one long shortlist shows what all shorter
ones would find.

Shape legend: Q queries, D vector dimension, S rows of a shortlist, L lengths of shortlists.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rqmoe_store.arguments import share, whole_number
from rqmoe_store.codecs.frame import to_float32
from rqmoe_store.codecs.vectors import Float32Array, as_vectors
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.progress import progress_bar
from rqmoe_store.search.execution import Execution
from rqmoe_store.search.exhaustive import exhaustive_search
from rqmoe_store.search.multivector import require_one_vector
from rqmoe_store.search.request import (
    SearchParameters,
    SearchRequest,
    Trace,
    as_queries,
    default_rerank,
)
from rqmoe_store.search.rerank import Float64Array
from rqmoe_store.search.resident import matching_row_ids, read_codes, row_id_filter
from rqmoe_store.search.segments import CodeBatch, RowIds, concatenated
from rqmoe_store.search.shortlists import Candidates
from rqmoe_store.search.source import TableSource, TableState
from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.metadata import TunedSearch
from rqmoe_store.store.snapshot import Snapshot
from rqmoe_store.store.sql import quoted
from rqmoe_store.store.table_codec import TableCodec


@dataclasses.dataclass(frozen=True)
class TuningQueries:
    """Checked queries, and the row that each was made from, which does not count as found."""

    queries_QD: Float32Array
    own_Q: RowIds | None = None

    def __len__(self) -> int:
        return len(self.queries_QD)


def given_queries(queries: Any, codecs: TableCodec, *, sample: int, seed: int) -> TuningQueries:
    """The user's queries, or a seeded sample if there are more than `sample`. Raises as `as_queries`."""
    queries_QD = as_queries(queries, dim=codecs.dim, metric=codecs.metric)
    if len(queries_QD) > sample:
        chosen = np.random.default_rng(seed).choice(len(queries_QD), sample, replace=False)
        queries_QD = queries_QD[np.sort(chosen)]
    return TuningQueries(queries_QD)


def queries_from_rows(
    snapshot: Snapshot,
    row_ids: RowIds,
    columns: CodeColumns,
    *,
    sample: int,
    seed: int,
) -> TuningQueries:
    """Queries that resemble the vectors of rows of the table before these were encoded.

    Reconstructions would not do as queries. A reconstruction is made of codewords that its neighbors share,
    and lies deeper inside its partition than any vector, so that searches that probe few partitions would
    look better than they are. Each is therefore moved in a random direction, by the distance of vectors from
    their reconstructions in training. The row of a query would be its first result, which no real query has;
    it does not count.

    Args:
        snapshot: the version to read.
        row_ids: ids of all rows with a code.
        columns: code columns of the table.
        sample: most rows to use.
        seed: seed of the sample and the directions.

    Raises:
        TableError: there is only one row, so that no other could be found.
    """
    if len(row_ids) < 2:
        raise TableError(
            f"Table {snapshot.table.name!r} has {len(row_ids)} row with a vector; expected at least 2 to "
            "tune with its own rows. Add rows, or pass queries."
        )
    random = np.random.default_rng(seed)
    chosen = random.choice(row_ids, min(sample, len(row_ids)), replace=False)
    batches = read_codes(snapshot, columns, row_id_filter(chosen), refine=True)
    rows = concatenated(list(batches))
    rows = rows[np.argsort(rows.row_ids_N)]
    codecs = snapshot.codecs
    assert codecs.newest is not None, "rows have codes"
    moves_QD = random.normal(size=(len(rows), codecs.dim))
    moves_QD *= math.sqrt(codecs.newest.report.whole_mse) / np.linalg.norm(moves_QD, axis=1, keepdims=True)
    queries_QD = as_vectors(to_float32(codecs.decode(rows.codes) + moves_QD), metric=codecs.metric)
    return TuningQueries(queries_QD, rows.row_ids_N)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasuredSetting:
    """Search parameters that were measured."""

    nprobes: int
    """Partitions searched."""
    shortlist: int
    """Rows decoded and reranked."""
    recall: float
    """Share of the nearest rows that were found, from 0 to 1, mean over the queries."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimedSetting(MeasuredSetting):
    """Search parameters that reach the goal with fewer rows or partitions than others."""

    milliseconds: float
    """Time of one query without taking its columns: best of several runs, mean over the queries."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuningReport:
    """The chosen search parameters, with recall and time, and all that were measured; prints as a table."""

    setting: TunedSearch
    """The chosen search parameters, which are the table's new defaults."""
    recall: float
    """Share of the nearest rows that they find, from 0 to 1."""
    milliseconds: float
    """Time of one query with them."""
    queries: int
    """Number of queries measured with."""
    own_rows: bool
    """Whether the queries were made from rows of the table."""
    num_partitions: int
    """Partitions of the table."""
    measured: tuple[MeasuredSetting, ...]
    """All search parameters measured, by nprobes and then by shortlist."""
    timed: tuple[TimedSetting, ...]
    """The search parameters among which the fastest were chosen."""

    def __str__(self) -> str:
        chosen, origin = self.setting, " made from rows of the table" if self.own_rows else ""
        return (
            f"{chosen.nprobes} of {self.num_partitions} partitions and a shortlist of {chosen.shortlist}: "
            f"recall {self.recall:.3f} of the {chosen.limit} nearest, {self.milliseconds:.2f} ms per query "
            f"(wanted {chosen.target_recall:g}; {self.queries} queries{origin})\n\n{self._table()}"
        )

    def _table(self) -> str:
        """A line per number of partitions, a column per length of the shortlist."""
        sizes = sorted({each.shortlist for each in self.measured})
        lines = ["partitions" + "".join(f"{size:>8,}" for size in sizes) + "   enough, and how fast"]
        for nprobes in sorted({each.nprobes for each in self.measured}):
            recalls = "".join(f"{each.recall:8.3f}" for each in self.measured if each.nprobes == nprobes)
            enough = "".join(self._enough(each) for each in self.timed if each.nprobes == nprobes)
            lines.append(f"{nprobes:>10,}{recalls}{enough}")
        return "\n".join(lines)

    def _enough(self, each: TimedSetting) -> str:
        chosen = (each.nprobes, each.shortlist) == (self.setting.nprobes, self.setting.shortlist)
        return f"   {each.shortlist:,}: {each.milliseconds:.2f} ms" + ("  <- chosen" if chosen else "")


_TIMED_QUERIES = 50
ROUNDS = 4
"""Number of times that each timed query runs."""

_BATCH_ROWS = 131_072

Advance = Callable[[int], None]
"""Function that is called with the amount of work done since its last call."""


@dataclasses.dataclass(frozen=True)
class Measures:
    """Measurements on one version of a table with the same queries."""

    state: TableState
    columns: CodeColumns
    queries: TuningQueries
    limit: int

    def nearest(self, advance: Advance) -> list[CodeBatch]:
        """The nearest rows of every query, by exhaustive search."""
        resident, codecs = self.state.resident, self.state.snapshot.codecs
        if resident is None or resident.has_refine < bool(codecs.columns.refine_bytes):
            batches = read_codes(self.state.snapshot, self.columns, refine=True)
        else:
            batches = (batch for part in resident.selections for batch in part.batches(_BATCH_ROWS))
        return exhaustive_search(
            self.state.snapshot.codecs,
            self.queries.queries_QD,
            batches,
            self.limit,
            excluded_Q=self.queries.own_Q,
            advance=advance,
        )

    def recalls(
        self,
        nearest: Sequence[CodeBatch],
        numbers: Sequence[int],
        sizes: Sequence[int],
        advance: Advance,
    ) -> list[MeasuredSetting]:
        """Measure the recall of all combinations of numbers of partitions and shortlist sizes, in order."""
        measured = []
        for nprobes in numbers:
            shares_QL = [
                recalls_of(found, np.array(sizes), truth, equal_codes=not self._are_refined)
                for found, truth in zip(self._candidates(nprobes, sizes[-1]).each(), nearest, strict=True)
            ]
            for size, recall in zip(sizes, np.mean(shares_QL, axis=0).tolist(), strict=True):
                measured.append(MeasuredSetting(nprobes=nprobes, shortlist=size, recall=recall))
            advance(1)
        return measured

    def times(self, settings: Sequence[MeasuredSetting], advance: Advance) -> list[TimedSetting]:
        """Measure the time of single queries with each of the settings. Advances ROUNDS times."""
        queries_QD = self.queries.queries_QD[:_TIMED_QUERIES]
        seconds = np.empty((ROUNDS, len(queries_QD), len(settings)))
        for round_seconds in seconds:
            for query, query_D in enumerate(queries_QD):
                round_seconds[query] = [self._seconds(query_D, setting) for setting in settings]
            advance(1)
        # Other work of the machine, and compilation in the first round, can only make a query slower.
        best = seconds.min(axis=0).mean(axis=0)
        return [
            TimedSetting(**dataclasses.asdict(setting), milliseconds=milliseconds)
            for setting, milliseconds in zip(settings, (1e3 * best).tolist(), strict=True)
        ]

    @property
    def _are_refined(self) -> bool:
        """Whether rows have refine codes, so that equal codes may stand for different vectors."""
        return bool(self.state.snapshot.codecs.columns.refine_bytes)

    def _seconds(self, query_D: Float32Array, setting: MeasuredSetting) -> float:
        execution = self._execution(query_D[None], setting.nprobes, setting.shortlist, self.limit)
        started = time.perf_counter()
        execution.run()
        return time.perf_counter() - started

    def _candidates(self, nprobes: int, size: int) -> Candidates:
        """The candidates of all queries, without their own rows."""
        own_Q, spare = self.queries.own_Q, int(self.queries.own_Q is not None)
        execution = self._execution(self.queries.queries_QD, nprobes, size + spare, self.limit + spare)
        candidates = execution.candidates()
        return candidates if own_Q is None else candidates.without(own_Q)

    def _execution(self, queries_QD: Float32Array, nprobes: int, shortlist: int, limit: int) -> Execution:
        rerank = default_rerank(self.state.snapshot.codecs)
        parameters = SearchParameters(nprobes, "asked for", rerank, shortlist)
        request = SearchRequest(
            queries_QD=queries_QD, limit=limit, parameters=parameters, stages=parameters.stages(limit)
        )
        return Execution(request, self.state, self.columns, Trace())


def recalls_of(
    found: Candidates, sizes_L: npt.NDArray[np.int64], nearest: CodeBatch, *, equal_codes: bool = True
) -> Float64Array:
    """Share of the nearest rows among the first `sizes_L` candidates, (L,).

    With `equal_codes`, a row with the same codes as the last of the nearest rows is as near, and counts, too.
    """
    if len(nearest) == 0:  # no row has a distance to this query
        return np.ones(len(sizes_L))
    rows = found.rows
    near_S = np.isin(rows.row_ids_N, nearest.row_ids_N)
    last = nearest.codes[-1:]
    if equal_codes:
        near_S |= (rows.codes.codes == last.codes).all(axis=1) & (rows.codes.partitions == last.partitions)
    found_S = np.concatenate([[0], np.cumsum(near_S)])
    found_L = np.minimum(found_S[np.minimum(sizes_L, len(rows))], len(nearest))
    return np.asarray(found_L / len(nearest), dtype=np.float64)


_LONGEST, _LONGEST_PER_ROW = 4_096, 16
"""Shortlists are measured up to this many rows or this many times the limit, whichever is more."""

_AS_FAST = 1.05
"""Settings up to this many times as slow as the fastest count as equally fast, since clocks are not exact."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuningGoal:
    """The goal of tuning."""

    target_recall: float
    """Share of the nearest rows to find, mean over the queries."""
    limit: int
    """Number of nearest rows."""
    sample: int
    """Most queries to measure with."""
    seed: int
    """Seed of the sample."""

    def __post_init__(self) -> None:
        # Converted to Python's own numbers, which are written into the table.
        object.__setattr__(self, "target_recall", share("target_recall", self.target_recall))
        if self.target_recall == 0:
            raise InvalidInputError("Got target_recall=0; expected more, such as 0.95.")
        for name, low in (("limit", 1), ("sample", 1), ("seed", 0)):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), low))


def tune_table(source: TableSource, queries: Any, goal: TuningGoal, *, progress: bool) -> TuningReport:
    """Tune the newest version of a table as `tune_search` does, and write the result into the table.

    Raises as `tune_search`, and StorageError if the disk or bucket cannot be written to.
    """
    reader = source.reader()
    handle = reader.handle
    require_one_vector(handle, "tune", "Set .shortlist() of its searches instead.")
    handle.refresh()
    report = reader.read(lambda state: tune_search(state, handle.columns, queries, goal, progress=progress))
    report.setting.write(handle.table)
    handle.refresh()
    return report


def tune_search(
    state: TableState, columns: CodeColumns, queries: Any, goal: TuningGoal, *, progress: bool
) -> TuningReport:
    """Find the fastest search parameters that reach the goal in one version of a table; nothing is written.

    Args:
        state: the version.
        columns: code columns of the table.
        queries: (Q, D) or (D,); None to make queries from rows of the table.
        goal: the goal to reach.
        progress: show a progress bar.

    Raises:
        InvalidInputError: the queries cannot be used, or none of the measured parameters reach the goal.
        TableError: the table has too few rows.
    """
    table = state.snapshot.table
    row_ids = matching_row_ids(state.snapshot.dataset, f"{quoted(columns.code)} IS NOT NULL")
    if len(row_ids) == 0:
        raise TableError(f"Table {table.name!r} has no rows with a vector; add some before tuning it.")
    if queries is None:
        checked = queries_from_rows(state.snapshot, row_ids, columns, sample=goal.sample, seed=goal.seed)
    else:
        checked = given_queries(queries, state.snapshot.codecs, sample=goal.sample, seed=goal.seed)
    measures = Measures(state, columns, checked, goal.limit)
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
        queries=len(checked),
        own_rows=checked.own_Q is not None,
        num_partitions=state.snapshot.codecs.num_partitions,
        measured=tuple(measured),
        timed=tuple(timed),
    )


def _measure(
    measures: Measures, goal: TuningGoal, rows: int, progress: bool
) -> tuple[list[MeasuredSetting], list[TimedSetting]]:
    """Measure the recall of all settings, and the time of those that may be the fastest."""
    numbers = geometric(1, measures.state.snapshot.codecs.most_partitions, math.sqrt(2))
    longest = min(rows, max(_LONGEST, _LONGEST_PER_ROW * goal.limit))
    sizes = geometric(goal.limit, max(goal.limit, longest), 2)
    with progress_bar(progress) as bar:

        def task(description: str, total: int) -> Advance:
            started = bar.add_task(description, total=total)
            return lambda done: bar.advance(started, done)

        nearest = measures.nearest(task("Decoding all rows", rows))
        measured = measures.recalls(nearest, numbers, sizes, task("Measuring recall", len(numbers)))
        enough = sufficient_settings(measured, goal)
        return measured, measures.times(enough, task("Measuring time", ROUNDS))


def sufficient_settings(measured: Sequence[MeasuredSetting], goal: TuningGoal) -> list[MeasuredSetting]:
    """For each number of partitions, the shortest shortlist that reaches the goal, if fewer partitions need a
    longer one.

    Args:
        measured: settings by ascending partitions, then by ascending shortlists.
        goal: the goal to reach.

    Raises:
        InvalidInputError: no setting reaches the goal.
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
    """The fastest setting; of several that are about equally fast, the one with the shortest shortlist."""
    slowest = _AS_FAST * min(each.milliseconds for each in timed)
    fast = [each for each in timed if each.milliseconds <= slowest]
    return min(fast, key=lambda each: (each.shortlist, each.nprobes))


def geometric(low: int, high: int, ratio: float) -> list[int]:
    """Integers from `low` to `high`, both included, each about `ratio` times the previous one."""
    steps = math.ceil(math.log(high / low, ratio))
    return sorted({*(min(high, round(low * ratio**step)) for step in range(steps)), high})
