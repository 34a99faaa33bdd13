"""Lists of vectors: whatever a user passes as documents of many vectors, checked and laid out in one array.

Shape legend: B documents, T vectors of all documents, n vectors of one, D vector dimension.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rqmoe_store.codecs.vectors import Float32Array, as_vectors, is_tensor
from rqmoe_store.errors import InvalidInputError

Lengths = npt.NDArray[np.int64]


class VectorLists(NamedTuple):
    """The vectors of all documents, one document after the other."""

    vectors_TD: Float32Array
    lengths_B: Lengths
    """Number of vectors of each document."""

    @property
    def starts_B1(self) -> Lengths:
        """Position of the first vector of each document, and the end of the last one (B + 1)."""
        return starts_of(self.lengths_B)


def starts_of(lengths_B: Lengths) -> Lengths:
    """Position of the first vector of each document, and the end of the last one (B + 1)."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths_B, dtype=np.int64)])


def as_vector_lists(vectors: Any, lengths: Any = None, *, dim: int | None = None) -> VectorLists:
    """Documents of many vectors as one C-contiguous float32 array and their lengths, checked.

    Args:
        vectors: with `lengths`, the vectors (T, D) of all documents one after the other; without, a sequence
            of matrices (n, D), one for each document. A matrix may have no rows.
        lengths: how many vectors each document has.
        dim: required dimension. None accepts any.

    Raises:
        InvalidInputError: vectors of another dimension, that are not numbers, or NaN or infinite; lengths
            that are negative, no whole numbers, or do not add up to the vectors.
    """
    if lengths is None:
        return _join(vectors, dim)
    vectors_TD = as_vectors(vectors, dim=dim)
    return VectorLists(vectors_TD, _as_lengths(lengths, len(vectors_TD)))


def _join(matrices: Any, dim: int | None) -> VectorLists:
    is_array = isinstance(matrices, np.ndarray) or is_tensor(matrices)
    if is_array and matrices.ndim != 3:
        raise InvalidInputError(
            f"Got vectors of shape {tuple(matrices.shape)} without lengths; expected lengths that say how "
            "many vectors each document has, or a list of matrices (rows, dim) as vectors."
        )
    if not is_array and (not isinstance(matrices, Sequence) or isinstance(matrices, str | bytes)):
        raise InvalidInputError(
            f"Got vectors of type {type(matrices).__name__}; expected a list of matrices (rows, dim), or an "
            "array of all vectors together with lengths."
        )
    checked: list[Float32Array] = []
    for position, matrix in enumerate(matrices):
        if isinstance(matrix, Sequence) and not isinstance(matrix, str | bytes) and not matrix:
            checked.append(np.empty((0, dim or 0), np.float32))
            continue
        try:
            checked.append(as_vectors(matrix, dim=dim))
        except InvalidInputError as error:
            raise InvalidInputError(f"Document {position} (counted from 0): {error}") from error
        dim = dim or checked[-1].shape[1]
    lengths_B = np.array([len(matrix_nD) for matrix_nD in checked], np.int64)
    filled = [matrix_nD for matrix_nD in checked if len(matrix_nD)]
    vectors_TD = np.concatenate([np.empty((0, dim or 1), np.float32), *filled])
    return VectorLists(vectors_TD, lengths_B)


def _as_lengths(lengths: Any, total: int) -> Lengths:
    try:
        given_B = np.asarray(list(lengths) if isinstance(lengths, Iterable) else lengths)
        valid = given_B.ndim == 1 and (given_B.dtype.kind in "iu" or given_B.size == 0)
    except (TypeError, ValueError):  # elements of different lengths
        valid = False
    if not valid or (given_B.size and not 0 <= int(given_B.min()) <= int(given_B.max()) <= total):
        raise InvalidInputError(
            f"Got lengths={lengths!r:.80}; expected one whole number from 0 for each document, {total} "
            "altogether."
        )
    lengths_B = given_B.astype(np.int64)
    if int(lengths_B.sum()) != total:
        raise InvalidInputError(
            f"Got lengths that add up to {int(lengths_B.sum())} for {total} vectors; expected as many "
            "vectors as the lengths say."
        )
    return lengths_B
