"""The moving average of the weights."""

import pytest
import torch
from small_codecs import small_config, stirred

from rqmoe_store.codecs.quantizer import ResidualQuantizer
from rqmoe_store.training.averaging import AveragedWeights


def set_to(quantizer: ResidualQuantizer, value: float) -> None:
    for parameter in quantizer.parameters():
        parameter.data.fill_(value)


def value(average: AveragedWeights) -> float:
    (only,) = torch.cat([tensor.flatten() for tensor in average.tensors().values()]).unique()
    return float(only)


def test_updates_by_hand() -> None:
    quantizer = stirred(small_config())
    set_to(quantizer, 1.0)
    average = AveragedWeights(quantizer, 0.99)
    set_to(quantizer, 0.0)
    average.update(quantizer, 0)
    assert value(average) == pytest.approx(0.1)  # (1 + 0) / (10 + 0): the start is all but forgotten
    average.update(quantizer, 2)
    assert value(average) == pytest.approx(0.1 * 3 / 12)
    average.update(quantizer, 10**6)
    assert value(average) == pytest.approx(0.1 * 3 / 12 * 0.99)


def test_the_average_is_a_quantizer_of_its_own() -> None:
    quantizer = stirred(small_config(num_partitions=3)).requires_grad_(True)
    average = AveragedWeights(quantizer, 0.5)
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    average.quantizer.codebooks_MKD.fill_(7.0)
    for name, value in quantizer.state_dict().items():
        assert torch.equal(value, before[name])
    assert not any(value.requires_grad for value in average.quantizer.parameters())
    average.restart(quantizer.state_dict())
    assert torch.equal(average.quantizer.codebooks_MKD, quantizer.codebooks_MKD)
