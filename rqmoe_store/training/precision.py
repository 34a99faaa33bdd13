"""Number formats for training."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def mixed_precision(device: torch.device) -> AbstractContextManager[Any]:
    """bf16 matrix products where the hardware has them; elsewhere they would be far slower."""
    if device.type == "cuda":
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        supported = bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    return torch.autocast(device.type, torch.bfloat16) if supported else nullcontext()
