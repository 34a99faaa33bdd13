"""Recall at full density, estimated from the rows that were encoded.

For every query, its exact nearest rows among all rows of the table are known and encoded (near rows), and so
is a random sample of all rows. A true neighbor is found if fewer than k rows have a smaller decoded distance.
How many near rows do is counted. How many of the others do is estimated from those in the sample: their count
ahead of the j-th near row is Poisson with a rate that differs between queries by a gamma distribution, whose
mean and variance come from all queries (empirical Bayes). The sample holds a share p of them; c of these
ahead leave c plus a negative binomial number in the whole table, and the probability that the sum stays below
k is the neighbor's share in recall. With p = 1 nothing is estimated.

Shape legend: Q queries, K near rows of a query, S rows of the random sample, E encoded rows, D dimension.
"""

import dataclasses

import numpy as np
import numpy.typing as npt

from rqmoe_store.advice.sample import Sample
from rqmoe_store.codecs.neighbors import all_distances
from rqmoe_store.codecs.vectors import Float32Array

Float64Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_QUERIES_AT_ONCE = 64
_RESAMPLES = 1_000
_MOST_SHAPE = 1e6
"""Shape of the gamma distribution beyond which all queries have the same rate."""


@dataclasses.dataclass(frozen=True)
class Distances:
    """Distances of queries to encoded rows."""

    near_QK: Float64Array
    """To the near rows of each query."""
    random_QS: Float64Array
    """To the rows of the random sample."""

    @classmethod
    def of(cls, sample: Sample, vectors_ED: Float32Array) -> "Distances":
        """Distances to vectors that stand for the encoded rows."""
        near, random, vectors = [], [], vectors_ED.astype(np.float64)
        for start in range(0, len(sample.queries_QD), _QUERIES_AT_ONCE):
            part = slice(start, start + _QUERIES_AT_ONCE)
            all_QE = all_distances(sample.queries_QD[part].astype(np.float64), vectors, sample.metric)
            near.append(np.take_along_axis(all_QE, sample.near_QK[part], axis=1))
            random.append(all_QE[:, : sample.random_rows])
        return cls(np.concatenate(near), np.concatenate(random))

    def only(self, near_QK: Mask, random_QS: Mask) -> "Distances":
        """The same without some rows, which are infinitely far away."""
        return Distances(np.where(near_QK, self.near_QK, np.inf), np.where(random_QS, self.random_QS, np.inf))


def recalls_at_full_size(sample: Sample, distances: Distances) -> Float64Array:
    """Estimated recall (Q,) of every query among all rows of the table."""
    nearest_Qk = np.argsort(distances.near_QK, axis=1, kind="stable")[:, : sample.k]
    distances_Qk = np.take_along_axis(distances.near_QK, nearest_Qk, axis=1)
    relevant_Qk = np.take_along_axis(sample.relevant_QK, nearest_Qk, axis=1) & np.isfinite(distances_Qk)
    ahead_Qk, shares_Q = _rows_ahead(sample, distances, distances_Qk)
    found_Q = np.zeros(len(ahead_Qk))
    for place in range(nearest_Qk.shape[1]):
        likely_Q = probabilities_of_fewer(sample.k - place, ahead_Qk[:, place], shares_Q)
        found_Q += likely_Q * relevant_Qk[:, place]
    return found_Q / sample.k


def shortlists(sample: Sample, distances: Distances, size: int) -> tuple[Mask, Mask]:
    """Which near rows, and which rows of the sample, are among the `size` nearest of the whole table."""
    near_QK, random_QS = np.sort(distances.near_QK, axis=1), np.sort(_far(sample, distances), axis=1)
    shares_Q = _shares(sample)
    limits_Q1 = np.empty((len(near_QK), 1))
    for query, (near_K, random_S) in enumerate(zip(near_QK, random_QS, strict=True)):
        merged = np.concatenate([near_K, random_S])
        weights = np.concatenate([np.ones(len(near_K)), np.full(len(random_S), 1 / shares_Q[query])])
        order = np.argsort(merged, kind="stable")
        within = int(np.searchsorted(np.cumsum(weights[order]), size, side="right"))
        limits_Q1[query] = merged[order[min(within, len(order) - 1)]]
    return distances.near_QK <= limits_Q1, distances.random_QS <= limits_Q1


