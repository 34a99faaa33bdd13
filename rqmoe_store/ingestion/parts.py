"""Pieces cut into parts that several processes read, each from its first row to its last."""

import itertools
from collections.abc import Iterator, Mapping, Sequence

from rqmoe_store.ingestion.pieces import Chunk, Piece
from rqmoe_store.store.ingested import Done


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
