"""Search request: checked options, search parameters, and the plan of what a query does.

Shape suffixes: Q queries, D dimension.

tuning, or nobody.

A ranking is made in stages that end after 10 rows, 15, 25, 50, 100, 150, 250 and so on. A stage has a
shortlist, and fills its places with the best rows of it that no earlier stage has placed. So a row has the
same place whatever page it is asked for with, and first pages need not decode what later ones do.
"""

import contextlib
import dataclasses
import heapq
import importlib
import itertools
import math
import textwrap
import time
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from rqmoe_store.arguments import whole_number
from rqmoe_store.codecs.vectors import Float32Array, as_vectors, has_named_columns, listed
from rqmoe_store.config import Metric
from rqmoe_store.errors import InvalidInputError, RQMoEError
from rqmoe_store.store.metadata import TunedSearch

Origin = Literal["asked for", "tuned", "default"]

DEFAULT_NPROBES = 20
DEFAULT_SHORTLIST = 30
SHORTLIST_PER_ROW = 3
"""A shortlist not asked for is this many times the rows that are ranked after its stage, and at least
DEFAULT_SHORTLIST. In a tuned table it is as tuned up to the limit it was tuned for, and beyond that the
longer of the two."""

_STEPS = (10, 15, 25, 50)
"""Where stages end, times powers of ten. No page decodes twice as many rows as it needs. With more steps more
stages would begin with rows that are nearer than the last of the stage before."""


class RankingStage(NamedTuple):
    """A part of a ranking."""

    end: int
    """Rows that are ranked when it is done."""
    shortlist: int
    """Rows that are decoded for it and the stages before."""
    shortlist_from: Origin
    refined: int | None = None
    """Rows of these that are ordered by their raw vectors; None for none."""


@dataclasses.dataclass(frozen=True)
class SearchParameters:
    """How many partitions a query searches, and how long the shortlists of its stages are."""

    nprobes: int
    nprobes_from: Origin
    shortlist: int | None = None
    """What was asked for: the same in every stage. None for nothing."""
    refine_factor: int | None = None
    tuned: TunedSearch | None = None

    def stages(self, rows: int) -> tuple[RankingStage, ...]:
        """The stages that rank the first `rows` rows, limit + offset of a page.

        Raises:
            InvalidInputError: a shortlist asked for that is shorter, or shorter than what is refined.
        """
        least = rows * (self.refine_factor or 1)
        if self.shortlist is not None and self.shortlist < least:
            raise InvalidInputError(
                f"Got shortlist={self.shortlist}; expected at least {least}, limit + offset times the "
                "refine factor: only shortlisted rows can be returned. Raise it, or leave it out."
            )
        stages: list[RankingStage] = []
        for end in self.ends():
            stages.append(self._stage(end))
            if end >= rows:
                break
        return tuple(stages)

    def one_more(self, stages: Sequence[RankingStage]) -> tuple[RankingStage, ...] | None:
        """These stages and the next; None where a shortlist that was asked for has no more rows to rank."""
        later = next((end for end in self.ends() if end > stages[-1].end), None)
        return None if later is None else (*stages, self._stage(later))

    def ends(self) -> Iterator[int]:
        """Rows that are ranked after every stage; without end unless a shortlist was asked for."""
        last = math.inf if self.shortlist is None else self.shortlist // (self.refine_factor or 1)
        # The rows that a table was tuned for are a stage, so that they cost what was measured.
        tuned = [] if self.tuned is None else [self.tuned.limit]
        for end, _ in itertools.groupby(heapq.merge(stage_ends(), tuned)):
            if end >= last:
                yield int(last)
                return
            yield end

    def _stage(self, end: int) -> RankingStage:
        refined = None if self.refine_factor is None else self.refine_factor * end
        least = refined or end
        if self.shortlist is not None:
            return RankingStage(end, self.shortlist, "asked for", refined)
        if self.tuned is None:
            return RankingStage(
                end, max(SHORTLIST_PER_ROW * end, DEFAULT_SHORTLIST, least), "default", refined
            )
        needed = least if end <= self.tuned.limit else max(SHORTLIST_PER_ROW * end, least)
        if needed <= self.tuned.shortlist:
            return RankingStage(end, self.tuned.shortlist, "tuned", refined)
        return RankingStage(end, needed, "default", refined)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VectorOptions:
    """What a query says of its search by vector; None for what it does not say."""

    nprobes: int | None = None
    """Partitions to search."""
    shortlist: int | None = None
    """Rows to decode."""
    refine_factor: int | None = None
    """Rows to order by their raw vectors, times those wanted."""
    lower: float | None = None
    """The least distance of a result."""
    upper: float | None = None
    """The distance that all results are below."""

    def parameters(self, tuned: TunedSearch | None) -> SearchParameters:
        """What is searched with in a table that was tuned to this setting, or to none."""
        if self.nprobes is not None:
            return SearchParameters(self.nprobes, "asked for", self.shortlist, self.refine_factor, tuned)
        if tuned is not None:
            return SearchParameters(tuned.nprobes, "tuned", self.shortlist, self.refine_factor, tuned)
        return SearchParameters(DEFAULT_NPROBES, "default", self.shortlist, self.refine_factor, tuned)


