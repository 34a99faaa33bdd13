"""The n-th smallest value is the one that sorting puts there."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rqmoe_store.codecs.selection import nth_smallest


@pytest.mark.parametrize("dtype", [np.float32, np.uint64])
@given(seed=st.integers(0, 10**6), count=st.integers(1, 300), kinds=st.integers(1, 400), data=st.data())
def test_is_the_value_that_sorting_puts_there(
    dtype: type, seed: int, count: int, kinds: int, data: st.DataObject
) -> None:
    values = np.random.default_rng(seed).integers(0, kinds, count).astype(dtype)
    if dtype is np.float32 and seed % 2:
        values[values > kinds // 2] = np.inf
    rank = data.draw(st.integers(0, count - 1))
    expected, moved = np.sort(values), values.copy()
    assert nth_smallest(moved, rank) == expected[rank]
    np.testing.assert_array_equal(np.sort(moved), expected)


@pytest.mark.parametrize("order", ["ascending", "descending", "equal", "organ pipe"])
def test_ordered_values_take_no_longer(order: str) -> None:
    half = np.arange(20_000, dtype=np.float32)
    values = {
        "ascending": half,
        "descending": half[::-1].copy(),
        "equal": np.zeros(20_000, np.float32),
        "organ pipe": np.concatenate([half, half[::-1]]),
    }[order]
    for rank in (0, 777, len(values) - 1):
        assert nth_smallest(values.copy(), rank) == np.sort(values)[rank]
