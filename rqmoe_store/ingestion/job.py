"""The ingestion job: a source of any size into a table, exactly once."""

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from lancedb.table import LanceTable
from rich.filesize import decimal

from rqmoe_store.codecs.base import Codec
from rqmoe_store.config import KeepVectors, MultiVectorConfig
from rqmoe_store.errors import InvalidInputError, warn_caller
from rqmoe_store.ingestion.blocks import Block, BlockReader
from rqmoe_store.ingestion.pieces import Piece, Source, digest
from rqmoe_store.ingestion.prepare import Prepared, Target, prepare
from rqmoe_store.ingestion.quarantine import Quarantine
from rqmoe_store.ingestion.stages import BackgroundWriter, prefetch
from rqmoe_store.ingestion.writer import Committer, CommitWriter, EncodedBlock
from rqmoe_store.progress import IngestProgress
from rqmoe_store.storage_errors import translates_errors
from rqmoe_store.store import databases
from rqmoe_store.store.ingest_log import Claim, JobState, NoClaim, claim
from rqmoe_store.store.row_encoder import RowEncoder

OnBadRows = Literal["quarantine", "error"]
COMMIT_ROWS = 2**18
"""Default for the most rows of a commit."""
WAITING_BLOCKS = 2
"""Most blocks that wait between reading and encoding, and between encoding and writing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class IngestReport:
    """What a call of `ingest` did; prints as text."""

    table: str
    """Name of the table."""
    quarantine: str | None
    """Name of the table of bad rows; None where bad rows are an error."""
    rows: int
    """Rows that this call added."""
    quarantined: int
    """Rows that this call put into quarantine."""
    pieces: int
    """Pieces of the source: files, fragments of a Lance table, or one stream."""
    skipped: int
    """Pieces that earlier calls had ingested completely."""
    bytes_read: int
    """Size in memory of the rows read."""
    seconds: float
    """Duration of this call."""

    @property
    def rows_per_second(self) -> float:
        """Rows added per second."""
        return self.rows / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        lines = [
            f"{self.rows:,} rows added to {self.table!r} in {self.seconds:,.1f} s: "
            f"{self.rows_per_second:,.0f} rows/s, {decimal(self.bytes_read)} read"
        ]
        if self.quarantined:
            lines.append(f"{self.quarantined:,} rows cannot be encoded; {self.quarantine!r} has them")
        if self.skipped:
            lines.append(f"{self.skipped:,} of {self.pieces:,} pieces had been ingested before")
        return "\n".join(lines)


@translates_errors
def ingest(
    source: Any,
    into: Target,
    *,
    codec: Codec | str | os.PathLike[str] | None = None,
    vector_column: str | None = None,
    columns: Sequence[str] | None = None,
    metadata: str | os.PathLike[str] | None = None,
    encode: bool | None = None,
    keep_vectors: KeepVectors = "none",
    multi_vector: MultiVectorConfig | None = None,
    on_bad_rows: OnBadRows = "quarantine",
    commit_rows: int = COMMIT_ROWS,
    job: str | None = None,
    resume: bool = True,
    storage_options: Mapping[str, str] | None = None,
    progress: bool = True,
) -> IngestReport:
    """Add the rows of a source to a table: any number of rows in bounded memory, each row exactly once.

    Rows are committed in parts, and every commit logs which rows of the source it adds. After an interruption
    at any moment (Ctrl-C, an error, a killed process), the same call continues where the last commit ended.
    After all rows are in, the same call adds what is new, such as further files in a folder. Reading,
    encoding and writing overlap in threads; an iterator is therefore read in another thread.

    Args:
        source: the path or URI of a file or folder in Parquet, Arrow, CSV, JSON or ORC, of a .npy file, or of
            a .lance folder; a pattern, such as "rows/**/*.parquet", or several paths; a pyarrow dataset, a
            Lance dataset or a LanceDB table; or a stream: rows in any form that `add` takes. Folder names
            such as `lang=en` become columns. Files are read in the order of their paths. A pattern, a list of
            paths and a folder are the same source if they have the same innermost folder: rows ingested from
            one of them are not ingested again from another.
        into: a table, or a database and a table name, as `(db, "docs")`; the table is created if it is
            missing.
        codec: the codec for a new table, or the folder of one; it is stored in the database.
        vector_column: name of the vector column in the source; default is its name in the table, or "vector".
        columns: columns of the source to ingest besides the vectors; default all.
        metadata: path or URI of the file with the other columns of a .npy file.
        encode: False to store raw vectors, which `optimize` encodes later; None to encode if the table has a
            codec.
        keep_vectors: as in `compress`, for a new table.
        multi_vector: how rows are found in a new table, if the vector column has lists of vectors; None for
            the defaults. The codec of encodings is fitted to the first rows of each file or fragment, or to
            the first 2,048 of a stream.
        on_bad_rows: "quarantine" to put rows that cannot be encoded (the vector has another dimension, NaN or
            infinity, or is zero under cosine; a value is null where that is not allowed, or cannot be cast)
            into the table `<name>_quarantine`, with source, position, reason and the row as JSON; or "error".
        commit_rows: most rows of the source per commit.
        job: identifies a source that has no location. A stream can be resumed only if it has a job name; it
            must then yield the same rows again from the first one on, and may yield more after them.
        resume: False to ingest all rows again, including those that the table has.
        storage_options: credentials and other options for URIs, as LanceDB takes them.
        progress: show a progress bar.

    Returns:
        Rows added and quarantined, time and speed; prints as text.

    Raises:
        InvalidInputError: the source or an argument cannot be used, one of several paths does not exist,
            columns or fields of structs differ from those of the table or occur in some files only, a file
            has changed since part of it was ingested, or a row is bad and that is an error.
        TableError: there is neither a table nor a codec, the table is not a compressed one, another process
            ingests the same source, or the table has lost its record of what was ingested.
        StorageError: the disk or bucket is full, or may not be written to.
    """
    started = time.perf_counter()
    settings = IngestSettings(
        on_bad_rows=on_bad_rows, commit_rows=commit_rows, job=job, resume=resume, progress=progress
    )
    prepared = prepare(
        source,
        into,
        codec=codec,
        vector_column=vector_column,
        columns=columns,
        metadata=metadata,
        encode=encode,
        keep_vectors=keep_vectors,
        multi_vector=multi_vector,
        storage_options=storage_options,
        job=job,
    )
    report, warning = Ingestion(prepared, settings).run(started)
    if warning:
        warn_caller(warning)
    return report


@dataclasses.dataclass(frozen=True, kw_only=True)
class IngestSettings:
    """Settings of `ingest`, as described there; checked on construction."""

    on_bad_rows: str = "quarantine"
    commit_rows: int = COMMIT_ROWS
    job: str | None = None
    resume: bool = True
    progress: bool = True

    def __post_init__(self) -> None:
        if self.on_bad_rows not in (allowed := get_args(OnBadRows)):
            raise InvalidInputError(
                f"Got on_bad_rows={self.on_bad_rows!r}; expected one of {', '.join(map(repr, allowed))}."
            )
        if type(self.commit_rows) is not int or self.commit_rows < 1:
            raise InvalidInputError(f"Got commit_rows={self.commit_rows!r}; expected a whole number from 1.")
        if self.job is not None and (not isinstance(self.job, str) or not self.job):
            raise InvalidInputError(f"Got job={self.job!r}; expected a name for the source.")


class Ingestion:
    """One call of `ingest`, with its source and target open and checked."""

    def __init__(self, prepared: Prepared, settings: IngestSettings) -> None:
        self._handle, self._source, self._columns = prepared.handle, prepared.source, prepared.columns
        self._encoder, self._checker, self._settings = prepared.encoder, prepared.checker, settings

    def run(self, started: float) -> tuple[IngestReport, str | None]:
        """Add the rows that the table lacks. Returns the report, and a warning to give or None.

        Args:
            started: start of the call, by `time.perf_counter`.
        """
        held, quarantine = claim_job(self._handle.table, self._source, self._settings)
        done = held.state.pieces
        pieces = self._source.pieces
        left = [piece for piece in pieces if piece.key not in done or done[piece.key].rows is not None]
        reader = BlockReader(
            checker=self._checker,
            columns=self._columns,
            block_rows=min(self._handle.metadata.rows_per_batch, self._settings.commit_rows),
            done=done,
            quarantined=None if quarantine is None else quarantine.pieces,
        )
        committer = Committer(self._handle.table, self._encoder, held, quarantine)
        writer = CommitWriter(
            self._handle.table, self._encoder.schema, committer, commit_rows=self._settings.commit_rows
        )
        bytes_read = self._stream(reader, left, writer)
        self._handle.refresh()
        report = IngestReport(
            table=self._handle.name,
            quarantine=None if quarantine is None else quarantine.name,
            rows=committer.rows,
            quarantined=committer.quarantined,
            pieces=len(pieces),
            skipped=len(pieces) - len(left),
            bytes_read=bytes_read,
            seconds=time.perf_counter() - started,
        )
        return report, committer.warning

    def _stream(self, reader: BlockReader, pieces: Sequence[Piece], writer: CommitWriter) -> int:
        """Read and check in one thread, encode in this one, write in another. Returns the bytes read."""
        sizes = [piece.source_bytes for piece in pieces]
        total = None if None in sizes else sum(size for size in sizes if size is not None)
        bytes_read = 0
        with (
            IngestProgress(total, visible=self._settings.progress) as progress,
            BackgroundWriter(writer.write, WAITING_BLOCKS) as background,
            prefetch(reader.read(pieces), WAITING_BLOCKS) as blocks,
        ):
            for block in blocks:
                background.put(encoded_block(self._encoder, block))
                bytes_read += block.arrow_bytes
                progress.advance(
                    rows=block.rows, arrow_bytes=block.arrow_bytes, source_bytes=block.source_bytes
                )
        return bytes_read


def encoded_block(encoder: RowEncoder, block: Block) -> EncodedBlock:
    """The block with its rows encoded."""
    return EncodedBlock(
        encoded=encoder.encoded_vectors(*block.checked, 0),
        drift=None if encoder.drift is None else encoder.drift.take(),
        rows=block.rows,
        bad=block.bad,
        pieces=block.pieces,
    )


def claim_job(table: LanceTable, source: Source, settings: IngestSettings) -> tuple[Claim, Quarantine | None]:
    """Claim the job that ingests a source, and open the quarantine of its bad rows.

    Raises:
        InvalidInputError: the source has changed since rows of it were ingested.
        TableError: as `claim`, or another table has the name of the quarantine.
    """
    job = None
    held: Claim = NoClaim()
    if source.location is not None:
        job = digest(settings.job or source.location, 12)
        held = claim(
            table,
            job,
            version_note=source.version_note,
            restart=not settings.resume,
            check=lambda state: require_unchanged(source, state),
        )
    if settings.on_bad_rows == "error":
        return held, None
    return held, Quarantine(databases.database_of(table), table.name, job, held.state.round)


def require_unchanged(source: Source, state: JobState) -> None:
    """Raise InvalidInputError if pieces have changed since they, or rows of them, were ingested.

    Args:
        source: the source as it is now.
        state: what the job has put into the table.
    """
    hint = f" It was at {state.version_note} then: pass that one." if state.version_note else ""
    present = {piece.key: piece for piece in source.pieces}
    for key, done in state.pieces.items():
        piece = present.get(key)
        if piece is None and not source.replaces_pieces:
            continue  # a file may be deleted once it is ingested
        if piece is None or piece.state != done.state:
            what = f"{source.location} has" if piece is None else f"{piece.name} has"
            raise InvalidInputError(
                f"{what} changed since rows of it were ingested, which could come twice now.{hint} Otherwise "
                "ingest what is new from a place of its own, or delete the rows that came from there and "
                "pass resume=False."
            )
