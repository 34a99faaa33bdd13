"""What was found in a table that was read from end to end, as it is told to people and programs."""

import dataclasses
from typing import Any

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
