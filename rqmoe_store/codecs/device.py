"""Devices and precision: where tensors live, and the number format in which experts compute."""

import ctypes
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from rqmoe_store.codecs.parallel import run_parallel
from rqmoe_store.errors import InvalidInputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Precision = Literal["float32", "bfloat16"]
PrecisionChoice = Literal["auto", "float32", "bfloat16"]
"""A precision, or "auto" for the one that reranking has chosen by measurement."""

Result = TypeVar("Result")

_NAMES = re.compile(r"cpu|cuda(:[0-9]{1,3})?")
_DRIVERS = ("libcuda.so.1", "nvcuda.dll")
_AMD_GPUS = Path("/dev/kfd")


def select_device(name: str) -> "torch.device":
    """The torch device for "auto" (CUDA if there is one, else CPU), "cpu", "cuda" or "cuda:1".

    Raises:
        InvalidInputError: the name is unknown, or there is no such GPU.
    """
    import torch

    return torch.device(device_name(name))


def device_name(name: str) -> str:
    """The name of the device that `select_device` selects, without loading torch for a CPU."""
    if name == "auto":
        return "cuda" if may_have_gpu() and _torch_has_cuda() else "cpu"
    if not isinstance(name, str) or not _NAMES.fullmatch(name):
        raise InvalidInputError(f"device={name!r} is unknown; use 'auto', 'cpu', 'cuda' or 'cuda:<number>'.")
    if name != "cpu":
        _require_gpu(name)
    return name


def may_have_gpu() -> bool:
    """Whether torch might find a GPU: it is there already, or this machine has the driver of one."""
    return "torch" in sys.modules or _AMD_GPUS.exists() or any(map(_can_be_loaded, _DRIVERS))


def _can_be_loaded(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _torch_has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _require_gpu(name: str) -> None:
    import torch

    found = torch.cuda.device_count()
    if int(name.removeprefix("cuda").removeprefix(":") or 0) >= found:
        built = "" if torch.backends.cuda.is_built() else " by this build of torch, which has no CUDA"
        raise InvalidInputError(
            f"device={name!r} is not there: {found} CUDA devices found{built}. "
            "Use device='auto' to run on what there is."
        )


def run_on_device(device: "torch.device", tasks: Iterable[Callable[[], Result]]) -> list[Result]:
    """Results of tasks that compute on a device: on a CPU in parallel, each on one core; on a GPU in turn."""
    if device.type == "cpu":
        return run_parallel(tasks, one_core=True)
    return [task() for task in tasks]


def as_tensor(array: npt.NDArray[Any]) -> "Tensor":
    """The array as a tensor on the CPU, in the same memory if torch can use it, else in a copy.

    torch cannot use reversed axes, numbers in foreign byte order, or read-only memory, such as that of a
    memory-mapped file.
    """
    import torch

    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    if not native.flags.writeable or any(stride < 0 for stride in native.strides):
        native = np.array(native, order="C")
    return torch.from_numpy(native)


def has_bfloat16_units(device: "torch.device") -> bool:
    """Whether the hardware multiplies bfloat16 matrices; elsewhere torch is far slower in bfloat16."""
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def check_precision(precision: str, *, sequential: bool) -> None:
    """Raise InvalidInputError unless decoding can use `precision`."""
    if not isinstance(precision, str) or precision not in get_args(PrecisionChoice):
        raise InvalidInputError(f"precision={precision!r} is unknown; use 'float32', 'bfloat16' or 'auto'.")
    if sequential and precision != "float32":
        raise InvalidInputError(
            "Sequential decoding follows the definition in float32; use precision='float32' with it, "
            "or sequential=False."
        )
