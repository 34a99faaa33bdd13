"""Look-up tables: exact for RQ, close for the others, right for every metric, and fitted to codes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_codecs import (
    SHAPES,
    as_codec,
    curved,
    exact_distances,
    same_as_rq,
    small_config,
    stirred,
    untrained,
    vectors,
)

from rqmoe_store.codecs.additive import AdditiveTables
from rqmoe_store.codecs.additive_fit import fit_additive, fit_tables, table_rows
from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.rounding import pack_rows, unpack_rows
from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.training.trainer import train


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
    trained._coder.tables = fit_tables(quantizer, codes)
    scores = trained.lookup_tables(rows[:20]).score(codes)
    exact = exact_distances(rows[:20], trained.decode(codes), metric)
    assert np.corrcoef(scores.ravel(), exact.ravel())[0, 1] > 0.95


def test_fit_lowers_the_error_of_the_initial_guess(codec) -> None:
    quantizer = codec._coder.quantizer
    codes = codec.encode(vectors(500, seed=3))
    tables = fit_tables(quantizer, codes)
    decoded = codec.decode(codes)
    rows = codes.codes.astype(np.int64) + tables.num_partitions + 16 * np.arange(4)
    rows = np.concatenate([codes.partitions[:, None].astype(np.int64), rows], axis=1)
    fitted = tables.rows_TD[rows].sum(axis=1)
    base = (quantizer.codebooks_MKD.flatten(0, 1) * quantizer.scale).numpy()
    first = (
        quantizer.denormalize(quantizer.centroids_PD) if quantizer.num_partitions else quantizer.mean_D[None]
    )
    guess = np.concatenate([first.numpy(), base])[rows].sum(axis=1)
    error, guessed = np.square(decoded - fitted).mean(), np.square(decoded - guess).mean()
    assert error <= guessed + 1e-5
    norms = tables.norms_T1[rows].sum(axis=1)[:, 0]
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


PARTITIONED = {
    metric: as_codec(stirred(small_config(metric=metric, num_partitions=3)))
    for metric in ("l2", "cosine", "dot")
}


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
    np.testing.assert_array_equal(together, np.stack(alone))


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), others=st.lists(st.integers(0, 40), max_size=11))
def test_tables_and_probes_of_a_query_are_the_same_in_every_batch(
    metric: str, seed: int, others: list[int]
) -> None:
    trained = PARTITIONED[metric]
    queries = vectors(41, seed=seed)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    queries[40] = queries[0]
    place = len(others) // 2
    batch = queries[[*others[:place], 40, *others[place:]]]
    alone, tables = trained.lookup_tables(queries[:1]), trained.lookup_tables(batch)
    np.testing.assert_array_equal(tables.scores_QT[place], alone.scores_QT[0])
    np.testing.assert_array_equal(trained.probe(batch, 2)[place], trained.probe(queries[:1], 2)[0])


CPU = torch.device("cpu")


def undeformed_rows(codec: Codec) -> np.ndarray:
    """Tables (T, D) of the codec without its experts, in float64."""
    state = {name: value.double().numpy() for name, value in codec._coder.quantizer.state_dict().items()}
    words_XD = state["codebooks_MKD"].reshape(-1, codec.dim) * state["scale"]
    centroids_PD = state["centroids_PD"] * state["scale"] + state["mean_D"]
    return np.concatenate([centroids_PD if len(centroids_PD) else state["mean_D"][None], words_XD])


def selection(codec: Codec) -> np.ndarray:
    """Which tables rows (n, T) each calibration code selects."""
    rows_nM = table_rows(codec.calibration, codec.num_partitions, codec.config.codebook_size, CPU).numpy()
    selected_nT = np.zeros((len(rows_nM), len(codec._coder.tables.rows_TD)))
    np.put_along_axis(selected_nT, rows_nM, 1, axis=1)
    return selected_nT


def dense_fit(codec: Codec) -> np.ndarray:
    """Tables (T, D) fitted to reconstructions as a whole, one pseudo-observation of the start per row."""
    initial_TD, selected_nT = undeformed_rows(codec), selection(codec)
    residual_nD = codec.decode(codec.calibration) - selected_nT @ initial_TD
    gram_TT = selected_nT.T @ selected_nT + np.eye(len(initial_TD))
    return initial_TD + np.linalg.solve(gram_TT, selected_nT.T @ residual_nD)


def error(codec: Codec, rows_TD: np.ndarray) -> float:
    """How far the tables' sums are from reconstructions of the calibration codes, squared."""
    return float(np.square(selection(codec) @ rows_TD - codec.decode(codec.calibration)).sum(axis=1).mean())


