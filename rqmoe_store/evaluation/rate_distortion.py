"""The distortion that a Gaussian source of the same covariance would need at a given number of bits.

Shape suffixes: N vectors, D vector dimension, C coordinates with variance.

The rate-distortion function of a Gaussian, by reverse water-filling over the principal variances
(Cover and Thomas, "Elements of Information Theory", theorem 10.3.3): coordinates above a level share
the bits so that each keeps an error equal to the level, the others get no bits and keep their variance.
Among all sources of one covariance the Gaussian is the hardest, so for real vectors this is an upper
bound on the distortion achievable with blocks of unbounded length; vectors with structure, such as
clusters, can be coded better than it.
"""

import math

import numpy as np
import numpy.typing as npt

from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.errors import InvalidInputError

Float64Array = npt.NDArray[np.float64]

_BLOCK_ROWS = 8192


def principal_variances(vectors_ND: Float32Array) -> Float64Array:
    """Variances (D,), float64, descending, along the principal directions of at least one vector.

    They sum to the mean squared distance of the vectors to their mean.
    """
    dim = vectors_ND.shape[1]
    mean_D = vectors_ND.mean(axis=0, dtype=np.float64)
    covariance_DD = np.zeros((dim, dim))
    for start in range(0, len(vectors_ND), _BLOCK_ROWS):
        centred_BD = vectors_ND[start : start + _BLOCK_ROWS] - mean_D
        covariance_DD += centred_BD.T @ centred_BD
    # A direction without variance may come out slightly negative.
    return np.asarray(np.linalg.eigvalsh(covariance_DD / len(vectors_ND))[::-1].clip(min=0))


def water_level(variances_D: Float64Array, bits: float) -> float:
    """The error that every coordinate with bits is left with, when `bits` are spent in the best way.

    Args:
        variances_D: at least one, none of them negative.
        bits: per vector, at least 0.

    Raises:
        InvalidInputError: negative variances or bits.
    """
    if bits < 0 or len(variances_D) == 0 or not np.all(variances_D >= 0):
        raise InvalidInputError(f"Got bits={bits} and variances {variances_D}; expected none below 0.")
    variances_C = np.sort(variances_D[variances_D > 0])[::-1]
    if len(variances_C) == 0:
        return 0.0
    log_C = np.log2(variances_C)
    counts_C = np.arange(1, len(log_C) + 1)
    # What it takes to push the first k coordinates down to the variance of the k-th. It grows with k,
    # so as many coordinates get bits as there are such costs within the budget.
    cost_C = (np.cumsum(log_C) - counts_C * log_C) / 2
    active = int(np.count_nonzero(cost_C <= bits))
    return float(2 ** ((log_C[:active].sum() - 2 * bits) / active))


def gaussian_distortion(variances_D: Float64Array, bits: float) -> float:
    """Mean squared error norm of the best code of `bits` per vector for a Gaussian of these variances.

    Raises:
        InvalidInputError: negative variances or bits.
    """
    return math.fsum(np.minimum(variances_D, water_level(variances_D, bits)))
