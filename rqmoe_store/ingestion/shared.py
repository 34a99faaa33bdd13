"""Ingestion by several processes, on one machine or many: this one shares out the work, and commits.

    shared = share_pieces(prepare("s3://bucket/rows/", (db, "docs")), IngestSettings(), part_bytes=2**27)
    for part in shared.parts:  # in other processes, in any order
        writer = PartWriter(shared.work)  # one per process
        shared.take(writer.write(part))
    print(shared.finish())

What others write counts once it is committed here, with the note of the rows of the source that it has. So it
does not matter how often a part is written: a process that is lost, with whatever it has written, can be
replaced by another at any moment, this one among them.
"""

import collections
import time
import warnings
from collections.abc import Sequence

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.ingestion.part_writer import PartWork, WrittenPart, fingerprints
from rqmoe_store.ingestion.parts import Part, parts_of
from rqmoe_store.ingestion.pieces import digest
from rqmoe_store.ingestion.pipeline import IngestSettings, claimed
from rqmoe_store.ingestion.prepare import Prepared
from rqmoe_store.ingestion.report import IngestReport
from rqmoe_store.ingestion.writer import Committer, Content
from rqmoe_store.refusals import NamesRefusals
from rqmoe_store.store.appends import written_elsewhere
from rqmoe_store.store.ingested import Done
from rqmoe_store.store.table_place import TablePlace

PART_BYTES = 2**27
"""Of a part of a source, about."""


class SharedIngestion(NamesRefusals):
    """The half of an ingestion that commits; use `share_pieces` or `share_rows` instead of calling this."""

    def __init__(self, prepared: Prepared, settings: IngestSettings) -> None:
        self._started = time.perf_counter()
        self._prepared, self._settings = prepared, settings
        self._store = prepared.store
        held, self._quarantine = claimed(self._store.table, prepared.source, settings)
        self._done = held.ingested.pieces
        self._committer = Committer(self._store.table, prepared.encoder, held, self._quarantine)
        self._content, self._fragments, self._arrow_bytes = Content(), list[str](), 0
        self.work = PartWork(
            place=TablePlace.of(self._store.table),
            columns=tuple(prepared.columns),
            vector_column=prepared.vector_column,
            encode=prepared.encode,
            codecs=fingerprints(prepared.encoder.codecs),
            quarantined=None if self._quarantine is None else dict(self._quarantine.pieces),
        )
        """For `PartWriter`."""

    def _gather(self, written: WrittenPart) -> None:
        self._content.add(written.content)
        self._fragments += written.fragments
        self._arrow_bytes += written.arrow_bytes

    def _commit(self) -> None:
        self._committer.commit(self._content, written_elsewhere(self._store.table, self._fragments))
        self._content, self._fragments = Content(), []

    def _finished(self, *, pieces: int, skipped: int) -> IngestReport:
        if self._content.pieces or self._fragments:
            self._commit()
        self._committer.fold()
        self._store.refresh()
        if self._committer.warning:
            warnings.warn(self._committer.warning, stacklevel=4)
        return IngestReport(
            table=self._store.name,
            quarantine=None if self._quarantine is None else self._quarantine.name,
            rows=self._committer.rows,
            quarantined=self._committer.quarantined,
            pieces=pieces,
            skipped=skipped,
            bytes_read=self._arrow_bytes,
            seconds=time.perf_counter() - self._started,
        )


class SharedPieces(SharedIngestion):
    """Pieces of a source that other processes ingest."""

    def __init__(self, prepared: Prepared, settings: IngestSettings, part_bytes: int) -> None:
        super().__init__(prepared, settings)
        self.parts: Sequence[Part] = parts_of(prepared.source.pieces, self._done, part_bytes)
        """What is left to ingest; each can be sent to another process."""
        self._expected: dict[str, collections.deque[int]] = collections.defaultdict(collections.deque)
        for part in self.parts:
            self._expected[part.key].append(part.start)
        self._missing = {(part.key, part.start) for part in self.parts}
        self._waiting: dict[tuple[str, int], WrittenPart] = {}

    def take(self, written: WrittenPart) -> None:
        """Take note of a part, in whichever order they come; of one that was written twice, once.

        Commits when there are rows enough. Rows of a piece count in their order: a part waits for those
        before it.

        Raises:
            TableError: another process ingests the same source.
            StorageError: the disk or bucket refuses it.
        """
        place = written.key, written.start
        if place not in self._missing:
            return
        self._missing.remove(place)
        self._waiting[place] = written
        starts = self._expected[written.key]
        while starts and (written.key, starts[0]) in self._waiting:
            self._gather(self._waiting.pop((written.key, starts.popleft())))
            if self._content.is_full(self._settings.commit_rows):
                self._commit()

    def finish(self) -> IngestReport:
        """Commit the rest; what was done.

        Raises:
            InvalidInputError: parts were not taken; call this once all are.
            TableError, StorageError: as `take`.
        """
        if self._missing:
            raise InvalidInputError(
                f"{len(self._missing)} of {len(self.parts)} parts were not written; take all of them first."
            )
        pieces = self._prepared.source.pieces
        return self._finished(pieces=len(pieces), skipped=len(pieces) - len(self._expected))


class SharedRows(SharedIngestion):
    """Rows without places in a source, which other processes write; all are committed together in the end."""

    def __init__(self, prepared: Prepared, settings: IngestSettings) -> None:
        super().__init__(prepared, settings)
        self.name = "rows" if settings.job is None else f"rows {settings.job}"
        """For `PartWriter.write_rows`."""
        self._key = digest(self.name, 9)
        self.is_done = self._key in self._done
        """Whether they are in the table already: nothing need be written then."""

    def take(self, written: WrittenPart) -> None:
        """Take note of rows that were written."""
        self._gather(written)

    def finish(self) -> IngestReport:
        """Commit all that was taken; what was done. Raises as `SharedPieces.take`."""
        if not self.is_done:
            self._content.pieces = {self._key: Done("", None)}
        return self._finished(pieces=1, skipped=int(self.is_done))


def share_pieces(
    prepared: Prepared, settings: IngestSettings, *, part_bytes: int = PART_BYTES
) -> SharedPieces:
    """Ingest a source of files, fragments or arrays together with other processes.

    Interrupted at any moment, the same call in another process goes on after the last commit.

    Args:
        prepared: by `prepare`, from a path or URI, or from a dataset that others can open.
        settings: as in `ingest`; `progress` is not used.
        part_bytes: of the source, in one part; what cannot be cut makes longer ones.

    Raises:
        InvalidInputError: a stream, which other processes cannot read, or a source that has changed since
            part of it was ingested.
        TableError: as `ingest`.
    """
    if not all(piece.can_be_shared for piece in prepared.source.pieces):
        raise InvalidInputError(
            "Got rows in memory or a stream of them; expected what other processes can open, too: a path or "
            "URI, a dataset or a table."
        )
    return SharedPieces(prepared, settings, part_bytes)


def share_rows(prepared: Prepared, settings: IngestSettings) -> SharedRows:
    """Ingest rows that other processes have, and that have no place of their own in any source.

    Args:
        prepared: by `prepare`, from `rows_source`.
        settings: as in `ingest`; with `job` the rows are ingested once, however often this is called.

    Raises:
        TableError: as `ingest`.
    """
    return SharedRows(prepared, settings)
