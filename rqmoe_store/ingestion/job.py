"""The ingestion job: a source of any size into a table, exactly once."""

import dataclasses
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lancedb.table import LanceTable
from rich.filesize import decimal

from rqmoe_store.codecs.base import Codec
from rqmoe_store.config import KeepVectors
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.ingestion.blocks import Block, BlockReader
from rqmoe_store.ingestion.pieces import Piece, Source, digest
from rqmoe_store.ingestion.prepare import Prepared, Target, prepare
from rqmoe_store.ingestion.quarantine import Quarantine
from rqmoe_store.ingestion.stages import BackgroundWriter, prefetch
from rqmoe_store.ingestion.writer import Committer, CommitWriter, EncodedBlock
from rqmoe_store.progress import IngestProgress
from rqmoe_store.storage_errors import translates_errors
from rqmoe_store.store import databases
from rqmoe_store.store.ingest_log import Claim, Ingested, NoClaim, claim
from rqmoe_store.store.row_encoder import RowEncoder
from rqmoe_store.store.vector_arrays import rows_per_batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class IngestReport:
    """Rows of a source that are in a table now; prints as words."""

    table: str
    """Name of the table."""
    quarantine: str | None
    """Name of the table of bad rows; None where they are an error."""
    rows: int
    """Rows added by this call."""
    quarantined: int
    """Rows that this call put into quarantine."""
    pieces: int
    """Pieces of the source: files, fragments of a Lance table, or one stream."""
    skipped: int
    """Those of them that had been ingested to their end before."""
    bytes_read: int
    """What the rows read take in memory."""
    seconds: float
    """From the start of this call."""

    @property
    def rows_per_second(self) -> float:
        """Rows added a second."""
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


ON_BAD_ROWS = ("quarantine", "error")
COMMIT_ROWS = 2**18

