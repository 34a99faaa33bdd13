"""Encoded rows into a table, in commits that say which rows of the source they are."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
from lance.dataset import Transaction
from lancedb.table import LanceTable

from rqmoe_store.ingestion.quarantine import BadRow, Quarantine
from rqmoe_store.store.appends import commit_rows, write_rows
from rqmoe_store.store.claims import Claim
from rqmoe_store.store.drift import DriftSums
from rqmoe_store.store.ingested import Done
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


class CommitWriter:
    """Writes blocks into a table, a bounded number of rows per commit.

    Data files are written while blocks come; they, their note and their bad rows count from the commit on.
    """

    def __init__(
        self,
        table: LanceTable,
        encoder: RowEncoder,
        claim: Claim,
        quarantine: Quarantine | None,
        *,
        commit_rows: int,
    ) -> None:
        """Prepare to write.

        Args:
            table: any handle on it.
            encoder: of what is written.
            claim: of the job.
            quarantine: where bad rows go; None where there are none.
            commit_rows: rows of the source per commit at most, unless a single block has more.
        """
        self.rows = 0
        """Rows committed so far."""
        self.quarantined = 0
        """Rows put into quarantine so far."""
        self.drift: DriftSums | None = None
        """How well the rows committed fit the codec."""
        self._table, self._encoder, self._claim = table, encoder, claim
        self._quarantine, self._commit_rows = quarantine, commit_rows

    def write(self, blocks: Iterator[EncodedBlock]) -> None:
        """Write all blocks.

        Raises:
            TableError: another process ingests the same source, or the table was restored.
        """
        waiting, commits = _Returnable(blocks), 0
        while (first := next(waiting, None)) is not None:
            commit = _Commit(self._commit_rows)
            batches = pa.RecordBatchReader.from_batches(self._encoder.schema, commit.filled(first, waiting))
            self._commit(commit, write_rows(self._table, batches))
            commits += 1
            if commits % _COMMITS_PER_FOLD == 0:
                self._fold()
        self._fold()

    def _commit(self, commit: "_Commit", written: Transaction) -> None:
        self._claim.require()
        self._encoder.require_known()
        if self._quarantine is not None:  # first: what is in both tables is finished
            self._quarantine.add(commit.bad, commit.pieces)
        drift = {} if commit.drift is None else commit.drift.properties
        properties = self._claim.properties(commit.pieces) | drift
        self._claim.committed(commit_rows(self._table, written, properties))
        self._count(commit)

    def _count(self, commit: "_Commit") -> None:
        self.rows += commit.rows_written
        self.quarantined += len(commit.bad)
        if commit.drift is not None:
            self.drift = commit.drift if self.drift is None else self.drift.plus(commit.drift)

    def _fold(self) -> None:
        self._claim.fold()
        if self._quarantine is not None:
            self._quarantine.fold()


@dataclasses.dataclass
class _Commit:
    """Blocks that become part of the table together."""

    most_rows: int
    rows_read: int = 0
    rows_written: int = 0
    bad: list[BadRow] = dataclasses.field(default_factory=list)
    bad_bytes: int = 0
    pieces: dict[str, Done] = dataclasses.field(default_factory=dict)
    drift: DriftSums | None = None

    def filled(self, block: EncodedBlock | None, blocks: "_Returnable") -> Iterator[pa.RecordBatch]:
        """The rows of `block` and as many of those that follow as there is room for."""
        while block is not None:
            if self.pieces and self.rows_read + block.rows > self.most_rows:
                blocks.give_back(block)
                return
            self._add(block)
            yield from block.encoded.to_batches()
            is_full = self.rows_read >= self.most_rows or self.bad_bytes >= _BAD_BYTES
            block = None if is_full else next(blocks, None)

    def _add(self, block: EncodedBlock) -> None:
        self.rows_read += block.rows
        self.rows_written += block.encoded.num_rows
        self.bad += block.bad
        self.bad_bytes += sum(len(row.row) for row in block.bad)
        self.pieces |= block.pieces
        if block.drift is not None:
            self.drift = block.drift if self.drift is None else self.drift.plus(block.drift)


class _Returnable(Iterator[EncodedBlock]):
    """Blocks, of which the last one that was taken can be given back."""

    def __init__(self, blocks: Iterator[EncodedBlock]) -> None:
        self._blocks = blocks
        self._returned: list[EncodedBlock] = []

    def __next__(self) -> EncodedBlock:
        return self._returned.pop() if self._returned else next(self._blocks)

    def give_back(self, block: EncodedBlock) -> None:
        self._returned.append(block)
