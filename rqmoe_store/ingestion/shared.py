"""Shared ingestion: several processes, on one machine or many, ingest one source into one table.

    shared = share_pieces(prepare("s3://bucket/rows/", (db, "docs")), IngestSettings(), part_bytes=2**27)
    for part in shared.parts:  # in other processes, in any order
        writer = PartWriter(shared.work)  # one per process
        shared.take(writer.write(part))
    print(shared.finish())

One process, the driver, cuts the source into parts and commits. The others, the workers, read, encode and
write data files, which belong to no version of the table until the driver commits them together with the note
of which rows they have. A part may therefore be written any number of times, and any process, including the
driver, can be lost and replaced at any moment.
"""

import collections
import dataclasses
import json
import time
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from rqmoe_store.errors import InvalidInputError, TableError, warn_caller
from rqmoe_store.ingestion.blocks import BlockReader
from rqmoe_store.ingestion.job import WAITING_BLOCKS, IngestReport, IngestSettings, claim_job, encoded_block
from rqmoe_store.ingestion.pieces import Part, Piece, digest, parts_of
from rqmoe_store.ingestion.prepare import Prepared, row_tools
from rqmoe_store.ingestion.quarantine import BadRow
from rqmoe_store.ingestion.sources import StreamPiece
from rqmoe_store.ingestion.stages import prefetch
from rqmoe_store.ingestion.writer import Committer, Content
from rqmoe_store.storage_errors import TranslatesErrors
from rqmoe_store.store.appends import append_transaction, fragments_of, write_batches
from rqmoe_store.store.databases import TablePlace
from rqmoe_store.store.handle import Handle
from rqmoe_store.store.health import DriftSums
from rqmoe_store.store.ingest_log import PieceProgress
from rqmoe_store.store.table_codec import TableCodec

PART_BYTES = 2**27
"""Default for the approximate bytes of a part."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartWork:
    """What a worker must know to write parts; can be sent to another process."""

    place: TablePlace
    """Where the table is."""
    columns: Sequence[str]
    """Columns of the source to ingest."""
    vector_column: str
    """Name of the vector column in the source."""
    encode: bool
    """Whether rows are encoded."""
    codecs: Sequence[str]
    """Fingerprints of the table's codecs, oldest first; the last one encodes."""
    quarantined: Mapping[str, PieceProgress] | None
    """Key of a piece -> up to which row its bad rows are in quarantine; None where bad rows are an error."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WrittenPart:
    """A part that a worker has written; can be sent to the driver."""

    key: str
    """Key of the piece."""
    start: int
    """First row of the part."""
    fragments: Sequence[str]
    """Metadata of the written fragments, as JSON."""
    content: Content
    """Summary of the rows."""
    arrow_bytes: int
    """Size in memory of the rows read."""

    def to_json(self) -> str:
        """The part as JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "WrittenPart":
        """The part from the JSON that `to_json` returned."""
        values = json.loads(text)
        content = values["content"]
        content["bad"] = [BadRow(**row) for row in content["bad"]]
        content["pieces"] = {key: PieceProgress(*done) for key, done in content["pieces"].items()}
        content["drift"] = None if content["drift"] is None else DriftSums(**content["drift"])
        return cls(**{**values, "content": Content(**content)})


