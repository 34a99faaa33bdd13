"""Candidates of the encoder in compiled loops, against their definitions.

Shape legend: as in `candidates`.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rqmoe_store.codecs.candidates import best_pairs, deformed_residuals, gated_units

SMALL = st.integers(1, 6)


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def whole(seed: int, below: int, count: int) -> torch.Tensor:
    return torch.randint(below, (count,), generator=torch.Generator().manual_seed(seed))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6), vectors=SMALL, entries=SMALL, size=SMALL, count=SMALL, rounded=st.booleans()
)
def test_the_nearest_pairs_are_found(
    seed: int, vectors: int, entries: int, size: int, count: int, rounded: bool
) -> None:
    products_VK = normal(seed, vectors * entries, size).to(torch.bfloat16 if rounded else torch.float32)
    norms_K, distance_BR = normal(seed + 1, size).abs(), normal(seed + 2, vectors, entries).abs()
    count = min(count, entries * size)
    distance_BA, pair_BA = best_pairs(products_VK, norms_K, distance_BR, count)
    all_BRK = (norms_K - 2 * products_VK.float()).view(vectors, entries, size) + distance_BR[:, :, None]
    all_BP = all_BRK.flatten(1)
    torch.testing.assert_close(distance_BA, all_BP.gather(1, pair_BA))
    torch.testing.assert_close(distance_BA.sort(dim=1).values, all_BP.sort(dim=1).values[:, :count])
    assert all(len(set(pairs)) == count for pairs in pair_BA.tolist())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), count=SMALL, experts=SMALL, hidden=st.integers(1, 20))
def test_hidden_units_are_rectified_and_gated(seed: int, count: int, experts: int, hidden: int) -> None:
    codeword_KF = normal(seed, 7, experts * (hidden + 1))
    condition_VF = normal(seed + 1, 3, experts * (hidden + 1))
    index_C, entry_C = whole(seed, 7, count), whole(seed + 1, 3, count)
    features_CF = codeword_KF[index_C] + condition_VF[entry_C]
    gate_CN = features_CF[:, experts * hidden :].softmax(dim=1)
    hidden_CNH = features_CF[:, : experts * hidden].relu().view(count, experts, hidden)
    found_CG = gated_units(codeword_KF, condition_VF, index_C, entry_C, experts)
    torch.testing.assert_close(found_CG, (hidden_CNH * gate_CN[:, :, None]).flatten(1))


def test_a_hidden_unit_that_is_not_a_number_shows() -> None:
    codeword_KF = torch.tensor([[float("nan"), 1.0, 0.0]])
    found_CG = gated_units(codeword_KF, torch.zeros(1, 3), torch.tensor([0]), torch.tensor([0]), 1)
    assert found_CG[0].isnan().tolist() == [True, False]
    assert float(found_CG[0, 1]) == pytest.approx(1.0)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), count=SMALL, outside=st.integers(0, 20), width=st.integers(1, 40))
def test_only_the_last_coordinates_are_deformed(seed: int, count: int, outside: int, width: int) -> None:
    residual_VX, codebook_KX = normal(seed, 3, outside + width), normal(seed + 1, 7, outside + width)
    index_C, entry_C = whole(seed, 7, count), whole(seed + 1, 3, count)
    deformation_CW = normal(seed + 2, count, width)
    left_CX = residual_VX[entry_C] - codebook_KX[index_C]
    distance_C = left_CX.square().sum(dim=1)
    found_CW, found_C = deformed_residuals(
        residual_VX, codebook_KX, index_C, entry_C, deformation_CW, distance_C
    )
    left_CX[:, outside:] -= deformation_CW
    torch.testing.assert_close(found_CW, left_CX[:, outside:])
    torch.testing.assert_close(found_C, left_CX.square().sum(dim=1), rtol=1e-4, atol=1e-4)
