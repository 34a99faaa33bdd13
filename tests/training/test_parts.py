"""The trainer's smaller parts: loss, objective, revival, deferred Ctrl-C."""

import signal

import numpy as np
import pytest
import torch
from small_codecs import SHAPES, curved, small_config, stirred

from rqmoe_store.codecs import parallel
from rqmoe_store.codecs.encoding import assign_partitions
from rqmoe_store.codecs.experts import add_to_last_steps
from rqmoe_store.codecs.quantizer import ResidualQuantizer
from rqmoe_store.config import TRAINING_PRECISIONS, Metric, TrainConfig, TrainingPrecision
from rqmoe_store.training import gradients
from rqmoe_store.training import loss as precision_module
from rqmoe_store.training.gradients import BatchGradient, GradientComputation
from rqmoe_store.training.loop import deferred_interrupt, revive_dead
from rqmoe_store.training.loss import LossShare, TrainingLoss, distance_errors, normalized_residual_loss
from rqmoe_store.training.optimizer import Optimizer


def test_loss_by_hand() -> None:
    first_residual_BD = torch.tensor([[2.0, 0.0]])
    chosen_MBD = torch.tensor([[[1.0, 0.0]], [[1.0, 0.5]]])
    # Residual norms squared: 4, then 1, then 0.25.
    expected = torch.log1p(torch.tensor(1 / 4)) + torch.log1p(torch.tensor(0.25 / 1))
    loss, errors_BD = normalized_residual_loss(first_residual_BD, chosen_MBD)
    assert loss == pytest.approx(float(expected), rel=1e-4)
    torch.testing.assert_close(errors_BD, torch.tensor([[0.0, -0.5]]))


def test_loss_denominators_carry_no_gradient() -> None:
    first_residual_BD = torch.tensor([[2.0, 0.0]])
    first_1BD = torch.tensor([[[1.0, 0.0]]], requires_grad=True)
    second_1BD = torch.zeros(1, 1, 2)
    normalized_residual_loss(first_residual_BD, torch.cat([first_1BD, second_1BD]))[0].backward()
    # d/dc of log(1 + |r2|^2/4) + log(1 + |r3|^2/sg(|r2|^2)) at |r2| = |r3| = 1: -2/5 - 2/2.
    assert first_1BD.grad is not None
    assert float(first_1BD.grad[0, 0, 0]) == pytest.approx(-2 / 5 - 1, rel=1e-4)


def test_loss_does_not_depend_on_the_scale_of_the_data() -> None:
    generator = torch.Generator().manual_seed(0)
    first_BD, chosen_MBD = torch.randn(5, 3, generator=generator), torch.randn(4, 5, 3, generator=generator)
    assert normalized_residual_loss(first_BD * 10, chosen_MBD * 10)[0] == pytest.approx(
        float(normalized_residual_loss(first_BD, chosen_MBD)[0]), rel=1e-3
    )


def test_gradient_of_the_loss_is_that_of_automatic_differentiation() -> None:
    generator = torch.Generator().manual_seed(0)
    first_BD, chosen_MBD = torch.randn(5, 3, generator=generator), torch.randn(4, 5, 3, generator=generator)
    toward_BD = torch.randn(5, 3, generator=generator)

    def as_defined(chosen_MBD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        residuals_MBD = first_BD - chosen_MBD.cumsum(dim=0)
        after_MB = residuals_MBD.square().sum(dim=2)
        before_MB = torch.cat([first_BD.square().sum(dim=1).unsqueeze(0), after_MB[:-1]]).detach()
        return torch.log1p(after_MB / (before_MB + 1e-6)).sum(dim=0).mean(), residuals_MBD[-1]

    results = []
    for function in (as_defined, lambda chosen: normalized_residual_loss(first_BD, chosen)):
        leaf_MBD = chosen_MBD.clone().requires_grad_(True)
        loss, errors_BD = function(leaf_MBD)
        (3 * loss + (toward_BD * errors_BD).sum()).backward()
        results.append((loss.detach(), errors_BD.detach(), leaf_MBD.grad))
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)


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