class PartWriter(TranslatesErrors):
    """A worker: writes parts, all of them with the same codec."""

    def __init__(self, work: PartWork, *, device: str = "auto") -> None:
        """Open the table.

        Args:
            work: attribute `work` of the driver's `SharedPieces` or `SharedRows`.
            device: device to encode on, as in `Codec.to`.

        Raises:
            TableError: as `open_table`, or the table has got another codec meanwhile.
            ArtifactError: as `open_table`.
            InvalidInputError: the device does not exist.
        """
        self._work, self._handle = work, Handle.open(work.place.connect(), work.place.name)
        self._encoder, self._checker = row_tools(self._handle, work.vector_column, encode=work.encode)
        codecs = self._encoder.codecs
        if work.encode and fingerprints(codecs) != tuple(work.codecs):
            raise TableError(
                f"Table {self._handle.name!r} was given another codec while rows were ingested into it. What "
                "is committed stays; ingest again."
            )
        if work.encode and codecs.newest is not None:
            codecs.newest.to(device)

    def write(self, part: Part) -> WrittenPart:
        """Write the rows of a part.

        Raises:
            InvalidInputError: the part cannot be read, or has a bad row where that is an error.
            TableError: the table has lost the codec that encodes, or its columns.
            StorageError: the disk or bucket cannot be written to.
        """
        return self._write(part, part.start)

    def write_rows(self, rows: pa.Table, name: str) -> WrittenPart:
        """Write rows that belong to no piece, as rows of the source called `name`. Raises as `write`."""
        return self._write(StreamPiece(iter(rows.to_batches()), name, None), 0)

    def _write(self, piece: Piece, start: int) -> WrittenPart:
        reader = BlockReader(
            checker=self._checker,
            columns=self._work.columns,
            block_rows=self._handle.metadata.rows_per_batch,
            done={piece.key: PieceProgress(piece.state, start)},
            quarantined=self._work.quarantined,
        )
        content, sizes = Content(), list[int]()
        batches = self._batches(reader, piece, content, sizes)
        table = self._handle.table
        written = write_batches(table, self._encoder.schema, batches, check=self._encoder.require_codec_in)
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
        """Yield the rows as they are stored; add their summary to `content` and their bytes to `sizes`."""
        with prefetch(reader.read([piece]), WAITING_BLOCKS) as blocks:
            for block in blocks:
                encoded = encoded_block(self._encoder, block)
                content.add_block(encoded)
                sizes.append(block.arrow_bytes)
                yield from encoded.encoded.to_batches()


def fingerprints(codecs: TableCodec) -> tuple[str, ...]:
    """Fingerprints of the codecs of a table, oldest first."""
    return tuple(each.fingerprint for each in codecs.metadata.generations)


class SharedIngestion(TranslatesErrors):
    """The driver: commits what workers write. Use `share_pieces` or `share_rows` to create one."""

    def __init__(self, prepared: Prepared, settings: IngestSettings) -> None:
        self._started = time.perf_counter()
        self._prepared, self._settings = prepared, settings
        self._handle = prepared.handle
        held, self._quarantine = claim_job(self._handle.table, prepared.source, settings)
        self._done = held.state.pieces
        self._committer = Committer(self._handle.table, prepared.encoder, held, self._quarantine)
        self._content, self._fragments, self._arrow_bytes = Content(), list[str](), 0
        self.work = PartWork(
            place=TablePlace.of(self._handle.table),
            columns=tuple(prepared.columns),
            vector_column=prepared.vector_column,
            encode=prepared.encode,
            codecs=fingerprints(prepared.encoder.codecs),
            quarantined=None if self._quarantine is None else dict(self._quarantine.pieces),
        )
        """To be sent to workers, for `PartWriter`."""

    def _add(self, written: WrittenPart) -> None:
        self._content.add(written.content)
        self._fragments += written.fragments
        self._arrow_bytes += written.arrow_bytes

    def _commit(self) -> None:
        self._committer.commit(self._content, append_transaction(self._handle.table, self._fragments))
        self._content, self._fragments = Content(), []

    def _finish(self, *, pieces: int, skipped: int) -> IngestReport:
        if self._content.pieces or self._fragments:
            self._commit()
        self._committer.fold_notes()
        self._handle.refresh()
        if self._committer.warning:
            warn_caller(self._committer.warning)
        return IngestReport(
            table=self._handle.name,
            quarantine=None if self._quarantine is None else self._quarantine.name,
            rows=self._committer.rows,
            quarantined=self._committer.quarantined,
            pieces=pieces,
            skipped=skipped,
            bytes_read=self._arrow_bytes,
            seconds=time.perf_counter() - self._started,
        )


