"""Pieces of a source: files, fragments or streams, read from any row on, and cut into parts to share.

A piece is a file, a fragment of a Lance table, or a whole stream. The ingestion log remembers how many rows
of which piece a table has. A piece therefore has an identity that outlives the process, and yields the same
rows in the same order whenever it is read.
"""

import abc
import base64
import contextlib
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa

from rqmoe_store.errors import InvalidInputError, RQMoEError
from rqmoe_store.store.ingest_log import PieceProgress


class Chunk(NamedTuple):
    """Consecutive rows of a piece."""

    rows: pa.RecordBatch
    """Those of the requested columns that the piece has, in the types of the source."""
    source_bytes: int
    """Their share of the piece's bytes; 0 where it is known only at the end of the piece."""


class Piece(abc.ABC):
    """A file, fragment or stream of a source, read from its first row to its last."""

    may_grow = False
    """Whether the piece may have more rows at its end when it is read again."""

    can_be_shared = True
    """Whether another process that receives the piece can read it."""

    def __init__(self, name: str, stamp: str, source_bytes: int | None) -> None:
        self.name = name
        """Identifies the piece in its source; never changes."""
        self.stamp = stamp
        """Changes whenever rows of the piece change."""
        self.source_bytes = source_bytes
        """Size in bytes, from which the time left is estimated; None if unknown."""

    @property
    def key(self) -> str:
        """A digest of the name."""
        return digest(self.name, 9)

    @property
    def state(self) -> str:
        """A digest of the stamp."""
        return digest(self.stamp, 6)

    def cuts(self, size: int) -> list[int]:
        """Rows, ascending and about `size` bytes apart, from which reading starts without a detour.

        Empty if the piece is not larger than `size`, or can only be read from its beginning.
        """
        return []

    def peek(self, rows: int, columns: Sequence[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield about so many rows from the first one on, which `read` yields as well. Raises as `read`."""
        left = rows
        for chunk in self.read(0, columns, batch_rows):
            yield chunk.rows
            left -= chunk.rows.num_rows
            if left <= 0:
                return

    @abc.abstractmethod
    def read(self, start: int, columns: Sequence[str], batch_rows: int) -> Iterator[Chunk]:
        """Yield the rows from `start` on, in chunks of at most `batch_rows` and in bounded memory.

        Raises:
            InvalidInputError: the piece has fewer than `start` rows.
            OSError, pyarrow.ArrowException: the piece cannot be read.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A list of pieces with the same columns."""

    schema: pa.Schema
    """Columns of the source; a single piece may lack some or have other types."""
    pieces: Sequence[Piece]
    """In a fixed order."""
    location: str | None
    """Identifies the source across calls; None if nothing does."""
    version_note: str = ""
    """How to open the source again as it is now, after it has changed; empty if there is no way."""
    replaces_pieces: bool = False
    """Whether rewriting the source moves rows to new pieces, so that a missing piece means a rewrite."""

    @property
    def source_bytes(self) -> int | None:
        """Size of all pieces; None if that of any piece is unknown."""
        sizes = [piece.source_bytes for piece in self.pieces]
        return None if None in sizes else sum(size for size in sizes if size is not None)


@contextlib.contextmanager
def reading(piece: Piece) -> Iterator[None]:
    """Raise InvalidInputError, which names the piece, where it cannot be read."""
    try:
        yield
    except RQMoEError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InvalidInputError(
            f"{piece.name} cannot be read ({error}). What is committed stays; repair it and ingest again."
        ) from error


def digest(text: str, size: int) -> str:
    """A hash of `text`, `size` bytes long (a multiple of 3), as letters, digits, hyphens and underscores."""
    content = text.encode(errors="surrogatepass")  # file names that are not UTF-8 have surrogates
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()[:size]).decode()


def stamp_of(*parts: object) -> str:
    """The stamp of a piece that these values describe."""
    return json.dumps(parts)


def even_cuts(rows: int, source_bytes: int | None, size: int) -> list[int]:
    """`Piece.cuts` of a piece that can be read from any row: the numbers of rows of two parts differ by 1."""
    parts = min(rows, -(-(source_bytes or 0) // size))
    return [part * rows // parts for part in range(1, parts)]


def skip(batches: Iterator[pa.RecordBatch], rows: int, name: str) -> Iterator[pa.RecordBatch]:
    """Yield `batches` without their first `rows` rows.

    Raises:
        InvalidInputError: the piece, called `name`, has fewer rows.
    """
    left = rows
    for batch in batches:
        if left == 0:
            yield batch
        elif batch.num_rows > left:
            yield batch.slice(left)
            left = 0
        else:
            left -= batch.num_rows
    if left:
        raise InvalidInputError(
            f"{name} has {rows - left} rows, but {rows} of it have been ingested before. Is it another one? "
            "Then give it a name of its own with job=; to ingest it again from its start, pass resume=False."
        )


class Part(Piece):
    """Consecutive rows of a piece. It has the key of the piece, so progress on it is logged for the piece."""

    def __init__(self, piece: Piece, start: int, stop: int | None, source_bytes: int | None) -> None:
        """Select the rows from `start` to before `stop`, or to the end where `stop` is None."""
        super().__init__(piece.name, piece.stamp, source_bytes)
        self.start = start
        """First row."""
        self.may_grow = stop is not None or piece.may_grow
        self._piece, self._stop = piece, stop

    def read(self, start: int, columns: Sequence[str], batch_rows: int) -> Iterator[Chunk]:
        for chunk in self._piece.read(start, columns, batch_rows):
            left = chunk.rows.num_rows if self._stop is None else self._stop - start
            if left < chunk.rows.num_rows:
                share = chunk.source_bytes * left // chunk.rows.num_rows
                chunk = Chunk(chunk.rows.slice(0, left), share)
            start += chunk.rows.num_rows
            yield chunk
            if start == self._stop:
                return


def parts_of(pieces: Sequence[Piece], done: Mapping[str, PieceProgress], size: int) -> list[Part]:
    """Cut what is left of the pieces into parts, in the order of the pieces.

    Args:
        pieces: pieces of a source.
        done: key of a piece -> how much of it need not be read.
        size: approximate bytes of a part; a piece that cannot be cut makes a longer part.
    """
    parts: list[Part] = []
    for piece in pieces:
        first = done.get(piece.key, PieceProgress(piece.state, 0)).rows
        if first is None:
            continue
        starts = [first, *(cut for cut in piece.cuts(size) if cut > first)]
        share = None if piece.source_bytes is None else piece.source_bytes // len(starts)
        parts += [
            Part(piece, start, stop, share)
            for start, stop in itertools.zip_longest(starts, starts[1:])
            if start is not None
        ]
    return parts
