"""Codeword weights that other layers absorb leave deformations as they were."""

import numpy as np
import torch

from rqmoe_store.codecs.experts import ExpertMixture
from rqmoe_store.config import CodecConfig


def mixture(num_layers: int = 1) -> ExpertMixture:
    """Experts of three steps, with random weights."""
    config = CodecConfig(num_layers=num_layers, hidden_dim=5, network_dim=7, num_experts=2).resolve(
        dim=9, rows=100
    )
    experts = ExpertMixture(config, dim=9, num_steps=3, condition_dim=4).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for weights in experts.parameters():
        weights.normal_(generator=generator)
    return experts


def deformations(experts: ExpertMixture) -> torch.Tensor:
    """Of random codewords under random conditions, at every step."""
    generator = torch.Generator().manual_seed(1)
    codewords_BD, condition_BE = (torch.randn(20, width, generator=generator) for width in (9, 4))
    return torch.stack([experts.deform_plainly(step, codewords_BD, condition_BE) for step in range(3)])


def test_absorbed_codeword_weights_leave_deformations_as_they_were() -> None:
    experts = mixture()
    before = deformations(experts)
    experts.absorb_codeword_weights()
    assert torch.equal(experts.codeword_weight_SWW, torch.eye(7).expand(3, 7, 7))
    np.testing.assert_allclose(deformations(experts), before, rtol=1e-3, atol=1e-3)
    absorbed = {name: weights.clone() for name, weights in experts.named_parameters()}
    experts.absorb_codeword_weights()
    for name, weights in experts.named_parameters():
        assert torch.equal(weights, absorbed[name]), name


def test_codeword_weights_that_cannot_be_absorbed_stay() -> None:
    singular = mixture()
    singular.codeword_weight_SWW[1, 2] = 0
    for experts, kept in ((singular, [1]), (mixture(num_layers=2), [0, 1, 2])):
        weights_SWW, before = experts.codeword_weight_SWW.clone(), deformations(experts)
        experts.absorb_codeword_weights()
        assert torch.equal(experts.codeword_weight_SWW[kept], weights_SWW[kept])
        np.testing.assert_allclose(deformations(experts), before, rtol=1e-3, atol=1e-3)


def test_absorption_does_not_depend_on_the_threads_of_torch() -> None:
    """A batch of wide weights, which torch would solve in a team of threads."""
    config = CodecConfig(hidden_dim=2, network_dim=384, num_experts=1).resolve(dim=384, rows=100)
    experts = ExpertMixture(config, dim=384, num_steps=4, condition_dim=64).requires_grad_(False)
    generator = torch.Generator().manual_seed(2)
    noise_SWW = torch.randn(4, 384, 384, generator=generator)
    experts.codeword_weight_SWW.copy_(torch.eye(384) + 0.02 * noise_SWW)
    experts.condition_weight_SWE.normal_(generator=generator)
    expected = np.linalg.solve(
        experts.codeword_weight_SWW.double().numpy(), experts.condition_weight_SWE.double().numpy()
    )
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        experts.absorb_codeword_weights()
    finally:
        torch.set_num_threads(before)
    np.testing.assert_allclose(experts.condition_weight_SWE, expected, rtol=1e-4, atol=1e-4)
