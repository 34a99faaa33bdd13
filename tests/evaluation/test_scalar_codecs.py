"""Scalar and binary codecs: sizes, what is lost, and that a file brings them back."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from small_codecs import curved

from rqmoe_store.evaluation.scalar_codecs import BinaryCodec, Int8Codec

ROWS = curved(400)


def test_int8_is_half_a_step_away_at_most_between_its_ends() -> None:
    codec = Int8Codec.fit(ROWS)
    codes = codec.encode(ROWS)
    assert codes.shape == ROWS.shape and codes.dtype == np.uint8
    highest = codec.lowest + 255 * codec.step
    above, below = highest < ROWS, codec.lowest > ROWS
    inside = ~(above | below)
    assert 0.98 < inside.mean() < 1
    lost = np.abs(codec.decode(codes) - ROWS)
    assert lost[inside].max() <= 0.5 * codec.step * 1.001
    assert (codes[above] == 255).all() and (codes[below] == 0).all()


def test_int8_of_a_constant_is_that_constant() -> None:
    constant = np.full((10, 3), 0.25, np.float32)
    codec = Int8Codec.fit(constant)
    np.testing.assert_allclose(codec.decode(codec.encode(constant)), constant)


@given(dim=st.integers(1, 40))
def test_binary_keeps_signs_in_a_bit_each(dim: int) -> None:
    rows = np.random.default_rng(dim).normal(size=(20, dim)).astype(np.float32)
    codec = BinaryCodec.fit(rows)
    codes = codec.encode(rows)
    assert codes.shape == (20, (dim + 7) // 8) and codes.dtype == np.uint8
    decoded = codec.decode(codes)
    np.testing.assert_array_equal(decoded > 0, rows > 0)
    np.testing.assert_allclose(
        np.abs(decoded), np.broadcast_to(np.abs(rows).mean(axis=0), rows.shape), rtol=1e-5
    )


def test_saved(tmp_path) -> None:
    for codec in (Int8Codec.fit(ROWS), BinaryCodec.fit(ROWS)):
        codec.save(tmp_path / "folder" / type(codec).__name__)
        array = np.load(tmp_path / "folder" / f"{type(codec).__name__}.npy", allow_pickle=False)
        again = Int8Codec(*array.tolist()) if isinstance(codec, Int8Codec) else BinaryCodec(array)
        np.testing.assert_array_equal(again.decode(again.encode(ROWS)), codec.decode(codec.encode(ROWS)))
