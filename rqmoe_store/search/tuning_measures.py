"""How much searches of a table find, and how fast they are, at settings other than the table's.

Recall is measured against every row decoded. No reranking is needed to know it: a row that is among the
nearest of all is among the nearest of any shortlist that holds it. So what a search finds is what its
shortlist holds, and one long shortlist tells what all shorter ones would find.

Shape suffixes: Q queries, D dimension, S rows of a shortlist, L lengths of shortlists.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.search.execution import Execution
from rqmoe_store.search.exhaustive import Float64Array, nearest_of_all
from rqmoe_store.search.plan import Trace
from rqmoe_store.search.reach import Reach
from rqmoe_store.search.request import SearchRequest
from rqmoe_store.search.segments import CodeBatch
from rqmoe_store.search.shortlist import Candidates
from rqmoe_store.search.source import TableState
from rqmoe_store.search.stored_codes import read_codes
from rqmoe_store.search.tuning_queries import TuningQueries
from rqmoe_store.search.tuning_report import MeasuredSetting, TimedSetting
from rqmoe_store.store.columns import CodeColumns

_TIMED_QUERIES = 50
ROUNDS = 4
"""How often each of these is asked."""

_BATCH_ROWS = 131_072

Advance = Callable[[int], None]
"""Told how much has been done since it was called last."""


@dataclasses.dataclass(frozen=True)
class Measures:
    """Measurements on one version of a table with the same queries."""

    state: TableState
    columns: CodeColumns
    queries: TuningQueries
    limit: int

    def nearest(self, advance: Advance) -> list[CodeBatch]:
        """What every query would find if every row was decoded, row by row."""
        resident = self.state.resident
        if resident is None:
            batches = read_codes(self.state.snapshot, self.columns)
        else:
            batches = (batch for part in resident.selections for batch in part.batches(_BATCH_ROWS))
        return nearest_of_all(
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
        """All settings by ascending numbers of partitions, then by ascending sizes of the shortlist."""
        measured = []
        for nprobes in numbers:
            shares_QL = [
                found_share(found, np.array(sizes), truth)
                for found, truth in zip(self._candidates(nprobes, sizes[-1]), nearest, strict=True)
            ]
            for size, recall in zip(sizes, np.mean(shares_QL, axis=0).tolist(), strict=True):
                measured.append(MeasuredSetting(nprobes=nprobes, shortlist=size, recall=recall))
            advance(1)
        return measured

    def times(self, settings: Sequence[MeasuredSetting], advance: Advance) -> list[TimedSetting]:
        """The settings with the time of a query; queries come one at a time. Advances ROUNDS times."""
        queries_QD = self.queries.queries_QD[:_TIMED_QUERIES]
        seconds = np.empty((ROUNDS, len(queries_QD), len(settings)))
        for round_seconds in seconds:
            for query, query_D in enumerate(queries_QD):
                round_seconds[query] = [self._seconds(query_D, setting) for setting in settings]
            advance(1)
        # Whatever else a machine does makes a query slower, never faster; so does compiling in round one.
        best = seconds.min(axis=0).mean(axis=0)
        return [
            TimedSetting(**dataclasses.asdict(setting), milliseconds=milliseconds)
            for setting, milliseconds in zip(settings, (1e3 * best).tolist(), strict=True)
        ]

    def _seconds(self, query_D: Float32Array, setting: MeasuredSetting) -> float:
        execution = self._execution(query_D[None], setting.nprobes, setting.shortlist, self.limit)
        started = time.perf_counter()
        execution.run()
        return time.perf_counter() - started

    def _candidates(self, nprobes: int, size: int) -> list[Candidates]:
        """Of all queries, without their own rows."""
        own_Q, spare = self.queries.own_Q, int(self.queries.own_Q is not None)
        execution = self._execution(self.queries.queries_QD, nprobes, size + spare, self.limit + spare)
        candidates = execution.candidates()
        if own_Q is None:
            return candidates
        return [found.without(own) for found, own in zip(candidates, own_Q, strict=True)]

    def _execution(self, queries_QD: Float32Array, nprobes: int, shortlist: int, limit: int) -> Execution:
        reach = Reach(nprobes, "asked for", shortlist)
        request = SearchRequest(queries_QD=queries_QD, limit=limit, reach=reach, stages=reach.stages(limit))
        return Execution(request, self.state, self.columns, Trace())


def found_share(found: Candidates, sizes_L: npt.NDArray[np.int64], nearest: CodeBatch) -> Float64Array:
    """Which share of the nearest rows the best `sizes_L` candidates hold, (L,).

    A row with the codes of the last of the nearest is as near as that, and as good.
    """
    if len(nearest) == 0:  # nothing to find: no row has a distance to this query
        return np.ones(len(sizes_L))
    rows = found.rows
    near_S = np.isin(rows.row_ids_N, nearest.row_ids_N)
    last = nearest.codes[-1:]
    near_S |= (rows.codes.codes == last.codes).all(axis=1) & (rows.codes.partitions == last.partitions)
    found_S = np.concatenate([[0], np.cumsum(near_S)])
    found_L = np.minimum(found_S[np.minimum(sizes_L, len(rows))], len(nearest))
    return np.asarray(found_L / len(nearest), dtype=np.float64)
