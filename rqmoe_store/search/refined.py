"""Rank shortlists by refine codes, or by look-up tables alone.

Shape legend: Q queries, S rows of one query, U distinct rows, D vector dimension.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rqmoe_store.codecs.additive import LookupTables
from rqmoe_store.codecs.frame import to_float32
from rqmoe_store.codecs.refine import RefineTables
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.search.rerank import Hits, exact_distances, ordered, query_turns
from rqmoe_store.search.segments import Candidates, CodeBatch, concatenated
from rqmoe_store.store.lance import take_rows
from rqmoe_store.store.snapshot import Snapshot
from rqmoe_store.store.table_codec import TableCodec, local_codes

Tables = Mapping[int, LookupTables]
"""First partition of a generation -> look-up tables of queries."""


def with_refine_codes(snapshot: Snapshot, candidates: Sequence[Candidates]) -> list[Candidates]:
    """The candidates with refine codes; those that are not in memory are read from the table in one take."""
    missing = [each.rows for each in candidates if len(each) and each.rows.codes.refine is None]
    if not missing:
        return list(candidates)
    row_ids_U, refine_UR = _take_refine_codes(snapshot, np.unique(concatenated(missing).row_ids_N))
    return [
        each.with_refine(refine_UR[np.searchsorted(row_ids_U, each.rows.row_ids_N)])
        if len(each) and each.rows.codes.refine is None
        else each
        for each in candidates
    ]


def _take_refine_codes(
    snapshot: Snapshot, row_ids_U: npt.NDArray[np.uint64]
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint8]]:
    """Ids of rows, ascending, and their refine codes."""
    names = list(snapshot.codecs.columns.names)
    taken = pa.table(take_rows(snapshot.table, names, row_ids_U), names=names)
    codes, _ = snapshot.codecs.read(taken)
    assert codes.refine is not None, "the table has refine codes"
    return row_ids_U, codes.refine


def rank_by_refine_codes(
    snapshot: Snapshot, queries_QD: Float32Array, candidates: Sequence[Candidates], lookup: Tables
) -> list[Hits]:
    """Order candidates by (distance to the refined vector, row id).

    Rows whose codec gives no refine codes are decoded. Refine codes are read, and tables for them made, in
    turns of queries, so that memory is bounded.

    Args:
        snapshot: the version that has the rows.
        queries_QD: checked queries.
        candidates: candidates of every query.
        lookup: look-up tables of the queries, for at least one generation.
    """
    hits: list[Hits] = []
    for turn in query_turns(candidates):
        refined = with_refine_codes(snapshot, candidates[turn])
        tables = {first: each.select(turn) for first, each in lookup.items()}
        hits += _ranked(snapshot.codecs, queries_QD[turn], refined, tables)
    return hits


def _ranked(
    codecs: TableCodec, queries_QD: Float32Array, candidates: Sequence[Candidates], lookup: Tables
) -> list[Hits]:
    """The candidates of some queries, which have refine codes and look-up tables, in order."""
    generations = [each for each in codecs.generations if each.first_partition in lookup]
    units = next(iter(lookup.values())).units
    refine = codecs.refine_tables(queries_QD, generations, units)
    return [
        ordered(_hits(each, _refined_distances(codecs, query_D, query, each.rows, lookup, refine)))
        for query, (query_D, each) in enumerate(zip(queries_QD, candidates, strict=True))
    ]


def rank_by_estimates(candidates: Sequence[Candidates]) -> list[Hits]:
    """Order candidates by (approximate distance of look-up tables, row id)."""
    return [ordered(_hits(each, to_float32(each.estimates_S))) for each in candidates]


def _hits(candidates: Candidates, distances_S: Float32Array) -> Hits:
    return Hits(
        candidates.rows.row_ids_N,
        distances_S,
        stages_S=candidates.stages_S,
        estimates_S=candidates.estimates_S,
    )


def _refined_distances(
    codecs: TableCodec,
    query_D: Float32Array,
    query: int,
    rows: CodeBatch,
    lookup: Tables,
    refine: Mapping[int, RefineTables],
) -> Float32Array:
    distances_S = np.empty(len(rows), np.float32)
    if len(rows) == 0:  # for which no refine codes were read
        return distances_S
    for generation, places in codecs.by_generation(rows.codes):
        codes, first = rows.codes[places], generation.first_partition
        if first in refine:
            local = local_codes(codes, generation)
            scores_S = generation.codec.refined_scores(lookup[first], refine[first], query, local)
            (exact_S,) = lookup[first].units.select([query]).distances(scores_S[None])
            # Rounding may make the distance to a very near vector slightly negative.
            least = -np.inf if codecs.metric == "dot" else 0.0
            distances_S[places] = to_float32(np.maximum(exact_S, least))
        else:
            distances_S[places] = exact_distances(query_D, codecs.decode(codes), codecs.metric)
    return distances_S
