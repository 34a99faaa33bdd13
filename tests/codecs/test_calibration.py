"""Tables fitted in the network's width equal those fitted in the vectors' width."""

import numpy as np
import pytest
import torch
from small_codecs import SHAPES, as_codec, curved, same_as_rq, small_config, stirred

from rqmoe_store.codecs.additive import AdditiveTables, fit_tables, table_rows
from rqmoe_store.codecs.base import Codec
from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.training.trainer import train

CPU = torch.device("cpu")


def undeformed_rows(codec: Codec) -> np.ndarray:
    """Tables (T, D) of the codec without its experts, in float64."""
    state = {name: value.double().numpy() for name, value in codec._quantizer.state_dict().items()}
    words_XD = state["codebooks_MKD"].reshape(-1, codec.dim) * state["scale"]
    centroids_PD = state["centroids_PD"] * state["scale"] + state["mean_D"]
    return np.concatenate([centroids_PD if len(centroids_PD) else state["mean_D"][None], words_XD])


def selection(codec: Codec) -> np.ndarray:
    """Which tables rows (n, T) each calibration code selects."""
    rows_nM = table_rows(codec.calibration, codec.num_partitions, codec.config.codebook_size, CPU).numpy()
    selected_nT = np.zeros((len(rows_nM), len(codec._tables.rows_TD)))
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
        epochs=15, batch_size=250, learning_rate=3e-3, progress=False, device="cpu"
    )  # fmt: skip
    codec = train(curved(2500), config=config, training=training)
    mine, dense = error(codec, codec._tables.rows_TD.numpy()), error(codec, dense_fit(codec))
    assert error(codec, undeformed_rows(codec)) > 1.5 * dense
    assert mine < 1.01 * dense


def test_tables_are_the_dense_fit_whatever_the_kind(codec: Codec) -> None:
    rows_TD = codec._tables.rows_TD.numpy()
    scale = np.abs(rows_TD).max()
    np.testing.assert_allclose(rows_TD, dense_fit(codec), atol=0.005 * scale)


@pytest.mark.parametrize("shape", ["rq", "rq, partitions"])
def test_rq_needs_no_fit(shape: str) -> None:
    codec = as_codec(stirred(small_config(**SHAPES[shape])))
    assert codec._tables.corrections_TW.shape[1] == 0
    np.testing.assert_allclose(codec._tables.rows_TD.numpy(), undeformed_rows(codec), rtol=1e-6, atol=1e-6)
    assert error(codec, codec._tables.rows_TD.numpy()) < 1e-10


def test_corrections_are_as_wide_as_the_network_and_stored_without_loss() -> None:
    tables = as_codec(stirred(small_config(network_dim=5)))._tables
    assert tables.corrections_TW.shape == (1 + 4 * 16, 5)
    assert torch.equal(tables.corrections_TW.bfloat16().float(), tables.corrections_TW)


def fitted(codec: Codec, projection_WD: torch.Tensor) -> AdditiveTables:
    mixture = codec._quantizer.mixture
    assert mixture is not None and mixture.output_projection_WD is not None
    with torch.no_grad():
        mixture.output_projection_WD.copy_(projection_WD)
    return fit_tables(codec._quantizer, codec.calibration)


def test_projections_without_an_inverse() -> None:
    """Zero as at the start of training, of lower rank, and with a direction of next to no weight."""
    codec = as_codec(stirred(small_config(network_dim=5)))
    assert codec._quantizer.mixture is not None
    projection_WD = codec._quantizer.mixture.output_projection_WD.clone()
    plain_TD = as_codec(same_as_rq(small_config()))._tables.rows_TD
    assert torch.equal(fitted(codec, torch.zeros_like(projection_WD)).rows_TD, plain_TD)
    for factor in (0.0, 1e-12):
        weak_WD = projection_WD.clone()
        weak_WD[1] = projection_WD[0] + factor * projection_WD[1]
        tables = fitted(codec, weak_WD)
        codec._prepare()
        assert float(tables.corrections_TW.abs().max()) < 100
        np.testing.assert_allclose(tables.rows_TD.numpy(), dense_fit(codec), atol=0.02)
