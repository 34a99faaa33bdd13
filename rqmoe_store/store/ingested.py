"""What bulk ingestions have put into a table, kept in the table, so that no row comes twice.

Every commit of an ingestion says in its properties which rows of which pieces it adds: the rows and the
note of them are one. Now and then the notes are folded into the table's metadata, one key per job, so that
the versions that carry them can be cleaned up; what a job has finished is that key and the notes since.
"""

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
from rqmoe_store.store.metadata import PREFIX
from rqmoe_store.store.retries import despite_conflicts
from rqmoe_store.store.stored_values import json_object, require_types

_PROPERTY = PREFIX + "ingested"
_KEY = _PROPERTY + "."
_REPLACES = (lance.LanceOperation.Overwrite, lance.LanceOperation.Restore)


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


class Claim:
    """The right to add to a job, which the next process to claim it takes away."""

    def __init__(self, table: LanceTable, job: str, ingested: Ingested) -> None:
        self.ingested = ingested
        """What was in the table when the job was claimed."""
        self._table, self._job = table, job
        self._seen = ingested.folded_at
        self._own: set[int] = set()

    def properties(self, pieces: Mapping[str, Done]) -> dict[str, str]:
        """The note to commit with rows of these pieces."""
        note = {"job": self._job, "run": self.ingested.run, "round": self.ingested.round}
        return {_PROPERTY: json.dumps(note | {"pieces": pieces})}

    def committed(self, version: int) -> None:
        """Take note that this process made a version."""
        self._own.add(version)

    def require(self) -> None:
        """Raise TableError when another process has claimed, continued or undone the job since."""
        dataset = databases.reopened(self._table).to_lance()
        current = _stored(dataset, self._table.name).get(self._job)
        if current is None or current.run != self.ingested.run:
            raise self._lost()
        for version in range(self._seen + 1, dataset.version + 1):
            if version not in self._own:
                made_by = _transaction(dataset, version, self._table.name)
                note = _note(made_by)
                if isinstance(made_by.operation, _REPLACES) or (note and note["job"] == self._job):
                    raise self._lost()
        self._seen = dataset.version
        self._own.clear()

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
        TableError: versions of the table that may have notes are gone, or its metadata is damaged.
    """

    def claimed() -> Ingested:
        dataset = databases.reopened(table).to_lance()
        fresh = Ingested(run="", round=0, version_note="", folded_at=dataset.version, pieces={})
        before = _present(dataset, table.name).get(job, fresh)
        present = before.round + anew if round is None else round
        if present != before.round:
            before = dataclasses.replace(before, round=present, pieces={})
        check(before)
        after = dataclasses.replace(
            before, run=uuid.uuid4().hex, version_note=version_note, folded_at=dataset.version
        )
        dataset.update_metadata({_KEY + job: json.dumps(dataclasses.asdict(after))})
        return after

    return Claim(table, job, despite_conflicts(claimed))


def folded(dataset: lance.LanceDataset, table_name: str) -> dict[str, str]:
    """Table metadata that keeps the notes of all jobs up to the version that `dataset` is at.

    Versions up to that one can be cleaned up once it is written. Empty where nothing was ever ingested.

    Raises as `claim`.
    """
    return {
        _KEY + job: json.dumps(dataclasses.asdict(dataclasses.replace(each, folded_at=dataset.version)))
        for job, each in _present(dataset, table_name).items()
    }


def _present(dataset: lance.LanceDataset, table_name: str) -> dict[str, Ingested]:
    """What every job has put into the table up to this version of it."""
    stored = _stored(dataset, table_name)
    oldest = min((each.folded_at for each in stored.values()), default=dataset.version)
    notes: list[tuple[int, dict[str, Any]]] = []
    for version, transaction in _since(dataset, oldest, table_name):
        if isinstance(transaction.operation, lance.LanceOperation.Overwrite):
            stored = {
                job: each if each.folded_at >= version else dataclasses.replace(each, pieces={})
                for job, each in stored.items()
            }
            break
        if note := _note(transaction):
            notes.append((version, note))
    for version, note in reversed(notes):
        before = stored.get(note["job"])
        if before is not None and version > before.folded_at and note["round"] == before.round:
            pieces = {**before.pieces, **_pieces(note["pieces"])}
            stored[note["job"]] = dataclasses.replace(before, pieces=pieces)
    return stored


def _since(dataset: lance.LanceDataset, oldest: int, table_name: str) -> Iterator[tuple[int, Transaction]]:
    """Versions after `oldest` that led to the present one, newest first, with what made them."""
    version = dataset.version
    while version > oldest:
        transaction = _transaction(dataset, version, table_name)
        if isinstance(transaction.operation, lance.LanceOperation.Restore):
            version = transaction.operation.version  # what came in between is undone
        else:
            yield version, transaction
            version -= 1


def _transaction(dataset: lance.LanceDataset, version: int, table_name: str) -> Transaction:
    try:
        transaction = dataset.read_transaction(version)
    except OSError as error:
        raise _gone(version, table_name) from error
    if transaction is None:
        raise _gone(version, table_name)
    return transaction


def _gone(version: int, table_name: str) -> TableError:
    return TableError(
        f"Version {version} of table {table_name!r} was cleaned up before it was noted which rows it "
        "ingested, so they could come twice. Delete the rows that came from this source and ingest it with "
        "resume=False, or into a new table. The table's optimize() cleans up without losing these notes."
    )


def _note(transaction: Transaction) -> dict[str, Any] | None:
    text = (transaction.transaction_properties or {}).get(_PROPERTY)
    return None if text is None else json.loads(text)


def _stored(dataset: lance.LanceDataset, table_name: str) -> dict[str, Ingested]:
    stored = {}
    for key, text in dataset.metadata.items():
        if key.startswith(_KEY):
            try:
                values = json_object(text)
                values["pieces"] = _pieces(values["pieces"])
                stored[key.removeprefix(_KEY)] = require_types(Ingested(**values))
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise TableError(
                    f"Metadata {key!r} of table {table_name!r} is damaged ({error!r}); expected what "
                    "ingest wrote. Restore an earlier version of the table."
                ) from error
    return stored


def _pieces(values: dict[str, Any]) -> dict[str, Done]:
    return {key: Done(*value) for key, value in values.items()}
