"""The processes that train one codec together: usually one, else as many as a launcher started.

`accelerate launch` and torchrun start the same program several times and tell every copy its place
by environment variables. Each copy reads the same data, computes its part of every batch, and takes
from the others what it needs to make the same step; process 0, the main one, decides and writes.

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

# By torchrun and accelerate; by Open MPI, MPICH and MVAPICH, which accelerate understands too.
_COUNTS = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


class Workers:
    """A process that trains alone: it has nobody to exchange anything with."""

    rank = 0
    count = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @property
    def is_main(self) -> bool:
        """Whether this process decides and writes."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """The tensor, summed in place over all processes."""
        return tensor

    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors with those of the main process."""

    def share_bytes(self, content: bytes) -> bytes:
        """The main process's bytes, whatever the others pass."""
        return content

    def share(self, value: Any) -> Any:
        """The main process's JSON value, whatever the others pass; tuples come back as lists."""
        return json.loads(self.share_bytes(json.dumps(value).encode()))

    def slice_of(self, batch_BX: Tensor) -> Tensor:
        """This process's part of a batch; empty where the batch has fewer rows than there are processes."""
        rows = len(batch_BX)
        return batch_BX[self.rank * rows // self.count : (self.rank + 1) * rows // self.count]

    def average_gradients(self, parameters: Sequence[nn.Parameter], loss: Tensor, weight: float) -> Tensor:
        """Give the parameters the gradients of the whole batch, and return its loss.

        Args:
            parameters: the same ones in the same order everywhere.
            loss: mean over this process's part of the batch.
            weight: that part's share of the batch; weights sum to one over the processes.
        """
        return loss.detach()

    def require_same(self, value: Any, what: str) -> None:
        """Raise InvalidInputError unless the JSON value is that of the main process."""
        if self.share(value) != json.loads(json.dumps(value)):
            raise InvalidInputError(
                f"Process {self.rank} of {self.count} has other {what} than process 0. Start all of them "
                "with the same arguments, on folders that all of them see, and change no data meanwhile."
            )


class LaunchedWorkers(Workers):
    """One of several processes; every method is called by all of them in the same order."""

    def __init__(self, device: torch.device, rank: int, count: int) -> None:
        super().__init__(device)
        self.rank, self.count = rank, count

    def sum_(self, tensor: Tensor) -> Tensor:
        from accelerate.utils import reduce

        tensor.copy_(reduce(tensor, reduction="sum"))
        return tensor

    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        from accelerate.utils import broadcast

        for tensor in tensors:
            tensor.detach().copy_(broadcast(tensor.detach().contiguous()))

    def share_bytes(self, content: bytes) -> bytes:
        size = torch.tensor([len(content)], device=self.device)
        self.broadcast_([size])
        buffer_X = torch.empty(int(size), dtype=torch.uint8, device=self.device)
        if self.is_main:
            buffer_X.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        self.broadcast_([buffer_X])
        return buffer_X.cpu().numpy().tobytes()

    def average_gradients(self, parameters: Sequence[nn.Parameter], loss: Tensor, weight: float) -> Tensor:
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
        # One exchange of one buffer: many small ones would each wait for the slowest process.
        flat_X = torch.cat([*(gradient.flatten() for gradient in gradients), loss.detach()[None]])
        self.sum_(flat_X.mul_(weight))
        *averaged, _ = flat_X.split([*(each.numel() for each in parameters), 1])
        for parameter, gradient_X in zip(parameters, averaged, strict=True):
            parameter.grad = gradient_X.view_as(parameter)
        return flat_X[-1]


def join_workers(device: str) -> Workers:
    """The processes that a launcher started together with this one, or this process alone.

    Args:
        device: as in `TrainConfig`; among several processes, "auto" and "cuda" give each its own GPU.

    Raises:
        InvalidInputError: a device that is not there or cannot be shared out, or one of several
            processes without `accelerate`.
    """
    chosen, count = select_device(device), _launched()
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
    device_here = state.device if chosen.type == "cuda" else chosen  # to accelerate, a CPU has a number
    return LaunchedWorkers(device_here, state.process_index, count)


def is_main_process() -> bool:
    """Whether this process is the only one or the main one of those that trained together."""
    if _launched() == 1:
        return True
    from accelerate import PartialState

    return bool(PartialState().is_main_process)


def leave_workers() -> None:
    """End the exchange with the other processes: a program's last word, after which it cannot train."""
    if _launched() > 1:
        from accelerate import PartialState

        PartialState().destroy_process_group()


def _launched() -> int:
    """How many processes a launcher says it started."""
    return max(int(os.environ.get(name) or 1) for name in _COUNTS)
