"""Choosing where tensors live."""

import torch

from rqmoe_store.errors import InvalidInputError


def select_device(name: str) -> torch.device:
    """The torch device for "auto" (CUDA when there is one, else CPU), "cpu", "cuda" or "cuda:1".

    Raises:
        InvalidInputError: unknown name, or a GPU that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidInputError(
            f"device={name!r} is unknown; use 'auto', 'cpu', 'cuda' or 'cuda:<number>'."
        ) from error
    if device.type not in ("cpu", "cuda"):
        raise InvalidInputError(f"device={name!r} is not supported; use 'auto', 'cpu' or 'cuda'.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InvalidInputError(
            f"device={name!r} is not there: {torch.cuda.device_count()} CUDA devices found. "
            "Use device='auto' to run on what there is."
        )
    return device
