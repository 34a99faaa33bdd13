"""Look-up tables: exact for RQ, approximate for the other kinds, for every metric."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_codecs import as_codec, same_as_rq, small_config, untrained, vectors

from rqmoe_store.codecs.additive import fit_additive, fit_tables
from rqmoe_store.codecs.codes import Codes


def exact_distances(queries: np.ndarray, decoded: np.ndarray, metric: str) -> np.ndarray:
    products = queries @ decoded.T
    if metric == "dot":
        return 1 - products
    if metric == "cosine":
        lengths = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(decoded, axis=1)
        return 1 - products / lengths
    return np.square(queries[:, None] - decoded[None]).sum(axis=2)


@pytest.mark.parametrize("num_partitions", [0, 3])
def test_scores_are_exact_for_rq(num_partitions: int) -> None:
    codec = as_codec(same_as_rq(small_config(metric="dot", num_partitions=num_partitions)))
    rows = vectors(100, seed=1)
    codes = codec.encode(rows)
    scores = codec.lookup_tables(rows[:5]).score(codes)
    np.testing.assert_allclose(scores, exact_distances(rows[:5], codec.decode(codes), "dot"), atol=1e-5)


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
def test_scores_rank_like_decoded_distances(codec, metric: str) -> None:
    quantizer = untrained(small_config(metric=metric, num_partitions=3))
    rows = vectors(400, seed=2)
    if metric == "cosine":
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    trained = as_codec(quantizer)
    codes = trained.encode(rows)
    trained._tables = fit_tables(quantizer, codes)
    scores = trained.lookup_tables(rows[:20]).score(codes)
    exact = exact_distances(rows[:20], trained.decode(codes), metric)
    assert np.corrcoef(scores.ravel(), exact.ravel())[0, 1] > 0.95


def test_fit_lowers_the_error_of_the_initial_guess(codec) -> None:
    quantizer = codec._quantizer
    codes = codec.encode(vectors(500, seed=3))
    tables = fit_tables(quantizer, codes)
    decoded = codec.decode(codes)
    rows = codes.codes.astype(np.int64) + tables.num_partitions + 16 * np.arange(4)
    rows = np.concatenate([codes.partitions[:, None].astype(np.int64), rows], axis=1)
    fitted = tables.rows_TD.numpy()[rows].sum(axis=1)
    base = (quantizer.codebooks_MKD.flatten(0, 1) * quantizer.scale).numpy()
    first = (
        quantizer.denormalize(quantizer.centroids_PD) if quantizer.num_partitions else quantizer.mean_D[None]
    )
    guess = np.concatenate([first.numpy(), base])[rows].sum(axis=1)
    error, guessed = np.square(decoded - fitted).mean(), np.square(decoded - guess).mean()
    assert error <= guessed + 1e-5
    norms = tables.norms_T1.numpy()[rows].sum(axis=1)[:, 0]
    true = np.square(decoded).sum(axis=1)
    assert np.square(norms - true).mean() < np.var(true)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), steps=st.integers(1, 4), size=st.integers(2, 8))
def test_fit_recovers_an_additive_target(seed: int, steps: int, size: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    table_TX = torch.randn(steps * size, 3, generator=generator)
    rows_nM = torch.randint(0, size, (2000, steps), generator=generator) + size * torch.arange(steps)
    targets_nX = table_TX[rows_nM].sum(dim=1)
    fitted_TX = fit_additive(rows_nM, targets_nX, torch.zeros_like(table_TX))
    error = (fitted_TX[rows_nM].sum(dim=1) - targets_nX).square().mean()
    assert error < 1e-3 * targets_nX.square().mean()


def test_rows_without_observations_keep_their_initial_value() -> None:
    initial_TX = torch.arange(8.0)[:, None]
    rows_nM = torch.tensor([[0, 4], [1, 5], [0, 5]] * 10)
    fitted_TX = fit_additive(rows_nM, torch.ones(30, 1), initial_TX)
    assert torch.equal(fitted_TX[[2, 3, 6, 7]], initial_TX[[2, 3, 6, 7]])


def test_scores_of_no_codes() -> None:
    codec = as_codec(untrained(small_config()))
    empty = Codes(np.empty((0, 4), np.uint8), np.empty(0, np.int32))
    assert codec.lookup_tables(vectors(2)).score(empty).shape == (2, 0)


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
def test_a_batch_of_queries_scores_like_each_alone(metric: str) -> None:
    trained = as_codec(untrained(small_config(metric=metric, num_partitions=3)))
    rows = vectors(60, seed=4)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    codes = trained.encode(rows)
    together = trained.lookup_tables(rows[:9]).score(codes)
    alone = [trained.lookup_tables(rows[[query]]).score(codes)[0] for query in range(9)]
    np.testing.assert_allclose(together, np.stack(alone), rtol=1e-5, atol=1e-6)
