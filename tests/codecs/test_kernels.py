"""Kernels are optional: where one cannot run, array operations do its work."""

import warnings

import pytest
import torch

from rqmoe_store.codecs import kernels
from rqmoe_store.codecs.kernels import has_kernels, run_kernel


@pytest.fixture(autouse=True)
def _none_refused(monkeypatch):
    monkeypatch.setattr(kernels, "_refused", set())


def test_a_kernel_that_cannot_run_is_tried_once_and_said_so_once() -> None:
    tried = []

    def fail():
        tried.append(len(tried))
        raise ValueError("unsupported instruction")

    with pytest.warns(UserWarning, match=r"kernel for the scan cannot run here \(ValueError: unsupported"):
        assert run_kernel("scan", fail) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run_kernel("scan", fail) is None
        assert run_kernel("decoding", lambda: 3) == 3
    assert tried == [0]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("2 GiB"), RuntimeError("CUDA error: an illegal memory access")]
)
def test_what_is_no_fault_of_the_kernel_is_raised(error) -> None:
    def fail():
        raise error

    with pytest.raises(type(error), match=str(error)):
        run_kernel("scan", fail)
    assert run_kernel("scan", lambda: 3) == 3


def test_a_cpu_has_none() -> None:
    assert not has_kernels(torch.device("cpu"))
