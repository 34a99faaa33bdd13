"""Transform codes: rotations are orthogonal, the nearest codewords are chosen, look-up tables are exact."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_codecs import DIM, exact_distances, trained_small, vectors

from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.parallel import num_threads, set_num_threads
from rqmoe_store.codecs.transform import (
    CODEWORDS,
    DenseRotation,
    HadamardRotation,
    TransformQuantizer,
    hadamard_block,
)
from rqmoe_store.config import METRICS, TRANSFORM_KINDS
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.training.transform import fit_transform, random_rotation

FRAMES = {"plain": (1.0, 0.0), "far off": (1.0, 3e4), "tiny": (1e-20, 0.0), "huge and far off": (1e12, 1e16)}
"""Factors and offsets of vectors. Codecs compute in frames for all but the first."""


def framed(rows: np.ndarray, frame: str, metric: str = "l2") -> np.ndarray:
    """Vectors at another scale and place; only at another scale under cosine, which has no frame."""
    factor, offset = FRAMES[frame]
    return (rows * factor + (0.0 if metric == "cosine" else offset)).astype(np.float32)


def quantizer_at_random(seed: int, dim: int = DIM, num_bytes: int = 3) -> TransformQuantizer:
    """A quantizer of groups of 1, 2, ... coordinates, with weights, of which one coordinate has no byte."""
    random = np.random.default_rng(seed)
    starts = np.array([0, *sorted(random.choice(np.arange(1, dim - 1), num_bytes - 1, False)), dim - 1])
    return TransformQuantizer(
        random.standard_normal(dim).astype(np.float32),
        random_rotation(dim, seed),
        starts.astype(np.int32),
        random.standard_normal((dim - 1, CODEWORDS)).astype(np.float32),
        random.uniform(0.1, 2, dim - 1).astype(np.float32),
    )


@pytest.mark.parametrize("dim", [1, 2, 3, 5, 64, 100, 1024, 1536, 1600])
def test_rotations_are_orthogonal_and_inverted(dim: int) -> None:
    rotation = random_rotation(dim, seed=3)
    assert isinstance(rotation, HadamardRotation) == (dim in (1024, 1536, 1600))
    rows = np.random.default_rng(0).standard_normal((40, dim)).astype(np.float32)
    rotated = rotation.apply(rows)
    np.testing.assert_allclose(rotated @ rotated.T, rows @ rows.T, atol=2e-5 * dim)
    np.testing.assert_allclose(rotation.invert(rotated), rows, atol=1e-5)
    if dim > 3:
        assert np.abs(rotated - rows).max() > 0.5


def test_a_fast_rotation_spreads_a_single_component() -> None:
    """Levels are those of a random direction's coordinates, which no coordinate dominates."""
    rotated = random_rotation(1536, seed=0).apply(np.eye(1536, dtype=np.float32)[:50])
    assert np.abs(rotated).max() < 6 / np.sqrt(1536)
    assert 0.9 < np.square(rotated).mean() * 1536 < 1.1
    assert hadamard_block(1536) == 512


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), num_bytes=st.integers(1, 8), rows=st.integers(1, 30))
def test_the_nearest_codewords_are_chosen(seed: int, num_bytes: int, rows: int) -> None:
    quantizer = quantizer_at_random(seed, num_bytes=num_bytes)
    given_rows = np.random.default_rng(seed + 1).standard_normal((rows, DIM)).astype(np.float32) * 2
    codes = quantizer.encode(given_rows)
    rotated = quantizer.rotation.apply(given_rows - quantizer.mean_D).astype(np.float64)
    for byte in range(num_bytes):
        places = slice(quantizer.starts_B1[byte], quantizer.starts_B1[byte + 1])
        left = rotated[:, places, None] - quantizer.codebooks_CK[None, places]
        errors = (quantizer.weights_C[None, places, None] * np.square(left)).sum(axis=1)
        chosen = np.take_along_axis(errors, codes[:, byte : byte + 1].astype(np.int64), axis=1)[:, 0]
        np.testing.assert_allclose(chosen, errors.min(axis=1), rtol=1e-4, atol=1e-4)


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 5), factor=st.sampled_from([1.0, 1e-30, 1e30, 3e38]))
def test_codes_and_vectors_do_not_depend_on_the_batch(seed: int, count: int, factor: float) -> None:
    quantizer = quantizer_at_random(seed, num_bytes=5)
    rows = np.random.default_rng(seed).uniform(-1, 1, (2100, DIM)).astype(np.float32) * np.float32(factor)
    codes = quantizer.encode(rows)
    decoded = quantizer.decode(codes)
    for start in np.random.default_rng(seed).integers(0, 2100 - count, 5).tolist():
        some = slice(start, start + count)
        np.testing.assert_array_equal(quantizer.encode(rows[some]), codes[some])
        np.testing.assert_array_equal(quantizer.decode(codes[some]), decoded[some])
    assert np.isfinite(decoded).all()


