"""Vectors: whatever a user passes as vectors, checked and converted to a float32 array."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import numpy.typing as npt

from rqmoe_store.config import Metric
from rqmoe_store.errors import InvalidInputError

if TYPE_CHECKING:
    import torch

Float32Array = npt.NDArray[np.float32]

_ROWS_NAMED = 5
_NOT_FINITE = "contain NaN or infinite values (as float32)"
_TEXT = "text is not a vector"
_REFUSED = {
    "c": "complex numbers have no order",
    "m": "durations are not coordinates",
    "M": "dates are not coordinates",
    "O": "objects may be anything; np.stack joins arrays, .astype turns objects into numbers",
    "S": _TEXT,
    "T": _TEXT,
    "U": _TEXT,
    "V": "records are not vectors",
}
"""Kinds of numpy types to refuse, and why: they would cast to float32, or fail with a puzzling error."""


def as_vectors(
    data: Any,
    *,
    dim: int | None = None,
    metric: Metric = "l2",
    positions: npt.NDArray[np.int64] | None = None,
) -> Float32Array:
    """`data` as a C-contiguous float32 array of shape (n, dim), checked and ready for a codec.

    Args:
        data: array-like, numpy array or torch tensor of shape (n, dim), of booleans, integers or floats.
        dim: required width. None accepts any.
        metric: under "cosine" rows are scaled to unit length.
        positions: positions of the rows in the caller's data, for messages. None means 0 to n - 1.

    Raises:
        InvalidInputError: data that is not two-dimensional, has another width, or holds text, complex
            numbers or objects, NaN or infinite values, or a zero vector under "cosine". The message names
            the rows by position.
    """
    vectors = _to_float32(data)
    if vectors.ndim != 2:
        raise InvalidInputError(
            f"Got vectors of shape {vectors.shape}; expected two dimensions (rows, dim). "
            "Wrap a single vector as vectors[None, :]."
        )
    if vectors.shape[1] == 0:
        raise InvalidInputError("Got vectors of width 0; expected at least one component.")
    if dim is not None and vectors.shape[1] != dim:
        raise InvalidInputError(
            f"Got vectors of dimension {vectors.shape[1]}; expected {dim}. "
            "Were they made by another embedding model?"
        )
    if metric != "cosine":
        _require_rows(np.logical_and.reduce(np.isfinite(vectors), axis=1), positions, _NOT_FINITE)
        return vectors
    # Squares in float64: those of tiny or huge float32 components would under- or overflow.
    exact = vectors.astype(np.float64)
    squares = np.add.reduce(exact * exact, axis=1, keepdims=True)
    _require_rows(np.isfinite(squares[:, 0]), positions, _NOT_FINITE)
    directed = squares[:, 0] > 0
    _require_rows(directed, positions, "are zero vectors, which have no direction under metric='cosine'")
    return np.asarray(vectors / np.sqrt(squares), dtype=np.float32)


def is_tensor(data: Any) -> "TypeGuard[torch.Tensor]":
    """Whether `data` is a tensor of torch, which is not loaded for the question: without it there is none."""
    kind = getattr(sys.modules.get("torch"), "Tensor", None)  # another thread may be loading torch
    return kind is not None and isinstance(data, kind)


def is_dense(data: Any) -> bool:
    """Whether `data` is an array or tensor whose rows can be read one part at a time."""
    if is_tensor(data):
        import torch

        return data.layout == torch.strided and not data.is_quantized
    return isinstance(data, np.ndarray)


def from_torch(data: Any) -> Any:
    """A tensor, or a list of them, as a float32 array; anything else as it is.

    Tensors may require gradients, be on a GPU, or hold types that numpy lacks, such as bfloat16.

    Raises:
        TypeError: complex numbers, or tensors that are sparse or of different lengths.
    """
    is_list = isinstance(data, list | tuple) and data and all(is_tensor(row) for row in data)
    if not is_list and not is_tensor(data):
        return data
    import torch  # loaded already, as there is a tensor

    try:
        tensor = torch.stack([row.detach() for row in data]) if is_list else data.detach()
        if tensor.is_complex():
            raise TypeError(_REFUSED["c"])
        return tensor.to("cpu", torch.float32).numpy()
    except RuntimeError as error:  # torch refuses tensors that are sparse or of different lengths
        raise TypeError(str(error).splitlines()[0]) from error


def listed(column: Any) -> Any:
    """A column of Arrow, pandas or polars as a list; anything else as it is."""
    if isinstance(column, np.ndarray | list) or has_named_columns(column):
        return column
    for method in ("to_pylist", "to_list"):
        if hasattr(column, method):
            return getattr(column, method)()
    return column


def has_named_columns(data: Any) -> bool:
    """Whether `data` has named columns: a dict, a data frame, or an Arrow table."""
    return isinstance(data, Mapping) or hasattr(data, "columns")


def _to_float32(data: Any) -> Float32Array:
    try:
        if isinstance(data, np.ma.MaskedArray) and np.ma.is_masked(data):
            raise TypeError("some values are masked; .filled(...) puts numbers in their place")
        array = np.asarray(from_torch(listed(data)))
        if array.dtype.kind in _REFUSED:
            hint = (
                "pass the column of vectors alone, such as frame['vector']"
                if has_named_columns(data)
                else None
            )
            raise TypeError(hint or _REFUSED[array.dtype.kind])
        if array.dtype == np.float32:
            return np.ascontiguousarray(array)
        with np.errstate(over="ignore"):  # an overflow becomes inf, reported with its row
            return np.ascontiguousarray(array, dtype=np.float32)
    except (
        TypeError,
        ValueError,
        RuntimeError,
    ) as error:  # RuntimeError: tensors in a list with other values
        kind = f"{type(data).__name__} of {data.dtype}" if hasattr(data, "dtype") else type(data).__name__
        raise InvalidInputError(
            f"Got {kind} that cannot be read as float32 vectors ({error}); "
            "expected numbers of shape (rows, dim), every row of the same length."
        ) from error


def _require_rows(
    valid: npt.NDArray[np.bool_], positions: npt.NDArray[np.int64] | None, problem: str
) -> None:
    if valid.all():
        return
    positions = np.arange(len(valid)) if positions is None else positions
    bad = np.sort(positions[~valid])
    named = ", ".join(str(row) for row in bad[:_ROWS_NAMED])
    more = f" and {len(bad) - _ROWS_NAMED} more" if len(bad) > _ROWS_NAMED else ""
    raise InvalidInputError(
        f"{len(bad)} of {len(valid)} vectors {problem}: rows {named}{more} (counted from 0). "
        "Remove or repair them and try again."
    )