class SharedPieces(SharedIngestion):
    """Driver of an ingestion whose workers read pieces of a source."""

    def __init__(self, prepared: Prepared, settings: IngestSettings, part_bytes: int) -> None:
        super().__init__(prepared, settings)
        self.parts: Sequence[Part] = parts_of(prepared.source.pieces, self._done, part_bytes)
        """Parts left to ingest; each can be sent to another process."""
        self._expected: dict[str, collections.deque[int]] = collections.defaultdict(collections.deque)
        for part in self.parts:
            self._expected[part.key].append(part.start)
        self._missing = {(part.key, part.start) for part in self.parts}
        self._waiting: dict[tuple[str, int], WrittenPart] = {}

    def take(self, written: WrittenPart) -> None:
        """Accept a written part and commit once there are enough rows.

        Parts may come in any order; if a part comes twice, the second one is dropped. A part is committed
        after all parts before it in its piece, because the log counts the rows of a piece from its first.

        Raises:
            TableError: another process ingests the same source.
            StorageError: the disk or bucket cannot be written to.
        """
        place = written.key, written.start
        if place not in self._missing:
            return
        self._missing.remove(place)
        self._waiting[place] = written
        starts = self._expected[written.key]
        while starts and (written.key, starts[0]) in self._waiting:
            self._add(self._waiting.pop((written.key, starts.popleft())))
            if self._content.is_full(self._settings.commit_rows):
                self._commit()

    def finish(self) -> IngestReport:
        """Commit the rest and return the report.

        Raises:
            InvalidInputError: parts are missing.
            TableError, StorageError: as `take`.
        """
        if self._missing:
            raise InvalidInputError(
                f"{len(self._missing)} of {len(self.parts)} parts were not written; take all of them first."
            )
        pieces = self._prepared.source.pieces
        return self._finish(pieces=len(pieces), skipped=len(pieces) - len(self._expected))


class SharedRows(SharedIngestion):
    """Driver of an ingestion whose workers hold rows that belong to no piece; commits all rows at the end."""

    def __init__(self, prepared: Prepared, settings: IngestSettings) -> None:
        super().__init__(prepared, settings)
        self.name = "rows" if settings.job is None else f"rows {settings.job}"
        """For `PartWriter.write_rows`."""
        self._key = digest(self.name, 9)
        self.is_done = self._key in self._done
        """Whether the table has the rows already, so that nothing need be written."""

    def take(self, written: WrittenPart) -> None:
        """Accept written rows."""
        self._add(written)

    def finish(self) -> IngestReport:
        """Commit all rows and return the report. Raises as `SharedPieces.take`."""
        if not self.is_done:
            self._content.pieces = {self._key: PieceProgress("", None)}
        return self._finish(pieces=1, skipped=int(self.is_done))


def share_pieces(
    prepared: Prepared, settings: IngestSettings, *, part_bytes: int = PART_BYTES
) -> SharedPieces:
    """Start to ingest files, fragments or arrays together with other processes.

    After an interruption at any moment, the same call continues after the last commit, in any process.

    Args:
        prepared: result of `prepare`, from a path or URI, or from a dataset that other processes can open.
        settings: as in `ingest`; `progress` is not used.
        part_bytes: approximate bytes of a part; a piece that cannot be cut makes a longer part.

    Raises:
        InvalidInputError: the source is a stream, which other processes cannot read, or it has changed since
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
    """Start to ingest rows that other processes hold and that belong to no file or dataset.

    Args:
        prepared: result of `prepare`, from `rows_source`.
        settings: as in `ingest`; with a `job` the rows are ingested once, however often this is called.

    Raises:
        TableError: as `ingest`.
    """
    return SharedRows(prepared, settings)
