"""GPUs for tests: simulated ones everywhere, and the real one on a machine that has one."""

from collections.abc import Callable, Iterator

import pytest
import torch
from simulated_cuda import CudaDevices, simulated_cuda

HAS_CUDA = torch.cuda.is_available()
REAL = pytest.param(
    "real",
    marks=[pytest.mark.cuda, pytest.mark.skipif(not HAS_CUDA, reason="torch finds no CUDA device here")],
)
SIMULATED = pytest.param(
    "simulated",
    marks=pytest.mark.skipif(HAS_CUDA, reason="the real device is there"),
)


@pytest.fixture(params=[SIMULATED, REAL])
def gpu(request: pytest.FixtureRequest) -> Iterator[CudaDevices | None]:
    """A CUDA device, with what is known of it if it is simulated."""
    if request.param == "real":
        yield None
        return
    with simulated_cuda(count=2) as devices:
        yield devices


@pytest.fixture(params=[SIMULATED])
def cuda(request: pytest.FixtureRequest) -> Iterator[CudaDevices]:
    """Two simulated CUDA devices."""
    with simulated_cuda(count=2) as devices:
        yield devices


@pytest.fixture(params=[REAL])
def real_gpu(request: pytest.FixtureRequest) -> None:
    """The real CUDA device, for what simulated ones cannot run."""


@pytest.fixture
def in_thread(gpu: CudaDevices | None) -> Callable[[Callable[[], object]], Callable[[], object]]:
    """Turns work into work that finds the GPU in another thread, too."""

    def wrap(work: Callable[[], object]) -> Callable[[], object]:
        if gpu is None:
            return work

        def wrapped() -> object:
            with gpu.in_thread():
                return work()

        return wrapped

    return wrap
