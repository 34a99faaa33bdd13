"""Ingestion log, kept in the table so that no row comes twice; and claims of a job by one process.

Every commit of an ingestion says in its properties which rows of which pieces it adds: the rows and the
note of them are one. Now and then the notes are folded into the table's metadata, one key per job, so that
the versions that carry them can be cleaned up; what a job has finished is that key and the notes since.
"""

import contextlib
import dataclasses
import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import lance
from lance.dataset import Transaction
from lancedb.table import LanceTable

from rqmoe_store.errors import TableError
from rqmoe_store.store import databases
from rqmoe_store.store.lance import retry_on_conflict
from rqmoe_store.store.metadata import PREFIX, json_object, readable_text, require_types

_PROPERTY = PREFIX + "ingested"
_KEY = _PROPERTY + "."

_DAMAGED = (AttributeError, KeyError, TypeError, ValueError)
"""Raised by what is read, if it is not what was written."""


class Done(NamedTuple):
    """How much of a piece is in the table."""

    state: str
    """Digest of what the piece was when it was read."""
    rows: int | None
    """Rows from its first one on; None for all of them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ingested:
    """What one job has put into a table."""

    run: str
    """Names the process that last claimed the job: no other one may add to it."""
    round: int
    """Grows when the job is begun anew; notes of earlier rounds do not count."""
    version_note: str
    """How to get the source as it was."""
    folded_at: int
    """Version of the table up to which notes are folded in here."""
    pieces: Mapping[str, Done]
    """Key of a piece -> how much of it is in the table."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Note:
    """What a commit says of the rows that it adds."""

    job: str
    """Whose they are."""
    run: str
    """The process that had claimed the job."""
    round: int
    """That of the job, then."""
    pieces: Mapping[str, Done]
    """How much of these is in the table, with these rows."""


class VersionsGoneError(TableError):
    """Versions that may have carried notes were cleaned up before these were folded."""


class DamagedNoteError(TableError):
    """What a commit, or the metadata, says of rows that were ingested cannot be read."""


def folded(dataset: lance.LanceDataset, table_name: str) -> dict[str, str]:
    """Table metadata that keeps the notes of all jobs up to the version that `dataset` is at.

    Versions up to that one can be cleaned up once it is written. Jobs whose notes are lost already, or cannot
    be read, are left as they are: they say so when they are claimed. Empty where nothing was ever ingested.
    """
    written: dict[str, str] = {}
    for job in _jobs(dataset):
        with contextlib.suppress(VersionsGoneError, DamagedNoteError):
            written |= as_metadata(
                job, dataclasses.replace(ingested(dataset, job, table_name), folded_at=dataset.version)
            )
    return written


def require_readable(dataset: lance.LanceDataset, table_name: str) -> None:
    """Raise DamagedNoteError unless all that is noted up to the version that `dataset` is at can be read, but
    for what is gone with older versions."""
    for job in _jobs(dataset):
        with contextlib.suppress(VersionsGoneError):
            ingested(dataset, job, table_name)


def as_metadata(job: str, state: Ingested) -> dict[str, str]:
    """The table metadata that keeps what a job has put into a table.

    Raises:
        TableError: it could not be read again.
    """
    return {_KEY + job: readable_text(state, json.dumps(dataclasses.asdict(state)), _parsed)}


def stored(dataset: lance.LanceDataset, job: str, table_name: str) -> Ingested | None:
    """What the table's metadata says about a job; None if it was never claimed.

    Raises:
        DamagedNoteError: it cannot be read.
    """
    text = dataset.metadata.get(_KEY + job)
    try:
        return None if text is None else _parsed(text)
    except _DAMAGED as error:
        raise DamagedNoteError(
            f"Metadata {_KEY + job!r} of table {table_name!r} is damaged ({error!r}); expected what ingest "
            "wrote. Restore an earlier version of the table, or give the source another name with job= once "
            "you have deleted the rows that came from it."
        ) from error


