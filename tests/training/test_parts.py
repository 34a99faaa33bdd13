"""The trainer's smaller parts: loss, objective, revival, deferred Ctrl-C."""

import signal

import numpy as np
import pytest
import torch
from small_codecs import curved, small_config, stirred

from rqmoe_store.config import TRAINING_PRECISIONS, Metric, TrainingPrecision
from rqmoe_store.training import loss as objective
from rqmoe_store.training import loss as precision_module
from rqmoe_store.training.loop import deferred_interrupt, revive_dead
from rqmoe_store.training.loss import TrainingLoss, distance_errors, normalized_residual_loss


def test_loss_by_hand() -> None:
    first_residual_BD = torch.tensor([[2.0, 0.0]])
    chosen_MBD = torch.tensor([[[1.0, 0.0]], [[1.0, 0.5]]])
    # Residual norms squared: 4, then 1, then 0.25.
    expected = torch.log1p(torch.tensor(1 / 4)) + torch.log1p(torch.tensor(0.25 / 1))
    assert normalized_residual_loss(first_residual_BD, chosen_MBD) == pytest.approx(float(expected), rel=1e-4)


def test_loss_denominators_carry_no_gradient() -> None:
    first_residual_BD = torch.tensor([[2.0, 0.0]])
    first_1BD = torch.tensor([[[1.0, 0.0]]], requires_grad=True)
    second_1BD = torch.zeros(1, 1, 2)
    normalized_residual_loss(first_residual_BD, torch.cat([first_1BD, second_1BD])).backward()
    # d/dc of log(1 + |r2|^2/4) + log(1 + |r3|^2/sg(|r2|^2)) at |r2| = |r3| = 1: -2/5 - 2/2.
    assert first_1BD.grad is not None
    assert float(first_1BD.grad[0, 0, 0]) == pytest.approx(-2 / 5 - 1, rel=1e-4)


def test_loss_does_not_depend_on_the_scale_of_the_data() -> None:
    generator = torch.Generator().manual_seed(0)
    first_BD, chosen_MBD = torch.randn(5, 3, generator=generator), torch.randn(4, 5, 3, generator=generator)
    assert normalized_residual_loss(first_BD * 10, chosen_MBD * 10) == pytest.approx(
        float(normalized_residual_loss(first_BD, chosen_MBD)), rel=1e-3
    )


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
def test_distance_errors_are_differences_of_distances(metric: Metric) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors_BD, queries_QD = torch.randn(30, 4, generator=generator), torch.randn(7, 4, generator=generator)
    errors_BD = torch.randn(30, 4, generator=generator) * 0.3

    def compared(rows_BD: torch.Tensor) -> torch.Tensor:
        if metric == "l2":
            return torch.cdist(rows_BD.double(), queries_QD.double()).square()
        return -2 * rows_BD.double() @ queries_QD.double().T

    expected_BQ = compared(vectors_BD - errors_BD) - compared(vectors_BD)
    actual_BQ = distance_errors(vectors_BD, errors_BD, queries_QD, metric)
    torch.testing.assert_close(actual_BQ.double(), expected_BQ, atol=1e-4, rtol=1e-4)


def gradient(loss: TrainingLoss, vectors_BD: torch.Tensor, chosen_MBD: torch.Tensor) -> torch.Tensor:
    chosen_MBD = chosen_MBD.clone().requires_grad_(True)
    loss(vectors_BD, vectors_BD, chosen_MBD).backward()
    assert chosen_MBD.grad is not None
    return chosen_MBD.grad


def test_a_batch_in_two_parts_has_the_gradient_of_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors_BD, chosen_MBD = (
        torch.randn(30, 6, generator=generator),
        torch.randn(3, 30, 6, generator=generator),
    )
    whole_MBD = gradient(TrainingLoss(vectors_BD, "l2", seed=0), vectors_BD, chosen_MBD)
    parts = (slice(0, 11), slice(11, 30))
    sums: list[torch.Tensor] = []

    def remember(tensor: torch.Tensor) -> torch.Tensor:
        sums.append(tensor)
        return tensor

    for part in parts:
        TrainingLoss(vectors_BD, "l2", seed=0, sum_=remember)(
            vectors_BD[part], vectors_BD[part], chosen_MBD[:, part]
        )
    together = TrainingLoss(vectors_BD, "l2", seed=0, sum_=lambda _: sums[0] + sums[1])
    for part in parts:
        share = len(vectors_BD[part]) / len(vectors_BD)
        part_MBD = gradient(together, vectors_BD[part], chosen_MBD[:, part]) * share
        torch.testing.assert_close(part_MBD, whole_MBD[:, part])
    together.reduce_empty_part()
    remembering = TrainingLoss(vectors_BD, "l2", seed=0, sum_=remember)
    remembering.reduce_empty_part()
    assert not sums[2].any()