@pytest.mark.parametrize("far", [1e6, 1e30, 3e38])
def test_far_vectors_get_the_outermost_codewords(far: float) -> None:
    """Also where products of their components would leave float32's range."""
    random, ones = np.random.default_rng(0), np.ones(2, np.float32)
    codebooks = (100 * random.standard_normal((2, CODEWORDS))).astype(np.float32)
    rotation = DenseRotation(np.eye(2, dtype=np.float32))
    quantizer = TransformQuantizer(0 * ones, rotation, np.array([0, 1, 2], np.int32), codebooks, ones)
    codes = quantizer.encode(np.array([[far, far], [-far, -far]], np.float32))
    np.testing.assert_array_equal(codes, [codebooks.argmax(axis=1), codebooks.argmin(axis=1)])


def test_codes_do_not_depend_on_the_number_of_threads() -> None:
    quantizer, rows = quantizer_at_random(5), vectors(5000)
    usual = num_threads()
    try:
        set_num_threads(1)
        alone = quantizer.encode(rows)
        set_num_threads(2)
        together = quantizer.encode(rows)
        decoded = quantizer.decode(together)
        set_num_threads(1)
        np.testing.assert_array_equal(quantizer.decode(alone), decoded)
    finally:
        set_num_threads(usual)
    np.testing.assert_array_equal(alone, together)


@pytest.mark.parametrize("kind", TRANSFORM_KINDS)
@pytest.mark.parametrize("num_bytes", [1, 3, 8, 12])
def test_what_codes_stand_for_is_coded_by_them(kind: str, num_bytes: int) -> None:
    rows = vectors(2000)
    quantizer = fit_transform(kind, rows, num_bytes=num_bytes, seed=0)
    decoded = quantizer.decode(quantizer.encode(rows))
    np.testing.assert_allclose(quantizer.decode(quantizer.encode(decoded)), decoded, atol=1e-4)


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_tables_are_those_of_the_decoded_vectors(seed: int) -> None:
    quantizer, random = quantizer_at_random(seed), np.random.default_rng(seed)
    codes = random.integers(0, 256, (50, 3)).astype(np.uint8)
    decoded = quantizer.decode(codes).astype(np.float64)
    squared_mean, squares_BK = quantizer.squares()
    summed = squared_mean + squares_BK[np.arange(3), codes].sum(axis=1)
    np.testing.assert_allclose(summed, np.square(decoded).sum(axis=1), rtol=1e-4, atol=1e-4)
    queries = vectors(4, seed=seed)
    of_mean_Q, products_QBK = quantizer.products(queries)
    products = of_mean_Q[:, None] + products_QBK[:, np.arange(3), codes].sum(axis=2)
    np.testing.assert_allclose(products, queries @ decoded.T, rtol=1e-4, atol=1e-4)


def test_prefixes_are_the_codes_of_the_truncated_quantizer() -> None:
    quantizer, rows = fit_transform("pq", vectors(3000), num_bytes=6, seed=0), vectors(500, seed=1)
    codes = quantizer.encode(rows)
    errors = quantizer.prefix_errors(rows)
    assert len(errors) == 6
    for count in range(1, 7):
        shorter = quantizer.truncate(count)
        decoded = shorter.decode(codes[:, :count])
        np.testing.assert_array_equal(shorter.encode(rows), codes[:, :count])
        np.testing.assert_array_equal(quantizer.decode(codes[:, :count]), decoded)
        np.testing.assert_array_equal(shorter.decode(codes), decoded)
        assert errors[count - 1] == pytest.approx(np.square(rows - decoded).sum(axis=1).mean(), rel=1e-3)


@pytest.mark.parametrize("dim", [DIM, 1024])
def test_arrays_are_the_quantizer(dim: int) -> None:
    rows = np.random.default_rng(0).standard_normal((300, dim)).astype(np.float32)
    quantizer = fit_transform("turboquant", rows, num_bytes=7, seed=0)
    again = TransformQuantizer.from_arrays(quantizer.arrays(), dim=dim, num_bytes=7)
    codes = quantizer.encode(rows)
    np.testing.assert_array_equal(again.encode(rows), codes)
    np.testing.assert_array_equal(again.decode(codes), quantizer.decode(codes))


