"""Triton: whether GPU kernels can be compiled here, and the decorator of those kernels.

Triton comes with torch's builds for GPUs. It is imported by the modules with kernels, which are imported only
where they run.
"""

import functools
import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from rqmoe_store.errors import warn_caller

Result = TypeVar("Result")

_LEAST_CAPABILITY = 8, 0
"""Of the GPU: the first one with bfloat16 units."""


_refused: set[str] = set()
"""Kernels that could not be compiled or launched; they are not tried again."""


@functools.cache
def has_kernels(device: torch.device) -> bool:
    """Whether kernels run on a device: Triton is installed, and so is the C compiler that it needs."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    compilers = os.environ.get("CC"), shutil.which("cc"), shutil.which("gcc"), shutil.which("clang")
    return any(compilers) and torch.cuda.get_device_capability(device) >= _LEAST_CAPABILITY


def kernel(*unspecialized: str) -> Callable[[Any], Any]:
    """A decorator that makes a function a Triton kernel, compiled when it is first called with new constants.

    Args:
        unspecialized: arguments whose values make no difference to the compiled code; without it, numbers
            that are 1 or divisible by 16 have code of their own.
    """
    import triton

    def compiled(function: Any) -> Any:
        return triton.jit(function, do_not_specialize=list(unspecialized))

    return compiled


def run_kernel(name: str, work: Callable[[], Result]) -> Result | None:
    """What `work` computes by a kernel; None where the kernel cannot be compiled or launched.

    The first time, there is a warning. Then it is not tried again in this process.

    Raises:
        torch.OutOfMemoryError: the GPU ran out of memory.
        RuntimeError: an error after which the GPU is of no use to this process.
    """
    if name in _refused:
        return None
    try:
        return work()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # Triton, its compilers and the driver each raise their own
        if "CUDA error" in str(error):
            raise
        _refused.add(name)
        warn_caller(
            f"The kernel for the {name} cannot run here ({type(error).__name__}: {error}). Array operations "
            "compute the same instead, more slowly. Another version of torch and Triton may help."
        )
        return None
