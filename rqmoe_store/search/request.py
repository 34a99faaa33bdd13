"""Search request: checked options, search parameters, the stages of a ranking, and the trace of a plan.

Search parameters come from the query, from tuning or from defaults. Rows are ranked in stages that end after
10 rows, 15, 25, 50, 100, 150, 250 and so on. Each stage has a shortlist, and places the best rows of it that
no earlier stage has placed. A row thus has the same place on whatever page it is requested, and first pages
need not decode the rows of later ones.

Shape legend: Q queries, D vector dimension.
"""

import dataclasses
import functools
import importlib
import itertools
import math
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, Literal, NamedTuple, Self

import numpy as np

from rqmoe_store.arguments import real_number, whole_number
from rqmoe_store.codecs.vectors import Float32Array, as_vectors, has_named_columns, is_tensor, listed
from rqmoe_store.config import Metric
from rqmoe_store.errors import InvalidInputError, RQMoEError
from rqmoe_store.search.diversity import Diversity
from rqmoe_store.store.metadata import TunedSearch
from rqmoe_store.store.table_codec import TableCodec

Origin = Literal["asked for", "tuned", "default"]
_ASKED_FOR: Origin = "asked for"
_TUNED: Origin = "tuned"
_DEFAULT: Origin = "default"
Rerank = Literal["refined", "decoded", "none"]
"""What orders a shortlist: refine codes (rows without are decoded), decoded vectors, or look-up tables."""

DEFAULT_WEIGHT = 0.1
"""Weight of `expand` unless a query says otherwise: it finds more answers than 0.05, 0.2 or 0.3."""
MOST_HOPS = 4
DEFAULT_NPROBES = 20
DEFAULT_SHORTLIST = 30
SHORTLIST_PER_ROW: dict[Rerank, int] = {"refined": 20, "decoded": 3, "none": 1}
"""A default shortlist has this many times the rows that are ranked after its stage. Ordering by refine codes
costs next to nothing, and finds neighbors that look-up tables place far behind. In a tuned table the
shortlist is the tuned one up to the limit it was tuned for, and the longer of the two beyond that."""

MANY_VECTORS_PER_ROW, MANY_VECTORS_SHORTLIST = 10, 1_000
"""The same where rows have many vectors, and their shortest default shortlist: inner products of encodings
are far from what orders rows."""
SUMMED_PER_ROW, DECODED_PER_ROW, REFINED_PER_ROW, LEAST_RANKED = 10, 2, 3, 10
"""Where rows have many vectors: how many times the rows that are ranked after a stage, if these are at least
the last of the numbers, it compares by cosines from look-up tables; and of these, where decoded vectors have
other distances, how many it decodes without and with refine codes."""

_STEPS = (10, 15, 25, 50)
"""Where stages end, times powers of ten. No page decodes twice as many rows as it needs. More steps would
give more stages that begin with rows nearer than the last row of the stage before."""


class RankingStage(NamedTuple):
    """A stage of a ranking."""

    end: int
    """Number of rows that are ranked after the stage."""
    shortlist: int
    """Number of rows that the stage and those before it decode."""
    shortlist_from: Origin
    refined: int | None = None
    """Number of rows to order by raw vectors; None for none."""

    @property
    def summed(self) -> int:
        """Most rows to compare by cosines from look-up tables where rows have many vectors."""
        return self._of_many(SUMMED_PER_ROW)

    def decoded(self, *, refined: bool) -> int:
        """Most rows to decode where rows have many vectors and look-up tables do not order them exactly.

        Args:
            refined: whether they are decoded with refine codes.
        """
        return self._of_many(REFINED_PER_ROW if refined else DECODED_PER_ROW)

    def _of_many(self, per_row: int) -> int:
        return min(self.shortlist, max(per_row * max(self.end, LEAST_RANKED), self.refined or 0))


