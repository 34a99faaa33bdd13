"""Mixtures of vectors, and their effect on codebooks fitted to few vectors."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rqmoe_store.codecs.kinds import RQ
from rqmoe_store.config import CodecConfig
from rqmoe_store.progress import TrainingProgress
from rqmoe_store.training.initialize import initialize, mixtures_help
from rqmoe_store.training.loss import prefix_mse
from rqmoe_store.training.sampler import enlarged, mixed


def test_mixtures_keep_mean_and_covariance() -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([[2.0, 0.5], [0.0, 1.0]])
    shift = torch.tensor([3.0, -1.0])
    own, partners = (torch.randn(200_000, 2, generator=generator) @ spread + shift for _ in range(2))
    mixtures = mixed(own, partners, shift, generator=generator)
    torch.testing.assert_close(mixtures.mean(dim=0), shift, atol=0.02, rtol=0)
    torch.testing.assert_close(mixtures.T.cov(), own.T.cov(), atol=0.1, rtol=0)
    assert torch.isclose(mixtures, own).all(dim=1).float().mean() < 0.01


@settings(max_examples=20, deadline=None)
@given(count=st.integers(2, 40), rows=st.integers(1, 120))
def test_enlarged_starts_with_the_vectors_themselves(count: int, rows: int) -> None:
    vectors = torch.randn(count, 3, generator=torch.Generator().manual_seed(count))
    more = enlarged(vectors, rows, generator=torch.Generator().manual_seed(0))
    assert len(more) == max(count, rows)
    assert torch.equal(more[:count], vectors)


def test_mixtures_help_codebooks_fitted_to_few_vectors() -> None:
    random = np.random.default_rng(0)
    scales = np.linspace(2, 0.2, 24)
    data = torch.from_numpy((random.standard_normal((1500, 24)) * scales).astype(np.float32))
    config = CodecConfig(kind="rq", code_bytes=4, codebook_size=64, num_partitions=0).resolve(
        dim=24, rows=500
    )

    def unseen_error(enlarge: bool) -> float:
        quantizer: RQ = initialize(
            data[:500], config, seed=0, progress=TrainingProgress(visible=False), enlarge=enlarge
        )
        return prefix_mse(quantizer, quantizer.normalize(data[500:]), beam=1, preselect=None)[-1]

    assert unseen_error(enlarge=True) < 0.97 * unseen_error(enlarge=False)


@pytest.mark.parametrize(("lies_on_a_surface", "pays"), [(False, True), (True, False)])
def test_a_small_sample_tells_whether_mixtures_lie_among_the_vectors(
    lies_on_a_surface: bool, pays: bool
) -> None:
    random = np.random.default_rng(0)
    if lies_on_a_surface:
        data = np.sin(random.uniform(-1, 1, (900, 3)) @ random.standard_normal((3, 24)) * 3)
    else:
        data = random.standard_normal((900, 24)) * np.linspace(2, 0.2, 24)
    config = CodecConfig(code_bytes=4, codebook_size=32, num_partitions=0).resolve(dim=24, rows=600)
    vectors = torch.from_numpy(data.astype(np.float32))
    assert mixtures_help(vectors[:400], vectors[400:], config, seed=0) == pays
