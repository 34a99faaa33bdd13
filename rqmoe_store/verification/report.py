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

_ORPHANS_LISTED = 10
_ROW_IDS_LISTED = 5
_PLACE_IN_LANCE = re.compile(r",? \S+\.rs:\d+:\d+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OrphanedFile:
    """A file in a table's folder that belongs to no version of the table."""

    name: str
    """Path within the folder."""
    bytes: int
    """Size of the file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowCounts:
    """Numbers of rows that could be read, by kind."""

    rows: int = 0
    """All rows."""
    coded: int = 0
    """Rows with a code."""
    older: int = 0
    """Rows whose code is not of the newest codec."""
    raw: int = 0
    """Rows with a vector and no code yet."""
    decoded: int = 0
    """Rows with a code that were decoded, as a sample."""

    @property
    def empty(self) -> int:
        """Rows with neither a code nor a vector."""
        return self.rows - self.coded - self.raw

    def __add__(self, other: "RowCounts") -> "RowCounts":
        sums = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return RowCounts(**dict(zip(_COUNTS, (mine + theirs for mine, theirs in sums), strict=True)))


_COUNTS = [field.name for field in dataclasses.fields(RowCounts)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What `verify` found; prints as text."""

    table: str
    """Name of the table."""
    version: int | None
    """Version that was read; None if the table could not be opened."""
    counts: RowCounts
    """Rows that could be read."""
    fragments: int
    """Fragments of the table: groups of rows, each with its own data files."""
    codecs: int
    """Intact codecs that rows of the table need."""
    problems: tuple[str, ...]
    """Damage that was found, one text each."""
    advice: tuple[str, ...]
    """Possible improvements, where nothing is damaged."""
    orphans: tuple[OrphanedFile, ...]
    """Files in the table's folder that belong to no version, largest first: left by an interrupted write, or
    needed by one that is under way."""

    @property
    def ok(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """The report as values that JSON can hold."""
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
        lines += [f"  {each.name} ({readable(each.bytes)})" for each in self.orphans[:_ORPHANS_LISTED]]
        rest = len(self.orphans) - _ORPHANS_LISTED
        return lines + ([f"  and {rest} more"] if rest > 0 else [])


class Findings:
    """Collects problems and advice during a verification."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        """Damage that does not concern single rows."""
        self.advice: list[str] = []
        """Possible improvements."""
        self._rows: dict[str, _BadRows] = {}

    @contextlib.contextmanager
    def recording(self, what: str) -> Iterator[None]:
        """Record an exception in the `with` block as a problem that begins with `what`, and continue.

        Catches every `Exception`, because Lance has no exception class of its own for damaged data.
        """
        try:
            with panics_as_errors():
                yield
        except Exception as error:
            self.problems.append(f"{what}: {_message(error)}")

    def add_rows(self, problem: str, row_ids: npt.NDArray[np.uint64]) -> None:
        """Record rows that have a problem, such as "rows have a code without a partition"."""
        if len(row_ids):
            found = self._rows.setdefault(problem, _BadRows())
            found.count += len(row_ids)
            found.first += row_ids[: _ROW_IDS_LISTED - len(found.first)].tolist()

    @property
    def all_problems(self) -> Iterable[str]:
        """All problems; a problem of rows gives their number and the ids of the first few."""
        yield from self.problems
        for problem, found in self._rows.items():
            more = " and others" if found.count > len(found.first) else ""
            yield f"{found.count:,} {problem}: _rowid {', '.join(map(str, found.first))}{more}"


@dataclasses.dataclass
class _BadRows:
    count: int = 0
    first: list[int] = dataclasses.field(default_factory=list)


def _message(error: Exception) -> str:
    """The message of an exception, without the places in Lance's source code."""
    return _PLACE_IN_LANCE.sub("", str(error)).strip() or type(error).__name__
