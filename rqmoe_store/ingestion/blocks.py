"""Blocks: the rows of a source that are not in the table yet, checked against it, in sizes good to encode.

Shapes: N rows of a part, V of them with a vector, D components.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.errors import InvalidInputError, RQMoEError
from rqmoe_store.ingestion.pieces import Chunk, Piece
from rqmoe_store.ingestion.quarantine import BadRow, as_json
from rqmoe_store.store.ingest_log import Done
from rqmoe_store.store.row_encoder import RowEncoder
from rqmoe_store.store.rows import fitted, require_columns
from rqmoe_store.store.vector_arrays import (
    is_vector_type,
    plain_vectors,
    read_vectors,
    require_vector_column,
    unusable_vectors,
)


class Checked(NamedTuple):
    """Rows that can be encoded."""

    others: pa.Table
    """N rows with the columns that are stored as they come, in the types of the table."""
    vectors_VD: Float32Array
    """Of the rows that have one."""
    valid_N: npt.NDArray[np.bool_]
    """Which rows have a vector."""


class RowChecker:
    """Checks rows of one source for one table."""

    def __init__(self, encoder: RowEncoder, vector_column: str, *, dim: int, metric: str) -> None:
        """Prepare to check.

        Args:
            encoder: of the table.
            vector_column: what the source calls the vectors.
            dim: of the table's vectors.
            metric: of the table.
        """
        self._encoder, self._vector_column, self._dim, self._metric = encoder, vector_column, dim, metric

    @property
    def nothing(self) -> Checked:
        """No rows."""
        vectors_VD = np.zeros((0, self._dim), dtype=np.float32)
        return Checked(self._encoder.others.empty_table(), vectors_VD, np.zeros(0, dtype=bool))

    def require(self, schema: pa.Schema) -> None:
        """Raise unless rows with these columns can be checked one by one.

        Raises:
            InvalidInputError: missing or unknown columns, types that cannot be cast whatever the value, or
                vectors that all have another dimension.
            TableError: a vector column that holds no vectors.
        """
        if self._vector_column in schema.names and not pa.types.is_null(
            schema.field(self._vector_column).type
        ):
            require_vector_column(schema, self._vector_column, self._dim)
        self.check(schema.empty_table())

    def check(self, rows: pa.Table) -> tuple[Checked, dict[int, str]]:
        """The rows that can be encoded, and what is wrong with each of the others, by position.

        Raises:
            InvalidInputError: missing or unknown columns, or a vector column of another kind.
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
            return self._fit(table), {}
        except InvalidInputError:
            self._fit(table.slice(0, 0))  # what is wrong with the types is wrong with all rows
            bad = self._bad_rows(table)
            if not bad:
                raise
        good_N = np.ones(table.num_rows, dtype=bool)
        good_N[list(bad)] = False
        return self._fit(table.filter(pa.array(good_N))), bad

    def _fit(self, table: pa.Table) -> Checked:
        column = self._encoder.columns.vector_column
        fit = fitted(table, self._encoder.others, column)
        self._encoder.require_vectors(fit.schema.field(column).type)
        return Checked(fit.drop_columns(column), *self._encoder.read(fit[column], 0))

    def _bad_rows(self, table: pa.Table) -> dict[int, str]:
        column, bad = self._encoder.columns.vector_column, self._bad_vectors(table)
        for field in self._encoder.others:
            if field.name in table.column_names:

                def fit(start: int, stop: int, field: pa.Field = field) -> None:
                    fitted(table.select([field.name]).slice(start, stop - start), pa.schema([field]), column)

                for row, error in _failing(fit, 0, table.num_rows).items():
                    bad.setdefault(row, _reason(field, error))
        return bad

    def _bad_vectors(self, table: pa.Table) -> dict[int, str]:
        column = self._encoder.columns.vector_column
        if column not in table.column_names or pa.types.is_null(table.schema.field(column).type):
            return {}
        self._encoder.require_vectors(table.schema.field(column).type)
        bad = unusable_vectors(table[column], dim=self._dim, metric=self._metric)
        rows_N = np.setdiff1d(np.arange(table.num_rows), list(bad))
        vectors_VD, valid_N = read_vectors(
            table[column].take(rows_N), dim=self._dim, metric=self._metric, first_row=0
        )
        for problem, good_V in self._encoder.kept.problems(vectors_VD, self._metric).items():
            bad |= {int(row): problem for row in rows_N[valid_N][~good_V]}
        return {row: f"vector with {problem}" for row, problem in bad.items()}


def _failing(check: Callable[[int, int], None], start: int, stop: int) -> dict[int, InvalidInputError]:
    """The rows from `start` to `stop` that `check` refuses, found by halving."""
    try:
        check(start, stop)
    except InvalidInputError as error:
        if stop == start:
            raise  # not on account of a row
        if stop - start == 1:
            return {start: error}
        middle = (start + stop) // 2
        return _failing(check, start, middle) | _failing(check, middle, stop)
    return {}


def _reason(field: pa.Field, error: InvalidInputError) -> str:
    if error.__cause__ is None:
        return f"column {field.name!r} is null, which it may not be"
    return f"column {field.name!r} cannot be read as {field.type} ({error.__cause__})"


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
