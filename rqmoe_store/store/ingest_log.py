"""Ingestion log: which rows of which source a table has, kept in the table; and claims on a job.

A job is the ingestion of one source into one table. Every commit of a job carries a note in its transaction
properties: which rows of which pieces it adds. Rows and note are committed together, so no row is added
twice. From time to time the notes are folded into the table's metadata, under one key per job, so that the
versions whose commits carry them can be cleaned up. The state of a job is that key and the notes since then.

One process at a time claims a job; a process whose claim was taken over can no longer commit to it.
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
"""Exceptions that reading raises if the text was damaged."""


class PieceProgress(NamedTuple):
    """How much of a piece the table has."""

    state: str
    """Digest of the piece's stamp when it was read."""
    rows: int | None
    """Number of rows, from the first one on; None for all."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobState:
    """What one job has put into a table. Stored as JSON in the table's metadata."""

    run: str
    """Random name of the last claim; only the process that has it may commit to the job."""
    round: int
    """Increases when the job is restarted; notes of earlier rounds do not count."""
    version_note: str
    """How to open the source as it was when the job was claimed."""
    folded_at: int
    """Version of the table up to which notes are folded into this state."""
    pieces: Mapping[str, PieceProgress]
    """Key of a piece -> how much of it the table has."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Note:
    """Which rows a commit adds. Stored as JSON in its transaction properties."""

    job: str
    run: str
    """Claim under which the rows were committed."""
    round: int
    """Round of the job at that time."""
    pieces: Mapping[str, PieceProgress]
    """Key of a piece -> how much of it the table has with these rows."""


class VersionsGoneError(TableError):
    """Versions were cleaned up before the notes of their commits were folded."""


class DamagedNoteError(TableError):
    """The note of a commit, or the state of a job in the metadata, cannot be read."""


def folded_notes(dataset: lance.LanceDataset, table_name: str) -> dict[str, str]:
    """Table metadata with the states of all jobs up to the version of `dataset`; empty if there are no jobs.

    Once it is written, versions up to that one can be cleaned up. It leaves out jobs whose notes are lost or
    damaged; claiming such a job raises.
    """
    written: dict[str, str] = {}
    for job in _jobs(dataset):
        with contextlib.suppress(VersionsGoneError, DamagedNoteError):
            written |= as_metadata(
                job, dataclasses.replace(job_state(dataset, job, table_name), folded_at=dataset.version)
            )
    return written


def require_readable_log(dataset: lance.LanceDataset, table_name: str) -> None:
    """Raise DamagedNoteError if a job's state or a note, up to the version of `dataset`, is damaged.

    Notes that are gone with older versions are no damage.
    """
    for job in _jobs(dataset):
        with contextlib.suppress(VersionsGoneError):
            job_state(dataset, job, table_name)


def as_metadata(job: str, state: JobState) -> dict[str, str]:
    """The state of a job as table metadata.

    Raises:
        TableError: it could not be read back.
    """
    return {_KEY + job: readable_text(state, json.dumps(dataclasses.asdict(state)), _parsed)}


def folded_state(dataset: lance.LanceDataset, job: str, table_name: str) -> JobState | None:
    """The state of a job in the table's metadata, without later notes; None if it was never claimed.

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


def job_state(dataset: lance.LanceDataset, job: str, table_name: str) -> JobState:
    """The state of a job at the version of `dataset`.

    Raises:
        VersionsGoneError: versions that may have notes of the job are gone.
        DamagedNoteError: the metadata, or the note of a commit, cannot be read.
    """
    state = folded_state(dataset, job, table_name)
    if state is None:  # claiming a job writes its state before the first commit
        return JobState(run="", round=0, version_note="", folded_at=dataset.version, pieces={})
    notes = []
    for transaction in _commits(dataset, state.folded_at, table_name):
        if isinstance(transaction.operation, lance.LanceOperation.Overwrite):
            state = dataclasses.replace(state, pieces={})
            break
        note = note_in(transaction, table_name)
        if note and note.job == job and note.round == state.round:
            notes.append(note.pieces)
    pieces = dict(state.pieces)
    for note_pieces in reversed(notes):
        pieces |= note_pieces
    return dataclasses.replace(state, pieces=pieces)


def as_property(job: str, state: JobState, pieces: Mapping[str, PieceProgress]) -> dict[str, str]:
    """The note of a commit that adds rows of `pieces`, as transaction properties.

    Raises:
        TableError: it could not be read back.
    """
    note = Note(job=job, run=state.run, round=state.round, pieces=pieces)
    return {_PROPERTY: readable_text(note, json.dumps(dataclasses.asdict(note)), _parsed_note)}


