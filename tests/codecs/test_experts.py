"""The compiled sum of deformations equals that of the experts' layers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rqmoe_store.codecs.experts import FoldedExperts, summed_deformations


def folded_experts(
    generator: torch.Generator, steps: int, experts: int, hidden: int, width: int
) -> FoldedExperts:
    features = experts * hidden + experts
    return FoldedExperts(
        codeword_SKF=torch.zeros(steps, 1, features),
        condition_SEF=torch.zeros(steps, 1, features),
        contract_SLNHW=torch.randn(steps, 1, experts, hidden, width, generator=generator),
        expand_SLNHW=torch.zeros(steps, 1, experts, hidden, width),
        output_projection_WD=None,
    )


@given(
    seed=st.integers(0, 2**32 - 1),
    steps=st.integers(1, 4),
    codes=st.integers(1, 300),
    experts=st.integers(1, 5),
    hidden=st.integers(1, 9),
    width=st.integers(1, 40),
)
def test_the_sum_equals_that_of_single_steps(seed, steps, codes, experts, hidden, width):
    generator = torch.Generator().manual_seed(seed)
    folded = folded_experts(generator, steps, experts, hidden, width)
    features_SBF = torch.randn(steps, codes, experts * hidden + experts, generator=generator)
    expected_BW = folded.deform(features_SBF, first_step=0).sum(dim=0)
    contract_SGW = folded.contracting(slice(None))
    summed_BW = summed_deformations(features_SBF.numpy(), contract_SGW.numpy(), experts)
    np.testing.assert_allclose(summed_BW, expected_BW.numpy(), rtol=1e-4, atol=1e-4)


@given(start=st.integers(0, 299), count=st.integers(1, 300))
def test_a_code_does_not_depend_on_its_batch(start, count):
    generator = torch.Generator().manual_seed(0)
    contract_SGW = torch.randn(3, 8, 20, generator=generator).numpy()
    features_SBF = torch.randn(3, 300, 10, generator=generator).numpy()
    whole_BW = summed_deformations(features_SBF, contract_SGW, 2)
    part_BW = summed_deformations(features_SBF[:, start : start + count], contract_SGW, 2)
    np.testing.assert_array_equal(part_BW, whole_BW[start : start + count])


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_nan_and_infinity_propagate(wrong):
    contract_SGW = np.ones((1, 4, 3), np.float32)
    features_SBF = np.zeros((1, 2, 6), np.float32)
    features_SBF[0, 1, 2] = wrong
    summed_BW = summed_deformations(features_SBF, contract_SGW, 2)
    assert np.isfinite(summed_BW[0]).all()
    assert not np.isfinite(summed_BW[1]).any()
