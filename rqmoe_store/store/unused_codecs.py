"""Codecs that nothing in a database needs any more, and their way out of the registry."""

import dataclasses
import datetime
from typing import cast

from lancedb.db import DBConnection
from lancedb.table import LanceTable, Table

from rqmoe_store.codecs.artefact import Artefact, require_fingerprint
from rqmoe_store.errors import ArtefactError, TableError
from rqmoe_store.store import registry
from rqmoe_store.store.codec_needs import unneeded_codecs
from rqmoe_store.store.retries import despite_conflicts
from rqmoe_store.store.versions import remove_old_versions

GRACE = datetime.timedelta(days=7)
"""Codecs saved or replaced since may be needed by what another process has not committed yet."""


@dataclasses.dataclass(frozen=True)
class RemovedCodecs:
    """What `remove_unused` did."""

    codecs: int = 0
    """Codecs that are gone."""
    bytes: int = 0
    """Size of these, and of copies of codecs that were there more than once."""
    kept_because: str | None = None
    """Why nothing was removed, although something might have been; None otherwise."""


def remove_unused(db: DBConnection, older_than: datetime.timedelta = GRACE) -> RemovedCodecs:
    """Remove the codecs that no version of any table of `db` needs, and copies of codecs that stay.

    Args:
        db: a database in a folder or bucket.
        older_than: what was saved or replaced since then stays. Less than 7 days only while no other process
            is writing to any table of `db`.
    """
    before = datetime.datetime.now(datetime.UTC) - older_than
    try:
        table = registry.opened(db)
        if table is None:
            return RemovedCodecs()
        saved = registry.saved_at(table)
        unused = unused_codecs(db, saved, before)
        size = sum(_remove(table, each, f"created_at <= {registry.sql_time(before)}") for each in unused)
        size += sum(_remove_copies(table, each) for each in saved.keys() - unused if len(saved[each]) > 1)
    except (ArtefactError, TableError) as error:
        return RemovedCodecs(kept_because=str(error))
    remove_old_versions(cast(LanceTable, table), older_than)
    return RemovedCodecs(len(unused), size)


def unused_codecs(
    db: DBConnection, saved: dict[str, list[datetime.datetime]], before: datetime.datetime
) -> set[str]:
    """Fingerprints of codecs that nothing needs and that nobody has saved, or replaced, since `before`.

    Args:
        db: a database in a folder or bucket.
        saved: when every codec was saved, as `registry.saved_at` gives it.
        before: end of the grace period.

    Raises:
        TableError: a table cannot be read, so that nobody knows what it needs.
    """
    old = {fingerprint for fingerprint, times in saved.items() if max(times) <= before}
    return unneeded_codecs(db, old, recent=saved.keys() - old)


def _remove_copies(table: Table, fingerprint: str) -> int:
    """Remove what was saved before the last copy of a codec, if that is intact; returns the bytes removed."""
    last = registry.sql_time(max(registry.saved_at(table)[fingerprint]))
    copies = registry.stored(table, f"{registry.is_codec(fingerprint)} AND created_at = {last}")
    if not any(_is_intact(each, fingerprint) for each in copies):
        return 0
    return _remove(table, fingerprint, f"created_at < {last}")


def _is_intact(artefact: Artefact, fingerprint: str) -> bool:
    try:
        require_fingerprint(artefact, fingerprint)
        artefact.unpack()
    except ArtefactError:
        return False
    return True


def _remove(table: Table, fingerprint: str, condition: str) -> int:
    """Remove those copies of a codec that match; returns the bytes removed."""
    condition = f"{registry.is_codec(fingerprint)} AND {condition}"
    size = sum(len(each.config_json) + len(each.weights) for each in registry.stored(table, condition))
    despite_conflicts(lambda: table.delete(condition))
    return size
