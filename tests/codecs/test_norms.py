"""Norms in 16 bits: how near they come, and what scans make of them."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rqmoe_store.codecs.norms import squares_of, sum_norms

STEPS, CODEWORDS, PARTITIONS = 5, 7, 4


@given(
    seed=st.integers(0, 10**6), count=st.integers(0, 200), power=st.integers(-23, 6), first=st.integers(0, 3)
)
def test_norms_are_squared_lengths_up_to_rounding(seed: int, count: int, power: int, first: int) -> None:
    random = np.random.default_rng(seed)
    partitions = np.sort(random.integers(0, PARTITIONS, count))
    codes = random.integers(0, CODEWORDS, (count, STEPS)).astype(np.uint8)
    starts = np.searchsorted(partitions, np.arange(first, PARTITIONS + 1))
    by_partition, by_step = random.random(PARTITIONS), random.random((STEPS, CODEWORDS))
    scale = 2.0**power / (1 + STEPS)
    norms = sum_norms(
        (by_partition[first:] * scale).astype(np.float32), (by_step * scale).astype(np.float32), starts, codes
    )
    sums = (by_partition[partitions] + by_step[np.arange(STEPS), codes].sum(axis=1)) * scale
    assert norms.dtype == np.uint16
    found, wanted = squares_of(norms), sums[starts[0] :].clip(2.0**-24)
    np.testing.assert_allclose(found, wanted, rtol=2.0**-12 + 1e-6)


def test_squares_out_of_range_get_the_nearest_in_it() -> None:
    codes, starts = np.array([[0], [1], [2], [3]], np.uint8), np.array([0, 4])
    entries = np.array([[-5.0, 0.0, 256.0, 1e9]], np.float32)
    norms = sum_norms(np.zeros(1, np.float32), entries, starts, codes)
    found = squares_of(norms)
    np.testing.assert_array_equal(found[:2], 2.0**-24)
    assert (found[2:] > 255).all() and np.isfinite(found).all()
