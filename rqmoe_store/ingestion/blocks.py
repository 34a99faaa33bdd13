"""Blocks: checked rows of a source, in batches of a size to encode.

`BlockReader` reads the pieces of a source, skips what the table already has, and has a `RowChecker` separate
the rows that can be encoded from the bad ones.

Shape legend: N rows, V of them with a vector, D components.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.ingestion.pieces import Chunk, Piece, reading
from rqmoe_store.ingestion.quarantine import BadRow, as_json
from rqmoe_store.store.columns import Vectors
from rqmoe_store.store.ingest_log import PieceProgress
from rqmoe_store.store.ragged import joined_vectors
from rqmoe_store.store.row_encoder import RowEncoder
from rqmoe_store.store.rows import fitted, require_columns
from rqmoe_store.store.vector_arrays import is_vector_type, plain_vectors


class CheckedRows(NamedTuple):
    """Rows that can be encoded."""

    others: pa.Table
    """All N rows, without the vector column, cast to the types of the table."""
    vectors_VD: Vectors
    """Vectors of the rows that have one."""
    valid_N: npt.NDArray[np.bool_]
    """Which rows have a vector."""


class RowChecker:
    """Checks the rows of one source against the columns of one table."""

    def __init__(self, encoder: RowEncoder, vector_column: str) -> None:
        """Prepare to check rows.

        Args:
            encoder: row encoder of the table.
            vector_column: name of the vector column in the source.
        """
        self._encoder, self._kept, self._vector_column = encoder, encoder.kept, vector_column

    @property
    def no_rows(self) -> CheckedRows:
        """A result without rows."""
        none = self._encoder.others.empty_table()
        return CheckedRows(none, self._kept.none, np.zeros(0, dtype=bool))

    def require_schema(self, schema: pa.Schema) -> None:
        """Raise unless some rows with these columns could be encoded.

        Raises:
            InvalidInputError: columns are missing or unknown, a type cannot be cast whatever the value, or
                the type of the vectors fixes another dimension.
            TableError: the vector column does not hold vectors.
        """
        if self._vector_column in schema.names and not pa.types.is_null(
            schema.field(self._vector_column).type
        ):
            self._kept.require_source(schema, self._vector_column)
        self.check(schema.empty_table())

    def check(self, rows: pa.Table) -> tuple[CheckedRows, dict[int, str]]:
        """Return the rows that can be encoded, and for each other row its position and what is wrong with it.

        Raises:
            InvalidInputError: columns are missing or unknown, or the vector column has another type.
        """
        column = self._encoder.columns.vector_column
        table = rows.rename_columns(
            [column if name == self._vector_column else name for name in rows.column_names]
        )
        source = self._encoder.embedding.source_column if self._encoder.embedding else None
        require_columns(table.column_names, self._encoder.others, column, source)
        if column in table.column_names and is_vector_type(table.schema.field(column).type):
            place = table.schema.get_field_index(column)
            table = table.set_column(place, column, plain_vectors(table[column]))
        try:
            return self._cast(table), {}
        except InvalidInputError:
            self._cast(table.slice(0, 0))  # raises for wrong types, which concern all rows
            bad = self._bad_rows(table)
            if not bad:
                raise
        good_N = np.ones(table.num_rows, dtype=bool)
        good_N[list(bad)] = False
        return self._cast(table.filter(pa.array(good_N))), bad

    def _cast(self, table: pa.Table) -> CheckedRows:
        column = self._encoder.columns.vector_column
        cast = fitted(table, self._encoder.others, column)
        self._kept.require_type(cast.schema.field(column).type)
        return CheckedRows(cast.drop_columns(column), *self._kept.read(cast[column], 0))

    def _bad_rows(self, table: pa.Table) -> dict[int, str]:
        column, bad = self._encoder.columns.vector_column, self._bad_vectors(table)
        for field in self._encoder.others:
            if field.name in table.column_names:

                def cast(start: int, stop: int, field: pa.Field = field) -> None:
                    fitted(table.select([field.name]).slice(start, stop - start), pa.schema([field]), column)

                for row, error in _failing_rows(cast, 0, table.num_rows).items():
                    bad.setdefault(row, _reason(field, error))
        return bad

    def _bad_vectors(self, table: pa.Table) -> dict[int, str]:
        column = self._encoder.columns.vector_column
        if column not in table.column_names or pa.types.is_null(table.schema.field(column).type):
            return {}
        self._kept.require_type(table.schema.field(column).type)
        bad = self._kept.unusable(table[column])
        return {row: f"vector with {problem}" for row, problem in bad.items()}


def _failing_rows(check: Callable[[int, int], None], start: int, stop: int) -> dict[int, InvalidInputError]:
    """The rows from `start` to `stop` for which `check` raises, found by bisection."""
    try:
        check(start, stop)
    except InvalidInputError as error:
        if stop == start:
            raise  # no row is the cause
        if stop - start == 1:
            return {start: error}
        middle = (start + stop) // 2
        return _failing_rows(check, start, middle) | _failing_rows(check, middle, stop)
    return {}


def _reason(field: pa.Field, error: InvalidInputError) -> str:
    if error.__cause__ is None:
        return f"column {field.name!r} is null, which it may not be"
    return f"column {field.name!r} cannot be read as {field.type} ({error.__cause__})"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """Consecutive rows of one or several pieces."""

    checked: CheckedRows
    """Rows that can be encoded."""
    bad: Sequence[BadRow]
    """Rows that cannot be encoded and are not in quarantine yet."""
    pieces: Mapping[str, PieceProgress]
    """Key of a piece -> how much of it the table has once it has this block."""
    rows: int
    """Rows read, good and bad."""
    arrow_bytes: int
    """Size of these rows in memory."""
    source_bytes: int
    """Their share of the bytes of the source."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockReader:
    """Reads pieces one after the other and skips the rows that the table has already."""

    checker: RowChecker
    """Checks the rows."""
    columns: Sequence[str]
    """Columns of the source to read."""
    block_rows: int
    """Most rows of a block."""
    done: Mapping[str, PieceProgress]
    """Key of a piece -> how much of it the table has."""
    quarantined: Mapping[str, PieceProgress] | None
    """Key of a piece -> up to which row its bad rows are in quarantine; None where bad rows are an error."""

    def read(self, pieces: Sequence[Piece]) -> Iterator[Block]:
        """Yield the blocks, reading each when it is requested.

        Raises:
            InvalidInputError: a piece cannot be read or has other columns than the table; or it has a bad
                row, where that is an error.
        """
        pending = _BlockBuilder()
        for piece in pieces:
            start = self.done.get(piece.key, PieceProgress(piece.state, 0)).rows
            if start is None:
                continue
            left = piece.source_bytes or 0
            for chunk in self._chunks(piece, start):
                if pending.rows + chunk.rows.num_rows > self.block_rows:
                    yield pending.block(self.checker.no_rows)
                    pending = _BlockBuilder()
                self._add_chunk(chunk, piece, start, pending)
                start, left = start + chunk.rows.num_rows, left - chunk.source_bytes
                if pending.rows == self.block_rows:
                    yield pending.block(self.checker.no_rows)
                    pending = _BlockBuilder()
            pending.pieces[piece.key] = PieceProgress(piece.state, start if piece.may_grow else None)
            pending.source_bytes += max(0, left)
        if pending.pieces:
            yield pending.block(self.checker.no_rows)

    def _chunks(self, piece: Piece, start: int) -> Iterator[Chunk]:
        with reading(piece):
            yield from piece.read(start, self.columns, self.block_rows)

    def _add_chunk(self, chunk: Chunk, piece: Piece, start: int, pending: "_BlockBuilder") -> None:
        """Check a chunk that begins at row `start` of its piece, and add its rows to the pending block."""
        rows = pa.Table.from_batches([chunk.rows])
        try:
            checked, problems = self.checker.check(rows)
        except InvalidInputError as error:
            raise InvalidInputError(f"{piece.name}: {error}") from error
        if problems:
            pending.bad += self._bad_rows(rows, problems, piece, start)
        pending.parts.append(checked)
        pending.pieces[piece.key] = PieceProgress(piece.state, start + rows.num_rows)
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
        known = self.quarantined.get(piece.key, PieceProgress(piece.state, 0)).rows
        new = [row for row in sorted(problems) if known is not None and start + row >= known]
        values = rows.take(pa.array(new, pa.int64())).to_pylist()
        return [
            BadRow(source=piece.name, position=start + row, reason=problems[row], row=as_json(value))
            for row, value in zip(new, values, strict=True)
        ]


@dataclasses.dataclass
class _BlockBuilder:
    """Collects chunks until they make a block."""

    parts: list[CheckedRows] = dataclasses.field(default_factory=list)
    bad: list[BadRow] = dataclasses.field(default_factory=list)
    pieces: dict[str, PieceProgress] = dataclasses.field(default_factory=dict)
    rows: int = 0
    arrow_bytes: int = 0
    source_bytes: int = 0

    def block(self, no_rows: CheckedRows) -> Block:
        """The collected rows as a block; `no_rows` stands for the rows where there are none."""
        return Block(
            checked=_concatenated(self.parts or [no_rows]),
            bad=self.bad,
            pieces=self.pieces,
            rows=self.rows,
            arrow_bytes=self.arrow_bytes,
            source_bytes=self.source_bytes,
        )


def _concatenated(parts: Sequence[CheckedRows]) -> CheckedRows:
    if len(parts) == 1:
        return parts[0]  # avoids a copy
    return CheckedRows(
        pa.concat_tables([part.others for part in parts]),
        joined_vectors([part.vectors_VD for part in parts]),
        np.concatenate([part.valid_N for part in parts]),
    )
