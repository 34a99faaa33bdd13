"""Keeping the best weights."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_codecs import small_config, stirred

from rqmoe_store.training.checkpoint import BestWeights

QUANTIZER = stirred(small_config())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1) | st.just(math.nan) | st.just(math.inf), max_size=8))
def test_the_lowest_error_is_kept_and_stale_validations_are_counted(errors: list[float]) -> None:
    best = BestWeights(QUANTIZER, 0.5)
    for step, error in enumerate(errors, start=1):
        QUANTIZER.mean_D.fill_(step)
        best.offer(QUANTIZER, error, step)
    lowest = min([0.5, *(error for error in errors if not math.isnan(error))])
    first = 0 if lowest == 0.5 else errors.index(lowest) + 1
    assert (best.mse, best.step, best.stale) == (lowest, first, len(errors) - first)
    if first:
        assert float(best.weights["mean_D"][0]) == first


def test_kept_weights_are_a_copy() -> None:
    QUANTIZER.mean_D.fill_(1.0)
    best = BestWeights(QUANTIZER, 0.5)
    QUANTIZER.mean_D.fill_(2.0)
    assert torch.equal(best.weights["mean_D"], torch.ones_like(QUANTIZER.mean_D))
    other = BestWeights(QUANTIZER, 0.7)
    other.restore(best.counters(), best.weights)
    assert other.counters() == best.counters()
    assert torch.equal(other.weights["mean_D"], best.weights["mean_D"])
