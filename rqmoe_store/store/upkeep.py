"""Merging small files, bringing indexes up to date, and removing old versions."""

import dataclasses
import datetime

from lancedb.table import LanceTable

from rqmoe_store.store import databases, drift, ingested
from rqmoe_store.store.reencoding import Reencoded
from rqmoe_store.store.retries import despite_conflicts, on_newest, to_newest
from rqmoe_store.store.statistics import readable
from rqmoe_store.store.table_codec import TableCodec
from rqmoe_store.store.unused_codecs import RemovedCodecs
from rqmoe_store.store.versions import remove_old_versions

_NEVER = datetime.timedelta(days=36_500)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizeReport:
    """What `optimize` did; prints as a few lines."""

    trained: bool
    """Whether the table got its first codec."""
    encoded: Reencoded
    """Rows that were encoded, and the error of a sample of them, read back before their vectors went."""
    raw_rows: int
    """Rows that are still raw."""
    bytes_before: int
    """What the table took on disk, older versions included."""
    bytes_after: int
    """What it takes now."""
    removed: RemovedCodecs
    """Codecs that the database kept and nothing needs any more."""

    def __str__(self) -> str:
        error = "" if self.encoded.mse is None else f", mean squared error {self.encoded.mse:.4g}"
        lines = [
            f"encoded {self.encoded.rows:,} rows{error}" + (" by a new codec" if self.trained else ""),
            f"{self.raw_rows:,} rows are raw",
            f"{readable(self.bytes_before)} on disk before, {readable(self.bytes_after)} now",
        ]
        if self.removed.codecs:
            size = readable(self.removed.bytes)
            lines.append(f"removed {self.removed.codecs} codecs that nothing needs any more, {size}")
        if self.removed.kept_because is not None:
            lines.append(f"kept all codecs, for {self.removed.kept_because}")
        return "\n".join(lines)


def tidy(table: LanceTable, codecs: TableCodec, older_than: datetime.timedelta | None) -> None:
    """Merge small files, bring indexes up to date and remove old versions.

    What commits say about rows is kept before the versions that carry it are removed. Versions that a tag or
    a branch keeps stay.

    Args:
        table: any handle on it; it is at the newest version afterwards.
        codecs: of its newest version.
        older_than: versions older than this are removed; None for 7 days.
    """
    # LanceDB would remove old versions, too, but refuses to where one has a tag.
    on_newest(table, lambda: table.optimize(cleanup_older_than=_NEVER))
    _keep_notes(table, codecs)  # those of the commits just made, too: a version without its commit is a gap
    remove_old_versions(table, older_than)
    to_newest(table)


def _keep_notes(table: LanceTable, codecs: TableCodec) -> None:
    """Write what commits say about drift and ingestions into the table's metadata.

    In one commit: another one would be a version that the first does not count.
    """

    def write() -> None:
        dataset = databases.reopened(table).to_lance()
        notes: dict[str, str | None] = {**ingested.folded(dataset, table.name)}
        if codecs.newest is not None:
            notes |= drift.folded(dataset, codecs)
        if notes:
            dataset.update_metadata(notes)

    despite_conflicts(write)
