"""Vectors in clusters, as embeddings are."""

import numpy as np


def clustered(rows: int, dim: int, seed: int) -> np.ndarray:
    """Vectors around the same 60 centers for every seed, along a few directions."""
    fixed, random = np.random.default_rng(0), np.random.default_rng(seed)
    centers, directions = fixed.normal(size=(60, dim)), fixed.normal(size=(dim // 2, dim))
    within = random.normal(size=(rows, dim // 2)) @ directions * 0.3
    return (centers[random.integers(60, size=rows)] + within).astype(np.float32)
