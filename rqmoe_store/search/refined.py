"""Rank shortlists by refine codes, or by look-up tables alone.

Shape legend: Q queries, H rows of all queries, X some of them, U distinct rows, D vector dimension.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from rqmoe_store.codecs.additive import LookupTables
from rqmoe_store.codecs.frame import to_float32
from rqmoe_store.codecs.refine import RefineTables
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.search.rerank import Hits, decoded_distances, ordered_hits, query_turns
from rqmoe_store.search.row_ids import Positions
from rqmoe_store.search.segments import CodeBatch
from rqmoe_store.search.shortlists import Candidates, refined_distances
from rqmoe_store.store.lance import take_rows_of_version
from rqmoe_store.store.snapshot import Snapshot
from rqmoe_store.store.table_codec import TableCodec, local_codes

Tables = Mapping[int, LookupTables]
"""First partition of a generation -> look-up tables of queries."""


def with_refine_codes(snapshot: Snapshot, candidates: Candidates) -> Candidates:
    """The candidates with refine codes, read from the table in one take unless they are in memory."""
    rows = candidates.rows
    if len(rows) == 0 or rows.codes.refine is not None:
        return candidates
    row_ids_U, refine_UR = _take_refine_codes(snapshot, np.unique(rows.row_ids_N))
    return candidates.with_refine(refine_UR[np.searchsorted(row_ids_U, rows.row_ids_N)])


def _take_refine_codes(
    snapshot: Snapshot, row_ids_U: npt.NDArray[np.uint64]
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint8]]:
    """Ids of rows, ascending, and their refine codes."""
    names = list(snapshot.codecs.columns.names)
    taken = take_rows_of_version(snapshot.dataset, names, row_ids_U)
    codes, _ = snapshot.codecs.read(taken)
    assert codes.refine is not None, "the table has refine codes"
    return row_ids_U, codes.refine


def rank_by_refine_codes(
    snapshot: Snapshot, queries_QD: Float32Array, candidates: Candidates, lookup: Tables, most: int
) -> list[Hits]:
    """Order candidates by (distance to the refined vector, row id).

    A GPU that scanned the rows may have scored them by their refine codes. On a CPU, rows whose codec gives
    no refine codes are decoded, and refine codes are read, and tables for them made, in turns of queries, so
    that memory is bounded.

    Args:
        snapshot: the version that has the rows.
        queries_QD: checked queries.
        candidates: candidates of every query.
        lookup: look-up tables of the queries, for at least one generation.
        most: how many of the nearest rows that a stage considers matter, as in `ordered_hits`.
    """
    hits: list[Hits] = []
    for turn in query_turns(candidates):
        tables = {first: each.select(turn) for first, each in lookup.items()}
        some = candidates[turn]
        if some.refined_H is None:
            some = with_refine_codes(snapshot, some)
        hits += ordered_hits(some, _distances(snapshot.codecs, queries_QD[turn], some, tables), most)
    return hits


def _distances(
    codecs: TableCodec, queries_QD: Float32Array, candidates: Candidates, lookup: Tables
) -> Float32Array:
    """The distances (H,) of candidates, which have refine codes, or scores by these, and look-up tables."""
    units, queries_H = next(iter(lookup.values())).units, candidates.queries_H
    if candidates.refined_H is not None:
        return refined_distances(queries_H, candidates.refined_H, units, codecs.metric)
    generations = [each for each in codecs.generations if each.first_partition in lookup]
    refine = codecs.refine_tables(queries_QD, generations, units)
    return _refined_distances(codecs, queries_QD, queries_H, candidates.rows, lookup, refine)


def rank_by_estimates(codecs: TableCodec, candidates: Candidates, lookup: Tables, most: int) -> list[Hits]:
    """Order candidates by (approximate distance of look-up tables, row id).

    Distances are computed anew: under cosine, the scan rounds lengths.
    """
    rows, queries_H = candidates.rows, candidates.queries_H
    distances_H = np.empty(len(rows), np.float32)
    for generation, places in codecs.by_generation(rows.codes) if len(rows) else ():
        tables, queries_X = lookup[generation.first_partition], queries_H[places]
        scores_X = tables.score_each(queries_X, local_codes(rows.codes[places], generation))
        distances_H[places] = to_float32(tables.units.distances_of(queries_X, scores_X))
    return ordered_hits(candidates, distances_H, most)


def _refined_distances(
    codecs: TableCodec,
    queries_QD: Float32Array,
    queries_H: Positions,
    rows: CodeBatch,
    lookup: Tables,
    refine: Mapping[int, RefineTables],
) -> Float32Array:
    """The distances (H,) of rows, each to a query of its own."""
    distances_H = np.empty(len(rows), np.float32)
    if len(rows) == 0:  # for which no refine codes were read
        return distances_H
    for generation, places in codecs.by_generation(rows.codes):
        codes, queries_X, first = rows.codes[places], queries_H[places], generation.first_partition
        if first in refine:
            local, tables = local_codes(codes, generation), lookup[first]
            scores_X = generation.codec.refined_scores(tables, refine[first], queries_X, local)
            distances_H[places] = refined_distances(queries_X, scores_X, tables.units, codecs.metric)
        else:
            distances_H[places] = decoded_distances(codecs, queries_QD, codes.unrefined, queries_X)
    return distances_H
