"""Rounded rows: how far rounding moves them, and that packing loses nothing."""

import numpy as np
import pytest
from costly_examples import costly_examples
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from rqmoe_store.codecs.rounding import pack_rows, round_rows, unpack_rows
from rqmoe_store.errors import InvalidInputError

ANY = arrays(np.float32, array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=9))
FINITE = arrays(
    np.float32,
    array_shapes(min_dims=1, max_dims=3, max_side=9),
    elements=st.floats(-(2.0**100), 2.0**100, width=32),
)


def gaussian(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)


@costly_examples(200, part=50)
@given(values=FINITE, steps=st.sampled_from([4, 8, 16]))
def test_rounding_moves_no_value_by_more_than_half_a_grid_step(values: np.ndarray, steps: int) -> None:
    rounded = round_rows(values, steps)
    size = np.sqrt(np.square(values, dtype=np.float64).mean(axis=-1, keepdims=True))
    # The nearest power of two is at most a factor of 2**0.5 off; one byte reaches 127 grid steps.
    step = np.maximum(2**0.5 * size / steps, np.abs(values).max(axis=-1, keepdims=True) / 63.5)
    assert (np.abs(rounded.astype(np.float64) - values) <= 0.5001 * step + 2.0**-120).all()


@costly_examples(200, part=50)
@given(values=FINITE, steps=st.sampled_from([4, 16]))
def test_rounded_rows_are_packed_without_loss_and_not_rounded_again(values: np.ndarray, steps: int) -> None:
    rounded = round_rows(values, steps)
    np.testing.assert_array_equal(round_rows(rounded, 4), rounded)
    packed = pack_rows(rounded)
    assert packed is not None
    np.testing.assert_array_equal(unpack_rows(*packed), rounded)
    assert unpack_rows(*packed).dtype == np.float32


@costly_examples(200, part=40)
@given(values=ANY)
def test_other_rows_are_packed_without_loss_or_not_at_all(values: np.ndarray) -> None:
    packed = pack_rows(values)
    if packed is not None:
        np.testing.assert_array_equal(unpack_rows(*packed), values)
    round_rows(values, 8)


@pytest.mark.parametrize(("steps", "bits"), [(4, 4.2), (8, 5.2), (16, 6.2)])
def test_a_number_takes_about_as_many_bits_as_its_entropy(steps: int, bits: float) -> None:
    packed = pack_rows(round_rows(gaussian(1000, 384), steps))
    assert packed is not None
    assert 8 * (len(packed[0]) + packed[1].nbytes) / (1000 * 384) < bits + 0.1


def test_zeros_take_next_to_nothing() -> None:
    packed = pack_rows(np.zeros((1000, 384), np.float32))
    assert packed is not None and len(packed[0]) < 3000


def test_rows_that_are_not_finite_stay() -> None:
    values = gaussian(3, 4)
    values[1, 2] = np.nan
    np.testing.assert_array_equal(round_rows(values, 8), values)
    assert pack_rows(values) is None


def test_a_scalar_is_not_packed() -> None:
    assert pack_rows(np.float32(1) * np.ones((), np.float32)) is None


def test_what_was_not_packed_is_refused() -> None:
    packed = pack_rows(round_rows(gaussian(4, 6), 8))
    assert packed is not None
    numbers, exponents = packed
    longer = np.append(numbers, np.uint8(0))
    for changed in (numbers[:-1], numbers[1:], longer, numbers[None], numbers.astype(np.int16), numbers[:0]):
        with pytest.raises(InvalidInputError):
            unpack_rows(changed, exponents)
    far = np.full_like(exponents, 101)
    for others in (exponents[:0], exponents.astype(np.float32), np.zeros(7, np.int8), far, -far - 20):
        with pytest.raises(InvalidInputError):
            unpack_rows(numbers, others)
