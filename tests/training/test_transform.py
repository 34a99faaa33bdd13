"""Fitting transform codes: bits, levels and codebooks are as good as they can be."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_codecs import DIM, trained_small, vectors

from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.transform import CODEWORDS
from rqmoe_store.config import TRANSFORM_KINDS, CodecConfig, TrainConfig
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.training.trainer import add_refine_codes, train
from rqmoe_store.training.transform import (
    balance_groups,
    fit_transform,
    gaussian_distortion_of,
    gaussian_levels,
    improve_codebook,
    lloyd_max,
    sphere_levels,
    water_filling_rates,
    worth_coding,
)


def decaying(rows: int, dim: int, seed: int = 0) -> np.ndarray:
    """Vectors whose variances decay, in a rotated basis."""
    random = np.random.default_rng(seed)
    basis = np.linalg.qr(np.random.default_rng(77).standard_normal((dim, dim)))[0]
    scales = 1 / (1 + np.arange(dim)) ** 0.7
    return (random.standard_normal((rows, dim)) * scales @ basis + 0.1).astype(np.float32)


def error_of(kind: str, rows: np.ndarray, held_out: np.ndarray, num_bytes: int) -> float:
    quantizer = fit_transform(kind, rows, num_bytes=num_bytes, seed=0)
    return float(np.square(held_out - quantizer.decode(quantizer.encode(held_out))).sum(axis=1).mean())


@settings(max_examples=60)
@given(data=st.data(), dim=st.integers(1, 64), flat=st.booleans())
def test_bytes_share_out_all_coordinates(data: st.DataObject, dim: int, flat: bool) -> None:
    num_bytes = data.draw(st.integers(1, dim))
    random = np.random.default_rng(dim * 100 + num_bytes)
    variances = np.ones(dim) if flat else np.sort(random.lognormal(0, 2, dim))[::-1]
    groups = balance_groups(variances, num_bytes)
    assert len(groups) == num_bytes
    assert sorted(place for group in groups for place in group.places) == list(range(dim))
    for group in groups:
        assert len(group.places) == len(group.bits) > 0
        assert sum(group.bits) == 8
        used = group.without_unused()
        assert 0 not in used.bits and sum(used.bits) == 8 and set(used.places) <= set(group.places)


@settings(max_examples=60)
@given(data=st.data(), dim=st.integers(1, 40))
def test_water_filling_spends_all_bits_on_the_largest_variances(data: st.DataObject, dim: int) -> None:
    bits = data.draw(st.integers(1, 8 * dim))
    variances = np.random.default_rng(dim + bits).lognormal(0, 3, dim)
    rates = water_filling_rates(variances, bits)
    assert rates.sum() == pytest.approx(bits, rel=1e-6)
    left = variances / 4**rates
    assert left[rates > 0].max() <= left[rates > 0].min() * 1.0001
    if (rates == 0).any():
        assert variances[rates == 0].max() <= left[rates > 0].max() * 1.0001


@settings(max_examples=60)
@given(data=st.data(), dim=st.integers(1, 64))
def test_only_coordinates_that_hardly_vary_are_left_out(data: st.DataObject, dim: int) -> None:
    num_bytes = data.draw(st.integers(1, dim))
    variances = np.random.default_rng(dim * 100 + num_bytes).lognormal(0, 2, dim)
    used = worth_coding(variances, num_bytes)
    left, rates = np.delete(variances, used), water_filling_rates(variances, 8 * num_bytes)
    least = max(num_bytes, (rates > 0).sum())
    assert len(used) >= least and (np.diff(used) > 0).all() and (np.delete(rates, used) == 0).all()
    assert left.sum() <= 0.25 * (variances / 4**rates).sum()
    if len(left):
        assert left.max() <= variances[used].min()
    if len(used) > least:
        assert left.sum() + variances[used].min() > 0.25 * (variances / 4**rates).sum()


@pytest.mark.parametrize("kind", ["pq", "saq"])
def test_codecs_of_wide_vectors_keep_the_directions_they_use_in_two_bytes_a_number(kind: str) -> None:
    rows = decaying(2000, 300)
    config = CodecConfig(kind=kind, metric="l2", code_bytes=8, num_partitions=0)
    codec = train(rows, config=config, training=TrainConfig(progress=False))
    artifact = codec.to_artifact()
    shape = artifact.unpack()[1]["transform.rotation"].shape
    assert 8 <= shape[0] < 150 and shape[1] == 300
    assert len(artifact.weights) < shape[0] * (2 * 300 + 2 * CODEWORDS + 4) + 20_000
    read = Codec.from_artifact(artifact)
    codes = codec.encode(rows[:50])
    np.testing.assert_array_equal(read.encode(rows[:50]).codes, codes.codes)
    np.testing.assert_array_equal(read.decode(codes), codec.decode(codes))
    exact = np.square(rows[:5, None].astype(np.float64) - codec.decode(codes)).sum(axis=2)
    scores = codec.lookup_tables(rows[:5]).score(codes)
    np.testing.assert_allclose(scores - scores[0, 0], exact - exact[0, 0], atol=1e-3 * exact.min())


def test_levels_of_a_gaussian_are_those_of_lloyd_and_max() -> None:
    """Max, "Quantizing for minimum distortion", 1960, table I. Many levels come near the limit of Panter and
    Dite."""
    for bits, distortion in enumerate([1.0, 0.3634, 0.1175, 0.03454, 0.009497, 0.002499]):
        assert gaussian_distortion_of(bits) == pytest.approx(distortion, rel=0.004)
    for bits in (6, 7, 8):
        assert 0.96 < gaussian_distortion_of(bits) * 4**bits / (np.sqrt(3) * np.pi / 2) < 1
    np.testing.assert_allclose(gaussian_levels(1), [-0.7979, 0.7979], atol=1e-4)
    np.testing.assert_allclose(gaussian_levels(2), [-1.510, -0.4528, 0.4528, 1.510], atol=5e-4)
    assert gaussian_levels(0) == pytest.approx(0.0, abs=1e-9)


def test_levels_of_a_uniform_density_are_even() -> None:
    grid = np.linspace(-1, 1, 4001)
    levels, error = lloyd_max(grid, np.ones_like(grid), 4)
    np.testing.assert_allclose(levels, [-0.75, -0.25, 0.25, 0.75], atol=2e-3)
    assert error == pytest.approx(1 / 3 / 16, rel=0.01)


@pytest.mark.parametrize("dim", [2, 3, 8, 200])
def test_levels_of_a_sphere_fit_its_coordinates(dim: int) -> None:
    random = np.random.default_rng(0)
    points = random.standard_normal((20_000, dim))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    coordinates = points[:, 0] * np.sqrt(dim)
    errors = []
    for levels in (sphere_levels(dim, 2), gaussian_levels(2)):
        errors.append(np.square(coordinates[:, None] - levels).min(axis=1).mean())
    assert errors[0] < errors[1] * 1.02
    if dim <= 3:
        assert errors[0] < errors[1] * 0.97


def test_in_one_dimension_a_direction_is_a_sign() -> None:
    np.testing.assert_array_equal(sphere_levels(1, 2), [-1, 1, -1, 1])


@pytest.mark.parametrize("num_bytes", [2, 4, 8, 16])
def test_kinds_that_know_more_have_smaller_errors(num_bytes: int) -> None:
    rows, held_out = decaying(12_000, 32), decaying(1000, 32, seed=5)
    pq, saq, turboquant = (error_of(kind, rows, held_out, num_bytes) for kind in ("pq", "saq", "turboquant"))
    assert pq < saq < turboquant
    variance = np.square(held_out - held_out.mean(axis=0)).sum(axis=1).mean()
    assert saq < variance


@pytest.mark.parametrize("kind", TRANSFORM_KINDS)
def test_more_bytes_have_smaller_errors(kind: str) -> None:
    rows = decaying(3000, 24)
    errors = [error_of(kind, rows, rows, num_bytes) for num_bytes in (1, 2, 3, 5, 8, 12, 16, 20, 24)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3 * errors[0]


@pytest.mark.parametrize("kind", TRANSFORM_KINDS)
def test_fits_repeat_and_take_only_the_first_rows(kind: str) -> None:
    rows = decaying(3000, DIM)
    first, second = (fit_transform(kind, rows, num_bytes=4, seed=1) for _ in range(2))
    for name, array in first.arrays().items():
        np.testing.assert_array_equal(array, second.arrays()[name])
    other = fit_transform(kind, rows, num_bytes=4, seed=2)
    same = all(np.array_equal(array, other.arrays()[name]) for name, array in first.arrays().items())
    assert same == (kind != "turboquant")


@pytest.mark.parametrize("dim", [32, 1024])
def test_a_rotation_is_not_made_of_vectors_drawn_with_its_seed(dim: int) -> None:
    rows = np.random.default_rng(5).normal(size=(40, dim)).astype(np.float32)
    quantizer = fit_transform("turboquant", rows, num_bytes=dim // 2, seed=5)
    error = np.square(rows - quantizer.decode(quantizer.encode(rows))).sum() / np.square(rows).sum()
    assert error == pytest.approx(gaussian_distortion_of(4), rel=0.3)


def test_turboquant_takes_nothing_but_a_length_from_the_data() -> None:
    rows = decaying(500, DIM)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    others = np.random.default_rng(0).standard_normal((50, DIM)).astype(np.float32)
    others /= np.linalg.norm(others, axis=1, keepdims=True)
    arrays, others_arrays = (
        fit_transform("turboquant", each, num_bytes=5, seed=1).arrays() for each in (rows, others)
    )
    for name, array in arrays.items():
        np.testing.assert_allclose(array, others_arrays[name], rtol=1e-5)


@pytest.mark.parametrize("kind", ["pq", "saq"])
def test_errors_count_more_where_queries_are_long(kind: str) -> None:
    rows = np.random.default_rng(0).standard_normal((4000, DIM)).astype(np.float32)
    queries = np.random.default_rng(1).standard_normal((4000, DIM)).astype(np.float32)
    queries[:, 0] *= 30
    plain = fit_transform(kind, rows, num_bytes=3, seed=0)
    weighted = fit_transform(kind, rows, num_bytes=3, seed=0, queries_nD=queries)
    errors = [np.square(rows - each.decode(each.encode(rows))).mean(axis=0) for each in (plain, weighted)]
    assert errors[1][0] < 0.7 * errors[0][0]
    assert errors[1].sum() > errors[0].sum()
    assert plain.weights_C.min() == plain.weights_C.max() == 1
    scores = [queries @ (rows - each.decode(each.encode(rows))).T for each in (plain, weighted)]
    assert np.square(scores[1]).mean() < np.square(scores[0]).mean()


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), width=st.integers(1, 9), rows=st.sampled_from([2, 100, 3000]))
def test_k_means_improves_a_codebook(seed: int, width: int, rows: int) -> None:
    random = np.random.default_rng(seed)
    values = random.standard_normal((rows, width)).astype(np.float32) ** 3
    codebook = random.standard_normal((width, CODEWORDS)).astype(np.float32)
    # Far from all vectors: without being moved, these would never be used.
    codebook[:, 100:] += 1000

    def error() -> float:
        return float(np.square(values[:, :, None] - codebook[None]).sum(axis=1).min(axis=1).mean())

    before = error()
    improve_codebook(values, codebook, np.ones(width, np.float32))
    assert error() < before
    assert np.abs(codebook).max() <= np.abs(values).max() * 1.0001
    if rows <= 100:
        assert error() < 0.01 * np.square(values).sum(axis=1).mean()


@pytest.mark.parametrize("kind", TRANSFORM_KINDS)
@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
def test_training_reports_errors_in_the_units_of_the_input(kind: str, metric: str) -> None:
    held_out = vectors(400, seed=9) * 1e-18
    config = CodecConfig(kind=kind, metric=metric, code_bytes=5, refine_bytes=6)
    codec = train(
        vectors(3000) * 1e-18, config=config, training=TrainConfig(progress=False), validation=held_out
    )
    exact = held_out.astype(np.float64)
    if metric == "cosine":
        exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    codes = codec.encode(held_out)
    for count, reported in enumerate(codec.report.prefix_mse, 1):
        error = np.square(exact - codec.decode(codes[:, :count])).sum(axis=1).mean()
        assert reported == pytest.approx(error, rel=1e-3)
    error = np.square(exact - codec.decode(codes)).sum(axis=1).mean()
    assert codec.report.refined_mse == pytest.approx(error, rel=1e-3)
    assert 0 < codec.report.utilisation <= 1
    assert codec.report.rq_prefix_mse == ()


def test_bytes_beyond_8_bits_a_dimension_are_refused_before_training() -> None:
    with pytest.raises(InvalidInputError, match=f"code_bytes={DIM + 1} for vectors of dimension {DIM}"):
        trained_small(vectors(50), kind="saq", code_bytes=DIM + 1)
    with pytest.raises(InvalidInputError, match=f"refine_bytes={DIM + 3} for vectors of dimension {DIM}"):
        trained_small(vectors(50), refine_bytes=DIM + 3)


def test_vectors_that_are_all_the_same_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="All 18 training vectors are the same"):
        trained_small(np.ones((20, DIM), np.float32), kind="pq")


def test_refine_codes_are_added_to_a_trained_codec() -> None:
    rows = vectors(600)
    codec = trained_small(rows)
    refined = add_refine_codes(codec, rows, refine_bytes=6)
    assert refined.config == dataclasses.replace(codec.config, refine_bytes=6)
    assert codec.config.refine_bytes == 0 and codec.encode(rows[:5]).refine is None
    plain, whole = codec.encode(rows), refined.encode(rows)
    np.testing.assert_array_equal(plain.codes, whole.codes)
    assert whole.refine is not None and whole.refine.shape == (600, 6)
    errors = [float(np.square(rows - c.decode(x)).sum()) for c, x in ((codec, plain), (refined, whole))]
    assert errors[1] < 0.7 * errors[0]
    assert refined.report.refined_mse < refined.report.validation_mse
    again = add_refine_codes(refined, rows, refine_bytes=0)
    assert again.config == codec.config and again.report == codec.report
    np.testing.assert_array_equal(again.decode(plain), codec.decode(plain))


def test_a_codec_shares_no_weights_with_the_one_that_it_was_refined_from() -> None:
    """Moving one of them to a GPU must not move half of the other."""
    rows = vectors(600)
    codec = trained_small(rows, kind="rqmoe")
    before = codec.encode(rows), codec.decode(codec.encode(rows))
    refined = add_refine_codes(codec, rows, refine_bytes=6)
    refined.coder.quantizer.double()
    np.testing.assert_array_equal(codec.encode(rows).codes, before[0].codes)
    np.testing.assert_array_equal(codec.decode(before[0]), before[1])
    scalar = trained_small(rows, kind="pq")
    scalar.coder.device = "cuda:0"  # where its codes are scanned; it computes on the CPU
    assert add_refine_codes(scalar, rows, refine_bytes=0).device.type == "cuda"


def test_refine_codes_of_other_vectors_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=f"expected {DIM}"):
        add_refine_codes(trained_small(vectors(600)), np.ones((50, DIM + 1), np.float32), refine_bytes=6)
    with pytest.raises(InvalidInputError, match="refine_bytes"):
        add_refine_codes(trained_small(vectors(600)), vectors(50), refine_bytes=DIM + 3)
