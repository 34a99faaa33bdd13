"""What tuning measured and chose."""

import dataclasses

from rqmoe_store.store.tuning import TunedSearch


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasuredSetting:
    """One setting that was tried."""

    nprobes: int
    """Partitions searched."""
    shortlist: int
    """Rows decoded and reranked."""
    recall: float
    """Share of the nearest rows that it found, 0 to 1, mean over the queries."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimedSetting(MeasuredSetting):
    """One that found enough with fewer rows or partitions than others."""

    milliseconds: float
    """Time of one query without taking its columns: best of a few runs, mean over the queries."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuningReport:
    """The setting chosen, what it costs and finds, and everything else that was tried; prints as a table."""

    setting: TunedSearch
    """What searches of the table use from now on."""
    recall: float
    """Share of the nearest rows that it finds, 0 to 1."""
    milliseconds: float
    """Time of one query."""
    queries: int
    """Queries it was measured with."""
    own_rows: bool
    """Whether these were made from the table's own rows."""
    num_partitions: int
    """Partitions of the table."""
    measured: tuple[MeasuredSetting, ...]
    """All settings tried, by nprobes and then by shortlist."""
    timed: tuple[TimedSetting, ...]
    """Those among which the fastest was chosen."""

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
