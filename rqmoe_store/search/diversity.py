"""Diversify: of the rows found, those that are near the query and unlike each other.

Maximal marginal relevance (Carbonell & Goldstein, 1998): the next row is always the one with the largest

    lambda * relevance - (1 - lambda) * likeness to the most alike of the rows already chosen

in which relevance and likeness depend on the metric:

    l2      minus the squared distance to the query; minus that between two rows
    cosine  the cosine of the angle to the query; that between two rows
    dot     the inner product with the query, as a share of the largest that a row as long as the longest
            could have; the cosine between two rows: a long vector is not alike to all others

Of vectors of unit length all three choose the same.

Shape suffixes: S rows to choose from, D vector dimension.
"""

import numpy as np
import numpy.typing as npt

from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import Metric
from rqmoe_store.search.distances import exact_values
from rqmoe_store.search.segments import Positions

Float64Array = npt.NDArray[np.float64]


def diverse_rows(
    query_D: Float32Array,
    vectors_SD: Float32Array,
    distances_S: Float32Array,
    metric: Metric,
    *,
    lambda_: float,
    count: int,
    finer_S: Float64Array | None = None,
) -> Positions:
    """Choose rows one after the other.

    Args:
        query_D: the query.
        vectors_SD: decoded vectors of the rows to choose from.
        distances_S: their distances to the query, in LanceDB's definition of the metric, ascending.
        metric: which one.
        lambda_: 1 for the nearest rows whatever they are like, 0 for the most different ones.
        count: rows to choose at most.
        finer_S: of rows whose distance float32 cannot tell, as in `Hits`.

    Returns:
        Positions of min(count, S) rows in the order chosen; of equally good ones the nearest is first.
    """
    rows_SD = vectors_SD.astype(np.float64)
    lengths_S = np.linalg.norm(rows_SD, axis=1)
    exact_S = exact_values(distances_S, finer_S, metric)
    relevances_S = lambda_ * _relevances(query_D, exact_S, lengths_S, metric)
    if metric != "l2":
        rows_SD /= np.where(lengths_S > 0, lengths_S, 1)[:, None]
    squares_S = lengths_S**2
    likeness_S = np.full(len(rows_SD), -np.inf)
    left_S, scores_S = np.ones(len(rows_SD), dtype=bool), relevances_S
    chosen = np.empty(min(count, len(rows_SD)), np.int64)
    for place in range(len(chosen)):
        row = chosen[place] = np.argmax(np.where(left_S, scores_S, -np.inf))
        left_S[row] = False
        alike_S = np.einsum("sd,d->s", rows_SD, rows_SD[row])  # the same for equal rows, bit for bit
        if metric == "l2":
            alike_S = np.minimum(2 * alike_S - squares_S - squares_S[row], 0)
        likeness_S = np.maximum(likeness_S, alike_S)
        scores_S = relevances_S - (1 - lambda_) * likeness_S
    return chosen


def _relevances(
    query_D: Float32Array, exact_S: Float64Array, lengths_S: Float64Array, metric: Metric
) -> Float64Array:
    """Larger for nearer rows, (S,), given `exact_values`."""
    if metric == "l2":
        return -exact_S
    if metric == "cosine":
        return 1 - exact_S
    largest = float(np.linalg.norm(query_D.astype(np.float64)) * lengths_S.max(initial=0))
    return exact_S / (largest or 1.0)
