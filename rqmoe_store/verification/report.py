"""Verification report: problems and advice, for people and programs."""

import contextlib
import dataclasses
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from rqmoe_store.store.lance import panics_as_errors
from rqmoe_store.store.statistics import readable

_SHOWN = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class OrphanedFile:
    """A file in a table's folder that no version of it has."""

    name: str
    """Its path within the folder."""
    bytes: int
    """Its size."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowCounts:
    """Rows that could be read, by what they have."""

    rows: int = 0
    """All of them."""
    coded: int = 0
    """Those with a code."""
    older: int = 0
    """Those of the coded ones that an older codec than the newest encoded."""
    raw: int = 0
    """Those with a vector and no code yet."""
    decoded: int = 0
    """Those of the coded ones that were decoded, a sample."""

    @property
    def empty(self) -> int:
        """Those with neither a code nor a vector."""
        return self.rows - self.coded - self.raw

    def __add__(self, other: "RowCounts") -> "RowCounts":
        sums = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return RowCounts(**dict(zip(_COUNTS, (mine + theirs for mine, theirs in sums), strict=True)))


_COUNTS = [field.name for field in dataclasses.fields(RowCounts)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What `verify` found; prints as words."""

    table: str
    """Name of the table."""
    version: int | None
    """The version that was read; None where the table could not be opened."""
    counts: RowCounts
    """Rows that could be read."""
    fragments: int
    """Groups of rows that the table is made of, each in data files of its own."""
    codecs: int
    """Codecs that its rows need and that are intact."""
    problems: tuple[str, ...]
    """Damage, each with what is known of it."""
    advice: tuple[str, ...]
    """What is no damage, but could be better."""
    orphans: tuple[OrphanedFile, ...]
    """Files in the table's folder that no version of it has, largest first: a write that was interrupted left
    them, or one that is under way needs them."""

    @property
    def ok(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Everything as what JSON can hold."""
        return {"ok": self.ok, **dataclasses.asdict(self)}

    def __str__(self) -> str:
        counts, lines = self.counts, [self._verdict]
        kinds = {"coded": counts.coded, "raw": counts.raw, "without a vector": counts.empty}
        some = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items() if count)
        lines.append(
            f"read {counts.rows:,} rows{f' ({some})' if some else ''} in {self.fragments:,} fragments, and "
            f"{self.codecs} codecs; decoded {counts.decoded:,} of the rows"
        )
        lines += [f"problem: {problem}" for problem in self.problems]
        lines += [f"advice: {advice}" for advice in self.advice]
        return "\n".join(lines + self._orphan_lines)

    @property
    def _verdict(self) -> str:
        what = f"table {self.table!r}" + ("" if self.version is None else f", version {self.version}")
        return f"{what}: {'no problems' if self.ok else f'{len(self.problems)} problems'}"

    @property
    def _orphan_lines(self) -> list[str]:
        if not self.orphans:
            return []
        size = readable(sum(each.bytes for each in self.orphans))
        lines = [
            f"orphaned: {len(self.orphans)} files, {size}, that no version has: an interrupted write left "
            "them, or one under way needs them; optimize() removes them when they are 7 days old"
        ]
        lines += [f"  {each.name} ({readable(each.bytes)})" for each in self.orphans[:_SHOWN]]
        rest = len(self.orphans) - _SHOWN
        return lines + ([f"  and {rest} more"] if rest > 0 else [])


_NAMED = 5
_PLACE_IN_LANCE = re.compile(r",? \S+\.rs:\d+:\d+")


class Findings:
    """What was found so far."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        """Damage."""
        self.advice: list[str] = []
        """What could be better."""
        self._rows: dict[str, _Rows] = {}

    @contextlib.contextmanager
    def during(self, what: str) -> Iterator[None]:
        """Note an error as a problem, which begins with `what`, and go on.

        Errors of all classes: what damaged data leads to, Lance has no class of its own for.
        """
        try:
            with panics_as_errors():
                yield
        except Exception as error:
            self.problems.append(f"{what}: {in_words(error)}")

    def rows(self, problem: str, row_ids: npt.NDArray[np.uint64]) -> None:
        """Note rows that have a problem, such as "rows have a code without a partition"."""
        if len(row_ids):
            found = self._rows.setdefault(problem, _Rows())
            found.count += len(row_ids)
            found.first += row_ids[: _NAMED - len(found.first)].tolist()

    @property
    def all_problems(self) -> Iterable[str]:
        """All of them, those of rows with how many there are and the ids of the first."""
        yield from self.problems
        for problem, found in self._rows.items():
            more = " and others" if found.count > len(found.first) else ""
            yield f"{found.count:,} {problem}: _rowid {', '.join(map(str, found.first))}{more}"


@dataclasses.dataclass
class _Rows:
    count: int = 0
    first: list[int] = dataclasses.field(default_factory=list)


def in_words(error: Exception) -> str:
    """What an error says, without the places in Lance's source that it comes from."""
    return _PLACE_IN_LANCE.sub("", str(error)).strip() or type(error).__name__
