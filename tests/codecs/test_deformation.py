"""Compiled deformations equal those of the experts' layers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rqmoe_store.codecs.deformation import (
    LANES,
    ExpertArrays,
    deformation_buffers,
    squared_length,
    subtract_deformation,
)
from rqmoe_store.codecs.experts import FoldedExperts


def folded_experts(
    seed: int, steps: int, layers: int, experts: int, hidden: int, width: int
) -> FoldedExperts:
    generator = torch.Generator().manual_seed(seed)
    features = layers * experts * hidden + experts
    return FoldedExperts(
        codeword_SKF=torch.zeros(steps, 1, features),
        condition_SEF=torch.zeros(steps, 1, features),
        contract_SLNHW=torch.randn(steps, layers, experts, hidden, width, generator=generator),
        expand_SLNHW=torch.randn(steps, layers, experts, hidden, width, generator=generator) / width,
        output_projection_WD=None,
    )


def as_arrays(folded: FoldedExperts) -> ExpertArrays:
    contract_SGW = folded.contracting(slice(None)).numpy()
    expand_SUWH = folded.expand_SLNHW[:, 1:].flatten(1, 2).transpose(2, 3).contiguous()
    return ExpertArrays(
        first_step=0,
        num_experts=folded.contract_SLNHW.shape[2],
        codeword_SKF=folded.codeword_SKF.numpy(),
        condition_SEF=folded.condition_SEF.numpy(),
        output_SGW=contract_SGW,
        contract_SGW=contract_SGW,
        expand_SUWH=expand_SUWH.numpy(),
    )


def deformations(arrays: ExpertArrays, features_SBF: np.ndarray) -> np.ndarray:
    steps, batch, _ = features_SBF.shape
    left_SBW = np.zeros((steps, batch, arrays.contract_SGW.shape[2]), np.float32)
    buffers = deformation_buffers(arrays)
    for step in range(steps):
        for row in range(batch):
            subtract_deformation(arrays, step, features_SBF[step, row].copy(), buffers, left_SBW[step, row])
    return -left_SBW


@given(
    seed=st.integers(0, 2**32 - 1),
    steps=st.integers(1, 3),
    layers=st.integers(1, 3),
    codes=st.integers(1, 8),
    experts=st.integers(1, 5),
    hidden=st.integers(1, 9),
    width=st.integers(1, 40),
)
def test_deformations_equal_those_of_the_layers(seed, steps, layers, codes, experts, hidden, width):
    folded = folded_experts(seed, steps, layers, experts, hidden, width)
    generator = torch.Generator().manual_seed(seed)
    features = layers * experts * hidden + experts
    features_SBF = torch.randn(steps, codes, features, generator=generator)
    expected_SBW = folded.deform(features_SBF, first_step=0).numpy()
    found_SBW = deformations(as_arrays(folded), features_SBF.numpy())
    np.testing.assert_allclose(found_SBW, expected_SBW, rtol=1e-3, atol=1e-3 * np.abs(expected_SBW).max())


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_nan_and_infinity_propagate(wrong):
    arrays = as_arrays(folded_experts(0, steps=1, layers=1, experts=2, hidden=2, width=3))
    features_SBF = np.zeros((1, 2, 6), np.float32)
    features_SBF[0, 1, 2] = wrong
    found_SBW = deformations(arrays, features_SBF)
    assert np.isfinite(found_SBW[0, 0]).all()
    assert not np.isfinite(found_SBW[0, 1]).any()


@given(seed=st.integers(0, 2**32 - 1), width=st.integers(0, 70))
def test_squared_lengths(seed, width):
    vector_W = np.random.default_rng(seed).standard_normal(width).astype(np.float32)
    found = squared_length(vector_W, np.empty(LANES, np.float32))
    np.testing.assert_allclose(found, np.square(vector_W.astype(np.float64)).sum(), rtol=1e-5)