@dataclasses.dataclass(frozen=True)
class SearchParameters:
    """The number of partitions that a query probes, and the shortlists of its stages and their order."""

    nprobes: int
    nprobes_from: Origin
    rerank: Rerank
    shortlist: int | None = None
    """The shortlist that the query sets for all stages; None for the default of each stage."""
    refine_factor: int | None = None
    tuned: TunedSearch | None = None
    many_vectors: bool = False
    """Whether rows have many vectors each."""
    diversity: Diversity | None = None
    """How rows are chosen by their vectors; None for the nearest rows."""

    def stages(self, rows: int) -> tuple[RankingStage, ...]:
        """The stages that rank the first `rows` rows (limit + offset of a page).

        Raises:
            InvalidInputError: the query sets a shortlist that is shorter than `rows`, or the rows to refine.
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
        """These stages and the next one; None if the query's own shortlist has no more rows to rank."""
        later = next((end for end in self.ends() if end > stages[-1].end), None)
        return None if later is None else (*stages, self._stage(later))

    def ends(self) -> Iterator[int]:
        """Number of rows that are ranked after every stage; infinite unless the query sets a shortlist."""
        last = math.inf if self.shortlist is None else self.shortlist // (self.refine_factor or 1)
        # A stage ends at the limit that the table was tuned for: such a search costs what was measured.
        tuned, before = 0 if self.tuned is None else self.tuned.limit, 0
        for usual in stage_ends():
            for end in (tuned, usual) if before < tuned < usual else (usual,):
                if end >= last:
                    yield int(last)
                    return
                yield end
            before = usual

    def _stage(self, end: int) -> RankingStage:
        least, per_row = self._rows_needed(end), SHORTLIST_PER_ROW[self.rerank]
        refined = None if self.refine_factor is None else least
        if self.many_vectors and self.rerank != "none":
            least, per_row = max(least, MANY_VECTORS_SHORTLIST), MANY_VECTORS_PER_ROW
        if self.shortlist is not None:
            refined = None if refined is None else min(refined, self.shortlist)
            return RankingStage(end, self.shortlist, "asked for", refined)
        if self.tuned is None:
            return RankingStage(end, max(per_row * end, DEFAULT_SHORTLIST, least), "default", refined)
        needed = least if end <= self.tuned.limit else max(per_row * end, least)
        if needed <= self.tuned.shortlist:
            return RankingStage(end, self.tuned.shortlist, "tuned", refined)
        return RankingStage(end, needed, "default", refined)

    def _rows_needed(self, end: int) -> int:
        """Rows to refine, or to choose from where nothing is refined."""
        needed = end if self.diversity is None else self.diversity.rows_needed(end)
        return max(needed, (self.refine_factor or 1) * end)


class Expansion(NamedTuple):
    """How a query takes in neighbors of its results; see `VectorSearchQuery.expand`."""

    hops: int
    """Most steps from a seed to a row."""
    neighbors: int
    """Neighbors of a row to go on to."""
    weight: float
    """Share of the graph score in the score that orders rows."""


class VectorOptions(NamedTuple):
    """Options that a query sets for its vector search; None for options that it does not set."""

    nprobes: int | None = None
    """Partitions to probe."""
    shortlist: int | None = None
    """Rows to rerank."""
    refine_factor: int | None = None
    """Number of rows to order by raw vectors, relative to the rows to rank."""
    rerank: Rerank | None = None
    """What orders the shortlist."""
    lower: float | None = None
    """Least distance of a result."""
    upper: float | None = None
    """Upper bound of distances, exclusive."""
    expansion: Expansion | None = None
    """How to take in neighbors of the results."""

    def parameters(
        self, codecs: TableCodec, tuned: TunedSearch | None, diversity: Diversity | None = None
    ) -> SearchParameters:
        """The search parameters in a table with these codecs and tuned ones, or with none.

        Raises:
            InvalidInputError: rows are to be ordered by refine codes, and the table has none.
        """
        many = codecs.metadata.multi_vector
        refine_bytes = codecs.columns.refine_bytes if many is None else many.config.refine_bytes
        if self.rerank == "refined" and not refine_bytes:
            raise InvalidInputError(
                'Got rerank("refined") in a table without refine codes. Leave it out, or retrain with a '
                "config of refine_bytes."
            )
        nprobes, origin = DEFAULT_NPROBES, _DEFAULT
        if self.nprobes is not None:
            nprobes, origin = self.nprobes, _ASKED_FOR
        elif tuned is not None:
            nprobes, origin = tuned.nprobes, _TUNED
        return SearchParameters(
            nprobes,
            origin,
            self.rerank or default_rerank(codecs),
            self.shortlist,
            self.refine_factor,
            tuned,
            many is not None,
            diversity,
        )


def default_rerank(codecs: TableCodec) -> Rerank:
    """What orders shortlists unless a query says otherwise: what is fastest and loses nothing.

    Refine codes are both faster and more precise than decoding. Look-up tables of a transform code are exact;
    those of codecs that the table had before may not be.
    """
    many = codecs.metadata.multi_vector
    if many is not None:
        return "refined" if many.config.refine_bytes else "decoded"
    if not codecs.generations:
        return "decoded"
    # Older codecs may have had refine codes that the table has dropped.
    if codecs.columns.refine_bytes and any(each.metadata.refine_bytes for each in codecs.generations):
        return "refined"
    (*older, newest) = codecs.generations
    return "none" if not older and newest.codec.config.is_transform else "decoded"


