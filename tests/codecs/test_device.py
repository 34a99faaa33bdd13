"""Device names."""

import pytest
import torch

from rqmoe_store.codecs.device import select_device
from rqmoe_store.errors import InvalidInputError


def test_auto_uses_a_gpu_if_there_is_one() -> None:
    assert select_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert select_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    "name", ["tpu", "gpu", "mps", "meta", "xpu", "", "CPU", "cpu:1", "cuda:", "cuda:-1", "cuda:x", None, 3]
)
def test_unknown_device_names(name: object) -> None:
    with pytest.raises(InvalidInputError, match=r"device=.* is unknown; use 'auto', 'cpu', 'cuda'"):
        select_device(name)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["cuda:99", "cuda:256", "cuda:999"])  # torch keeps 8 bits of a number
def test_a_missing_gpu(name: str) -> None:
    count = torch.cuda.device_count()
    with pytest.raises(InvalidInputError, match=rf"'{name}' is not there: {count} CUDA devices found"):
        select_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_cuda_without_a_gpu() -> None:
    with pytest.raises(InvalidInputError, match="0 CUDA devices found"):
        select_device("cuda")
