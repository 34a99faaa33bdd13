"""Lloyd's k-means in torch, on whatever device the vectors are.

Shape legend: n vectors, K centroids, D dimension, B rows of a chunk.
"""

import torch
from torch import Tensor

ITERATIONS = 10
"""How often centroids are moved."""

_CHUNK = 65_536
_START = 0.3  # share of the way from the mean at which centroids start


def kmeans(
    vectors_nD: Tensor, count: int, *, generator: torch.Generator, iterations: int = ITERATIONS
) -> Tensor:
    """Centroids (count, D); needs n >= count.

    Starts from distinct random vectors drawn towards the mean. In high dimension a centroid that is a
    data point is far from all other points and never attracts any; near the mean every centroid
    competes from the first iteration. A centroid that loses all its vectors is moved next to the
    most crowded one, so every centroid returned is in use unless vectors repeat.
    """
    start_K = torch.randperm(len(vectors_nD), generator=generator)[:count].to(vectors_nD.device)
    centroids_KD = vectors_nD.mean(dim=0).lerp(vectors_nD[start_K], _START)
    for _ in range(iterations):
        assignment_n = nearest(vectors_nD, centroids_KD)
        sizes_K = torch.bincount(assignment_n, minlength=count)
        sums_KD = torch.zeros_like(centroids_KD).index_add_(0, assignment_n, vectors_nD)
        centroids_KD = torch.where(
            sizes_K[:, None] > 0, sums_KD / sizes_K.clamp_min(1)[:, None], centroids_KD
        )
        _split_crowded(centroids_KD, sizes_K, generator)
    return centroids_KD


def nearest(vectors_nD: Tensor, centroids_KD: Tensor) -> Tensor:
    """Index (n,), int64, of the nearest centroid to each vector."""
    norms_K = centroids_KD.square().sum(dim=1)
    chunks = [
        (norms_K - 2 * chunk_BD @ centroids_KD.T).argmin(dim=1) for chunk_BD in vectors_nD.split(_CHUNK)
    ]
    return torch.cat(chunks)


def _split_crowded(centroids_KD: Tensor, sizes_K: Tensor, generator: torch.Generator) -> None:
    """Move every empty centroid beside a crowded one, in place."""
    empty_X = (sizes_K == 0).nonzero()[:, 0]
    if len(empty_X) == 0:
        return
    crowded_X = sizes_K.topk(len(empty_X)).indices
    noise_XD = torch.randn(len(empty_X), centroids_KD.shape[1], generator=generator)
    spread = centroids_KD.std() * 1e-2
    centroids_KD[empty_X] = centroids_KD[crowded_X] + noise_XD.to(centroids_KD.device) * spread