def recalls_in_sample(sample: Sample, exact: Distances, decoded: Distances) -> Float64Array:
    """Recall (Q,) of every query among the rows of the random sample alone."""
    k = min(sample.k, sample.random_rows)
    found_Qk = np.argpartition(decoded.random_QS, k - 1, axis=1)[:, :k]
    last_Q1 = np.partition(exact.random_QS, k - 1, axis=1)[:, k - 1 : k]
    true_Qk = np.take_along_axis(exact.random_QS, found_Qk, axis=1) <= last_Q1
    return np.asarray(true_Qk.mean(axis=1), dtype=np.float64)


def confidence_interval(recalls_Q: Float64Array, seed: int) -> tuple[float, float]:
    """The 95 % interval of the mean: percentiles of the means of 1,000 resamples of the queries."""
    generator = np.random.default_rng(seed)
    chosen_RQ = generator.integers(len(recalls_Q), size=(_RESAMPLES, len(recalls_Q)))
    low, high = np.quantile(recalls_Q[chosen_RQ].mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


def probabilities_of_fewer(limit: int, ahead_Q: Float64Array, shares_Q: Float64Array) -> Float64Array:
    """Probabilities (Q,) that fewer than `limit` far rows of the whole table are ahead of a near row.

    Args:
        limit: number of rows, at least 1.
        ahead_Q: far rows of the random sample that are ahead of it.
        shares_Q: share of each query's far rows that the random sample has.
    """
    rates_Q, mean = ahead_Q / shares_Q, float((ahead_Q / shares_Q).mean())
    if mean == 0:
        return np.ones(len(ahead_Q))
    # Variance of the rates themselves: without that of counts, which are Poisson.
    spread = float(np.square(rates_Q - mean).mean() - (ahead_Q / np.square(shares_Q)).mean())
    shape = min(mean**2 / spread, _MOST_SHAPE) if spread > 0 else _MOST_SHAPE
    rate = shape / mean
    unseen_Q = shape + ahead_Q  # of the negative binomial number of rows that the sample lacks
    seen_Q = (rate + shares_Q) / (rate + 1)
    left_Q = limit - 1 - ahead_Q  # most of them that may be ahead
    term_Q = np.power(seen_Q, unseen_Q)
    total_Q = np.where(left_Q >= 0, term_Q, 0.0)
    for number in range(1, limit):
        term_Q = term_Q * (unseen_Q + number - 1) / number * (1 - seen_Q)
        total_Q += np.where(left_Q >= number, term_Q, 0.0)
    return np.minimum(total_Q, 1.0)


def _far(sample: Sample, distances: Distances) -> Float64Array:
    """Distances (Q, S) to the far rows of the random sample; infinite for near ones."""
    return np.where(sample.is_near_QS, np.inf, distances.random_QS)


def _shares(sample: Sample) -> Float64Array:
    """Share (Q,) of each query's far rows that the random sample has; 1 if there are none."""
    far = sample.rows - sample.near_QK.shape[1]
    return np.asarray((~sample.is_near_QS).sum(axis=1) / far if far else np.ones(len(sample.near_QK)))


def _rows_ahead(
    sample: Sample, distances: Distances, limits_Qk: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """Far rows of the sample (Q, k) nearer than some distances, and the share that the sample has (Q,)."""
    far_QS = np.sort(_far(sample, distances), axis=1)
    pairs = zip(far_QS, limits_Qk, strict=True)
    ahead_Qk = np.stack([np.searchsorted(far_S, limits_k) for far_S, limits_k in pairs])
    return ahead_Qk.astype(np.float64), _shares(sample)
