"""A codec of centroids and residuals of few bits, as late-interaction engines (ColBERTv2, PLAID) keep tokens.

A code has the number of the nearest centroid, and for each component of what is left over the bucket that it
falls into. Buckets have equal shares of the training vectors' residuals.

Shape suffixes: n vectors, D dimension, K centroids, L buckets.
"""

import numpy as np
import torch

from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.training.initialize import kmeans, nearest, residuals

_CENTROID_BYTES = 4
"""As ColBERT keeps numbers of centroids."""


class ResidualCodec:
    """Centroids, and buckets of the residuals' components."""

    def __init__(self, vectors_nD: Float32Array, *, centroids: int, bits: int, seed: int) -> None:
        """Fit to vectors, at least as many as there are centroids."""
        vectors = torch.from_numpy(vectors_nD)
        generator = torch.Generator().manual_seed(seed)
        self._centroids_KD = kmeans(vectors, centroids, generator=generator, iterations=4)
        left = residuals(vectors, self._centroids_KD).numpy().ravel()
        self._edges = np.quantile(left, np.arange(1, 2**bits) / 2**bits).astype(np.float32)
        self._values_L = np.quantile(left, (np.arange(2**bits) + 0.5) / 2**bits).astype(np.float32)
        self.code_bytes = _CENTROID_BYTES + vectors_nD.shape[1] * bits // 8

    def round_trip(self, vectors_nD: Float32Array) -> Float32Array:
        """What the codes of the vectors decode to, of unit length (n, D)."""
        near_nD = self._centroids_KD[nearest(torch.from_numpy(vectors_nD), self._centroids_KD)].numpy()
        decoded_nD = near_nD + self._values_L[np.searchsorted(self._edges, vectors_nD - near_nD)]
        return np.asarray(decoded_nD / np.linalg.norm(decoded_nD, axis=1, keepdims=True), np.float32)
