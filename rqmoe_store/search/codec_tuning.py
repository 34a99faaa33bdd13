"""Tune a table's codec by relevance: queries and the rows that they should find correct its distances.

No row is encoded again. Rows of the newest codec are read by one with the same codes, which takes a
correction off distances (`training.relevance`). Searches for queries that were held out decide whether it is
kept.

Shape legend: Q queries, C rows of a query, D vector dimension, K nearest rows, B rows of a batch.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rqmoe_store.arguments import open_share, whole_number
from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.frame import Float64Array
from rqmoe_store.codecs.neighbors import NearestRows
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.progress import progress_bar
from rqmoe_store.search.execution import Execution
from rqmoe_store.search.request import SearchRequest, Trace, VectorOptions, as_queries
from rqmoe_store.search.rerank import exact_distances
from rqmoe_store.search.resident import read_codes, row_id_filter
from rqmoe_store.search.segments import CodeBatch, RowIds, concatenated, no_rows
from rqmoe_store.search.source import TableSource, TableState
from rqmoe_store.store import databases, registry
from rqmoe_store.store.handle import Handle
from rqmoe_store.store.lance import retry_on_conflict
from rqmoe_store.store.metadata import TableMetadata
from rqmoe_store.store.sql import quoted
from rqmoe_store.store.vector_arrays import read_vectors, rows_per_batch
from rqmoe_store.training.positives import PositiveValues
from rqmoe_store.training.relevance import (
    FOUND_ROWS,
    HELD_OUT,
    RANKED,
    FoundRows,
    RelevanceReport,
    ndcg,
    recall,
    require_tunable,
    split_queries,
    train_correction,
)

_QUERIES = 64
"""Queries that are searched for together."""

Advance = Callable[[int], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelevanceSettings:
    """What to tune a codec for."""

    positives: Any = None
    """For each query the values that rows which answer it have in the column `on`; None for the exact
    neighbors of each query."""
    on: str | None = None
    """A column; None for the table's key."""
    held_out: float = HELD_OUT
    """Share of the queries that decide whether the result is kept."""
    seed: int = 0
    """Seed of that choice, and of the order of training."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "held_out", open_share("held_out", self.held_out))
        object.__setattr__(self, "seed", whole_number("seed", self.seed, 0))
        if self.on is not None and (self.positives is None or not isinstance(self.on, str)):
            raise InvalidInputError(
                f"Got on={self.on!r} {'without' if self.positives is None else 'with'} positives; expected "
                "the name of the column that has the positives, or neither of them."
            )


def tune_codec(
    source: TableSource, queries: Any, settings: RelevanceSettings, *, progress: bool
) -> RelevanceReport:
    """See `CompressedTable.tune_codec`."""
    reader = source.reader()
    handle = reader.handle
    handle.refresh()

    def tuned(state: TableState) -> tuple[TableMetadata, Codec | None, RelevanceReport]:
        return (state.snapshot.codecs.metadata, *_tune(state, handle, queries, settings, progress))

    metadata, codec, report = reader.read(tuned)
    if codec is not None:
        registry.save(databases.database_of(handle.table), codec)  # before a table names it
        _commit(handle, metadata, codec)
        handle.refresh()
    return report


def _commit(handle: Handle, expected: TableMetadata, codec: Codec) -> None:
    """Have the codec read the rows of the newest one, unless the table has got another codec meanwhile."""

    def commit() -> None:
        newest = databases.reopen(handle.table)
        metadata = TableMetadata.read(newest.schema, handle.name)
        if metadata.generations != expected.generations:
            raise TableError(
                f"Table {handle.name!r} was given a codec by another process while its codec was tuned. That "
                "one stays, and nothing was changed; tune it again."
            )
        changed = metadata.with_tuned_codec(codec.fingerprint).write(None)
        newest.to_lance().update_schema_metadata(
            {key.decode(): value.decode() for key, value in changed.items()}
        )

    retry_on_conflict(commit)


def _tune(
    state: TableState, handle: Handle, queries: Any, settings: RelevanceSettings, progress: bool
) -> tuple[Codec | None, RelevanceReport]:
    """A tuned codec, None if it is not to be kept, and what queries that were held out find."""
    codecs, name = state.snapshot.codecs, handle.name
    codec = codecs.newest
    if codec is None or state.snapshot.rows == 0:
        raise TableError(
            f"Table {name!r} has no codec, or no rows; train one, and add rows, before tuning it."
        )
    if codecs.metadata.multi_vector is not None:
        raise InvalidInputError(
            f"Got table {name!r}, whose rows have many vectors each; expected a table with one vector a row."
        )
    require_tunable(codec)
    if len(state.snapshot.places_in_use) > 1:
        raise TableError(
            f"Table {name!r} has rows of an earlier codec; expected all rows to be of the newest. Call "
            "optimize(), which encodes them, and tune the codec then."
        )
    queries_QD = as_queries(queries, dim=codecs.dim, metric=codecs.metric)
    training_Q, held_Q = split_queries(queries_QD, settings.held_out, settings.seed)
    relevant = _relevant_rows(state, handle, queries_QD, settings)
    training_K, held_K = [relevant[query] for query in training_Q], [relevant[query] for query in held_Q]
    untuned = _with_codec(state, codec.with_correction(None))
    with progress_bar(progress) as bar:
        task = bar.add_task("Searching", total=len(training_Q) + 2 * len(held_Q))

        def advance(count: int) -> None:
            bar.advance(task, count)

        found = _find_rows(untuned, handle, queries_QD[training_Q], training_K, advance)
        correction = train_correction(codec, found, settings.seed)
        tuned = codec.with_correction(correction)
        before = _measured(state, handle, queries_QD[held_Q], held_K, advance)
        after = _measured(_with_codec(state, tuned), handle, queries_QD[held_Q], held_K, advance)
    report = RelevanceReport.of(
        before, after, labeled=settings.positives is not None, training_queries=len(training_Q)
    )
    return (tuned if report.kept and correction is not None else None), report


def _with_codec(state: TableState, codec: Codec) -> TableState:
    """The version as if its newest codec were another one with the same codes."""
    snapshot = dataclasses.replace(state.snapshot, codecs=state.snapshot.codecs.read_by(codec))
    return dataclasses.replace(state, snapshot=snapshot)


def _relevant_rows(
    state: TableState, handle: Handle, queries_QD: Float32Array, settings: RelevanceSettings
) -> list[RowIds]:
    """The ids of the rows that each query should find."""
    if settings.positives is not None:
        return _labeled_rows(state, handle, len(queries_QD), settings)
    if state.snapshot.codecs.metadata.keep_vectors == "none":
        raise InvalidInputError(
            f"Got no positives, and table {handle.name!r} keeps no vectors, which would tell the exact "
            "neighbors of queries. Pass positives; or tune the codec by rqmoe_store.tune_codec, on vectors, "
            "before the table is compressed."
        )
    return _exact_neighbors(state, handle, queries_QD)


def _labeled_rows(
    state: TableState, handle: Handle, queries: int, settings: RelevanceSettings
) -> list[RowIds]:
    column, schema = settings.on or handle.key, state.snapshot.schema
    if column is None or column not in schema.names:
        raise InvalidInputError(
            f"Got on={settings.on!r}; expected a column of table {handle.name!r} that has the positives."
        )
    values = PositiveValues(settings.positives, queries, schema.field(column))
    condition = f"{quoted(handle.columns.code)} IS NOT NULL"
    rows = state.snapshot.dataset.scanner([column], filter=condition, with_row_id=True).to_table()
    where = f"table {handle.name!r}"
    return values.rows_of_queries(values.places(rows[column]), rows["_rowid"].to_numpy(), where)


def _exact_neighbors(state: TableState, handle: Handle, queries_QD: Float32Array) -> list[RowIds]:
    """The rows with a code whose raw vectors are nearest, by reading all of them once."""
    snapshot, columns = state.snapshot, handle.columns
    codecs = snapshot.codecs
    nearest = NearestRows(queries_QD, RANKED, codecs.metric)
    scanner = snapshot.dataset.scanner(
        [columns.vector_column],
        filter=f"{quoted(columns.code)} IS NOT NULL AND {quoted(columns.vector_column)} IS NOT NULL",
        with_row_id=True,
        batch_size=rows_per_batch(codecs.dim),
    )
    for batch in scanner.to_batches():
        column = batch[columns.vector_column]
        vectors_BD, valid = read_vectors(column, dim=codecs.dim, metric=codecs.metric, first_row=0)
        nearest.add(vectors_BD, batch["_rowid"].to_numpy()[valid].astype(np.int64))
    if nearest.ids_QK.shape[1] == 0:
        raise TableError(f"Table {handle.name!r} has no rows with a code and a raw vector; add some.")
    return list(nearest.ids_QK.astype(np.uint64))


def _find_rows(
    state: TableState,
    handle: Handle,
    queries_QD: Float32Array,
    relevant: Sequence[RowIds],
    advance: Advance,
) -> FoundRows:
    """The rows that searches find, and those that are relevant, with their codes and distances."""
    codecs = state.snapshot.codecs
    options = VectorOptions(rerank="decoded", shortlist=FOUND_ROWS)
    batches: list[CodeBatch] = []
    distances: list[Float32Array] = []
    for start in range(0, len(queries_QD), _QUERIES):
        some_QD = queries_QD[start : start + _QUERIES]
        candidates = _execution(state, handle, some_QD, options).candidates()
        for query, each in enumerate(candidates.each()):
            wanted = np.setdiff1d(relevant[start + query], each.rows.row_ids_N)
            rows = concatenated([each.rows, _codes_of(state, handle, wanted)])
            batches.append(rows)
            distances.append(exact_distances(some_QD[query], codecs.decode(rows.codes), codecs.metric))
        advance(len(some_QD))
    shape = len(batches), max(map(len, batches))
    found = FoundRows(
        queries_QD,
        np.full(shape, np.inf, np.float32),
        np.zeros(shape, np.int32),
        np.zeros((*shape, codecs.code_bytes), np.uint8),
        np.zeros(shape, np.bool_),
    )
    first = codecs.generations[-1].first_partition
    for query, (rows, distances_C) in enumerate(zip(batches, distances, strict=True)):
        found.distances_QC[query, : len(rows)] = np.nan_to_num(distances_C, nan=np.inf)
        found.partitions_QC[query, : len(rows)] = rows.codes.partitions - first
        found.codes_QCM[query, : len(rows)] = rows.codes.codes
        found.relevant_QC[query, : len(rows)] = np.isin(rows.row_ids_N, relevant[query])
    return found


def _codes_of(state: TableState, handle: Handle, row_ids: RowIds) -> CodeBatch:
    if len(row_ids) == 0:
        return no_rows(state.snapshot.codecs.code_bytes)
    return concatenated(list(read_codes(state.snapshot, handle.columns, row_id_filter(row_ids))))


def _execution(
    state: TableState, handle: Handle, queries_QD: Float32Array, options: VectorOptions
) -> Execution:
    parameters = options.parameters(state.snapshot.codecs, state.snapshot.tuned)
    request = SearchRequest(
        queries_QD=queries_QD, limit=RANKED, parameters=parameters, stages=parameters.stages(RANKED)
    )
    return Execution(request, state, handle.columns, Trace())


def _measured(
    state: TableState,
    handle: Handle,
    queries_QD: Float32Array,
    relevant: Sequence[RowIds],
    advance: Advance,
) -> tuple[Float64Array, Float64Array]:
    """nDCG@10 and recall@10 (Q,) of searches with default parameters."""
    hits_QC = np.zeros((len(queries_QD), RANKED), np.bool_)
    for start in range(0, len(queries_QD), _QUERIES):
        some_QD = queries_QD[start : start + _QUERIES]
        for query, hits in enumerate(_execution(state, handle, some_QD, VectorOptions()).run(), start):
            hits_QC[query, : len(hits)] = np.isin(hits.row_ids_S, relevant[query])
        advance(len(some_QD))
    counts_Q = np.array([len(each) for each in relevant])
    return ndcg(hits_QC, counts_Q), recall(hits_QC, counts_Q)
