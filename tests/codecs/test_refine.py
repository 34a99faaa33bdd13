"""Refine codes: refined scores are the distances of refined reconstructions, and lengths take two bytes."""

import dataclasses

import numpy as np
import pytest
from costly_examples import costly_examples
from hypothesis import given, settings
from hypothesis import strategies as st
from small_codecs import DIM, exact_distances, trained_small, vectors

from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.frame import shared_score_units
from rqmoe_store.codecs.parallel import num_threads, set_num_threads
from rqmoe_store.codecs.refine import SquareCode, stage_bytes
from rqmoe_store.config import METRICS, REFINE_BASES, TRANSFORM_KINDS
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.training.transform import fit_transform

FRAMES = {"plain": (1.0, 0.0), "far off": (1.0, 3e4), "tiny": (1e-20, 0.0), "huge and far off": (1e12, 1e16)}
"""Factors and offsets of vectors. Codecs compute in frames for all but the first."""

ROWS = vectors(900)


def framed(rows: np.ndarray, frame: str, metric: str) -> np.ndarray:
    """Vectors at another scale and place; of unit length under cosine, which has no frame."""
    if metric == "cosine":
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    factor, offset = FRAMES[frame]
    return (rows * factor + offset).astype(np.float32)


def refined_distances(codec: Codec, queries: np.ndarray, codes: Codes, others: list[Codec]) -> np.ndarray:
    """Distances (Q, n) by refined scores, in units that other codecs share."""
    units = shared_score_units([each.framed(queries) for each in (codec, *others)])
    lookup, refine = codec.lookup_tables(queries, units), codec.refine_tables(queries, units)
    scores = [
        codec.refined_scores(lookup, refine, np.full(len(codes), query), codes)
        for query in range(len(queries))
    ]
    return units.distances(np.stack(scores)) if codec.config.metric != "cosine" else np.stack(scores)


def require_close(found: np.ndarray, exact: np.ndarray, metric: str, frame: str) -> None:
    """Reconstructions and distances far off are rounded to float32 themselves."""
    rounding = np.abs(exact).max() * 1e-6
    if metric != "cosine" and FRAMES[frame][1]:
        rounding += np.ptp(exact) * 2e-2 if metric == "l2" else np.abs(exact).max() * 1e-5
    np.testing.assert_allclose(found, exact, atol=np.ptp(exact) * 5e-4 + rounding)


@pytest.mark.parametrize("base", REFINE_BASES)
@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("metric", METRICS)
def test_refined_scores_are_the_distances_of_refined_vectors(metric: str, frame: str, base: str) -> None:
    rows, queries = framed(ROWS, frame, metric), framed(vectors(5, seed=8), frame, metric)
    codec = trained_small(rows, kind="rqmoe", metric=metric, refine_bytes=6, refine_base=base)
    codes = codec.encode(rows[:200])
    exact = exact_distances(queries, codec.decode(codes), metric)
    require_close(refined_distances(codec, queries, codes, []), exact, metric, frame)


@pytest.mark.parametrize("refine_kind", TRANSFORM_KINDS)
@pytest.mark.parametrize("kind", ["rq", "pq", "turboquant"])
@pytest.mark.parametrize("metric", METRICS)
def test_every_kind_refines_every_kind(metric: str, kind: str, refine_kind: str) -> None:
    rows, queries = framed(ROWS, "plain", metric), framed(vectors(3, seed=8), "plain", metric)
    codec = trained_small(rows, kind=kind, metric=metric, refine_bytes=7, refine_kind=refine_kind)
    codes = codec.encode(rows)
    refined, plain = codec.decode(codes), codec.decode(codes.unrefined)
    error, unrefined = np.square(rows - refined).mean(), np.square(rows - plain).mean()
    assert error < 0.8 * unrefined
    exact = exact_distances(queries, refined, metric)
    require_close(refined_distances(codec, queries, codes, []), exact, metric, "plain")


@pytest.mark.parametrize("metric", ["l2", "dot"])
def test_scores_of_codecs_in_different_frames_are_comparable(metric: str) -> None:
    queries = framed(vectors(4, seed=8), "far off", metric)
    some = {frame: framed(ROWS, frame, metric) for frame in ("far off", "plain")}
    codecs = {frame: trained_small(rows, metric=metric, refine_bytes=8) for frame, rows in some.items()}
    for frame, codec in codecs.items():
        codes = codec.encode(some[frame][:100])
        found = refined_distances(codec, queries, codes, list(codecs.values()))
        exact = exact_distances(queries, codec.decode(codes), metric)
        np.testing.assert_allclose(found, exact, atol=np.abs(exact).max() * 1e-5 + np.ptp(exact) * 2e-2)


