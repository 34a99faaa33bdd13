"""How far a query looks, stage by stage of its ranking, and who said so: the query itself, the table's
tuning, or nobody.

A ranking is made in stages that end after 10 rows, 15, 25, 50, 100, 150, 250 and so on. A stage has a
shortlist, and fills its places with the best rows of it that no earlier stage has placed. So a row has the
same place whatever page it is asked for with, and first pages need not decode what later ones do.
"""

import dataclasses
import heapq
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.store.tuning import TunedSearch

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


class Stage(NamedTuple):
    """A part of a ranking."""

    end: int
    """Rows that are ranked when it is done."""
    shortlist: int
    """Rows that are decoded for it and the stages before."""
    shortlist_from: Origin
    refined: int | None = None
    """Rows of these that are ordered by their raw vectors; None for none."""


@dataclasses.dataclass(frozen=True)
class Reach:
    """How many partitions a query searches, and how long the shortlists of its stages are."""

    nprobes: int
    nprobes_from: Origin
    shortlist: int | None = None
    """What was asked for: the same in every stage. None for nothing."""
    refine_factor: int | None = None
    tuned: TunedSearch | None = None

    @classmethod
    def of(
        cls, nprobes: int | None, shortlist: int | None, refine_factor: int | None, tuned: TunedSearch | None
    ) -> "Reach":
        """That of a query that asks for so many partitions and so long a shortlist, None for what it does not
        say, in a table with this setting."""
        if nprobes is not None:
            return cls(nprobes, "asked for", shortlist, refine_factor, tuned)
        if tuned is not None:
            return cls(tuned.nprobes, "tuned", shortlist, refine_factor, tuned)
        return cls(DEFAULT_NPROBES, "default", shortlist, refine_factor, tuned)

    def stages(self, rows: int) -> tuple[Stage, ...]:
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
        stages: list[Stage] = []
        for end in self.ends():
            stages.append(self._stage(end))
            if end >= rows:
                break
        return tuple(stages)

    def one_more(self, stages: Sequence[Stage]) -> tuple[Stage, ...] | None:
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

    def _stage(self, end: int) -> Stage:
        refined = None if self.refine_factor is None else self.refine_factor * end
        least = refined or end
        if self.shortlist is not None:
            return Stage(end, self.shortlist, "asked for", refined)
        if self.tuned is None:
            return Stage(end, max(SHORTLIST_PER_ROW * end, DEFAULT_SHORTLIST, least), "default", refined)
        needed = least if end <= self.tuned.limit else max(SHORTLIST_PER_ROW * end, least)
        if needed <= self.tuned.shortlist:
            return Stage(end, self.tuned.shortlist, "tuned", refined)
        return Stage(end, needed, "default", refined)


def stage_ends() -> Iterator[int]:
    """Rows after which stages end, ascending and without end."""
    for scale in itertools.count():
        for step in _STEPS:
            yield step * 10**scale