def test_a_batch_in_two_shares_has_the_gradient_of_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors_BD = torch.randn(30, 6, generator=generator)
    chosen_MBD = torch.randn(3, 30, 6, generator=generator).requires_grad_(True)
    gradients = []
    for parts in ([slice(0, 30)], [slice(0, 11), slice(11, 30)]):
        loss = TrainingLoss(vectors_BD, "l2", seed=0)
        shares = [loss.measure(vectors_BD[part], vectors_BD[part], chosen_MBD[:, part]) for part in parts]
        statistics = loss.statistics(shares)
        weights = [len(vectors_BD[part]) / 30 for part in parts]
        gradients.append(
            sum(
                weight * gradient(loss, share, statistics, chosen_MBD)
                for share, weight in zip(shares, weights, strict=True)
            )
        )
    torch.testing.assert_close(gradients[1], gradients[0])


def gradient(
    loss: TrainingLoss,
    share: LossShare,
    statistics: tuple[torch.Tensor, torch.Tensor],
    variable: torch.Tensor,
) -> torch.Tensor:
    derivatives = loss.of_share(share, *statistics)[1]
    outputs = [getattr(share, name) for name in derivatives]
    return torch.autograd.grad(outputs, variable, list(derivatives.values()))[0]


def test_gradient_is_that_of_the_loss() -> None:
    """By finite differences in double precision; with a single share, statistics follow the codewords."""
    generator = torch.Generator().manual_seed(0)
    vectors_BD = torch.randn(12, 4, generator=generator, dtype=torch.float64)
    chosen_MBD = 0.3 * torch.randn(2, 12, 4, generator=generator, dtype=torch.float64)
    loss = TrainingLoss(vectors_BD, "l2", seed=0)

    def measured(chosen_MBD: torch.Tensor) -> tuple[LossShare, tuple[torch.Tensor, torch.Tensor]]:
        share = loss.measure(vectors_BD, vectors_BD, chosen_MBD)
        return share, loss.statistics([share])

    def value(chosen_MBD: torch.Tensor) -> torch.Tensor:
        share, statistics = measured(chosen_MBD)
        return loss.of_share(share, *statistics)[0]

    leaf_MBD = chosen_MBD.clone().requires_grad_(True)
    found = gradient(loss, *measured(leaf_MBD), leaf_MBD)
    step = 1e-3
    for place in range(4):  # of the last step, on which no denominator depends
        moved_MBD = torch.zeros_like(chosen_MBD)
        moved_MBD[-1, 3, place] = step
        after, before = (value(chosen_MBD + sign * moved_MBD) for sign in (1, -1))
        slope = float(after - before) / (2 * step)
        assert slope == pytest.approx(float(found[-1, 3, place]), rel=0.02, abs=2e-4)


def test_processes_add_their_sums_also_without_vectors() -> None:
    vectors_BD = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    alone = TrainingLoss(vectors_BD, "l2", seed=0)
    shares = [alone.measure(rows_BD, rows_BD, 0.3 * rows_BD[None]) for rows_BD in vectors_BD.split(20)]
    expected = alone.statistics(shares)
    elsewhere = [share.sums_3Q for share in shares]
    for mine in ([], shares[:1], shares):
        others = elsewhere[len(mine) :]
        together = TrainingLoss(
            vectors_BD, "l2", seed=0, sum_=lambda own, others=others: own.add_(sum(others))
        )
        torch.testing.assert_close(together.statistics(mine), expected)


def test_training_loss_falls_with_the_error() -> None:
    vectors_BD = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    loss = TrainingLoss(vectors_BD, "l2", seed=0)

    def loss_of(*chosen: torch.Tensor) -> float:
        share = loss.measure(vectors_BD, vectors_BD, torch.stack(chosen))
        return float(loss.of_share(share, *loss.statistics([share]))[0])

    losses = [loss_of(vectors_BD * share, vectors_BD * share / 9) for share in (0.0, 0.3, 0.6, 0.8)]
    assert losses == sorted(losses, reverse=True)
    assert all(np.isfinite(losses))
    assert np.isfinite(loss_of(vectors_BD, torch.zeros_like(vectors_BD)))


def test_dead_codewords_move_next_to_the_most_used() -> None:
    quantizer = stirred(small_config()).requires_grad_(True)
    optimizer = Optimizer(quantizer, TrainConfig())
    sum(parameter.square().sum() for parameter in quantizer.parameters()).backward()
    optimizer.set_rate(1e-3)
    optimizer.step(optimizer.gradient_norm(), failed=torch.zeros(()))
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
    moment = optimizer.moments(quantizer.codebooks_MKD)["exp_avg"]
    assert not moment[1, 3].any()
    assert moment[1, 7].any()


