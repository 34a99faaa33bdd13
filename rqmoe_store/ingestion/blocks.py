"""The rows of a source that are not in the table yet, in blocks of a size that is good to encode."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from rqmoe_store.errors import InvalidInputError, RQMoEError
from rqmoe_store.ingestion.checks import Checked, RowChecker
from rqmoe_store.ingestion.pieces import Chunk, Piece
from rqmoe_store.ingestion.quarantine import BadRow, as_json
from rqmoe_store.store.ingested import Done


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """Consecutive rows of one or several pieces."""

    checked: Checked
    """Those that can be encoded."""
    bad: Sequence[BadRow]
    """Those that cannot, unless they are in quarantine already."""
    pieces: Mapping[str, Done]
    """Key of a piece -> how much of it is in the table once this block is."""
    rows: int
    """Rows read, good or bad."""
    arrow_bytes: int
    """What they take in memory."""
    source_bytes: int
    """Their share of the bytes of the source."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockReader:
    """Reads pieces one after the other, less what is in the table already."""

    checker: RowChecker
    """For the rows."""
    columns: Sequence[str]
    """Of the source, that are read."""
    block_rows: int
    """Rows of a block at most."""
    done: Mapping[str, Done]
    """Key of a piece -> how much of it is in the table."""
    quarantined: Mapping[str, Done] | None
    """Key of a piece -> up to where its bad rows are in quarantine; None for bad rows to be an error."""

    def read(self, pieces: Sequence[Piece]) -> Iterator[Block]:
        """The blocks; each is read when it is asked for.

        Raises:
            InvalidInputError: a piece that cannot be read, whose columns are not those of the table, or, if
                that is an error, with a row that cannot be encoded.
        """
        pending = _Pending()
        for piece in pieces:
            start = self.done.get(piece.key, Done(piece.state, 0)).rows
            if start is None:
                continue
            left = piece.source_bytes or 0
            for chunk in self._chunks(piece, start):
                if pending.rows + chunk.rows.num_rows > self.block_rows:
                    yield pending.block(self.checker.nothing)
                    pending = _Pending()
                self._take(chunk, piece, start, pending)
                start, left = start + chunk.rows.num_rows, left - chunk.source_bytes
                if pending.rows == self.block_rows:
                    yield pending.block(self.checker.nothing)
                    pending = _Pending()
            pending.pieces[piece.key] = Done(piece.state, start if piece.may_grow else None)
            pending.source_bytes += max(0, left)
        if pending.pieces:
            yield pending.block(self.checker.nothing)

    def _chunks(self, piece: Piece, start: int) -> Iterator[Chunk]:
        try:
            yield from piece.read(start, self.columns, self.block_rows)
        except RQMoEError:
            raise
        except (OSError, ValueError, pa.ArrowException) as error:
            raise InvalidInputError(
                f"{piece.name} cannot be read ({error}). What is committed stays; repair it and ingest again."
            ) from error

    def _take(self, chunk: Chunk, piece: Piece, start: int, pending: "_Pending") -> None:
        """Check a chunk that begins at row `start` of its piece, and add it to the block."""
        rows = pa.Table.from_batches([chunk.rows])
        try:
            checked, problems = self.checker.check(rows)
        except InvalidInputError as error:
            raise InvalidInputError(f"{piece.name}: {error}") from error
        if problems:
            pending.bad += self._bad_rows(rows, problems, piece, start)
        pending.parts.append(checked)
        pending.pieces[piece.key] = Done(piece.state, start + rows.num_rows)
        pending.rows += rows.num_rows
        pending.arrow_bytes += rows.nbytes
        pending.source_bytes += chunk.source_bytes

    def _bad_rows(
        self, rows: pa.Table, problems: Mapping[int, str], piece: Piece, start: int
    ) -> list[BadRow]:
        if self.quarantined is None:
            first = min(problems)
            raise InvalidInputError(
                f"Row {start + first} of {piece.name} cannot be ingested: {problems[first]}. What is "
                "committed stays; repair the row and ingest again, or pass on_bad_rows='quarantine'."
            )
        known = self.quarantined.get(piece.key, Done(piece.state, 0)).rows
        new = [row for row in sorted(problems) if known is not None and start + row >= known]
        values = rows.take(pa.array(new, pa.int64())).to_pylist()
        return [
            BadRow(source=piece.name, position=start + row, reason=problems[row], row=as_json(value))
            for row, value in zip(new, values, strict=True)
        ]


@dataclasses.dataclass
class _Pending:
    """A block that is still being filled."""

    parts: list[Checked] = dataclasses.field(default_factory=list)
    bad: list[BadRow] = dataclasses.field(default_factory=list)
    pieces: dict[str, Done] = dataclasses.field(default_factory=dict)
    rows: int = 0
    arrow_bytes: int = 0
    source_bytes: int = 0

    def block(self, nothing: Checked) -> Block:
        return Block(
            checked=_joined(self.parts or [nothing]),
            bad=self.bad,
            pieces=self.pieces,
            rows=self.rows,
            arrow_bytes=self.arrow_bytes,
            source_bytes=self.source_bytes,
        )


def _joined(parts: Sequence[Checked]) -> Checked:
    if len(parts) == 1:
        return parts[0]  # not copied
    return Checked(
        pa.concat_tables([part.others for part in parts]),
        np.concatenate([part.vectors_VD for part in parts]),
        np.concatenate([part.valid_N for part in parts]),
    )
