"""Shared ingestion: several processes, on one machine or many, put one source into one table.

    shared = share_pieces(prepare("s3://bucket/rows/", (db, "docs")), IngestSettings(), part_bytes=2**27)
    for part in shared.parts:  # in other processes, in any order
        writer = PartWriter(shared.work)  # one per process
        shared.take(writer.write(part))
    print(shared.finish())

What others write counts once it is committed here, with the note of the rows of the source that it has. So it
does not matter how often a part is written: a process that is lost, with whatever it has written, can be
replaced by another at any moment, this one among them.

The files belong to no version of the table until the process that shares out the parts commits them.
"""

import collections
import dataclasses
import json
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.ingestion.blocks import BlockReader
from rqmoe_store.ingestion.job import IngestReport, IngestSettings, claim_job, encoded_block
from rqmoe_store.ingestion.pieces import Part, Piece, digest, parts_of
from rqmoe_store.ingestion.prepare import Prepared, row_tools
from rqmoe_store.ingestion.quarantine import BadRow
from rqmoe_store.ingestion.sources import StreamPiece
from rqmoe_store.ingestion.stages import prefetch
from rqmoe_store.ingestion.writer import Committer, Content
from rqmoe_store.storage_errors import TranslatesErrors
from rqmoe_store.store.appends import fragments_of, write_batches, written_elsewhere
from rqmoe_store.store.databases import TablePlace
from rqmoe_store.store.health import DriftSums
from rqmoe_store.store.ingest_log import Done
from rqmoe_store.store.table import StoredTable
from rqmoe_store.store.table_codec import TableCodec
from rqmoe_store.store.vector_arrays import rows_per_batch

_WAITING_BLOCKS = 2
"""Between reading and encoding, at most."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartWork:
    """What a process must know to write parts; it can be sent there."""

    place: TablePlace
    """Of the table."""
    columns: Sequence[str]
    """Of the source, that are taken."""
    vector_column: str
    """What the source calls the vectors."""
    encode: bool
    """Whether rows get codes."""
    codecs: Sequence[str]
    """Fingerprints of the table's codecs, oldest first; the last one encodes."""
    quarantined: Mapping[str, Done] | None
    """Key of a piece -> up to where its bad rows are in quarantine; None for bad rows to be an error."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WrittenPart:
    """A part that was written; it can be sent to the process that commits."""

    key: str
    """Of its piece."""
    start: int
    """Its first row."""
    fragments: Sequence[str]
    """The files, as JSON."""
    content: Content
    """What is in them."""
    arrow_bytes: int
    """What the rows read take in memory."""

    def to_json(self) -> str:
        """The same as text."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "WrittenPart":
        """What `to_json` made into text."""
        values = json.loads(text)
        content = values["content"]
        content["bad"] = [BadRow(**row) for row in content["bad"]]
        content["pieces"] = {key: Done(*done) for key, done in content["pieces"].items()}
        content["drift"] = None if content["drift"] is None else DriftSums(**content["drift"])
        return cls(**{**values, "content": Content(**content)})


class PartWriter(TranslatesErrors):
    """Writes parts, with one codec for all of them."""

    def __init__(self, work: PartWork, *, device: str = "auto") -> None:
        """Open the table.

        Args:
            work: of `share_pieces` or `share_rows`, in whichever process.
            device: where to encode, as in `Codec.to`.

        Raises:
            TableError: as `open_table`, or the table was given another codec meanwhile.
            ArtifactError: as `open_table`.
            InvalidInputError: a device that is not there.
        """
        self._work, self._store = work, StoredTable.open(work.place.connected(), work.place.name)
        self._encoder, self._checker = row_tools(self._store, work.vector_column, encode=work.encode)
        codecs = self._encoder.codecs
        if work.encode and fingerprints(codecs) != tuple(work.codecs):
            raise TableError(
                f"Table {self._store.name!r} was given another codec while rows were ingested into it. What "
                "is committed stays; ingest again."
            )
        if work.encode and codecs.newest is not None:
            codecs.newest.to(device)

    def write(self, part: Part) -> WrittenPart:
        """Write the rows of a part.

        Raises:
            InvalidInputError: it cannot be read, or has a bad row where that is an error.
            StorageError: the disk or bucket refuses to take it.
        """
        return self._write(part, part.start)

    def write_rows(self, rows: pa.Table, name: str) -> WrittenPart:
        """Write some rows of a source that has no parts and is called `name`. Raises as `write`."""
        return self._write(StreamPiece(iter(rows.to_batches()), name, None), 0)

    def _write(self, piece: Piece, start: int) -> WrittenPart:
        reader = BlockReader(
            checker=self._checker,
            columns=self._work.columns,
            block_rows=rows_per_batch(self._store.dim),
            done={piece.key: Done(piece.state, start)},
            quarantined=self._work.quarantined,
        )
        content, sizes = Content(), list[int]()
        batches = self._batches(reader, piece, content, sizes)
        written = write_batches(self._store.table, self._encoder.schema, batches)
        return WrittenPart(
            key=piece.key,
            start=start,
            fragments=fragments_of(written),
            content=content,
            arrow_bytes=sum(sizes),
        )

    def _batches(
        self, reader: BlockReader, piece: Piece, content: Content, sizes: list[int]
    ) -> Iterator[pa.RecordBatch]:
        """The rows as they are written; what is in them is noted in `content`, their bytes in `sizes`."""
        with prefetch(reader.read([piece]), _WAITING_BLOCKS) as blocks:
            for block in blocks:
                encoded = encoded_block(self._encoder, block)
                content.add_block(encoded)
                sizes.append(block.arrow_bytes)
                yield from encoded.encoded.to_batches()


def fingerprints(codecs: TableCodec) -> tuple[str, ...]:
    """Of the codecs of a table, oldest first."""
    return tuple(each.fingerprint for each in codecs.metadata.generations)


PART_BYTES = 2**27
"""Of a part of a source, about."""


class SharedIngestion(TranslatesErrors):
    """The half of an ingestion that commits; use `share_pieces` or `share_rows` instead of calling this."""

    def __init__(self, prepared: Prepared, settings: IngestSettings) -> None:
        self._started = time.perf_counter()
        self._prepared, self._settings = prepared, settings
        self._store = prepared.store
        held, self._quarantine = claim_job(self._store.table, prepared.source, settings)
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
