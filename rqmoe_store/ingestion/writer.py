"""Commit encoded rows to a table, a bounded number at a time, each commit with its ingestion log entry."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
from lance.dataset import Transaction
from lancedb.table import LanceTable

from rqmoe_store.ingestion.quarantine import BadRow, Quarantine
from rqmoe_store.store.appends import commit_rows, write_rows
from rqmoe_store.store.health import DriftSums, DriftWatch
from rqmoe_store.store.ingest_log import Claim, PieceProgress
from rqmoe_store.store.row_encoder import RowEncoder

_COMMITS_PER_FOLD = 64
"""Commits after which notes are folded: most commits to read to find out what a table has."""

_BAD_BYTES = 64 * 2**20
"""Most text of bad rows to hold until the next commit."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodedBlock:
    """A block whose rows are encoded; without its vectors, which take most memory."""

    encoded: pa.Table
    """The good rows as they are stored."""
    drift: DriftSums | None
    """How well these rows fit the codec; None if they were not encoded."""
    rows: int
    """Rows read, good and bad."""
    bad: Sequence[BadRow]
    """Rows for the quarantine."""
    pieces: Mapping[str, PieceProgress]
    """Key of a piece -> how much of it the table has once it has this block."""


@dataclasses.dataclass
class Content:
    """Summary of the rows of a commit: counts, bad rows, progress and drift; grows block by block."""

    rows_read: int = 0
    """Rows of the source, good and bad."""
    rows_written: int = 0
    """Good rows."""
    bad: list[BadRow] = dataclasses.field(default_factory=list)
    """Rows for the quarantine."""
    bad_bytes: int = 0
    """Text of the rows for the quarantine."""
    pieces: dict[str, PieceProgress] = dataclasses.field(default_factory=dict)
    """Key of a piece -> how much of it the table has after the commit."""
    drift: DriftSums | None = None
    """How well the rows fit the codec; None if they were not encoded."""

    def is_full(self, most_rows: int) -> bool:
        """Whether a commit of at most `most_rows` rows of the source has room for no more."""
        return self.rows_read >= most_rows or self.bad_bytes >= _BAD_BYTES

    def add_block(self, block: EncodedBlock) -> None:
        """Add the block that comes next."""
        bad_bytes = sum(len(row.row) for row in block.bad)
        self.add(
            Content(
                rows_read=block.rows,
                rows_written=block.encoded.num_rows,
                bad=list(block.bad),
                bad_bytes=bad_bytes,
                pieces=dict(block.pieces),
                drift=block.drift,
            )
        )

    def add(self, more: "Content") -> None:
        """Add the content that comes next."""
        self.rows_read += more.rows_read
        self.rows_written += more.rows_written
        self.bad += more.bad
        self.bad_bytes += more.bad_bytes
        self.pieces |= more.pieces
        if more.drift is not None:
            self.drift = more.drift if self.drift is None else self.drift.plus(more.drift)


class Committer:
    """Commits written rows together with the note of which rows of the source they are."""

    def __init__(
        self, table: LanceTable, encoder: RowEncoder, claim: Claim, quarantine: Quarantine | None
    ) -> None:
        """Prepare to commit.

        Args:
            table: any handle on the table.
            encoder: encoder of the rows.
            claim: claim on the job.
            quarantine: where bad rows go; None where bad rows are an error.
        """
        self.rows = 0
        """Rows committed so far."""
        self.quarantined = 0
        """Rows put into quarantine so far."""
        self.warning: str | None = None
        """Warning to give when all is done: rows do not fit the codec."""
        self._watch = DriftWatch()
        self._table, self._encoder = table, encoder
        self._claim, self._quarantine = claim, quarantine
        self._commits = 0

    def commit(self, content: Content, written: Transaction) -> None:
        """Commit rows, and before them the bad rows that came with them.

        Raises:
            TableError: another process ingests the same source, or the table was restored.
        """
        self._claim.require_held()
        self.require_codec_in(self._table.schema)
        # The quarantine comes first: no later call reads rows again that the table has logged.
        if self._quarantine is not None:
            self._quarantine.add(content.bad, content.pieces)
        drift = {} if content.drift is None else content.drift.properties
        properties = self._claim.properties(content.pieces) | drift
        if content.drift is not None:
            warning = self._watch.add(self._table, self._encoder.codecs, content.drift)
            self.warning = self.warning or warning
        self._claim.record_commit(commit_rows(self._table, written, properties))
        self.rows += content.rows_written
        self.quarantined += len(content.bad)
        self._commits += 1
        if self._commits % _COMMITS_PER_FOLD == 0:
            self.fold_notes()

    def require_codec_in(self, schema: pa.Schema) -> None:
        """Raise TableError unless a version of the table has the codec that encodes rows, and its columns."""
        self._encoder.require_codec_in(schema)

    def fold_notes(self) -> None:
        """Move the ingestion logs into the tables' metadata, where they outlive old versions."""
        self._claim.fold_notes()
        if self._quarantine is not None:
            self._quarantine.fold_notes()


class CommitWriter:
    """Writes blocks to a table with a bounded number of rows per commit.

    Data files are written while blocks arrive. The commit makes them part of the table, together with their
    note and their bad rows.
    """

    def __init__(
        self, table: LanceTable, schema: pa.Schema, committer: Committer, *, commit_rows: int
    ) -> None:
        """Prepare to write.

        Args:
            table: any handle on the table.
            schema: schema of the rows as they are stored.
            committer: committer for the table and the job.
            commit_rows: most rows of the source per commit, unless a single block has more.
        """
        self._table, self._schema, self._committer = table, schema, committer
        self._commit_rows = commit_rows

    def write(self, blocks: Iterator[EncodedBlock]) -> None:
        """Write all blocks.

        Raises:
            TableError: another process ingests the same source, or the table was restored.
        """
        waiting = _Returnable(blocks)
        while (first := next(waiting, None)) is not None:
            content = Content()
            batches = pa.RecordBatchReader.from_batches(self._schema, self._fill(content, first, waiting))
            written = write_rows(self._table, batches, check=self._committer.require_codec_in)
            self._committer.commit(content, written)
        self._committer.fold_notes()

    def _fill(
        self, content: Content, block: EncodedBlock | None, blocks: "_Returnable"
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows of `block` and of the blocks after it for which `content` has room, and add them."""
        while block is not None:
            if content.pieces and content.rows_read + block.rows > self._commit_rows:
                blocks.give_back(block)
                return
            content.add_block(block)
            yield from block.encoded.to_batches()
            block = None if content.is_full(self._commit_rows) else next(blocks, None)


class _Returnable(Iterator[EncodedBlock]):
    """An iterator of blocks that takes the last block back."""

    def __init__(self, blocks: Iterator[EncodedBlock]) -> None:
        self._blocks = blocks
        self._returned: list[EncodedBlock] = []

    def __next__(self) -> EncodedBlock:
        return self._returned.pop() if self._returned else next(self._blocks)

    def give_back(self, block: EncodedBlock) -> None:
        self._returned.append(block)