def stage_ends() -> Iterator[int]:
    """Numbers of rows after which stages end, ascending and infinite."""
    for scale in itertools.count():
        for step in _STEPS:
            yield step * 10**scale


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchRequest:
    """A checked vector query."""

    queries_QD: Float32Array
    """What scans score: the queries, or their fixed dimensional encodings."""
    matrices: tuple[Float32Array, ...] | None = None
    """The vectors (K, D) of every query where rows have many vectors; None where they have one."""
    where: str | None = None
    """A checked condition."""
    where_text: str = ""
    """The condition as the user wrote it, for plans."""
    prefilter: bool = True
    limit: int
    offset: int = 0
    parameters: SearchParameters
    stages: tuple[RankingStage, ...]
    """The stages of the ranking that the page needs."""
    lower: float | None = None
    upper: float | None = None
    expansion: Expansion | None = None
    """How to take in neighbors of the results; None for the rows that the search finds alone."""

    def matrices_of(self, queries: Sequence[int]) -> tuple[Float32Array, ...] | None:
        """The matrices of some of the queries."""
        return None if self.matrices is None else tuple(self.matrices[query] for query in queries)

    @functools.cached_property
    def diversity(self) -> Diversity | None:
        """How rows are chosen by their vectors; None for the nearest rows."""
        return self.parameters.diversity

    @functools.cached_property
    def shortlist(self) -> int:
        """Most rows to decode, per side of a lower bound."""
        return self.stages[-1].shortlist

    @functools.cached_property
    def refined(self) -> int | None:
        """Number of rows to order by raw vectors; None for none."""
        return self.stages[-1].refined


def as_queries(query: Any, *, dim: int, metric: Metric) -> Float32Array:
    """One vector (D,) or a batch (Q, D) as checked float32 queries (Q, D).

    Raises:
        InvalidInputError: as `as_vectors`, or the batch is empty.
    """
    query = listed(query)
    if _is_single(query):
        query = query[None] if is_tensor(query) else [query]
    queries_QD = as_vectors(query, dim=dim, metric=metric)
    if len(queries_QD) == 0:
        raise InvalidInputError("Got an empty batch of queries; expected at least one vector.")
    return queries_QD


def batch_length(length: Any) -> int | None:
    """Check the most rows of a batch, None for no limit. Raises InvalidInputError below 1."""
    return None if length is None else whole_number("max_batch_length", length, 1)


def bound(name: str, value: Any) -> float | None:
    """A bound of a distance range as a float. Raises InvalidInputError unless it is a number or None."""
    if value is None:
        return None
    return real_number(name, value, lambda number: not math.isnan(number), "a number, or None for no bound")


def require_installed(module: str) -> ModuleType:
    """Import a module. Raises RQMoEError with the install command if it is missing."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise RQMoEError(
            f"to_{module}() needs {module}, which is not installed. Run: pip install {module}"
        ) from error


def _is_single(query: Any) -> bool:
    if is_tensor(query) or isinstance(query, np.ndarray):
        return query.ndim == 1
    if isinstance(query, str) or has_named_columns(query) or not hasattr(query, "__len__") or len(query) == 0:
        return False
    # The first element decides; `as_vectors` reports rows of different lengths.
    try:
        return np.ndim(query[0]) == 0
    except (KeyError, TypeError, IndexError):  # not a sequence, which `as_vectors` reports
        return False


class PlanStage:
    """A stage of a query plan. It runs as a `with` block, which sets the rows and whose time is measured."""

    def __init__(self, name: str, detail: Callable[[], str]) -> None:
        self.name, self.detail = name, detail
        self.rows: int | None = None
        """Output rows of all queries together; None until the stage has run."""
        self.seconds = 0.0

    def __enter__(self) -> Self:
        self._started = time.perf_counter()
        return self

    def __exit__(self, *raised: object) -> None:
        self.seconds = time.perf_counter() - self._started


class Trace:
    """The stages of one query in the order they run."""

    def __init__(self) -> None:
        self.stages: list[PlanStage] = []

    def stage(self, name: str, detail: Callable[[], str]) -> PlanStage:
        """Add a stage, which need not run.

        Args:
            name: of the stage.
            detail: gives the details, which are not composed unless the plan is shown.
        """
        stage = PlanStage(name, detail)
        self.stages.append(stage)
        return stage

    def __str__(self) -> str:
        """One line per stage, the last one first, each indented below the stage it feeds, as in LanceDB."""
        lines = []
        for depth, stage in enumerate(reversed(self.stages)):
            counts = "" if stage.rows is None else f"  rows={stage.rows:,} time={stage.seconds * 1e3:.3f}ms"
            lines.append(f"{'  ' * depth}{stage.name}: {stage.detail()}{counts}")
        return "\n".join(lines)


def indented(plan: str) -> str:
    """A plan, indented to be printed below the stage that it feeds."""
    return textwrap.indent(plan.rstrip(), "  ")
