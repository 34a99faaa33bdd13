"""What bulk ingestions have put into a table, kept in the table, so that no row comes twice.

Every commit of an ingestion says in its properties which rows of which pieces it adds: the rows and the
note of them are one. Now and then the notes are folded into the table's metadata, one key per job, so that
the versions that carry them can be cleaned up; what a job has finished is that key and the notes since.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import lance
from lance.dataset import Transaction

from rqmoe_store.errors import TableError
from rqmoe_store.store.metadata import PREFIX
from rqmoe_store.store.stored_values import json_object, require_types

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


def folded(dataset: lance.LanceDataset, table_name: str) -> dict[str, str]:
    """Table metadata that keeps the notes of all jobs up to the version that `dataset` is at.

    Versions up to that one can be cleaned up once it is written. Jobs whose notes are lost already are left
    as they are: they say so when they are claimed. Empty where nothing was ever ingested.

    Raises:
        TableError: the metadata is damaged.
    """
    written: dict[str, str] = {}
    for job in stored(dataset, table_name):
        with contextlib.suppress(VersionsGoneError):
            written |= as_metadata(
                job, dataclasses.replace(ingested(dataset, job, table_name), folded_at=dataset.version)
            )
    return written


def as_metadata(job: str, state: Ingested) -> dict[str, str]:
    """The table metadata that keeps what a job has put into a table."""
    return {_KEY + job: json.dumps(dataclasses.asdict(state))}


def stored(dataset: lance.LanceDataset, table_name: str) -> dict[str, Ingested]:
    """What the table's metadata says about every job.

    Raises:
        TableError: it is damaged.
    """
    found = {}
    for key, text in dataset.metadata.items():
        if key.startswith(_KEY):
            try:
                found[key.removeprefix(_KEY)] = require_types(Ingested(**_values(text)))
            except _DAMAGED as error:
                raise TableError(
                    f"Metadata {key!r} of table {table_name!r} is damaged ({error!r}); expected what "
                    "ingest wrote. Restore an earlier version of the table."
                ) from error
    return found


def ingested(dataset: lance.LanceDataset, job: str, table_name: str) -> Ingested:
    """What a job has put into the table, up to the version that `dataset` is at.

    Raises:
        VersionsGoneError: it cannot be told any more.
        TableError: the metadata, or the note of a commit, is damaged.
    """
    state = stored(dataset, table_name).get(job)
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
    """The note that a commit of rows of `pieces` carries in its properties."""
    note = Note(job=job, run=state.run, round=state.round, pieces=pieces)
    return {_PROPERTY: json.dumps(dataclasses.asdict(note))}


def note_in(transaction: Transaction, table_name: str) -> Note | None:
    """The note that a commit carries, or None.

    Raises:
        TableError: it is damaged.
    """
    text = (transaction.transaction_properties or {}).get(_PROPERTY)
    try:
        return None if text is None else require_types(Note(**_values(text)))
    except _DAMAGED as error:
        raise TableError(
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


def _values(text: str) -> dict[str, Any]:
    """The fields of what was written as JSON. Raises one of `_DAMAGED` where they cannot be read."""
    values = json_object(text)
    return {**values, "pieces": {key: Done(*value) for key, value in values["pieces"].items()}}
