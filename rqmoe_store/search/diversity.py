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
from rqmoe_store.search.segments import Mask, Positions

Float64Array = npt.NDArray[np.float64]


class DiverseRows:
    """Chooses rows one after the other, by what they are like and what was chosen before."""

    def __init__(
        self,
        query_D: Float32Array,
        vectors_SD: Float32Array,
        distances_S: Float32Array,
        metric: Metric,
        lambda_: float,
        finer_S: Float64Array | None = None,
    ) -> None:
        """Prepare.

        Args:
            query_D: the query.
            vectors_SD: decoded vectors of the rows to choose from.
            distances_S: their distances to the query, in LanceDB's definition of the metric, ascending.
            metric: which one.
            lambda_: 1 for the nearest rows whatever they are like, 0 for the most different ones.
            finer_S: of rows whose distance float32 cannot tell, as in `Hits`.
        """
        self._metric, self._lambda = metric, lambda_
        self._rows_SD = vectors_SD.astype(np.float64)
        self._values_S = exact_values(distances_S, finer_S, metric)
        self._lengths_S = np.linalg.norm(self._rows_SD, axis=1)
        self._query_length = float(np.linalg.norm(query_D.astype(np.float64)))
        if metric != "l2":
            self._rows_SD /= np.where(self._lengths_S > 0, self._lengths_S, 1)[:, None]
        self._chosen_S = np.zeros(len(distances_S), dtype=bool)
        self._likeness_S = np.full(len(distances_S), -np.inf)

    def choose(self, open_S: Mask, count: int) -> Positions:
        """Up to `count` of the open rows in the order chosen; of equally good ones the nearest is first."""
        open_S = open_S.copy()
        relevances_S = self._lambda * self._relevances(open_S | self._chosen_S)
        chosen = np.empty(min(count, int(open_S.sum())), np.int64)
        for place in range(len(chosen)):
            scores_S = relevances_S
            if self._chosen_S.any():
                scores_S = relevances_S - (1 - self._lambda) * self._likeness_S
            row = chosen[place] = np.argmax(np.where(open_S, scores_S, -np.inf))
            open_S[row], self._chosen_S[row] = False, True
            np.maximum(self._likeness_S, self._alike(row), out=self._likeness_S)
        return chosen

    def _alike(self, row: np.int64) -> Float64Array:
        """How much every row is like one of them, (S,)."""
        rows_SD = self._rows_SD
        # The same for equal rows, bit for bit.
        alike_S: Float64Array = np.einsum("sd,d->s", rows_SD, rows_SD[row])
        if self._metric == "l2":
            squares_S = self._lengths_S**2
            alike_S = np.minimum(2 * alike_S - squares_S - squares_S[row], 0)
        return alike_S

    def _relevances(self, considered_S: Mask) -> Float64Array:
        """Larger for nearer rows, (S,)."""
        if self._metric == "l2":
            return -self._values_S
        if self._metric == "cosine":
            return 1 - self._values_S
        largest = self._query_length * float(self._lengths_S[considered_S].max(initial=0))
        return self._values_S / (largest or 1.0)