def test_sums_of_the_last_steps_pass_gradients_on() -> None:
    generator = torch.Generator().manual_seed(0)
    codewords_MBD, deformations_SBD, toward_MBD = (
        torch.randn(steps, 3, 2, generator=generator) for steps in (4, 2, 4)
    )
    found = []
    for sum_ in (add_to_last_steps, lambda base, last: torch.cat([base[:2], base[2:] + last])):
        inputs = codewords_MBD.clone().requires_grad_(), deformations_SBD.bfloat16().requires_grad_()
        summed_MBD = sum_(inputs[0] * 1.0, inputs[1])
        found.append((summed_MBD, *torch.autograd.grad(summed_MBD, inputs, toward_MBD)))
    for first, second in zip(*found, strict=True):
        assert first.dtype == second.dtype
        assert torch.equal(first, second)


def named(quantizer: ResidualQuantizer, gradient: BatchGradient) -> dict[str, torch.Tensor | None]:
    names = [name for name, _ in quantizer.named_parameters()]
    return dict(zip(names, gradient.of_parameters, strict=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_shares_and_groups_have_the_gradient_of_the_whole(
    shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against one backward pass through the quantizer's own functions, with no share and no group."""
    quantizer = stirred(small_config(**SHAPES[shape])).requires_grad_(True)
    rows_BD = quantizer.normalize(torch.from_numpy(curved(150)))
    loss_of = TrainingLoss(rows_BD, "l2", seed=0)
    monkeypatch.setattr(gradients, "_LEAST_ROWS", 64)
    monkeypatch.setattr(gradients, "_MOST_ROWS", 64)
    monkeypatch.setattr(gradients, "_GROUP_STEPS", 2)
    found = GradientComputation(quantizer, loss_of, "float32").of_batch(rows_BD)
    partitions_B = assign_partitions(quantizer, rows_BD)
    chosen_MBD = quantizer.chosen_codewords(found.codes_BM, partitions_B, quantizer.fold())
    share = loss_of.measure(rows_BD, rows_BD - quantizer.partition_offset(partitions_B), chosen_MBD)
    loss, derivatives = loss_of.of_share(share, *loss_of.statistics([share]))
    torch.autograd.backward([getattr(share, name) for name in derivatives], list(derivatives.values()))
    torch.testing.assert_close(found.loss, loss)
    for name, gradient in named(quantizer, found).items():
        expected = quantizer.get_parameter(name).grad
        if expected is None:
            assert gradient is None or not gradient.any(), name
        else:
            torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4, msg=name)


def test_threads_give_the_same_gradient_in_any_order_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer = stirred(small_config(kind="rqmoe", num_partitions=3)).requires_grad_(True)
    rows_BD = quantizer.normalize(torch.from_numpy(curved(150)))
    loss_of = TrainingLoss(rows_BD, "l2", seed=0)
    monkeypatch.setattr(gradients, "_LEAST_ROWS", 16)
    monkeypatch.setattr(gradients, "_MOST_ROWS", 16)
    threads, found = parallel.num_threads(), []
    try:
        for count in (1, 3):
            parallel.set_num_threads(count)
            found.append(GradientComputation(quantizer, loss_of, "float32").of_batch(rows_BD))
    finally:
        parallel.set_num_threads(threads)
    assert torch.equal(found[0].loss, found[1].loss)
    for first, second in zip(found[0].of_parameters, found[1].of_parameters, strict=True):
        assert first is not None
        assert second is not None
        assert torch.equal(first, second)


def test_bfloat16_losses_and_gradients_follow_float32_ones() -> None:
    """The mixed-precision path itself, also where the hardware would not choose it."""
    measured = {}
    for precision in ("float32", "bfloat16"):
        quantizer = stirred(small_config()).requires_grad_(True)
        rows_BD = quantizer.normalize(torch.from_numpy(curved(200)))
        loss_of = TrainingLoss(rows_BD, "l2", seed=0)
        found = GradientComputation(quantizer, loss_of, precision).of_batch(rows_BD)
        of_codebooks = named(quantizer, found)["codebooks_MKD"]
        assert of_codebooks is not None
        assert of_codebooks.dtype == found.loss.dtype == torch.float32
        assert found.codes_BM.shape == (200, 4)
        measured[precision] = float(found.loss), float(of_codebooks.norm())
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
    optimizer = Optimizer(quantizer, TrainConfig())
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
