"""Training batches: order, seed and mixtures."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rqmoe_store.training.sampler import Batches, derived_seed

VECTORS = torch.arange(60.0).reshape(30, 2)


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 40), epoch=st.integers(0, 3), seed=st.integers(0, 5))
def test_an_epoch_visits_every_vector_once(size: int, epoch: int, seed: int) -> None:
    batches = Batches(VECTORS, size=size, seed=seed, mixing=False)
    steps = range(epoch * batches.per_epoch, (epoch + 1) * batches.per_epoch)
    everything = torch.cat([batches.at(step) for step in steps])
    assert torch.equal(everything.sort(dim=0).values, VECTORS)
    assert not torch.equal(everything, VECTORS)


@pytest.mark.parametrize("mixing", [False, True])
def test_seed_and_step_alone_decide(mixing: bool) -> None:
    straight, jumping = (Batches(VECTORS, size=8, seed=3, mixing=mixing) for _ in range(2))
    drawn = [straight.at(step) for step in range(10)]
    for step in (9, 2, 3, 0):
        assert torch.equal(jumping.at(step), drawn[step])
    assert not torch.equal(drawn[0], drawn[4])
    assert not torch.equal(Batches(VECTORS, size=8, seed=4, mixing=mixing).at(0), drawn[0])


def test_mixtures_are_made_where_wanted() -> None:
    plain, mixing = (Batches(VECTORS, size=8, seed=3, mixing=mixing).at(0) for mixing in (False, True))
    assert plain.shape == mixing.shape
    assert not torch.isclose(plain, mixing).all(dim=1).any()


def test_every_purpose_has_its_own_seed() -> None:
    purposes = [f"{what} {number}" for what in ("order of epoch", "mixtures of step") for number in range(50)]
    seeds = {derived_seed(seed, purpose) for seed in range(20) for purpose in purposes}
    assert len(seeds) == 2000
    assert all(0 <= seed < 2**63 for seed in seeds)
