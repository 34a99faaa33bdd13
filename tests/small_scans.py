"""Rows and look-up tables to scan, with few distinct scores, so that ties are frequent."""

import itertools

import numpy as np

from rqmoe_store.codecs.additive import LookupTables
from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.frame import ScoreUnits
from rqmoe_store.search.segments import CodeBatch, Selection, grouped
from rqmoe_store.search.shortlists import Shortlists

STEPS, CODEWORDS, PARTITIONS = 3, 4, 3


def rows_of(seed: int, count: int) -> CodeBatch:
    random = np.random.default_rng(seed)
    codes = random.integers(0, CODEWORDS, (count, STEPS)).astype(np.uint8)
    partitions = random.integers(0, PARTITIONS, count).astype(np.int32)
    return CodeBatch(random.permutation(count * 2)[:count].astype(np.uint64), Codes(codes, partitions))


def tables_of(seed: int, queries: int, metric: str = "l2") -> LookupTables:
    """Few distinct values, so that ties are frequent."""
    random = np.random.default_rng(seed)
    height = PARTITIONS + STEPS * CODEWORDS
    norms = random.integers(1, 4, height if metric == "cosine" else 0)
    return LookupTables(
        metric,
        random.integers(-2, 3, (queries, height)).astype(np.float32),
        norms.astype(np.float32),
        random.integers(0, 3, queries).astype(np.float32),
        PARTITIONS,
        CODEWORDS,
        ScoreUnits.plain(queries),
    )


def selections_of(rows: CodeBatch, cuts: list[int]) -> list[Selection]:
    edges = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    return [Selection(grouped(rows[start:end], PARTITIONS)) for start, end in itertools.pairwise(edges)]


def best(scores: np.ndarray, row_ids: np.ndarray, some: np.ndarray, count: int) -> list[int]:
    places = np.flatnonzero(some)
    order = np.lexsort((row_ids[places], scores[places]))[:count]
    return sorted(row_ids[places[order]].tolist())


def ids_of(shortlists: Shortlists) -> list[int]:
    """Row ids of all queries."""
    return sorted(shortlists.rows.row_ids_N.tolist())


def each_query(shortlists: Shortlists, queries: int) -> list[Shortlists]:
    """The shortlist of every query."""
    return [shortlists[np.flatnonzero(shortlists.queries_H == query)] for query in range(queries)]
