"""The Gaussian bound: closed forms, and the conditions that make a water level the best one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.codec_benchmark import gaussian_distortion, principal_variances, water_level

VARIANCES = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=40).map(np.array)
BITS = st.floats(0, 400)


@given(dim=st.integers(1, 300), variance=st.floats(1e-3, 1e3), bits=BITS)
def test_white_covariance_has_a_closed_form(dim, variance, bits) -> None:
    wanted = dim * variance * 2 ** (-2 * bits / dim)
    assert gaussian_distortion(np.full(dim, variance), bits) == pytest.approx(wanted, rel=1e-9)


def test_two_variances_by_hand() -> None:
    # Half a bit brings 4 down to 2; one more bit each brings both from 1 to 1/4.
    assert gaussian_distortion(np.array([1.0, 4.0]), 0.5) == pytest.approx(1 + 2)
    assert gaussian_distortion(np.array([1.0, 4.0]), 1 + 2) == pytest.approx(1 / 4 + 1 / 4)


@settings(deadline=None)
@given(variances=VARIANCES, bits=BITS)
def test_the_level_satisfies_the_kkt_conditions(variances, bits) -> None:
    level = water_level(variances, bits)
    errors = np.minimum(variances, level)
    spent = np.log2(variances / errors) / 2
    assert spent.sum() == pytest.approx(bits, abs=1e-6)  # the whole budget, and nothing else
    assert (spent >= 0).all()
    with_bits = spent > 1e-9  # equal slopes where bits are spent, none where they would help less
    np.testing.assert_allclose(errors[with_bits], level, rtol=1e-9)
    assert (variances[~with_bits] <= level * (1 + 1e-6)).all()


@given(variances=VARIANCES, bits=BITS, more=st.floats(0.01, 100))
def test_more_bits_never_hurt(variances, bits, more) -> None:
    assert gaussian_distortion(variances, bits + more) <= gaussian_distortion(variances, bits)


@given(variances=VARIANCES)
def test_no_bits_leave_the_whole_variance(variances) -> None:
    assert gaussian_distortion(variances, 0) == pytest.approx(variances.sum(), rel=1e-12)


@settings(deadline=None)
@given(variances=VARIANCES, bits=BITS, seed=st.integers(0, 99))
def test_no_other_split_of_the_bits_is_better(variances, bits, seed) -> None:
    shares = np.random.default_rng(seed).dirichlet(np.full(len(variances), 0.5)) * bits
    assert gaussian_distortion(variances, bits) <= (variances * 2 ** (-2 * shares)).sum() * (1 + 1e-9)


def test_directions_without_variance_take_no_bits() -> None:
    assert gaussian_distortion(np.array([2.0, 0.0, 0.0]), 1) == pytest.approx(0.5)
    assert gaussian_distortion(np.zeros(3), 8) == 0


def test_principal_variances_are_those_of_the_covariance() -> None:
    generator = np.random.default_rng(0)
    rows = (generator.normal(size=(9000, 6)) @ generator.normal(size=(6, 6)) + 100).astype(np.float32)
    found = principal_variances(rows)
    wanted = np.linalg.eigvalsh(np.cov(rows.astype(np.float64), rowvar=False, bias=True))[::-1]
    np.testing.assert_allclose(found, wanted, rtol=1e-9)
    flat = principal_variances(np.ones((5, 4), dtype=np.float32))
    assert (flat == 0).all()


@pytest.mark.parametrize(("variances", "bits"), [([1.0], -1), ([-1.0], 1), ([], 1), ([np.nan], 1)])
def test_unusable_arguments(variances, bits) -> None:
    with pytest.raises(InvalidInputError, match="none below 0"):
        gaussian_distortion(np.array(variances), bits)