@costly_examples(15, part=4)
@given(seed=st.integers(0, 10**6), metric=st.sampled_from(METRICS), kind=st.sampled_from(TRANSFORM_KINDS))
def test_more_bytes_never_raise_the_error(seed: int, metric: str, kind: str) -> None:
    rows = framed(vectors(600, seed=seed), "plain", metric)
    errors = []
    for refine_bytes in (0, 3, 4, 6, 8, 10, 12):
        codec = trained_small(rows, metric=metric, refine_bytes=refine_bytes, refine_kind=kind)
        errors.append(float(np.square(rows - codec.decode(codec.encode(rows))).sum(axis=1).mean()))
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("kind", ["pq", "saq"])
@pytest.mark.parametrize("num_bytes", [8, 9, 11])
def test_two_stages_have_smaller_errors_beyond_4_bits_a_dimension(num_bytes: int, kind: str) -> None:
    rows = vectors(3000)
    codec = trained_small(rows, kind="turboquant", metric="dot", code_bytes=1, refine_kind=kind,
                          refine_bytes=num_bytes)  # fmt: skip
    assert stage_bytes(num_bytes, DIM, "dot") == (6, num_bytes - 6)
    codes = codec.encode(rows)
    left = rows - codec.decode(codes.unrefined)
    single = fit_transform(kind, left, num_bytes=num_bytes, seed=0)
    error = np.square(rows - codec.decode(codes)).sum(axis=1).mean()
    assert error < 0.9 * np.square(left - single.decode(single.encode(left))).sum(axis=1).mean()


def test_stages_share_out_the_bytes_without_lengths() -> None:
    assert stage_bytes(48, 384, "cosine") == (46,)
    assert stage_bytes(48, 384, "dot") == (48,)
    assert stage_bytes(194, 384, "l2") == (192,)
    assert stage_bytes(200, 384, "l2") == (192, 6)
    assert stage_bytes(3, 1, "l2") == (1,)
    assert stage_bytes(5, 3, "l2") == (2, 1)


@pytest.mark.parametrize("base", REFINE_BASES)
def test_codes_do_not_depend_on_batches_or_threads(base: str) -> None:
    codec = trained_small(ROWS, kind="rqmoe", metric="cosine", refine_bytes=6, refine_base=base)
    rows = vectors(2500, seed=3)
    codes = codec.encode(rows)
    assert codes.refine is not None
    decoded = codec.decode(codes)
    for start, stop in ((0, 1), (7, 12), (1000, 2300)):
        part = codec.encode(rows[start:stop])
        np.testing.assert_array_equal(part.codes, codes.codes[start:stop])
        np.testing.assert_array_equal(part.refine, codes.refine[start:stop])
        np.testing.assert_allclose(codec.decode(part), decoded[start:stop], atol=1e-6)
    usual = num_threads()
    try:
        set_num_threads(2)
        np.testing.assert_array_equal(codec.encode(rows).refine, codes.refine)
    finally:
        set_num_threads(usual)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_do_not_change_scores(threads: int) -> None:
    codec = trained_small(ROWS, kind="rq", metric="l2", refine_bytes=6)
    few, queries = codec.encode(ROWS), vectors(3, seed=4)
    codes, queries_n = few[np.arange(6_300) % len(few)], np.arange(6_300) % 3
    lookup, refine = codec.lookup_tables(queries), codec.refine_tables(queries)
    usual = num_threads()
    try:
        set_num_threads(threads)
        scores = codec.refined_scores(lookup, refine, queries_n, codes)
    finally:
        set_num_threads(usual)
    for start in range(0, 6_300, 900):  # of so few rows each that a single thread scores them
        part = slice(start, start + 900)
        alone = codec.refined_scores(lookup, refine, queries_n[part], codes[part])
        np.testing.assert_array_equal(scores[part], alone)


def test_codes_follow_their_rows() -> None:
    codec = trained_small(ROWS, refine_bytes=6)
    codes = codec.encode(ROWS)
    assert codes.refine is not None and codes.refine.shape == (len(ROWS), 6)
    rows = [5, 3, 800]
    np.testing.assert_array_equal(codec.decode(codes[rows]), codec.decode(codes)[rows])
    assert codes[2].refine is not None and codes[2].refine.shape == (1, 6)
    assert codes[:, :2].refine is None and codes.unrefined.refine is None
    decoded = codec.decode(codes[:, :2])
    np.testing.assert_array_equal(decoded, codec.truncate(2).decode(codes[:, :2]))


@settings(max_examples=50)
@given(center=st.floats(-1, 1), spread=st.floats(1e-6, 10), values=st.lists(st.floats(-1e3, 1e3), min_size=1))
def test_lengths_are_precise_where_they_are_common_and_reach_far(
    center: float, spread: float, values: list[float]
) -> None:
    random = np.random.default_rng(0)
    fitted = (center + spread * random.standard_normal(500)).astype(np.float32)
    code = SquareCode.fit(fitted, np.ones(500, np.float32))
    given_values = np.concatenate([fitted, np.array(values, np.float32)])
    found = code.decode(code.encode(given_values))
    allowed = (
        3.1e-4 * (0.26 * spread + np.abs(given_values - code.center)) + 1e-6 * np.abs(given_values) + 1e-7
    )
    far = np.abs(given_values - code.center) > 2000 * code.unit / 0.25
    assert (np.abs(found - given_values) <= allowed)[~far].all()
    assert (np.abs(found - code.center)[far] > 1999 * code.unit / 0.25).all()