@pytest.mark.parametrize(
    "changes",
    [{}, {"network_dim": 5, "num_partitions": 4}, {"kind": "qinco", "network_dim": 5}],
)
def test_trained_tables_are_as_good_as_a_dense_fit(changes: dict[str, object]) -> None:
    config = CodecConfig(
        **{"code_bytes": 4, "codebook_size": 16, "num_partitions": 0, "hidden_dim": 16, "beam": 2, **changes}
    )
    training = TrainConfig(
        epochs=15, batch_size=125, learning_rate=3e-3, progress=False, device="cpu"
    )  # fmt: skip
    codec = train(curved(1250), config=config, training=training)
    mine, dense = error(codec, codec._coder.tables.rows_TD), error(codec, dense_fit(codec))
    assert error(codec, undeformed_rows(codec)) > 1.5 * dense
    assert mine < 1.01 * dense


def test_tables_are_the_dense_fit_whatever_the_kind(codec: Codec) -> None:
    rows_TD = codec._coder.tables.rows_TD
    scale = np.abs(rows_TD).max()
    np.testing.assert_allclose(rows_TD, dense_fit(codec), atol=0.05 * scale)  # the fit is rounded


@pytest.mark.parametrize("shape", ["rq", "rq, partitions"])
def test_rq_needs_no_fit(shape: str) -> None:
    codec = as_codec(stirred(small_config(**SHAPES[shape])))
    assert codec._coder.tables.corrections_TW.shape[1] == 0
    np.testing.assert_allclose(codec._coder.tables.rows_TD, undeformed_rows(codec), rtol=1e-6, atol=1e-6)
    assert error(codec, codec._coder.tables.rows_TD) < 1e-10


def test_corrections_are_as_wide_as_the_network_and_stored_without_loss() -> None:
    tables = as_codec(stirred(small_config(network_dim=5)))._coder.tables
    assert tables.corrections_TW.shape == (1 + 4 * 16, 5)
    packed = pack_rows(tables.corrections_TW)
    assert packed is not None
    np.testing.assert_array_equal(unpack_rows(*packed), tables.corrections_TW)


def fitted(codec: Codec, projection_WD: torch.Tensor) -> AdditiveTables:
    mixture = codec._coder.quantizer.mixture
    assert mixture is not None and mixture.output_projection_WD is not None
    with torch.no_grad():
        mixture.output_projection_WD.copy_(projection_WD)
    return fit_tables(codec._coder.quantizer, codec.calibration)


def test_projections_without_an_inverse() -> None:
    """Zero as at the start of training, of lower rank, and with a direction of next to no weight."""
    codec = as_codec(stirred(small_config(network_dim=5)))
    assert codec._coder.quantizer.mixture is not None
    projection_WD = codec._coder.quantizer.mixture.output_projection_WD.clone()
    plain_TD = as_codec(same_as_rq(small_config()))._coder.tables.rows_TD
    np.testing.assert_array_equal(fitted(codec, torch.zeros_like(projection_WD)).rows_TD, plain_TD)
    for factor in (0.0, 1e-12):
        weak_WD = projection_WD.clone()
        weak_WD[1] = projection_WD[0] + factor * projection_WD[1]
        tables = fitted(codec, weak_WD)
        codec.to("cpu")  # to fold the experts anew
        assert float(np.abs(tables.corrections_TW).max()) < 100
        np.testing.assert_allclose(tables.rows_TD, dense_fit(codec), atol=0.1)