@pytest.mark.parametrize("dim", [DIM, 1024])
def test_other_arrays_are_refused(dim: int) -> None:
    rows = np.random.default_rng(0).standard_normal((300, dim)).astype(np.float32)
    arrays = fit_transform("turboquant", rows, num_bytes=7, seed=0).arrays()

    def require_refused(**changes: np.ndarray) -> None:
        with pytest.raises(InvalidInputError):
            TransformQuantizer.from_arrays({**arrays, **changes}, dim=dim, num_bytes=7)

    for name, array in arrays.items():
        with pytest.raises(InvalidInputError):
            others = {key: value for key, value in arrays.items() if key != name}
            TransformQuantizer.from_arrays(others, dim=dim, num_bytes=7)
        require_refused(**{name: array[:-1]})
        require_refused(**{name: array.astype(np.float64)})
        require_refused(**{name: array[..., None]})
        if array.dtype == np.float32:
            damaged = array.copy()
            damaged.flat[-1] = np.nan
            require_refused(**{name: damaged})
        wrong = np.zeros_like(array)
        if name != "mean":
            require_refused(**{name: wrong} if name != "codebooks" else {name: wrong * np.nan})
    require_refused(unknown=np.zeros(3))
    require_refused(codebooks=np.full_like(arrays["codebooks"], 1e20))
    require_refused(mean=np.full_like(arrays["mean"], -1e20))
    require_refused(weights=-arrays["weights"])


@pytest.mark.parametrize(
    "starts",
    [
        [0, 3, 3, 6],
        [0, 6, 3, 9],
        [1, 2, 3, 4],
        [0, 4, 8, 13],
        [-1, 2, 4, 6],
        [0, 2**31 - 1, -2, 3],  # every difference is positive in 32 bits
    ],
)
def test_groups_that_are_none_are_refused(starts: list[int]) -> None:
    arrays = quantizer_at_random(0).arrays()
    arrays["starts"] = np.array(starts, np.int32)
    coded = min(max(starts[-1], 1), DIM)
    arrays["codebooks"], arrays["weights"] = (
        np.ones((coded, CODEWORDS), np.float32),
        np.ones(coded, np.float32),
    )
    with pytest.raises(InvalidInputError, match="groups of coordinates"):
        TransformQuantizer.from_arrays(arrays, dim=DIM, num_bytes=3)


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", TRANSFORM_KINDS)
def test_scores_are_the_distances_of_decoded_vectors(kind: str, metric: str, frame: str) -> None:
    rows = framed(vectors(700), frame, metric)
    codec = trained_small(rows, kind=kind, metric=metric)
    queries = framed(vectors(5, seed=8), frame, metric)
    if metric == "cosine":
        queries /= np.linalg.norm(queries.astype(np.float64), axis=1, keepdims=True).astype(np.float32)
    codes = codec.encode(rows[:200])
    scores = codec.lookup_tables(queries).score(codes)
    exact = exact_distances(queries, codec.decode(codes), metric)
    # Reconstructions and products far off are rounded to float32 themselves.
    rounding = np.abs(exact).max() * 1e-6
    if FRAMES[frame][1]:
        rounding += np.ptp(exact) * 2e-2 if metric == "l2" else np.abs(exact).max() * 1e-5
    np.testing.assert_allclose(scores, exact, atol=np.ptp(exact) * 1e-4 + rounding)


@pytest.mark.parametrize("kind", TRANSFORM_KINDS)
def test_a_codec_is_its_artifact(kind: str) -> None:
    rows = vectors(700)
    codec = trained_small(rows, kind=kind, metric="cosine", refine_bytes=5)
    loaded = Codec.from_artifact(codec.to_artifact(), device="cpu")
    loaded._artifact = None
    assert loaded.to_artifact() == codec.to_artifact()
    codes, again = codec.encode(rows), loaded.encode(rows)
    np.testing.assert_array_equal(codes.codes, again.codes)
    np.testing.assert_array_equal(codes.refine, again.refine)
    np.testing.assert_array_equal(codec.decode(codes), loaded.decode(again))


@pytest.mark.parametrize("kind", TRANSFORM_KINDS)
def test_truncated_codecs_decode_prefixes(kind: str) -> None:
    rows = vectors(700)
    codec = trained_small(rows, kind=kind, code_bytes=6)
    codes = codec.encode(rows)
    for count in (1, 3, 6):
        shorter = codec.truncate(count)
        np.testing.assert_array_equal(shorter.decode(codes[:, :count]), codec.decode(codes[:, :count]))
        assert shorter.report.prefix_mse == codec.report.prefix_mse[:count]
