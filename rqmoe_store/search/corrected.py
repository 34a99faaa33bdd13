"""Corrected distances: ranked candidates in the order that a codec tuned by relevance gives them.

Shape legend: Q queries, H rows of all queries, S rows of one query, D vector dimension.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.search.rerank import Hits, exact_values, ordered, rounded
from rqmoe_store.search.shortlists import Candidates
from rqmoe_store.store.table_codec import TableCodec


def with_corrected_distances(
    codecs: TableCodec, queries_QD: Float32Array, candidates: Candidates, hits: Sequence[Hits]
) -> list[Hits]:
    """The hits of every query in the order of (corrected distance, row id).

    Args:
        codecs: codecs of the table.
        queries_QD: checked queries.
        candidates: candidates of every query, with their codes.
        hits: the candidates of every query with their distances, whatever these are computed from.
    """
    amounts_H = codecs.corrections(candidates.rows.codes, queries_QD, candidates.queries_H)
    corrected = []
    for found, (start, stop) in zip(hits, itertools.pairwise(candidates.starts_Q.tolist()), strict=True):
        row_ids_S = candidates.rows.row_ids_N[start:stop]
        order_S = np.argsort(row_ids_S)
        places = start + order_S[np.searchsorted(row_ids_S[order_S], found.row_ids_S)]
        values_S = exact_values(found.distances_S, found.tie_breaks_S, codecs.metric)
        # Under "dot", these are inner products, which are larger for nearer rows.
        values_S = values_S + (amounts_H[places] if codecs.metric == "dot" else -amounts_H[places])
        distances_S, tie_breaks_S = rounded(values_S, codecs.metric)
        corrected.append(
            ordered(dataclasses.replace(found, distances_S=distances_S, tie_breaks_S=tie_breaks_S))
        )
    return corrected
