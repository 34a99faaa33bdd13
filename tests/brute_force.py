"""Searches by brute force: distances in plain float64, filters on ids, and answers compared with them.

Shapes: N vectors, D components; leading dimensions of queries and vectors are broadcast.
"""

from collections.abc import Callable

import numpy as np

FILTERS: dict[str | None, Callable[[np.ndarray], np.ndarray]] = {
    None: lambda ids: np.ones(len(ids), bool),
    "lang = 'en'": lambda ids: ids % 3 == 0,
    "id < 40 OR id >= 480": lambda ids: (ids < 40) | (ids >= 480),
    "id > 100 -- most": lambda ids: ids > 100,
    "text = 'text 17'": lambda ids: ids == 17,
    "id < 0": lambda ids: np.zeros(len(ids), bool),
}
"""Conditions on the rows of `small_tables.source_table`, and which ids match them."""


def plain_distances(metric: str, query_D: np.ndarray, vectors_ND: np.ndarray) -> np.ndarray:
    """Distances as LanceDB defines them."""
    query_D, vectors_ND = query_D.astype(np.float64), vectors_ND.astype(np.float64)
    if metric == "l2":
        return np.asarray(((vectors_ND - query_D) ** 2).sum(axis=-1))
    products = (vectors_ND * query_D).sum(axis=-1)
    if metric == "cosine":
        products = products / np.linalg.norm(vectors_ND, axis=-1) / np.linalg.norm(query_D, axis=-1)
    return np.asarray(1 - products)


def assert_same_rows(ids: np.ndarray, found: np.ndarray, wanted_ids: np.ndarray, wanted: np.ndarray) -> None:
    """Rows at the wanted distances; where float32 cannot tell two of these apart, either order is right."""
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    for place in np.flatnonzero(ids != wanted_ids):
        close = np.abs(wanted - found[place]) < 1e-5
        # At either end, the other row may be the next one outside.
        assert ids[place] in set(wanted_ids[close]) or close[-1] or close[0]