def note_in(transaction: Transaction, table_name: str) -> Note | None:
    """The note of a commit; None if it has none.

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
    """The transaction that committed a version.

    Raises:
        VersionsGoneError: the version was cleaned up.
    """
    try:
        transaction = dataset.read_transaction(version)
    except OSError as error:
        raise _gone(version, table_name) from error
    if transaction is None:
        raise _gone(version, table_name)
    return transaction


def _commits(dataset: lance.LanceDataset, oldest: int, table_name: str) -> Iterator[Transaction]:
    """The transactions that led from version `oldest` to that of `dataset`, newest first.

    It skips what a restore has undone.
    """
    version = dataset.version
    while version > oldest:
        transaction = transaction_of(dataset, version, table_name)
        if isinstance(transaction.operation, lance.LanceOperation.Restore):
            version = transaction.operation.version
        else:
            yield transaction
            version -= 1


def _gone(version: int, table_name: str) -> VersionsGoneError:
    return VersionsGoneError(
        f"Version {version} of table {table_name!r} was cleaned up before it was recorded which rows it "
        "ingested, so they could come twice. Delete the rows that came from this source and ingest it with "
        "resume=False, or into a new table. The table's optimize() cleans up without losing these notes."
    )


def _jobs(dataset: lance.LanceDataset) -> list[str]:
    """All jobs in the table's metadata."""
    return [key.removeprefix(_KEY) for key in dataset.metadata if key.startswith(_KEY)]


def _parsed(text: str) -> JobState:
    return require_types(JobState(**_values(text)))


def _parsed_note(text: str) -> Note:
    return require_types(Note(**_values(text)))


def _values(text: str) -> dict[str, Any]:
    """The fields of a state or note in JSON. Raises one of `_DAMAGED` if they cannot be read."""
    values = json_object(text)
    return {**values, "pieces": {key: PieceProgress(*value) for key, value in values["pieces"].items()}}


_UNDOING = (lance.LanceOperation.Overwrite, lance.LanceOperation.Restore)
"""Operations that may remove rows that a job has added."""


class Claim:
    """The right to commit to a job, until another process claims it."""

    def __init__(self, table: LanceTable, job: str, state: JobState) -> None:
        self.state = state
        """State of the job when it was claimed."""
        self._table, self._job = table, job
        self._seen = state.folded_at
        self._own: set[int] = set()

    def properties(self, pieces: Mapping[str, PieceProgress]) -> dict[str, str]:
        """The transaction properties of a commit that adds rows of these pieces."""
        return as_property(self._job, self.state, pieces)

    def record_commit(self, version: int) -> None:
        """Record that this process committed a version, so that it does not count as a rival's."""
        self._own.add(version)

    def require_held(self) -> None:
        """Raise TableError if another process has claimed, continued or undone the job since."""
        dataset = databases.reopen(self._table).to_lance()
        current = folded_state(dataset, self._job, self._table.name)
        if current is None or current.run != self.state.run:
            raise self._lost()
        for version in range(self._seen + 1, dataset.version + 1):
            if version not in self._own and self._is_rival(dataset, version, current.folded_at):
                raise self._lost()
        self._seen = dataset.version
        self._own.clear()

    def _is_rival(self, dataset: lance.LanceDataset, version: int, folded_at: int) -> bool:
        """Whether another process committed this version to the same job, or undid commits with it."""
        try:
            transaction = transaction_of(dataset, version, self._table.name)
        except VersionsGoneError:
            if version > folded_at:
                raise
            return False
        note = note_in(transaction, self._table.name)
        return isinstance(transaction.operation, _UNDOING) or (note is not None and note.job == self._job)

    def fold_notes(self) -> None:
        """Fold all notes into the table's metadata, where they outlive old versions of the table."""

        def write() -> None:
            dataset = databases.reopen(self._table).to_lance()
            dataset.update_metadata({**folded_notes(dataset, self._table.name)})

        retry_on_conflict(write)

    def _lost(self) -> TableError:
        return TableError(
            f"Another process ingests the same source into table {self._table.name!r}, or has restored or "
            "replaced the table. What is committed stays; ingest again when nothing else does."
        )


class NoClaim(Claim):
    """Replaces a claim where nothing is logged, because nothing identifies the source."""

    def __init__(self) -> None:
        self.state = JobState(run="", round=0, version_note="", folded_at=0, pieces={})

    def properties(self, pieces: Mapping[str, PieceProgress]) -> dict[str, str]:
        return {}

    def record_commit(self, version: int) -> None:
        pass

    def require_held(self) -> None:
        pass

    def fold_notes(self) -> None:
        pass


def claim(
    table: LanceTable,
    job: str,
    *,
    version_note: str = "",
    restart: bool = False,
    round: int | None = None,
    check: Callable[[JobState], None] = lambda state: None,
) -> Claim:
    """Claim a job, so that from now on only this process can commit to it.

    Args:
        table: table that rows are ingested into.
        job: identifies the source.
        version_note: how to open the source as it is now.
        restart: whether to forget what was ingested before.
        round: round of the job, where another table decides it; the state of other rounds is forgotten.
        check: gets the state of the job, and raises if the job must not continue; nothing is written then.

    Raises:
        VersionsGoneError: versions of the table that may have notes of the job are gone.
        TableError: the state of the job, or the note of a commit, is damaged.
    """

    def write_claim() -> JobState:
        dataset = databases.reopen(table).to_lance()
        known = folded_state(dataset, job, table.name)
        last_round = 0 if known is None else known.round
        present = last_round + restart if round is None else round
        if present == last_round:
            before = job_state(dataset, job, table.name)
        else:
            before = JobState(run="", round=present, version_note="", folded_at=dataset.version, pieces={})
        check(before)
        after = dataclasses.replace(
            before, run=uuid.uuid4().hex, version_note=version_note, folded_at=dataset.version
        )
        dataset.update_metadata({**as_metadata(job, after)})
        return after

    return Claim(table, job, retry_on_conflict(write_claim))
