"""Devices and precision: where tensors live, and the number format in which experts compute."""

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
    """The torch device for "auto" (CUDA if there is one, else CPU), "cpu", "cuda" or "cuda:1".

    Raises:
        InvalidInputError: the name is unknown, or there is no such GPU.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not isinstance(name, str) or not _NAMES.fullmatch(name):
        raise InvalidInputError(f"device={name!r} is unknown; use 'auto', 'cpu', 'cuda' or 'cuda:<number>'.")
    found = torch.cuda.device_count()
    if name != "cpu" and int(name.removeprefix("cuda").removeprefix(":") or 0) >= found:
        built = "" if torch.backends.cuda.is_built() else " by this build of torch, which has no CUDA"
        raise InvalidInputError(
            f"device={name!r} is not there: {found} CUDA devices found{built}. "
            "Use device='auto' to run on what there is."
        )
    return torch.device(name)


def as_tensor(array: npt.NDArray[Any]) -> Tensor:
    """The array as a tensor on the CPU, in the same memory if torch can use it, else in a copy.

    torch cannot use reversed axes, numbers in foreign byte order, or read-only memory, such as that of a
    memory-mapped file.
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
