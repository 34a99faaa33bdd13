"""Initialization: k-means, and how many vectors codebooks see in the time there is."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_codecs import curved, small_config, vectors

from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.progress import TrainingProgress
from rqmoe_store.training import initialize as initialize_module
from rqmoe_store.training.initialize import fresh_start, kmeans, nearest, warn_if_few
from rqmoe_store.training.trainer import train
from rqmoe_store.training.workers import join_workers


def test_too_few_rows_are_a_warning_that_names_enough() -> None:
    with pytest.warns(UserWarning, match=r"Training on 16,383 vectors; .* need 16,384 .*codebook_size=256"):
        warn_if_few(16_383, CodecConfig())
    with pytest.warns(UserWarning, match="need 1,024"):
        warn_if_few(17, small_config())


def test_enough_rows_are_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_few(16_384, CodecConfig())
        warn_if_few(1024, small_config())


def test_training_warns_at_the_line_that_called_it() -> None:
    settings = TrainConfig(epochs=0, progress=False)
    config = CodecConfig(kind="rq", code_bytes=1, codebook_size=16)
    with pytest.warns(UserWarning, match="Training on 450 vectors; .* need 1,024") as caught:
        train(vectors(500), config=config, training=settings)
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(np.repeat(vectors(500), 3, axis=0), config=config, training=settings)


@pytest.mark.parametrize("kind", ["rq", "rqmoe"])
def test_codebooks_see_fewer_vectors_when_time_is_short(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The work is counted, not the time: none left is the floor, any amount is everything."""
    vectors_nD = torch.from_numpy(curved(3000))
    config = CodecConfig(kind=kind, code_bytes=2, codebook_size=16, num_partitions=0)  # type: ignore[arg-type]
    config = config.resolve(dim=vectors_nD.shape[1], rows=3000)
    seen: list[int] = []

    def counted(residual_nD: torch.Tensor, *arguments: object, **settings: object) -> torch.Tensor:
        seen.append(len(residual_nD))
        return kmeans(residual_nD, *arguments, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(initialize_module, "kmeans", counted)
    for seconds, rows in ((0.0, 16 * 16), (3600.0, 3000)):
        seen.clear()
        start = fresh_start(
            vectors_nD, vectors_nD[:200], config, seed=0,
            workers=join_workers("cpu"), progress=TrainingProgress(visible=False), seconds=seconds,
        )  # fmt: skip
        assert seen[:2] == [rows, rows]
        assert start.mixing is False or seconds > 0
        assert len(seen) == 2 or (kind == "rqmoe" and seconds > 0), "no second try when time is short"


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 12), rows=st.integers(12, 200))
def test_never_worse_than_its_random_start(seed: int, count: int, rows: int) -> None:
    vectors_nD = torch.randn(rows, 5, generator=torch.Generator().manual_seed(seed))

    def error(iterations: int) -> float:
        generator = torch.Generator().manual_seed(seed)
        centroids = kmeans(vectors_nD, count, generator=generator, iterations=iterations)
        return float((vectors_nD - centroids[nearest(vectors_nD, centroids)]).square().sum())

    assert error(8) <= error(0) * (1 + 1e-5)


def test_finds_separated_clusters() -> None:
    generator = torch.Generator().manual_seed(0)
    centers = torch.eye(4) * 100
    vectors_nD = centers.repeat(50, 1) + torch.randn(200, 4, generator=generator)
    found = kmeans(vectors_nD, 4, generator=torch.Generator().manual_seed(3), iterations=25)
    # A random start may put two centroids in one cluster; splitting empty ones cannot always undo it.
    assert torch.cdist(found, centers).min(dim=1).values.max() < 60
    assert len(nearest(vectors_nD, found).unique()) == 4


def test_goes_on_from_given_centroids() -> None:
    centers = torch.eye(4) * 100
    vectors_nD = centers.repeat(50, 1) + torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    found = kmeans(vectors_nD, 4, generator=torch.Generator().manual_seed(3), start_KD=centers + 5)
    torch.testing.assert_close(found, centers, atol=1, rtol=0)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(200, 800))
def test_centroids_are_nearer_to_unseen_vectors_than_means_are(seed: int, rows: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    seen_nD, unseen_nD = (
        torch.randn(rows, 24, generator=generator),
        torch.randn(2000, 24, generator=generator),
    )
    found = kmeans(seen_nD, 32, generator=generator)
    groups_n = nearest(seen_nD, found)
    used = groups_n.unique()
    means = torch.stack([seen_nD[groups_n == group].mean(dim=0) for group in used])

    def unseen_error(centroids_KD: torch.Tensor) -> float:
        return float((unseen_nD - centroids_KD[nearest(unseen_nD, centroids_KD)]).square().sum())

    assert unseen_error(found[used]) < unseen_error(means)


def test_empty_centroids_are_used_again() -> None:
    vectors_nD = torch.cat(
        [torch.zeros(50, 2), torch.randn(50, 2, generator=torch.Generator().manual_seed(1))]
    )
    found = kmeans(vectors_nD, 10, generator=torch.Generator().manual_seed(0))
    assert len(nearest(vectors_nD, found).unique()) >= 8


def test_nearest_is_the_argmin_of_distances() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors_nD, centroids_KD = (
        torch.randn(100, 6, generator=generator),
        torch.randn(9, 6, generator=generator),
    )
    expected = torch.cdist(vectors_nD, centroids_KD).argmin(dim=1)
    assert torch.equal(nearest(vectors_nD, centroids_KD), expected)
