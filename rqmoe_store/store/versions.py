"""Old versions of a table, and the files that only they need."""

import datetime

from lancedb.table import LanceTable

from rqmoe_store.store import databases

KEPT_FOR = datetime.timedelta(days=7)
"""How long versions can be restored, if nothing else is said; the same as in LanceDB."""

_AT_ONCE = datetime.timedelta(microseconds=1)  # Lance takes a zero for nothing said


def remove_old_versions(table: LanceTable, older_than: datetime.timedelta | None) -> None:
    """Remove versions older than this, but for the newest and those that a tag or a branch keeps.

    Args:
        table: any handle on it; it stays at the version it is at.
        older_than: None for 7 days.
    """
    databases.reopened(table).to_lance().cleanup_old_versions(
        older_than=max(_AT_ONCE, KEPT_FOR if older_than is None else older_than),
        error_if_tagged_old_versions=False,
    )
