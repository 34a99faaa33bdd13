"""k-means."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rqmoe_store.training.initialize import kmeans, nearest


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
