"""Triton: whether GPU kernels can be compiled here, and the decorator of those kernels.

Triton comes with torch's builds for GPUs. It is imported by the modules with kernels, which are imported only
where they run.
"""

import functools
import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch

_LEAST_CAPABILITY = 8, 0
"""Of the GPU: the first one with bfloat16 units."""


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