def ingested(dataset: lance.LanceDataset, job: str, table_name: str) -> Ingested:
    """What a job has put into the table, up to the version that `dataset` is at.

    Raises:
        VersionsGoneError: it cannot be told any more.
        DamagedNoteError: the metadata, or the note of a commit, cannot be read.
    """
    state = stored(dataset, job, table_name)
    if state is None:  # a job is stored before its first commit
        return Ingested(run="", round=0, version_note="", folded_at=dataset.version, pieces={})
    notes = []
    for transaction in _commits(dataset, state.folded_at, table_name):
        if isinstance(transaction.operation, lance.LanceOperation.Overwrite):
            state = dataclasses.replace(state, pieces={})
            break
        note = note_in(transaction, table_name)
        if note and note.job == job and note.round == state.round:
            notes.append(note.pieces)
    pieces = dict(state.pieces)
    for noted in reversed(notes):
        pieces |= noted
    return dataclasses.replace(state, pieces=pieces)


def as_property(job: str, state: Ingested, pieces: Mapping[str, Done]) -> dict[str, str]:
    """The note that a commit of rows of `pieces` carries in its properties.

    Raises:
        TableError: it could not be read again.
    """
    note = Note(job=job, run=state.run, round=state.round, pieces=pieces)
    return {_PROPERTY: readable_text(note, json.dumps(dataclasses.asdict(note)), _parsed_note)}


def note_in(transaction: Transaction, table_name: str) -> Note | None:
    """The note that a commit carries, or None.

    Raises:
        DamagedNoteError: it cannot be read.
    """
    text = (transaction.transaction_properties or {}).get(_PROPERTY)
    try:
        return None if text is None else _parsed_note(text)
    except _DAMAGED as error:
        raise DamagedNoteError(
            f"A commit of table {table_name!r} says of the rows it ingested {text!r}, which is damaged "
            f"({error!r}), so rows could come twice. Restore a version from before it, or delete the rows "
            "that came from this source and ingest it with resume=False."
        ) from error


def transaction_of(dataset: lance.LanceDataset, version: int, table_name: str) -> Transaction:
    """What made a version.

    Raises:
        VersionsGoneError: it was cleaned up.
    """
    try:
        transaction = dataset.read_transaction(version)
    except OSError as error:
        raise _gone(version, table_name) from error
    if transaction is None:
        raise _gone(version, table_name)
    return transaction


def _commits(dataset: lance.LanceDataset, oldest: int, table_name: str) -> Iterator[Transaction]:
    """What led from version `oldest` to the present one, newest first."""
    version = dataset.version
    while version > oldest:
        transaction = transaction_of(dataset, version, table_name)
        if isinstance(transaction.operation, lance.LanceOperation.Restore):
            version = transaction.operation.version  # what came in between is undone
        else:
            yield transaction
            version -= 1


def _gone(version: int, table_name: str) -> VersionsGoneError:
    return VersionsGoneError(
        f"Version {version} of table {table_name!r} was cleaned up before it was noted which rows it "
        "ingested, so they could come twice. Delete the rows that came from this source and ingest it with "
        "resume=False, or into a new table. The table's optimize() cleans up without losing these notes."
    )


def _jobs(dataset: lance.LanceDataset) -> list[str]:
    """All that the table's metadata knows."""
    return [key.removeprefix(_KEY) for key in dataset.metadata if key.startswith(_KEY)]


def _parsed(text: str) -> Ingested:
    return require_types(Ingested(**_values(text)))


def _parsed_note(text: str) -> Note:
    return require_types(Note(**_values(text)))


def _values(text: str) -> dict[str, Any]:
    """The fields of what was written as JSON. Raises one of `_DAMAGED` where they cannot be read."""
    values = json_object(text)
    return {**values, "pieces": {key: Done(*value) for key, value in values["pieces"].items()}}


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
        dataset = databases.reopen(self._table).to_lance()
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
            dataset = databases.reopen(self._table).to_lance()
            dataset.update_metadata({**folded(dataset, self._table.name)})

        retry_on_conflict(write)

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
        dataset = databases.reopen(table).to_lance()
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

    return Claim(table, job, retry_on_conflict(claimed))