def stage_ends() -> Iterator[int]:
    """Rows after which stages end, ascending and without end."""
    for scale in itertools.count():
        for step in _STEPS:
            yield step * 10**scale


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchRequest:
    """What a query asks for; checked."""

    queries_QD: Float32Array
    where: str | None = None
    """A checked condition."""
    where_text: str = ""
    """The same as the user wrote it, for plans."""
    prefilter: bool = True
    limit: int
    offset: int = 0
    reach: SearchParameters
    stages: tuple[RankingStage, ...]
    """Of its ranking, as far as it is needed."""
    diversity: float | None = None
    """The lambda of maximal marginal relevance; None for the nearest rows."""
    lower: float | None = None
    upper: float | None = None

    @property
    def shortlist(self) -> int:
        """Rows decoded at most, per side of a lower bound."""
        return self.stages[-1].shortlist

    @property
    def refined(self) -> int | None:
        """Rows to order by their raw vectors; None for none."""
        return self.stages[-1].refined


def as_queries(query: Any, *, dim: int, metric: Metric) -> Float32Array:
    """One vector (D,) or a batch (Q, D) as checked float32 queries (Q, D).

    Raises:
        InvalidInputError: what `as_vectors` refuses, or an empty batch.
    """
    query = listed(query)
    if _is_single(query):
        query = query[None] if isinstance(query, torch.Tensor) else [query]
    queries_QD = as_vectors(query, dim=dim, metric=metric)
    if len(queries_QD) == 0:
        raise InvalidInputError("Got an empty batch of queries; expected at least one vector.")
    return queries_QD


def batch_length(length: Any) -> int | None:
    """Rows per batch at most as an int, None for no such limit; raises InvalidInputError below 1."""
    return None if length is None else whole_number("max_batch_length", length, 1)


def bound(name: str, value: Any) -> float | None:
    """A side of a distance range as a float; raises InvalidInputError unless a number or None."""
    if value is None:
        return None
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not is_number or math.isnan(value):
        raise InvalidInputError(f"Got {name}={value!r}; expected a number, or None for no bound.")
    return float(value)


def share(name: str, value: Any) -> float:
    """`value` as a float from 0 to 1; raises InvalidInputError otherwise."""
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= 1:
        raise InvalidInputError(f"Got {name}={value!r}; expected a number from 0 to 1.")
    return float(value)


def require_installed(module: str) -> ModuleType:
    """The module, imported; raises RQMoEError with the install command when it is missing."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise RQMoEError(
            f"to_{module}() needs {module}, which is not installed. Run: pip install {module}"
        ) from error


def _is_single(query: Any) -> bool:
    if isinstance(query, (torch.Tensor, np.ndarray)):
        return query.ndim == 1
    if isinstance(query, str) or has_named_columns(query) or not hasattr(query, "__len__") or len(query) == 0:
        return False
    # Only the first element is looked at: rows of different lengths are reported by `as_vectors`.
    try:
        return np.ndim(query[0]) == 0
    except (KeyError, TypeError, IndexError):  # no sequence: `as_vectors` says what it is
        return False


@dataclasses.dataclass
class PlanStage:
    """One stage of a query."""

    name: str
    detail: str
    rows: int | None = None
    """Rows that came out of it, of all queries together; None until it has run."""
    seconds: float = 0.0


class Trace:
    """The stages of one query in the order they run."""

    def __init__(self) -> None:
        self.stages: list[PlanStage] = []

    def plan(self, name: str, detail: str) -> None:
        """Name a stage without running it."""
        self.stages.append(PlanStage(name, detail))

    @contextlib.contextmanager
    def stage(self, name: str, detail: str) -> Iterator[PlanStage]:
        """Time what is done inside; the caller sets the rows."""
        stage = PlanStage(name, detail)
        self.stages.append(stage)
        started = time.perf_counter()
        try:
            yield stage
        finally:
            stage.seconds = time.perf_counter() - started

    def __str__(self) -> str:
        """One line per stage, the last one first, as LanceDB prints plans; its input is indented below."""
        lines = []
        for depth, stage in enumerate(reversed(self.stages)):
            counts = "" if stage.rows is None else f"  rows={stage.rows:,} time={stage.seconds * 1e3:.3f}ms"
            lines.append(f"{'  ' * depth}{stage.name}: {stage.detail}{counts}")
        return "\n".join(lines)


def indented(plan: str) -> str:
    """A plan as the input of a stage that is written above it."""
    return textwrap.indent(plan.rstrip(), "  ")
