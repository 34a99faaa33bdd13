"""When the newest version of a table has to be looked for again.

LanceDB's `read_consistency_interval` allows reads to be that much older than the newest version, which saves
looks at the storage. What is written through a handle is seen by it at once all the same.
"""

import datetime
import time
import weakref

from lancedb.table import LanceTable


class Freshness:
    """Whether what is known of a table may still be read."""

    def __init__(self, interval: datetime.timedelta | None) -> None:
        """Begin with nothing known.

        Args:
            interval: for how long it may; None, like zero, for never.
        """
        self._seconds = 0.0 if interval is None else interval.total_seconds()
        # A new object with every write: unlike a number, it can be changed by several threads at once.
        self._last_write, self._seen_write = object(), object()
        self._looked_at = 0.0

    def is_due(self) -> bool:
        """Whether the storage has to be asked."""
        if self._seconds <= 0 or self._seen_write is not self._last_write:
            return True
        return time.monotonic() >= self._looked_at + self._seconds

    def begin(self) -> "Look":
        """To be called before the storage is asked, for what is written meanwhile may not be seen."""
        return Look(self, self._last_write, time.monotonic())

    def expire(self) -> None:
        """Have the storage asked the next time."""
        self._last_write = object()


class Look:
    """One question to the storage."""

    def __init__(self, freshness: Freshness, last_write: object, now: float) -> None:
        self._freshness, self._last_write, self._now = freshness, last_write, now

    def done(self) -> None:
        """What was asked is known now."""
        self._freshness._seen_write, self._freshness._looked_at = self._last_write, self._now


_written_through: "weakref.WeakKeyDictionary[LanceTable, Freshness]" = weakref.WeakKeyDictionary()


def follow(table: LanceTable, freshness: Freshness) -> None:
    """Have `expire` of this very handle expire what is known."""
    _written_through[table] = freshness


def expire(table: LanceTable) -> None:
    """Have whoever reads by this handle ask the storage the next time: it was written through."""
    freshness = _written_through.get(table)
    if freshness is not None:
        freshness.expire()
