"""Expansion of results by a neighbor graph: rows that are near the nearest rows, blended into the ranking.

Each stage of a ranking has seeds of its own, as many nearest rows of its shortlist as it ends after. A row is
considered from the first stage on that has it in its shortlist, or that reaches it from a seed.

Shape legend: S rows of one query, H rows of all queries, K stages, X rows that a stage considers.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from rqmoe_store.config import Metric
from rqmoe_store.search.columns import ROW_ID
from rqmoe_store.search.request import Expansion, SearchRequest
from rqmoe_store.search.rerank import Float64Array, Hits, exact_values, ordered
from rqmoe_store.search.resident import matching_row_ids, row_id_filter
from rqmoe_store.search.segments import CodeBatch, Mask, Positions, RowIds, concatenated, no_rows
from rqmoe_store.search.shortlists import Candidates
from rqmoe_store.search.source import TableState
from rqmoe_store.store.lance import take_existing_rows
from rqmoe_store.store.neighbor_graph import NeighborGraph

DECAY = 0.5
"""Factor of the graph score for every step."""

_RANGE = 3
"""Similarities reach from the nearest row to the last of this many nearest rows per seed."""

Score = Callable[[Candidates], list[Hits]]
"""Function that gives rows of every query their distances; leaves out rows without any."""
Steps = Mapping[int, Sequence[int]]
"""Row id -> row ids of the neighbors to step to, nearest first."""


def expand(
    request: SearchRequest, state: TableState, hits: Sequence[Hits], score: Score
) -> "list[ExpandedRows]":
    """Add the rows that are reached from the seeds of every query.

    Args:
        request: the request, with an expansion.
        state: the version of the table.
        hits: rows of every query that its stages consider, within bounds, nearest first.
        score: gives added rows their distances.

    Raises as `Snapshot.neighbor_graph` and `NeighborGraph.require`.
    """
    assert request.expansion is not None, "asked to expand"
    ends = [stage.end for stage in request.stages]
    seeds = [_seeds(found, ends) for found in hits]
    walk = _Walk(request, state)
    steps = walk.steps({row for of_stages in seeds for some in of_stages for row in some})
    stages = [_first_stages(of_stages, steps, request.expansion.hops) for of_stages in seeds]
    added = score(walk.candidates(hits, stages))
    metric = state.snapshot.codecs.metric
    return [
        ExpandedRows(request, metric, found, more, of_stages, steps)
        for found, more, of_stages in zip(hits, added, seeds, strict=True)
    ]


def _seeds(hits: Hits, ends: Sequence[int]) -> list[list[int]]:
    """Row ids of the seeds of every stage, nearest first."""
    assert hits.stages_S is not None, "not ranked yet"
    return [hits.row_ids_S[hits.stages_S <= stage][:end].tolist() for stage, end in enumerate(ends)]


def _first_stages(seeds_K: Sequence[Sequence[int]], steps: Steps, hops: int) -> dict[int, int]:
    """Row id -> first stage that reaches it from one of its seeds."""
    first: dict[int, int] = {}
    for stage, seeds in enumerate(seeds_K):
        for row in graph_scores(dict.fromkeys(seeds, 1.0), steps, hops):
            first.setdefault(row, stage)
    return first


def graph_scores(seeds: Mapping[int, float], steps: Steps, hops: int) -> dict[int, float]:
    """Graph scores of all rows that are reached from seeds in 1 to `hops` steps.

    Args:
        seeds: row id -> similarity.
        steps: neighbors of rows.
        hops: most steps.
    """
    scores: dict[int, float] = {}
    reached: Mapping[int, float] = seeds
    for _ in range(hops):
        following: dict[int, float] = {}
        for row, value in reached.items():
            for neighbor in steps.get(row, ()):
                following[neighbor] = max(following.get(neighbor, 0.0), DECAY * value)
        for row, value in following.items():
            scores[row] = max(scores.get(row, 0.0), value)
        reached = following
    return scores


class _Walk:
    """Steps through the graph over the rows of a version that a query may find."""

    def __init__(self, request: SearchRequest, state: TableState) -> None:
        assert request.expansion is not None, "asked to expand"
        self._expansion: Expansion = request.expansion
        self._where = request.where if request.prefilter else None
        self._snapshot = state.snapshot
        self._graph: NeighborGraph = state.snapshot.neighbor_graph
        self._graph.require(self._expansion.neighbors)
        self._looked_up = np.empty(0, np.uint64)
        self._found = no_rows(state.snapshot.codecs.code_bytes)

    def steps(self, seeds: Iterable[int]) -> Steps:
        """The neighbors of seeds, and of rows that are reached from them, which exist and match."""
        steps: dict[int, Sequence[int]] = {}
        seen = frontier = set(seeds)
        for _ in range(self._expansion.hops):
            lists = self._graph.neighbors_of(np.array(sorted(frontier), np.uint64))
            self._look_up(np.unique(np.concatenate([np.empty(0, np.uint64), *lists.values()])))
            exist = set(self._found.row_ids_N.tolist())
            for row, neighbors in lists.items():
                steps[row] = [each for each in neighbors.tolist() if each in exist][
                    : self._expansion.neighbors
                ]
            frontier = {each for row in lists for each in steps[row]} - seen
            seen = seen | frontier
        return steps

    def _look_up(self, row_ids: RowIds) -> None:
        """Read the codes of those of the rows that exist, have one, and match the condition."""
        wanted = np.setdiff1d(row_ids, self._looked_up)
        self._looked_up = np.union1d(self._looked_up, wanted)
        dataset, codecs = self._snapshot.dataset, self._snapshot.codecs
        if self._where is not None and len(wanted):
            wanted = matching_row_ids(dataset, f"{row_id_filter(wanted)} AND {self._where}")
        if len(wanted):
            taken = take_existing_rows(dataset, [*codecs.columns.names, ROW_ID], wanted)
            codes, valid_N = codecs.read(taken)
            self._found = concatenated([self._found, CodeBatch(taken[ROW_ID].to_numpy()[valid_N], codes)])

    def candidates(self, hits: Sequence[Hits], first: Sequence[Mapping[int, int]]) -> Candidates:
        """The rows of every query that are reached and that its shortlist has not.

        Args:
            hits: rows of the shortlist of every query.
            first: row id -> first stage that reaches it, for every query.
        """
        order_N = np.argsort(self._found.row_ids_N)
        sorted_N, rows, stages = self._found.row_ids_N[order_N], [], []
        for found, reached in zip(hits, first, strict=True):
            more = np.setdiff1d(np.array(list(reached), np.uint64), found.row_ids_S)
            rows.append(order_N[np.searchsorted(sorted_N, more)])
            stages += [reached[row] for row in more.tolist()]
        return Candidates(
            self._found[np.concatenate(rows)],
            np.full(len(stages), -np.inf),
            np.array(stages, np.int64),
            np.cumsum([0, *map(len, rows)]),
            np.zeros(len(rows), dtype=bool),
        )


class ExpandedRows:
    """The rows of one query that its shortlist has or that are reached from its seeds, nearest first."""

    def __init__(
        self,
        request: SearchRequest,
        metric: Metric,
        shortlisted: Hits,
        added: Hits,
        seeds_K: Sequence[Sequence[int]],
        steps: Steps,
    ) -> None:
        """Join the rows, and lower the stage of rows of a later shortlist that are reached earlier.

        Args:
            request: the request, with an expansion.
            metric: metric of the distances.
            shortlisted: rows of the shortlist, with their stages.
            added: rows that are reached, with theirs, none of them in `shortlisted`.
            seeds_K: row ids of the seeds of every stage.
            steps: neighbors of rows.
        """
        assert request.expansion is not None, "asked to expand"
        self._expansion, self._seeds_K, self._steps = request.expansion, seeds_K, steps
        self._ends, self._metric, self._stage = [stage.end for stage in request.stages], metric, 0
        self._sizes = [stage.refined or stage.shortlist for stage in request.stages]
        assert shortlisted.stages_S is not None, "not ranked yet"
        of_shortlist = dict(zip(shortlisted.row_ids_S.tolist(), shortlisted.stages_S.tolist(), strict=True))
        hits = ordered(shortlisted.joined(added))
        self._row_ids = hits.row_ids_S.tolist()
        self._shortlisted_S = np.array(
            [of_shortlist.get(row, len(seeds_K)) for row in self._row_ids], np.int64
        )
        first = _first_stages(seeds_K, steps, self._expansion.hops)
        reached_S = np.array([first.get(row, len(seeds_K)) for row in self._row_ids], np.int64)
        assert hits.stages_S is not None, "joined with stages"
        self.hits = dataclasses.replace(hits, stages_S=np.minimum(hits.stages_S, reached_S))
        """The rows, each with the first stage that considers it."""
        self._values_S = exact_values(hits.distances_S, hits.tie_breaks_S, metric)

    def choose(self, open_S: Mask, count: int) -> Positions:
        """Choose up to `count` of the open rows, best first; to be called for stage after stage."""
        order_X = self._order(self._stage)
        self._stage += 1
        return order_X[open_S[order_X]][:count]

    def best(self) -> Hits:
        """The best rows of every stage, as many as its shortlist has, each with the first stage that it is
        one of the best rows of; nearest first."""
        first_S = np.full(len(self.hits), len(self._sizes))
        for stage, size in reversed(list(enumerate(self._sizes))):
            first_S[self._order(stage)[:size]] = stage
        return dataclasses.replace(self.hits, stages_S=first_S)[first_S < len(self._sizes)]

    def _order(self, stage: int) -> Positions:
        """Positions of the rows that a stage considers, best first."""
        assert self.hits.stages_S is not None, "joined with stages"
        considered_X = np.flatnonzero(self.hits.stages_S <= stage)
        similarities_S = self._similarities(stage)
        places = {row: place for place, row in enumerate(self._row_ids)}
        seeds = {row: float(similarities_S[places[row]]) for row in self._seeds_K[stage]}
        scores = graph_scores(seeds, self._steps, self._expansion.hops)
        graph_X = np.array([scores.get(self._row_ids[place], 0.0) for place in considered_X.tolist()])
        weight = self._expansion.weight
        blended_X = (1 - weight) * similarities_S[considered_X] + weight * graph_X
        return considered_X[np.argsort(-blended_X, kind="stable")]

    def _similarities(self, stage: int) -> Float64Array:
        """Similarity of every row to the query at a stage, from 0 to 1, (S,)."""
        # Under "dot", values are inner products, of which the largest is nearest.
        costs_S = -self._values_S if self._metric == "dot" else self._values_S
        near = np.flatnonzero(self._shortlisted_S <= stage)[: _RANGE * self._ends[stage]]
        if len(near) == 0:
            return np.zeros(len(costs_S))
        nearest, farthest = float(costs_S[0]), float(costs_S[near[-1]])
        if farthest <= nearest:
            return (costs_S <= nearest).astype(np.float64)
        return np.clip((farthest - costs_S) / (farthest - nearest), 0, 1)
