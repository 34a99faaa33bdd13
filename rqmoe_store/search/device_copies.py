"""Copies of arrays on GPUs, such as codes and refine codes: uploaded once, and kept as long as the arrays.

Shape legend: N rows of a segment, M code bytes, W words of four code bytes.
"""

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rqmoe_store.codecs.decoding import HostCopy
from rqmoe_store.codecs.device import as_tensor, require_usable
from rqmoe_store.codecs.device import upload as send
from rqmoe_store.codecs.parallel import Lock
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.search.segments import Segment

BYTES_PER_WORD = 4

_SHARE_OF_FREE_MEMORY = 2
"""Codes are copied to a GPU if they take at most one part in this many of the free memory there."""

_copies: dict[tuple[int, torch.device], Tensor] = {}
"""Copies by the identity of the array and the device. An entry is dropped together with its array."""

_lock = Lock()  # two threads that scan a segment for the first time upload it once


def device_of(name: str) -> torch.device:
    """The device of a name; "cuda" is the current one of all GPUs, as a number.

    Raises:
        InvalidInputError: it is a GPU that this process cannot use, as its parent has used one.
    """
    require_usable(name)
    if name == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(name)


def has_copy(array: npt.NDArray[Any], device: torch.device) -> bool:
    """Whether the array is on the device."""
    return (id(array), device) in _copies


def copy_of(
    array: npt.NDArray[Any],
    device: torch.device,
    convert: Callable[[npt.NDArray[Any], torch.device], Tensor],
) -> Tensor:
    """The copy of an array, which must not change, on a device; `convert` makes it at the first call.

    Views of a segment for the codecs of a table share the array of codes, and so its copy.

    Raises:
        InvalidInputError: the GPU has no memory for the copy.
    """
    key = id(array), device
    with _lock:
        copy = _copies.get(key)
        if copy is None:
            copy = _copies[key] = _converted(array, device, convert)
            weakref.finalize(array, _copies.pop, key, None).atexit = False
        return copy


def _converted(
    array: npt.NDArray[Any],
    device: torch.device,
    convert: Callable[[npt.NDArray[Any], torch.device], Tensor],
) -> Tensor:
    try:
        return convert(array, device)
    except torch.OutOfMemoryError as error:
        raise InvalidInputError(
            f"The GPU ran out of memory for {array.nbytes:,} bytes of codes to search: {error} "
            "Free memory on it, or move the codec to the CPU with codec.to('cpu')."
        ) from error


def upload(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """The array on a device, of the same type; uint16 as int16 with the same bits."""
    signed = array.view(np.int16) if array.dtype == np.uint16 else array
    # On a CPU, a tensor in the array's memory would keep the array, and itself, alive.
    return as_tensor(signed).to(device, copy=True)


def sent(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """A small array on a device, for which the host does not wait; in the same memory on a CPU."""
    return send(torch.from_numpy(array), device)


def to_host(*tensors: Tensor) -> list[npt.NDArray[Any]]:
    """The numbers of tensors of one device, for which the host waits once."""
    if tensors[0].device.type == "cpu":
        return [each.numpy() for each in tensors]
    copies = [HostCopy.of(each) for each in tensors]
    copies[-1].wait()
    return [each.pinned.numpy() for each in copies]


def upload_codes(codes_NM: npt.NDArray[np.uint8], device: torch.device) -> Tensor:
    """Codes on a device in words, int32 (N, W), filled up with zeros."""
    rows, code_bytes = codes_NM.shape
    words = -(-code_bytes // BYTES_PER_WORD)
    if code_bytes == words * BYTES_PER_WORD:
        return upload(np.ascontiguousarray(codes_NM), device).view(torch.int32)
    filled = torch.zeros(rows, words * BYTES_PER_WORD, dtype=torch.uint8, device=device)
    filled[:, :code_bytes] = upload(codes_NM, device)
    return filled.view(torch.int32)


def fits(segment: Segment, device: torch.device) -> bool:
    """Whether the codes of a segment are on the device, or have room there.

    Memory that torch has reserved and does not use counts as free.
    """
    rows, code_bytes = segment.codes_NM.shape
    row_bytes = -(-code_bytes // BYTES_PER_WORD) * BYTES_PER_WORD + np.dtype(np.uint16).itemsize
    return _fits(segment.codes_NM, rows * row_bytes, device)


def refine_codes_fit(segment: Segment, device: torch.device) -> bool:
    """Whether the refine codes of a segment, which it has, are on the device, or have room there."""
    assert segment.refine_NR is not None, "has refine codes"
    return _fits(segment.refine_NR, segment.refine_NR.nbytes, device)


def _fits(array: npt.NDArray[Any], num_bytes: int, device: torch.device) -> bool:
    """Whether the array is on the device, or that many bytes for it have room there."""
    if has_copy(array, device) or device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return bool(num_bytes * _SHARE_OF_FREE_MEMORY <= free)
