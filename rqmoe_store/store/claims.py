"""One process at a time adds to a job of ingestion: the one that claimed it last."""

import dataclasses
import uuid
from collections.abc import Callable, Mapping

import lance
from lancedb.table import LanceTable

from rqmoe_store.errors import TableError
from rqmoe_store.store import databases
from rqmoe_store.store.ingested import (
    Done,
    Ingested,
    VersionsGoneError,
    as_metadata,
    as_property,
    folded,
    ingested,
    note_in,
    stored,
    transaction_of,
)
from rqmoe_store.store.retries import despite_conflicts

_REPLACES = (lance.LanceOperation.Overwrite, lance.LanceOperation.Restore)


class Claim:
    """The right to add to a job, which the next process to claim it takes away."""

    def __init__(self, table: LanceTable, job: str, state: Ingested) -> None:
        self.ingested = state
        """What was in the table when the job was claimed."""
        self._table, self._job = table, job
        self._seen = state.folded_at
        self._own: set[int] = set()

    def properties(self, pieces: Mapping[str, Done]) -> dict[str, str]:
        """The note to commit with rows of these pieces."""
        return as_property(self._job, self.ingested, pieces)

    def committed(self, version: int) -> None:
        """Take note that this process made a version."""
        self._own.add(version)

    def require(self) -> None:
        """Raise TableError when another process has claimed, continued or undone the job since."""
        dataset = databases.reopened(self._table).to_lance()
        current = stored(dataset, self._job, self._table.name)
        if current is None or current.run != self.ingested.run:
            raise self._lost()
        for version in range(self._seen + 1, dataset.version + 1):
            if version not in self._own and self._is_rival(dataset, version, current.folded_at):
                raise self._lost()
        self._seen = dataset.version
        self._own.clear()

    def _is_rival(self, dataset: lance.LanceDataset, version: int, folded_at: int) -> bool:
        """Whether another process made this version by ingesting the same source, or by undoing commits."""
        try:
            made_by = transaction_of(dataset, version, self._table.name)
        except VersionsGoneError:
            if version > folded_at:
                raise
            return False
        note = note_in(made_by, self._table.name)
        return isinstance(made_by.operation, _REPLACES) or (note is not None and note.job == self._job)

    def fold(self) -> None:
        """Note what was added where it stays when old versions of the table are cleaned up."""

        def write() -> None:
            dataset = databases.reopened(self._table).to_lance()
            dataset.update_metadata({**folded(dataset, self._table.name)})

        despite_conflicts(write)

    def _lost(self) -> TableError:
        return TableError(
            f"Another process ingests the same source into table {self._table.name!r}, or has restored or "
            "replaced the table. What is committed stays; ingest again when nothing else does."
        )


class NoClaim(Claim):
    """Stands in for a claim where nothing is remembered, as the source cannot be told from others."""

    def __init__(self) -> None:
        self.ingested = Ingested(run="", round=0, version_note="", folded_at=0, pieces={})

    def properties(self, pieces: Mapping[str, Done]) -> dict[str, str]:
        return {}

    def committed(self, version: int) -> None:
        pass

    def require(self) -> None:
        pass

    def fold(self) -> None:
        pass


def claim(
    table: LanceTable,
    job: str,
    *,
    version_note: str = "",
    anew: bool = False,
    round: int | None = None,
    check: Callable[[Ingested], None] = lambda ingested: None,
) -> Claim:
    """Claim a job, which from now on this process alone adds to.

    Args:
        table: where rows are ingested.
        job: names the source.
        version_note: how to get the source as it is now.
        anew: whether what was ingested before counts for nothing.
        round: the round that another table says is the present one; what is of others counts for nothing.
        check: given what is in the table; raises if the job must not go on, before anything is written.

    Raises:
        VersionsGoneError: versions of the table that may have notes of the job are gone.
        TableError: its metadata, or the note of a commit, is damaged.
    """

    def claimed() -> Ingested:
        dataset = databases.reopened(table).to_lance()
        known = stored(dataset, job, table.name)
        last_round = 0 if known is None else known.round
        present = last_round + anew if round is None else round
        if present == last_round:
            before = ingested(dataset, job, table.name)
        else:
            before = Ingested(run="", round=present, version_note="", folded_at=dataset.version, pieces={})
        check(before)
        after = dataclasses.replace(
            before, run=uuid.uuid4().hex, version_note=version_note, folded_at=dataset.version
        )
        dataset.update_metadata({**as_metadata(job, after)})
        return after

    return Claim(table, job, despite_conflicts(claimed))
