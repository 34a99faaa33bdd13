"""Encoded rows into a table, in commits that say which rows of the source they are."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
from lance.dataset import Transaction
from lancedb.table import LanceTable

from rqmoe_store.ingestion.quarantine import BadRow, Quarantine
from rqmoe_store.store.appends import commit_rows, write_rows
from rqmoe_store.store.health import DriftSums, DriftWatch
from rqmoe_store.store.ingest_log import Claim, Done
from rqmoe_store.store.row_encoder import RowEncoder

_COMMITS_PER_FOLD = 64
"""Commits that a process must look through, at most, to find out what is in the table."""

_BAD_BYTES = 64 * 2**20
"""Text of bad rows that is held until the next commit, at most."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodedBlock:
    """What is left of a block when its rows are encoded: not its vectors, which take most memory."""

    encoded: pa.Table
    """The good rows as they are stored."""
    drift: DriftSums | None
    """How well they fit the codec; None if they were not encoded."""
    rows: int
    """Rows read, good or bad."""
    bad: Sequence[BadRow]
    """Rows for the quarantine."""
    pieces: Mapping[str, Done]
    """How much of these pieces is in the table once the block is."""


class Committer:
    """Makes written rows part of a table, together with the note of where they come from."""

    def __init__(
        self, table: LanceTable, encoder: RowEncoder, claim: Claim, quarantine: Quarantine | None
    ) -> None:
        """Prepare to commit.

        Args:
            table: any handle on it.
            encoder: of what is written.
            claim: of the job.
            quarantine: where bad rows go; None where there are none.
        """
        self.rows = 0
        """Rows committed so far."""
        self.quarantined = 0
        """Rows put into quarantine so far."""
        self.warning: str | None = None
        """What to warn of when all is done: rows that do not fit the codec."""
        self._watch = DriftWatch()
        self._table, self._encoder = table, encoder
        self._claim, self._quarantine = claim, quarantine
        self._commits = 0

    def commit(self, content: "Content", written: Transaction) -> None:
        """Commit rows, and before them the bad ones that came with them.

        Raises:
            TableError: another process ingests the same source, or the table was restored.
        """
        self._claim.require()
        self._encoder.require_known_to(self._table)
        if self._quarantine is not None:  # first: what is in both tables is finished
            self._quarantine.add(content.bad, content.pieces)
        drift = {} if content.drift is None else content.drift.properties
        properties = self._claim.properties(content.pieces) | drift
        if content.drift is not None:
            told = self._watch.note(self._table, self._encoder.codecs, content.drift)
            self.warning = self.warning or told
        self._claim.committed(commit_rows(self._table, written, properties))
        self.rows += content.rows_written
        self.quarantined += len(content.bad)
        self._commits += 1
        if self._commits % _COMMITS_PER_FOLD == 0:
            self.fold()

    def fold(self) -> None:
        """Note what is in the tables where it stays when old versions of them are cleaned up."""
        self._claim.fold()
        if self._quarantine is not None:
            self._quarantine.fold()


class CommitWriter:
    """Writes blocks into a table, a bounded number of rows per commit.

    Data files are written while blocks come; they, their note and their bad rows count from the commit on.
    """

    def __init__(
        self, table: LanceTable, schema: pa.Schema, committer: Committer, *, commit_rows: int
    ) -> None:
        """Prepare to write.

        Args:
            table: any handle on it.
            schema: of what is written.
            committer: of the table and the job.
            commit_rows: rows of the source per commit at most, unless a single block has more.
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
            commit = _Commit(self._commit_rows)
            batches = pa.RecordBatchReader.from_batches(self._schema, commit.filled(first, waiting))
            written = write_rows(self._table, batches)
            self._committer.commit(commit.content, written)
        self._committer.fold()


@dataclasses.dataclass
class Content:
    """What a commit has, but for the rows themselves; grows while these are gathered."""

    rows_read: int = 0
    """Rows of the source, good or bad."""
    rows_written: int = 0
    """Those that can be encoded."""
    bad: list[BadRow] = dataclasses.field(default_factory=list)
    """Rows for the quarantine."""
    bad_bytes: int = 0
    """Text of these."""
    pieces: dict[str, Done] = dataclasses.field(default_factory=dict)
    """How much of these pieces is in the table after the commit."""
    drift: DriftSums | None = None
    """How well the rows fit the codec; None if they were not encoded."""

    def is_full(self, most_rows: int) -> bool:
        """Whether no more should be added, given the rows of the source that a commit has at most."""
        return self.rows_read >= most_rows or self.bad_bytes >= _BAD_BYTES

    def add_block(self, block: EncodedBlock) -> None:
        """Take note of the block that comes next."""
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
        """Take note of what comes next."""
        self.rows_read += more.rows_read
        self.rows_written += more.rows_written
        self.bad += more.bad
        self.bad_bytes += more.bad_bytes
        self.pieces |= more.pieces
        if more.drift is not None:
            self.drift = more.drift if self.drift is None else self.drift.plus(more.drift)


class _Commit:
    """Blocks that become part of the table together."""

    def __init__(self, most_rows: int) -> None:
        self.content = Content()
        self._most_rows = most_rows

    def filled(self, block: EncodedBlock | None, blocks: "_Returnable") -> Iterator[pa.RecordBatch]:
        """The rows of `block` and as many of those that follow as there is room for."""
        content = self.content
        while block is not None:
            if content.pieces and content.rows_read + block.rows > self._most_rows:
                blocks.give_back(block)
                return
            content.add_block(block)
            yield from block.encoded.to_batches()
            block = None if content.is_full(self._most_rows) else next(blocks, None)


class _Returnable(Iterator[EncodedBlock]):
    """Blocks, of which the last one that was taken can be given back."""

    def __init__(self, blocks: Iterator[EncodedBlock]) -> None:
        self._blocks = blocks
        self._returned: list[EncodedBlock] = []

    def __next__(self) -> EncodedBlock:
        return self._returned.pop() if self._returned else next(self._blocks)

    def give_back(self, block: EncodedBlock) -> None:
        self._returned.append(block)
