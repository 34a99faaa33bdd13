"""Merging small files, bringing indexes up to date, and removing old versions."""

import datetime

from lancedb.table import LanceTable

from rqmoe_store.store.retries import despite_conflicts


def compact(table: LanceTable, cleanup_older_than: datetime.timedelta | None) -> None:
    """LanceDB's `optimize`, again when other writers come in between.

    Args:
        table: any handle on it; it is at the newest version afterwards.
        cleanup_older_than: versions older than this are removed; None for 7 days.
    """

    def optimize() -> None:
        table.checkout_latest()  # type: ignore[no-untyped-call]  # LanceDB leaves it unannotated
        table.optimize(cleanup_older_than=cleanup_older_than)

    despite_conflicts(optimize)
    table.checkout_latest()  # type: ignore[no-untyped-call]
