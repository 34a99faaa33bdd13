"""Choosing where tensors live and in which number format experts compute."""

import re
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rqmoe_store.errors import InvalidInputError

Precision = Literal["float32", "bfloat16"]

_NAMES = re.compile(r"cpu|cuda(:[0-9]{1,3})?")


def select_device(name: str) -> torch.device:
    """The torch device for "auto" (CUDA when there is one, else CPU), "cpu", "cuda" or "cuda:1".

    Raises:
        InvalidInputError: unknown name, or a GPU that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not isinstance(name, str) or not _NAMES.fullmatch(name):
        raise InvalidInputError(f"device={name!r} is unknown; use 'auto', 'cpu', 'cuda' or 'cuda:<number>'.")
    device = torch.device(name)
    found = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= found:
        built = "" if torch.backends.cuda.is_built() else " by this build of torch, which has no CUDA"
        raise InvalidInputError(
            f"device={name!r} is not there: {found} CUDA devices found{built}. "
            "Use device='auto' to run on what there is."
        )
    return device


def as_tensor(array: npt.NDArray[Any]) -> Tensor:
    """The array as a tensor on the CPU, in the same memory unless torch cannot use that as it is.

    It cannot where an axis is reversed, where numbers have the other byte order, and where memory is
    read-only, as in a memory-mapped file: that is copied.
    """
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    if not native.flags.writeable or any(stride < 0 for stride in native.strides):
        native = np.array(native, order="C")
    return torch.from_numpy(native)


def check_precision(precision: str, *, sequential: bool) -> None:
    """Raise InvalidInputError unless decoding can use `precision`."""
    if precision not in ("float32", "bfloat16"):
        raise InvalidInputError(f"precision={precision!r} is unknown; use 'float32' or 'bfloat16'.")
    if sequential and precision != "float32":
        raise InvalidInputError(
            "Sequential decoding follows the definition in float32; use precision='float32' with it, "
            "or sequential=False."
        )
