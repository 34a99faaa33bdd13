"""Codes: the value type of encoded vectors, filled block by block.

Shape legend: n vectors, D dimension, M steps, m steps of a prefix, R bytes of a refine code.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from rqmoe_store.codecs.vectors import Float32Array, as_vectors, is_dense, is_tensor
from rqmoe_store.config import Metric
from rqmoe_store.errors import InvalidInputError

_BLOCK_ROWS = 8_192
"""Rows checked and converted at a time, so that a memory-mapped input is never in memory as a whole."""


@dataclasses.dataclass(frozen=True, eq=False)
class Codes:
    """The codes of n vectors, as `Codec.encode` returns them.

    Index rows as in an array, and code bytes as its second axis: `codes[10:20]`, `codes[rows]`,
    `codes[::-1]`, `codes[:, :8]` (an 8-byte prefix code, without refine codes). Arrays may have any layout.
    Tensors become arrays in the same memory.
    """

    codes: npt.NDArray[np.uint8]
    """Code bytes, uint8 (n, M)."""
    partitions: npt.NDArray[np.int32]
    """Partition ids, int32 (n,); all 0 when the codec has no partitions."""
    refine: npt.NDArray[np.uint8] | None = None
    """Refine codes, uint8 (n, R): what the code bytes leave over. None without refine codes."""

    def __post_init__(self) -> None:
        for name in ("codes", "partitions", "refine"):
            given = getattr(self, name)
            if type(given) is np.ndarray or given is None:
                continue  # queries make many codes
            if is_tensor(given):
                given = given.detach().cpu().numpy()
            object.__setattr__(self, name, np.asarray(given))

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, key: Any) -> "Codes":
        if isinstance(key, slice) and key == slice(None):
            return self
        rows, steps = key if isinstance(key, tuple) else (key, slice(None))
        if isinstance(rows, (int, np.integer)):
            rows = slice(rows, rows + 1 or None)
        # A refine code refines the whole code, not a prefix of it.
        refine = self.refine[rows] if self.refine is not None and steps == slice(None) else None
        return Codes(self.codes[rows][:, steps], self.partitions[rows], refine)

    @property
    def unrefined(self) -> "Codes":
        """These codes without refine codes."""
        return self if self.refine is None else Codes(self.codes, self.partitions)


def encode_vectors(
    vectors: Any, encode_checked: Callable[[Float32Array], Codes], *, dim: int, metric: Metric
) -> Codes:
    """Encode whatever `as_vectors` accepts, block by block, with a function of checked vectors (n, D).

    Codes must not depend on how rows are batched. There is one exception: a GPU may round differently for
    chunks of another size, and of two candidates that are equal up to the last bits, the other one may win.
    """
    if not is_dense(vectors) or vectors.ndim != 2 or len(vectors) <= _BLOCK_ROWS:
        return encode_checked(as_vectors(vectors, dim=dim, metric=metric))
    filled: Codes | None = None
    for start in range(0, len(vectors), _BLOCK_ROWS):
        block = vectors[start : start + _BLOCK_ROWS]
        rows = slice(start, start + len(block))
        checked_nD = as_vectors(block, dim=dim, metric=metric, positions=np.arange(rows.start, rows.stop))
        part = encode_checked(checked_nD)
        filled = _room_for(len(vectors), part) if filled is None else filled
        filled.codes[rows], filled.partitions[rows] = part.codes, part.partitions
        if filled.refine is not None and part.refine is not None:
            filled.refine[rows] = part.refine
    assert filled is not None, "has rows"
    return filled


def _room_for(rows: int, part: Codes) -> Codes:
    """Codes of so many rows, of the same widths as a part of them, to be filled in."""
    return Codes(
        np.empty((rows, part.codes.shape[1]), np.uint8),
        np.empty(rows, np.int32),
        None if part.refine is None else np.empty((rows, part.refine.shape[1]), np.uint8),
    )


def check_codes(
    codes: "Codes | npt.NDArray[np.uint8]",
    *,
    num_steps: int,
    codebook_size: int,
    num_partitions: int,
    refine_bytes: int = 0,
) -> Codes:
    """`codes` as Codes that a codec of the given shape can decode; prefixes pass.

    Args:
        codes: Codes, or a plain uint8 array (n, m) if `num_partitions` is 0.
        num_steps: the longest code, in bytes.
        codebook_size: codes must be below it.
        num_partitions: 0 for a codec without partitions, whose only partition id is 0.
        refine_bytes: bytes of a refine code; 0 for a codec without.

    Raises:
        InvalidInputError: wrong type or shape, or a code or partition id out of range.
    """
    if not isinstance(codes, Codes):
        if num_partitions:
            raise InvalidInputError(
                "This codec has partitions, so code bytes alone do not decode; pass the Codes that "
                "encode returned, or Codes(codes, partitions)."
            )
        codes = Codes(codes, np.zeros(0, dtype=np.int32))
        codes = Codes(codes.codes, np.zeros(codes.codes.shape[:1], dtype=np.int32))
    shape = codes.codes.shape
    if codes.codes.dtype != np.uint8 or len(shape) != 2 or not 1 <= shape[1] <= num_steps:
        raise InvalidInputError(
            f"Got codes of type {codes.codes.dtype} and shape {shape}; expected uint8 (n, m) with "
            f"1 <= m <= {num_steps}. Were they made by another codec?"
        )
    if codes.partitions.shape != shape[:1] or codes.partitions.dtype.kind not in "iu":
        raise InvalidInputError(
            f"Got partition ids of type {codes.partitions.dtype} and shape {codes.partitions.shape} for "
            f"{shape[0]} codes; expected integers, one per code."
        )
    if codes.refine is not None:
        _require_refine(codes, num_steps, refine_bytes)
    _require_below("code", codes.codes, codebook_size)
    _require_below("partition id", codes.partitions, max(1, num_partitions))
    return Codes(codes.codes, codes.partitions.astype(np.int32, copy=False), codes.refine)


def _require_refine(codes: Codes, num_steps: int, refine_bytes: int) -> None:
    assert codes.refine is not None
    found, expected = codes.refine.shape, (len(codes), refine_bytes)
    if codes.refine.dtype != np.uint8 or found != expected or not refine_bytes:
        raise InvalidInputError(
            f"Got refine codes of type {codes.refine.dtype} and shape {found}; expected "
            f"{f'uint8 {expected}' if refine_bytes else 'none'}. Were they made by another codec?"
        )
    if codes.codes.shape[1] != num_steps:
        raise InvalidInputError(
            f"Got refine codes with {codes.codes.shape[1]} of {num_steps} code bytes; they refine the whole "
            "code only. Pass all code bytes, or codes.unrefined."
        )


def _require_below(name: str, values: npt.NDArray[Any], limit: int) -> None:
    bad = np.argwhere((values < 0) | (values >= limit))
    if len(bad):
        row = int(bad[0][0])
        raise InvalidInputError(
            f"Got {name} {values[tuple(bad[0])]} in row {row}; expected 0 to {limit - 1}. "
            "The codes are damaged or belong to another codec."
        )
