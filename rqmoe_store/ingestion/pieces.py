"""Pieces of a source: each has an identity that outlives the process, and rows in a fixed order.

A piece is a file, a fragment of a Lance table, or a whole stream. What has been ingested is remembered by
piece and number of rows, so a piece must give the same rows in the same order whenever it is read.
"""

import abc
import base64
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.store.ingest_log import Done


class Chunk(NamedTuple):
    """Some consecutive rows of a piece."""

    rows: pa.RecordBatch
    """The columns asked for that the piece has, as the source types them."""
    source_bytes: int
    """Their share of the piece's bytes; 0 where it shows only in the end."""


class Piece(abc.ABC):
    """A part of a source that is read from its first row to its last."""

    may_grow = False
    """Whether rows may have come after its last one when it is read again."""

    can_be_shared = True
    """Whether other processes that it is sent to can read it."""

    def __init__(self, name: str, stamp: str, source_bytes: int | None) -> None:
        self.name = name
        """Names the piece in its source; never changes."""
        self.stamp = stamp
        """Changes whenever rows of the piece do."""
        self.source_bytes = source_bytes
        """Its size, on which estimates of the time left are based; None where nobody knows."""

    @property
    def key(self) -> str:
        """A digest of the name."""
        return digest(self.name, 9)

    @property
    def state(self) -> str:
        """A digest of the stamp."""
        return digest(self.stamp, 6)

    def cuts(self, size: int) -> list[int]:
        """Rows, ascending, from which it is read about as soon as from its first, some `size` bytes apart.

        Empty where it is no larger than that, or has no such rows.
        """
        return []

    @abc.abstractmethod
    def read(self, start: int, columns: Sequence[str], batch_rows: int) -> Iterator[Chunk]:
        """The rows from `start` on, in chunks of at most `batch_rows`; a bounded number is in memory.

        Raises:
            InvalidInputError: there are fewer than `start` rows.
            OSError, pyarrow.ArrowException: the piece cannot be read.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A list of pieces with the same columns."""

    schema: pa.Schema
    """Columns of the source; single pieces may lack some or have other types."""
    pieces: Sequence[Piece]
    """In an order that stays the same as long as the pieces do."""
    location: str | None
    """Tells this source from any other; None when nothing does."""
    version_note: str = ""
    """How to get the source again as it is now, should it change; empty where there is no way."""
    replaces_pieces: bool = False
    """Whether rows move to new pieces when the source is rewritten: a piece that is gone tells of it."""

    @property
    def source_bytes(self) -> int | None:
        """Size of all pieces; None when one of them does not know its own."""
        sizes = [piece.source_bytes for piece in self.pieces]
        return None if None in sizes else sum(size for size in sizes if size is not None)


def digest(text: str, size: int) -> str:
    """A hash of `size` bytes (a multiple of 3) of `text`, as letters, digits, hyphens and underscores."""
    content = text.encode(errors="surrogatepass")  # a name of a file that is no UTF-8 has surrogates
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()[:size]).decode()


def stamp_of(*parts: object) -> str:
    """A stamp made of these values."""
    return json.dumps(parts)


def even_cuts(rows: int, source_bytes: int | None, size: int) -> list[int]:
    """As `Piece.cuts`, of a piece that can be read from any row: all parts have as many, less one at most."""
    parts = min(rows, -(-(source_bytes or 0) // size))
    return [part * rows // parts for part in range(1, parts)]


def skip(batches: Iterator[pa.RecordBatch], rows: int, name: str) -> Iterator[pa.RecordBatch]:
    """`batches` without the first `rows` rows.

    Raises:
        InvalidInputError: piece `name` has fewer.
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
    """Consecutive rows of a piece; what is remembered of them is remembered of the piece."""

    def __init__(self, piece: Piece, start: int, stop: int | None, source_bytes: int | None) -> None:
        """Take the rows from `start` to before `stop`, or to the last one where that is None."""
        super().__init__(piece.name, piece.stamp, source_bytes)
        self.start = start
        """The first row."""
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


def parts_of(pieces: Sequence[Piece], done: Mapping[str, Done], size: int) -> list[Part]:
    """What is left of some pieces, in their order.

    Args:
        pieces: of a source.
        done: key of a piece -> how much of it needs no reading.
        size: bytes of a part, about; pieces that cannot be cut make longer ones.
    """
    parts: list[Part] = []
    for piece in pieces:
        first = done.get(piece.key, Done(piece.state, 0)).rows
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