_WAITING_BLOCKS = 2
"""Between reading and encoding, and between encoding and writing, at most."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class IngestSettings:
    """Settings of `ingest`, as described there; checked when made."""

    on_bad_rows: str = "quarantine"
    commit_rows: int = COMMIT_ROWS
    job: str | None = None
    resume: bool = True
    progress: bool = True

    def __post_init__(self) -> None:
        if self.on_bad_rows not in ON_BAD_ROWS:
            raise InvalidInputError(
                f"Got on_bad_rows={self.on_bad_rows!r}; expected one of {', '.join(map(repr, ON_BAD_ROWS))}."
            )
        if type(self.commit_rows) is not int or self.commit_rows < 1:
            raise InvalidInputError(f"Got commit_rows={self.commit_rows!r}; expected a whole number from 1.")
        if self.job is not None and (not isinstance(self.job, str) or not self.job):
            raise InvalidInputError(f"Got job={self.job!r}; expected a name for the source.")


class Ingestion:
    """One call of `ingest`."""

    def __init__(self, prepared: Prepared, settings: IngestSettings) -> None:
        """Prepare to run with what is opened and checked."""
        self._store, self._source, self._columns = prepared.store, prepared.source, prepared.columns
        self._encoder, self._checker, self._settings = prepared.encoder, prepared.checker, settings

    def run(self, started: float) -> tuple[IngestReport, str | None]:
        """Add the rows that are not in the table yet; returns what was done, and what to warn of if anything.

        Args:
            started: the time, by `time.perf_counter`, from which seconds count.
        """
        held, quarantine = claim_job(self._store.table, self._source, self._settings)
        done = held.ingested.pieces
        pieces = self._source.pieces
        left = [piece for piece in pieces if piece.key not in done or done[piece.key].rows is not None]
        reader = BlockReader(
            checker=self._checker,
            columns=self._columns,
            block_rows=min(rows_per_batch(self._store.dim), self._settings.commit_rows),
            done=done,
            quarantined=None if quarantine is None else quarantine.pieces,
        )
        committer = Committer(self._store.table, self._encoder, held, quarantine)
        writer = CommitWriter(
            self._store.table, self._encoder.schema, committer, commit_rows=self._settings.commit_rows
        )
        bytes_read = self._stream(reader, left, writer)
        self._store.refresh()
        report = IngestReport(
            table=self._store.name,
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
        """Read and check in one thread, encode here, write in another; returns the bytes read."""
        sizes = [piece.source_bytes for piece in pieces]
        total = None if None in sizes else sum(size for size in sizes if size is not None)
        bytes_read = 0
        with (
            IngestProgress(total, visible=self._settings.progress) as progress,
            BackgroundWriter(writer.write, _WAITING_BLOCKS) as behind,
            prefetch(reader.read(pieces), _WAITING_BLOCKS) as blocks,
        ):
            for block in blocks:
                behind.put(encoded_block(self._encoder, block))
                bytes_read += block.arrow_bytes
                progress.advance(
                    rows=block.rows, arrow_bytes=block.arrow_bytes, source_bytes=block.source_bytes
                )
        return bytes_read


def encoded_block(encoder: RowEncoder, block: Block) -> EncodedBlock:
    """The block as it is written."""
    return EncodedBlock(
        encoded=encoder.encoded_vectors(*block.checked, 0),
        drift=None if encoder.drift is None else encoder.drift.take(),
        rows=block.rows,
        bad=block.bad,
        pieces=block.pieces,
    )


def claim_job(table: LanceTable, source: Source, settings: IngestSettings) -> tuple[Claim, Quarantine | None]:
    """The right to add to the job that ingests a source, and where its bad rows go.

    Raises:
        InvalidInputError: the source is not any more what was ingested of it.
        TableError: as `claim`, or a table in the place of the quarantine.
    """
    job = None
    held: Claim = NoClaim()
    if source.location is not None:
        job = digest(settings.job or source.location, 12)
        held = claim(
            table,
            job,
            version_note=source.version_note,
            anew=not settings.resume,
            check=lambda ingested: require_unchanged(source, ingested),
        )
    if settings.on_bad_rows == "error":
        return held, None
    return held, Quarantine(databases.database_of(table), table.name, job, held.ingested.round)


def require_unchanged(source: Source, ingested: Ingested) -> None:
    """Raise InvalidInputError when pieces that are in the table are not any more what they were.

    Args:
        source: as it is now.
        ingested: what is in the table.
    """
    hint = f" It was at {ingested.version_note} then: pass that one." if ingested.version_note else ""
    present = {piece.key: piece for piece in source.pieces}
    for key, done in ingested.pieces.items():
        piece = present.get(key)
        if piece is None and not source.replaces_pieces:
            continue  # a file that was ingested may go
        if piece is None or piece.state != done.state:
            what = f"{source.location} has" if piece is None else f"{piece.name} has"
            raise InvalidInputError(
                f"{what} changed since rows of it were ingested, which could come twice now.{hint} Otherwise "
                "ingest what is new from a place of its own, or delete the rows that came from there and "
                "pass resume=False."
            )


OnBadRows = Literal["quarantine", "error"]


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
    on_bad_rows: OnBadRows = "quarantine",
    commit_rows: int = COMMIT_ROWS,
    job: str | None = None,
    resume: bool = True,
    storage_options: Mapping[str, str] | None = None,
    progress: bool = True,
) -> IngestReport:
    """Add the rows of a source to a table: any number of them in bounded memory, each of them once.

    Rows are committed part by part. Interrupted at any moment, by Ctrl-C, an error or the loss of the
    process, the same call goes on where it was: every commit says which rows of the source it adds.
    Called again once all rows are in, it adds what has come since, such as new files in a folder.
    Reading, encoding and writing overlap; an iterator is read in another thread.

    Args:
        source: the path or URI of a file or folder in Parquet, Arrow, CSV, JSON or ORC, of a .npy file, or of
            a .lance folder; a pattern, such as "rows/**/*.parquet", or several paths; a pyarrow dataset, a
            Lance dataset or a LanceDB table; or a stream: rows in any form that `add` takes. Folders named
            like `lang=en` are columns. Files are read in the order of their paths. A pattern, a list of paths
            and a folder are the same source if the same folder is the innermost that holds them, so that
            rows ingested from one of them are not ingested again from another.
        into: a table, or the database and name of one, as `(db, "docs")`, which is made if need be.
        codec: what to make a new table with, or the folder of it; kept in the database.
        vector_column: what the source calls the vectors; default is what the table calls them, or "vector".
        columns: columns of the source to take, besides the vectors; default all.
        metadata: path or URI of the file with the other columns of a .npy file.
        encode: False to keep vectors raw and have `optimize` encode them later; None to encode if the table
            has a codec.
        keep_vectors: of a new table, as in `compress`.
        on_bad_rows: "quarantine" to put rows that cannot be encoded (with a vector of another dimension, NaN
            or infinite, zero under cosine; null where that is not allowed; of values that do not cast) into
            the table `<name>_quarantine`, with source, position, reason and the row as JSON; or "error".
        commit_rows: rows of the source per commit at most.
        job: names a source that has no place of its own. A stream is only resumed if it has a name, and must
            then yield the same rows again from its first on; more may follow.
        resume: False to ingest all rows again, whether or not they are in the table.
        storage_options: credentials and so on for URIs, as LanceDB takes them.
        progress: show a progress bar.

    Returns:
        Rows added and quarantined, time and speed; prints as words.

    Raises:
        InvalidInputError: a source or argument that cannot be used, a path of several with nothing there,
            columns, or fields of structs, that are not those of the table or that only some files have, a
            file that has changed since part of it was ingested, or a bad row if that is an error.
        TableError: no such table and no codec, one that is not ours, another process that ingests the same
            source, or a table that cannot tell any more what was ingested.
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
        storage_options=storage_options,
        job=job,
    )
    report, warning = Ingestion(prepared, settings).run(started)
    if warning:
        warnings.warn(warning, stacklevel=3)
    return report
