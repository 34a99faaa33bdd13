"""Ragged arrays: rows of different lengths in one array, and the codes of rows that have many vectors each.

Shape legend: N rows of a table, V of them with vectors, B rows, T values of all rows.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rqmoe_store.codecs.codes import Codes

Lengths = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True, eq=False)
class Ragged:
    """Rows of different lengths, one after the other; index rows as in an array."""

    values: npt.NDArray[Any]
    """The values of all rows: vectors (T, D), or bytes (T,)."""
    lengths_B: Lengths
    """Number of values of each row."""

    def __len__(self) -> int:
        return len(self.lengths_B)

    @property
    def starts_B1(self) -> Lengths:
        """Position of the first value of each row, and the end of the last one (B + 1)."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.lengths_B, dtype=np.int64)])

    def __getitem__(self, rows: slice | npt.NDArray[Any]) -> "Ragged":
        starts_B1 = self.starts_B1
        if isinstance(rows, slice) and rows.step in (None, 1):
            first, stop, _ = rows.indices(len(self))
            values = self.values[starts_B1[first] : starts_B1[max(first, stop)]]
            return Ragged(values, self.lengths_B[rows])
        chosen = np.arange(len(self))[rows]
        lengths_B = self.lengths_B[chosen]
        ends_B = np.cumsum(lengths_B)
        # The position of every value, counted on from the first one of its row.
        jumps_B = starts_B1[chosen] - (ends_B - lengths_B)
        places_T = np.repeat(jumps_B, lengths_B) + np.arange(int(ends_B[-1]) if len(ends_B) else 0)
        return Ragged(self.values[places_T], lengths_B)

    @classmethod
    def joined(cls, parts: Sequence["Ragged"]) -> "Ragged":
        """The rows of at least one array, one array after the other."""
        values = np.concatenate([part.values for part in parts])
        return cls(values, np.concatenate([part.lengths_B for part in parts]))

    @classmethod
    def merged(cls, old: "Ragged", old_N: Mask, new: "Ragged", new_N: Mask) -> "Ragged":
        """The N rows that are in `new` where `new_N` is True, else in `old` where `old_N` is, else empty."""
        places_N = np.full(len(old_N), len(old) + len(new))
        places_N[old_N] = np.arange(len(old))
        places_N[new_N] = len(old) + np.arange(len(new))
        nothing = cls(old.values[:0], np.zeros(1, np.int64))
        return cls.joined([old, new, nothing])[places_N]

    @classmethod
    def of_binary(cls, array: pa.LargeBinaryArray) -> "Ragged":
        """The bytes of B rows, none of which is null."""
        if len(array) == 0:
            return cls(np.empty(0, np.uint8), np.empty(0, np.int64))
        _, offsets, data = array.buffers()
        offsets_B1 = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
        stored = np.empty(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)
        return cls(stored[offsets_B1[0] : offsets_B1[-1]], np.diff(offsets_B1))

    def as_binary(self, valid_N: Mask) -> pa.LargeBinaryArray:
        """A binary column of N rows, null where `valid_N` is False, of bytes of the V other rows."""
        return pa.LargeBinaryArray.from_buffers(
            pa.large_binary(),
            len(valid_N),
            [
                pa.py_buffer(np.packbits(valid_N, bitorder="little").tobytes()),
                pa.py_buffer(self.offsets_in(valid_N)),
                pa.py_buffer(np.ascontiguousarray(self.values)),
            ],
        )

    def offsets_in(self, valid_N: Mask) -> Lengths:
        """Where each of N rows begins, and the last one ends, if those where `valid_N` is False are empty."""
        lengths_N = np.zeros(len(valid_N), np.int64)
        lengths_N[valid_N] = self.lengths_B
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths_N, dtype=np.int64)])


def components_of(vectors: Any) -> npt.NDArray[Any]:
    """All vectors of rows (T, D), which have one vector each, (T, D), or many, `Ragged`."""
    return vectors.values if isinstance(vectors, Ragged) else vectors


def joined_vectors(parts: Sequence[Any]) -> Any:
    """The vectors of the rows of at least one part, one part after the other."""
    return Ragged.joined(parts) if isinstance(parts[0], Ragged) else np.concatenate(parts)


def merged_vectors(old: Any, old_N: Mask, new: Any, new_N: Mask) -> Any:
    """The vectors of those of N rows that have any: in `new` where `new_N` is True, else in `old`."""
    valid_N = old_N | new_N
    if isinstance(old, Ragged):
        return Ragged.merged(old, old_N, new, new_N)[valid_N]
    vectors_ND = np.zeros((len(valid_N), new.shape[1]), dtype=np.float32)
    vectors_ND[old_N], vectors_ND[new_N] = old, new
    return vectors_ND[valid_N]


@dataclasses.dataclass(frozen=True, eq=False)
class RowCodes(Codes):
    """Codes of rows with many vectors each: of the fixed dimensional encoding of each, and of its vectors."""

    tokens: Ragged = dataclasses.field(
        default_factory=lambda: Ragged(np.empty(0, np.uint8), np.empty(0, np.int64))
    )
    """Bytes of the codes of all vectors of every row."""

    def __getitem__(self, key: Any) -> "RowCodes":
        rows = key[0] if isinstance(key, tuple) else key
        if isinstance(rows, (int, np.integer)):
            rows = slice(rows, rows + 1 or None)
        some = super().__getitem__(key)
        return RowCodes(some.codes, some.partitions, some.refine, self.tokens[rows])
