"""Number formats for training."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from rqmoe_store.config import TrainingPrecision


def mixed_precision(device: torch.device, precision: TrainingPrecision) -> AbstractContextManager[Any]:
    """The context in which matrix products are taken in `precision`: autocast for bfloat16, else none."""
    if precision == "auto":
        precision = "bfloat16" if has_bfloat16_units(device) else "float32"
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


def has_bfloat16_units(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 matrices; where it does not, torch is far slower at it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
