"""Merging small files, bringing indexes up to date, and removing old versions."""

import datetime

from lancedb.table import LanceTable

from rqmoe_store.store import databases, drift, ingested
from rqmoe_store.store.retries import despite_conflicts, on_newest, to_newest
from rqmoe_store.store.table_codec import TableCodec
from rqmoe_store.store.versions import remove_old_versions

_NEVER = datetime.timedelta(days=36_500)


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
            notes |= drift.folded(dataset, codecs, table.name)
        if notes:
            dataset.update_metadata(notes)

    despite_conflicts(write)
