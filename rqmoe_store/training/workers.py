"""Distributed training: the processes that train one codec, usually one, else those a launcher started.

`accelerate launch` and torchrun start a program several times and tell every process its rank by
environment variables. Each process reads the same data, computes its part of every batch, and exchanges
what it needs to make the same step. Process 0, the main one, decides and writes.

Shape legend: B batch, X anything.
"""

import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rqmoe_store.codecs.device import select_device
from rqmoe_store.errors import InvalidInputError

# Set by torchrun and accelerate, and by Open MPI, MPICH and MVAPICH, which accelerate understands too.
_COUNTS = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


class Workers:
    """A process that trains alone and exchanges nothing."""

    rank = 0
    count = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @property
    def is_main(self) -> bool:
        """Whether this process decides and writes."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum the tensor over all processes, in place, and return it."""
        return tensor

    def sum_numbers(self, numbers: list[float]) -> list[float]:
        """The numbers, each summed over all processes."""
        return numbers

    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors with those of the main process."""

    def broadcast_bytes(self, content: bytes) -> bytes:
        """The main process's bytes, in all processes."""
        return content

    def broadcast_json(self, value: Any) -> Any:
        """The main process's JSON value, in all processes. Tuples come back as lists."""
        return json.loads(self.broadcast_bytes(json.dumps(value).encode()))

    def slice_of(self, batch_BX: Tensor) -> Tensor:
        """This process's part of a batch; empty if a small batch has no row for it."""
        rows = len(batch_BX)
        return batch_BX[self.rank * rows // self.count : (self.rank + 1) * rows // self.count]

    def average_gradients(self, parameters: Sequence[nn.Parameter], loss: Tensor, weight: float) -> Tensor:
        """Give the parameters the gradients of the whole batch, and return its loss.

        Args:
            parameters: the same ones, in the same order, in every process.
            loss: mean over this process's part of the batch.
            weight: share of that part in the batch. Weights sum to one over the processes.
        """
        return loss.detach()

    def require_same(self, value: Any, what: str) -> None:
        """Raise InvalidInputError unless the JSON value is that of the main process."""
        if self.broadcast_json(value) != json.loads(json.dumps(value)):
            raise InvalidInputError(
                f"Process {self.rank} of {self.count} has other {what} than process 0. Start all of them "
                "with the same arguments, on folders that all of them see, and change no data meanwhile."
            )


class LaunchedWorkers(Workers):
    """One of several processes. All of them must call the same methods in the same order."""

    def __init__(self, device: torch.device, rank: int, count: int) -> None:
        super().__init__(device)
        self.rank, self.count = rank, count

    def sum_(self, tensor: Tensor) -> Tensor:
        from accelerate.utils import reduce

        tensor.copy_(reduce(tensor, reduction="sum"))
        return tensor

    def sum_numbers(self, numbers: list[float]) -> list[float]:
        together = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        summed: list[float] = self.sum_(together).tolist()
        return summed

    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        from accelerate.utils import broadcast

        for tensor in tensors:
            tensor.detach().copy_(broadcast(tensor.detach().contiguous()))

    def broadcast_bytes(self, content: bytes) -> bytes:
        size = torch.tensor([len(content)], device=self.device)
        self.broadcast_([size])
        buffer_X = torch.empty(int(size), dtype=torch.uint8, device=self.device)
        if self.is_main:
            buffer_X.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        self.broadcast_([buffer_X])
        return buffer_X.cpu().numpy().tobytes()

    def average_gradients(self, parameters: Sequence[nn.Parameter], loss: Tensor, weight: float) -> Tensor:
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
        # One exchange of one buffer, because each exchange waits for the slowest process.
        flat_X = torch.cat([*(gradient.flatten() for gradient in gradients), loss.detach()[None]])
        self.sum_(flat_X.mul_(weight))
        *averaged, _ = flat_X.split([*(each.numel() for each in parameters), 1])
        for parameter, gradient_X in zip(parameters, averaged, strict=True):
            parameter.grad = gradient_X.view_as(parameter)
        return flat_X[-1]


def join_workers(device: str) -> Workers:
    """Join the processes that a launcher started together with this one, if any.

    Args:
        device: as in `TrainConfig`. "auto" and "cuda" give each of several processes its own GPU.

    Raises:
        InvalidInputError: the device does not exist or cannot be shared by several processes, or
            `accelerate`, which several processes need, is not installed.
    """
    chosen, count = select_device(device), _launched_processes()
    if count == 1:
        return Workers(chosen)
    if ":" in device:
        raise InvalidInputError(
            f"device={device!r} is one GPU, but {count} processes were started to train together. "
            "Use device='auto', which gives each its own, or start one process."
        )
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise InvalidInputError(
            f"This is one of {count} processes started together, and training in several processes needs "
            'accelerate: pip install "rqmoe-store[distributed]". Or start one process.'
        ) from error
    state = PartialState(cpu=chosen.type == "cpu")
    if state.num_processes != count or state.device.type != chosen.type:
        raise InvalidInputError(
            f"{count} processes were started, but accelerate set up {state.num_processes} on "
            f"{state.device.type!r} for device={device!r}. Start them with "
            "`accelerate launch --multi_gpu` or torchrun, and use device='auto' or what accelerate uses."
        )
    device_here = state.device if chosen.type == "cuda" else chosen  # accelerate numbers CPUs, too
    return LaunchedWorkers(device_here, state.process_index, count)


def is_main_process() -> bool:
    """Whether this process trained alone, or is the main one of those that trained together."""
    if _launched_processes() == 1:
        return True
    from accelerate import PartialState

    return bool(PartialState().is_main_process)


def leave_workers() -> None:
    """End the exchange with the other processes. A program calls this last; it cannot train afterwards."""
    if _launched_processes() > 1:
        from accelerate import PartialState

        PartialState().destroy_process_group()


def _launched_processes() -> int:
    """Number of processes that a launcher says it started."""
    return max(int(os.environ.get(name) or 1) for name in _COUNTS)
