"""Rows to choose from, and searches to diversify, by maximal marginal relevance or by coverage."""

import numpy as np

from rqmoe_store.search.rerank import exact_distances

METRICS = ["l2", "cosine", "dot"]
SEARCHES = {
    "plain": lambda query: query,
    "filter": lambda query: query.where("lang = 'de'"),
    "filter of the results": lambda query: query.where("lang = 'de'", prefilter=False),
    "nothing matches": lambda query: query.where("id < 0"),
    "offset": lambda query: query.offset(7),
    "offset beyond": lambda query: query.offset(400).shortlist(500),
    "more than there are": lambda query: query.limit(600),
    "range": lambda query: query.distance_range(12.0, 25.0),
    "shortlist": lambda query: query.limit(30).shortlist(40).nprobes(2),
}


def near_first(seed: int, rows: int, metric: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A query, vectors by ascending distance, and the distances."""
    random = np.random.default_rng(seed)
    query, vectors = random.normal(size=6), random.normal(size=(rows, 6)) * random.uniform(0.1, 5, (rows, 1))
    query, vectors = query.astype(np.float32), vectors.astype(np.float32)
    distances = exact_distances(query, vectors, metric)
    order = np.argsort(distances, kind="stable")
    return query, vectors[order], distances[order]


def queries_of(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 16)).astype(np.float32)