def test_lengths_that_do_not_vary_in_training_are_coded() -> None:
    """A row whose length the tables estimate wrongly keeps its length, whatever the training rows were."""
    code = SquareCode.fit(np.zeros(9, np.float32), np.ones(9, np.float32))
    values = np.array([0.0, 1e-4, -0.05], np.float32)
    np.testing.assert_allclose(code.decode(code.encode(values)), values, rtol=1e-3)
    nothing = SquareCode.fit(np.zeros(2, np.float32), np.zeros(2, np.float32))
    np.testing.assert_array_equal(nothing.decode(nothing.encode(values[:1])), [0.0])


def test_there_are_no_tables_without_refine_codes() -> None:
    with pytest.raises(InvalidInputError, match="no refine codes; train one with refine_bytes"):
        trained_small(ROWS).refine_tables(ROWS[:1])


@pytest.mark.parametrize("metric", ["l2", "dot"])
def test_refine_codes_of_another_codec_are_refused(metric: str) -> None:
    codec, plain = trained_small(ROWS, metric=metric, refine_bytes=6), trained_small(ROWS, metric=metric)
    codes = codec.encode(ROWS[:5])
    assert codes.refine is not None
    for refine in (codes.refine[:, :5], codes.refine[:4], codes.refine.astype(np.int32), codes.refine[:, :0]):
        with pytest.raises(
            InvalidInputError, match=r"refine codes of type .*; expected uint8 .*another codec"
        ):
            codec.decode(dataclasses.replace(codes, refine=refine))
    with pytest.raises(InvalidInputError, match=r"expected none\. Were they made by another codec"):
        plain.decode(codes)
    with pytest.raises(InvalidInputError, match="3 of 4 code bytes; they refine the whole code only"):
        codec.decode(Codes(codes.codes[:, :3], codes.partitions, codes.refine))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("refine_kind", TRANSFORM_KINDS)
@pytest.mark.parametrize("kind", ["pq", "turboquant"])
@pytest.mark.parametrize(
    "name", ["constant components", "low rank", "two rows", "one dimension", "a few vectors repeated"]
)
def test_vectors_that_vary_little(name: str, kind: str, refine_kind: str, metric: str) -> None:
    random = np.random.default_rng(0)
    rows = {
        "constant components": np.where(np.arange(DIM) % 3 == 0, 0.5, vectors(300)),
        "low rank": random.standard_normal((8, 3)) @ random.standard_normal((3, DIM)),
        "two rows": vectors(2),
        "one dimension": random.uniform(0.5, 2, (300, 1)) * random.choice([-1, 1], (300, 1)),
        "a few vectors repeated": np.repeat(vectors(3), 40, axis=0),
    }[name].astype(np.float32)
    if metric == "cosine":
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    dim = rows.shape[1]
    codec = trained_small(
        rows, kind=kind, metric=metric, code_bytes=min(4, dim), refine_kind=refine_kind, refine_bytes=dim
        if metric == "dot" else dim + 2,
    )  # fmt: skip
    codes = codec.encode(rows)
    decoded = codec.decode(codes)
    variance = np.square(rows - rows.mean(axis=0)).sum(axis=1).mean()
    assert np.square(rows - decoded).sum(axis=1).mean() < 0.05 * variance
    found = refined_distances(codec, rows[:3], codes, [])
    exact = exact_distances(rows[:3], decoded, metric)
    np.testing.assert_allclose(found, exact, atol=np.abs(exact).max() * 1e-3 + 1e-5)
    loaded = Codec.from_artifact(codec.to_artifact(), device="cpu")
    np.testing.assert_array_equal(loaded.encode(rows).refine, codes.refine)


def test_zero_vectors_have_no_refine_code_under_cosine() -> None:
    codec = trained_small(ROWS, metric="cosine", refine_bytes=6)
    rows = ROWS[:4].copy()
    rows[2] = 0
    with pytest.raises(InvalidInputError, match=r"rows 2 \(counted"):
        codec.encode(rows)
    zeros = trained_small(ROWS, metric="l2", refine_bytes=6)
    decoded = zeros.decode(zeros.encode(rows))
    assert np.square(decoded[2]).sum() < np.square(ROWS).sum(axis=1).mean()


def test_training_reports_the_refined_error() -> None:
    rows = vectors(3000)
    held_out = vectors(400, seed=9)
    for kind in ("rq", "pq"):
        codec = trained_small(rows, kind=kind, refine_bytes=6)
        assert codec.report.refined_mse is not None
        assert codec.report.whole_mse == codec.report.refined_mse < codec.report.validation_mse
        error = np.square(held_out - codec.decode(codec.encode(held_out))).sum(axis=1).mean()
        assert codec.report.refined_mse == pytest.approx(error, rel=0.3)
        assert codec.truncate(2).report.refined_mse is None
        assert codec.truncate(4).config.refine_bytes == 0
    assert trained_small(rows).report.refined_mse is None
