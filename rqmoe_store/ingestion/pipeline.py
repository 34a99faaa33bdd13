"""Read, encode and write at once: what `ingest` does when everything is opened and checked."""

import dataclasses
import time
from collections.abc import Sequence

from lancedb.table import LanceTable

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.ingestion.blocks import Block, BlockReader
from rqmoe_store.ingestion.pieces import Piece, Source, digest
from rqmoe_store.ingestion.prepare import Prepared
from rqmoe_store.ingestion.progress import IngestProgress
from rqmoe_store.ingestion.quarantine import Quarantine
from rqmoe_store.ingestion.report import IngestReport
from rqmoe_store.ingestion.stages import Behind, ahead
from rqmoe_store.ingestion.writer import Committer, CommitWriter, EncodedBlock
from rqmoe_store.store import databases
from rqmoe_store.store.claims import Claim, NoClaim, claim
from rqmoe_store.store.ingested import Ingested
from rqmoe_store.store.row_encoder import RowEncoder
from rqmoe_store.store.vector_arrays import rows_per_batch

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
        held, quarantine = claimed(self._store.table, self._source, self._settings)
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
            Behind(writer.write, _WAITING_BLOCKS) as behind,
            ahead(reader.read(pieces), _WAITING_BLOCKS) as blocks,
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


def claimed(table: LanceTable, source: Source, settings: IngestSettings) -> tuple[Claim, Quarantine | None]:
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
