"""Workers in one process; test_distributed.py starts several."""

import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.training.trainer import train
from rqmoe_store.training.workers import LaunchedWorkers, Workers, is_main_process, join_workers

CPU = torch.device("cpu")


@given(rows=st.integers(0, 50), count=st.integers(1, 9))
def test_slices_make_up_the_batch(rows: int, count: int) -> None:
    batch = torch.arange(rows)
    slices = [LaunchedWorkers(CPU, rank, count).slice_of(batch) for rank in range(count)]
    assert torch.equal(torch.cat(slices), batch)
    assert max(map(len, slices)) - min(map(len, slices)) <= 1


def test_one_process_exchanges_nothing() -> None:
    alone = join_workers("cpu")
    assert (alone.is_main, alone.rank, alone.count, alone.device) == (True, 0, 1, CPU)
    assert is_main_process()
    values = torch.arange(3)
    assert alone.sum_(values) is values
    alone.broadcast_([values])
    assert values.tolist() == [0, 1, 2]
    assert alone.broadcast_json({"errors": (0.1, float("inf")), "step": None}) == {
        "errors": [0.1, float("inf")],
        "step": None,
    }
    weight = nn.Parameter(torch.ones(2))
    loss = (weight * 3).sum()
    loss.backward()
    assert float(alone.average_gradients([weight], loss, 1.0)) == 6
    assert weight.grad is not None
    assert weight.grad.tolist() == [3, 3]


class Two(LaunchedWorkers):
    """One of two processes whose companion has a gradient and a loss of `other` everywhere."""

    def __init__(self, other: float) -> None:
        super().__init__(CPU, rank=0, count=2)
        self.other = other

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.add_(self.other)


@pytest.mark.parametrize("weight", [0.25, 0.0])
def test_gradients_are_weighted_and_summed(weight: float) -> None:
    used, unused = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(4))
    loss = torch.zeros(())
    if weight:
        loss = (used * 8).sum()
        loss.backward()
    total = Two(other=1.0).average_gradients([used, unused], loss, weight)
    assert float(total) == 48 * weight + 1
    assert used.grad is not None
    assert unused.grad is not None
    assert used.grad.tolist() == [[8 * weight + 1] * 3] * 2
    assert unused.grad.tolist() == [1.0] * 4


class Follower(Workers):
    """A process whose main one shares something else."""

    rank, count = 1, 2

    def broadcast_bytes(self, content: bytes) -> bytes:
        return b'{"seed": 1}'


def test_processes_that_differ_are_an_error() -> None:
    Follower(CPU).require_same({"seed": 1}, "settings")
    with pytest.raises(InvalidInputError, match="Process 1 of 2 has other settings than process 0"):
        Follower(CPU).require_same({"seed": 2}, "settings")


@pytest.mark.parametrize("name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_a_launcher_without_accelerate(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)  # as if it were not installed
    with pytest.raises(InvalidInputError, match=r'one of 2 processes .* pip install "rqmoe-store\[distrib'):
        train(torch.ones(3, 3))


def test_one_gpu_is_not_for_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InvalidInputError, match="device='cuda:1' is one GPU, but 2 processes"):
        join_workers("cuda:1")


def test_processes_unknown_to_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerate = pytest.importorskip("accelerate")
    for name in ("WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert accelerate.PartialState(cpu=True).num_processes == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InvalidInputError, match="2 processes were started, but accelerate set up 1 on 'cpu'"):
        join_workers("cpu")
