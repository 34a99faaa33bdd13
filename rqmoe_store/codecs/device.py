"""Devices and precision: where tensors live, and the number format in which experts compute."""

import contextlib
import ctypes
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from rqmoe_store.codecs.parallel import Lock, run_parallel
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
        require_usable(name)
        _require_gpu(name)
    return name


def numbered_device(name: str) -> str:
    """The name of the device that `select_device` selects, "cuda" with the number of the current GPU.

    It leaves a GPU alone that this process has not used yet: a fork may still follow. Raises as
    `select_device`.
    """
    name = device_name(name)
    if name != "cuda":
        return name
    import torch

    # torch changes the current GPU only once it has begun to use one.
    return f"cuda:{torch.cuda.current_device() if torch.cuda.is_initialized() else 0}"


def chosen_device(name: str) -> str:
    """A device that a user names: "auto", "cpu" or "cuda:<number>". Raises as `select_device`."""
    return name if isinstance(name, str) and name == "auto" else numbered_device(name)


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


class _ForkedGpu:
    """Whether GPUs are unusable, because the parent process used one before the fork."""

    lost = False
    used = False
    """Whether the process used one when it forked last."""


def require_usable(name: str) -> None:
    """Raise InvalidInputError if the device of this name is a GPU that this process cannot use."""
    if name != "cpu" and _ForkedGpu.lost:
        raise InvalidInputError(
            f"device={name!r} cannot be used: this process was forked from one that had used a GPU, which "
            "CUDA does not allow. Start processes by 'spawn' or 'forkserver', as in "
            "multiprocessing.get_context('spawn'), or use the CPU here: open_table(..., device='cpu') for a "
            "table, codec.to('cpu') for a codec."
        )


def _note_use_of_gpu() -> None:
    torch = sys.modules.get("torch")
    _ForkedGpu.used = torch is not None and torch.cuda.is_initialized()


def _forbid_gpu() -> None:
    _ForkedGpu.lost = _ForkedGpu.lost or _ForkedGpu.used


if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
    os.register_at_fork(before=_note_use_of_gpu, after_in_child=_forbid_gpu)


class _Float32Products:
    """Float32 products of GPUs without TF32, as long as any thread needs them.

    torch has one setting for the whole process, which is put back when the last thread is done. Without TF32
    it is not touched.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._users = 0
        self._had_tf32 = False

    def __enter__(self) -> None:
        name, tf32, exact = _tf32_setting()
        with self._lock:
            if not self._users:
                self._had_tf32 = getattr(_matmul(), name) == tf32
            self._users += 1
            if self._had_tf32:
                setattr(_matmul(), name, exact)

    def __exit__(self, *error: object) -> None:
        name, tf32, _ = _tf32_setting()
        with self._lock:
            self._users -= 1
            if self._had_tf32 and not self._users:
                setattr(_matmul(), name, tf32)


def _matmul() -> Any:
    import torch

    return torch.backends.cuda.matmul


def _tf32_setting() -> tuple[str, Any, Any]:
    """Name of torch's setting, which torch 2.9 replaced, its value for TF32, and its value for float32."""
    if hasattr(_matmul(), "fp32_precision"):
        return "fp32_precision", "tf32", "ieee"
    return "allow_tf32", True, False


_float32_products = _Float32Products()


@contextlib.contextmanager
def full_precision(device: "torch.device") -> Iterator[None]:
    """A context in which torch multiplies float32 matrices in float32, whatever the caller has set.

    Neither `torch.autocast` nor `torch.set_float32_matmul_precision` then changes codes.
    """
    import torch

    with torch.autocast(device.type, enabled=False):
        if device.type == "cpu":
            yield
        else:
            with _float32_products:
                yield


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


def upload(tensor: "Tensor", device: "torch.device") -> "Tensor":
    """A tensor of the CPU on a device. The host does not wait for a GPU, which copies from pinned memory."""
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


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