def test_training_loss_falls_with_the_error() -> None:
    vectors_BD = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    loss = TrainingLoss(vectors_BD, "l2", seed=0)
    losses = [
        float(loss(vectors_BD, vectors_BD, torch.stack([vectors_BD * share, vectors_BD * share / 9])))
        for share in (0.0, 0.3, 0.6, 0.8)
    ]
    assert losses == sorted(losses, reverse=True)
    assert all(np.isfinite(losses))
    exact = loss(vectors_BD, vectors_BD, torch.stack([vectors_BD, torch.zeros_like(vectors_BD)]))
    assert np.isfinite(float(exact))


def test_dead_codewords_move_next_to_the_most_used() -> None:
    quantizer = stirred(small_config()).requires_grad_(True)
    optimizer = torch.optim.AdamW(quantizer.parameters())
    sum(parameter.square().sum() for parameter in quantizer.parameters()).backward()
    optimizer.step()
    before_MKD = quantizer.codebooks_MKD.detach().clone()
    usage_MK = torch.full((4, 16), 5)
    usage_MK[1, 3], usage_MK[1, 7] = 0, 100
    assert revive_dead(quantizer, optimizer, usage_MK, torch.Generator().manual_seed(0)) == 1
    codebooks_MKD = quantizer.codebooks_MKD.detach()
    distance = (codebooks_MKD[1, 3] - before_MKD[1, 7]).norm() / before_MKD[1].std()
    assert 0 < distance < 0.2
    untouched = torch.ones(4, 16, dtype=torch.bool)
    untouched[1, 3] = False
    assert torch.equal(codebooks_MKD[untouched], before_MKD[untouched])
    moment = optimizer.state[quantizer.codebooks_MKD]["exp_avg"]
    assert not moment[1, 3].any()
    assert moment[1, 7].any()


def test_bfloat16_losses_and_gradients_follow_float32_ones() -> None:
    """The mixed-precision path itself, also where the hardware would not choose it."""
    measured = {}
    for precision in ("float32", "bfloat16"):
        quantizer = stirred(small_config()).requires_grad_(True)
        rows_BD = quantizer.normalize(torch.from_numpy(curved(200)))
        loss_of = TrainingLoss(rows_BD, "l2", seed=0)
        loss, codes_BM = objective.batch_loss(quantizer, rows_BD, loss_of, precision)
        loss.backward()
        gradient = quantizer.codebooks_MKD.grad
        assert gradient is not None
        assert gradient.dtype == loss.dtype == torch.float32
        assert codes_BM.shape == (200, 4)
        measured[precision] = float(loss.detach()), float(gradient.norm())
    assert measured["bfloat16"] != measured["float32"]
    assert measured["bfloat16"] == pytest.approx(measured["float32"], rel=0.02)


@pytest.mark.parametrize("has_units", [True, False])
@pytest.mark.parametrize("precision", TRAINING_PRECISIONS)
def test_precision_is_the_configured_one_or_that_of_the_hardware(
    precision: TrainingPrecision, has_units: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision_module, "has_bfloat16_units", lambda device: has_units)
    ones = torch.ones(2, 2)
    with precision_module.mixed_precision(ones.device, precision):
        product = ones @ ones
    rounded = {"auto": has_units, "bfloat16": True, "float32": False}[precision]
    assert product.dtype == (torch.bfloat16 if rounded else torch.float32)


def test_codewords_used_once_are_not_split() -> None:
    quantizer = stirred(small_config())
    optimizer = torch.optim.AdamW(quantizer.parameters())
    usage_MK = torch.ones(4, 16, dtype=torch.long)
    usage_MK[:, :4] = 0
    assert revive_dead(quantizer, optimizer, usage_MK, torch.Generator()) == 0


def test_first_ctrl_c_sets_a_flag_and_the_second_raises() -> None:
    with deferred_interrupt(enabled=True) as interrupt:
        assert not interrupt.requested
        signal.raise_signal(signal.SIGINT)
        assert interrupt.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_raises_at_once_when_not_deferred() -> None:
    with deferred_interrupt(enabled=False), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
