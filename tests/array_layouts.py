"""The same numbers in every layout that arrays and tensors come in, for the tests of calls that take them."""

import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def _every_other(array: np.ndarray) -> np.ndarray:
    return np.repeat(array, 2, axis=-1)[..., ::2]


def _read_only(array: np.ndarray) -> np.ndarray:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def _mapped(array: np.ndarray) -> np.ndarray:
    with tempfile.NamedTemporaryFile(suffix=".npy") as file:
        np.save(file.name, array)
        return np.load(file.name, mmap_mode="r")


LAYOUTS: dict[str, Callable[[np.ndarray], Any]] = {
    "reversed": lambda array: np.flip(np.flip(array).copy()),
    "reversed rows": lambda array: array[::-1].copy()[::-1],
    "sliced": _every_other,
    "transposed": lambda array: array.T.copy().T,
    "Fortran order": np.asfortranarray,
    "other byte order": lambda array: array.astype(array.dtype.newbyteorder()),
    "read-only": _read_only,
    "memory-mapped": _mapped,
    "tensor": lambda array: torch.from_numpy(array.copy()),
    "transposed tensor": lambda array: torch.from_numpy(array.T.copy()).T,
}
"""Views and copies equal to an array, by what is unusual about them."""

VECTOR_LAYOUTS: dict[str, Callable[[np.ndarray], Any]] = {
    **LAYOUTS,
    "float64": lambda array: array.astype(np.float64),
    "big-endian float64": lambda array: array.astype(">f8"),
    "tensor that requires a gradient": lambda array: torch.tensor(array, requires_grad=True),
    "list of rows": lambda array: [row[::-1].copy()[::-1] for row in array],
    "list of tensors": lambda array: [*torch.tensor(array, requires_grad=True)],
    "list of lists": lambda array: array.tolist(),
}
"""The same for vectors, float32 (n, D)."""

ROUNDED_LAYOUTS: dict[str, Callable[[np.ndarray], Any]] = {
    "float16": lambda array: array.astype(np.float16),
    "bfloat16": lambda array: torch.from_numpy(array.copy()).bfloat16(),
    "integers": lambda array: array.round().astype(np.int64),
    "big-endian integers": lambda array: array.round().astype(">i2"),
}
"""Number formats that hold whole numbers of one digit exactly."""
