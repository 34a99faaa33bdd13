"""Queries to tune a table with: the user's, or as good a likeness of them as the codes allow.

Shape suffixes: Q queries, D dimension.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from rqmoe_store.codecs.frame import to_float32
from rqmoe_store.codecs.vectors import Float32Array, as_vectors
from rqmoe_store.errors import TableError
from rqmoe_store.search.filters import row_id_filter
from rqmoe_store.search.options import as_queries
from rqmoe_store.search.segments import RowIds, concatenated
from rqmoe_store.search.stored_codes import read_codes
from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.snapshot import Snapshot
from rqmoe_store.store.table_codec import TableCodec


@dataclasses.dataclass(frozen=True)
class TuningQueries:
    """Checked queries, and the row that each was made from, which it is not to find."""

    queries_QD: Float32Array
    own_Q: RowIds | None = None

    def __len__(self) -> int:
        return len(self.queries_QD)


def given_queries(queries: Any, codecs: TableCodec, *, sample: int, seed: int) -> TuningQueries:
    """The user's queries, a seeded sample if there are more than `sample`. Raises as `as_queries`."""
    queries_QD = as_queries(queries, dim=codecs.dim, metric=codecs.metric)
    if len(queries_QD) > sample:
        chosen = np.random.default_rng(seed).choice(len(queries_QD), sample, replace=False)
        queries_QD = queries_QD[np.sort(chosen)]
    return TuningQueries(queries_QD)


def queries_from_rows(
    snapshot: Snapshot,
    row_ids: RowIds,
    columns: CodeColumns,
    *,
    sample: int,
    seed: int,
) -> TuningQueries:
    """Vectors that rows of the table may have had before they were encoded.

    A reconstruction is not such a vector. It is made of the codewords that its neighbours share, and
    lies deeper inside its partition than any vector: searches that probe few partitions look better on
    reconstructions than they are. So each is moved in a random direction, as far as vectors lay from
    their reconstructions in training. Its own row is what it would find first, and no query has one.

    Args:
        snapshot: the version to read.
        row_ids: of all rows with a vector.
        columns: of the table.
        sample: rows used at most.
        seed: of the rows and the directions.

    Raises:
        TableError: there is only one row, so that nothing would be left to find.
    """
    if len(row_ids) < 2:
        raise TableError(
            f"Table {snapshot.table.name!r} has {len(row_ids)} row with a vector; expected at least 2 to "
            "tune with its own rows. Add rows, or pass queries."
        )
    random = np.random.default_rng(seed)
    chosen = random.choice(row_ids, min(sample, len(row_ids)), replace=False)
    batches = read_codes(snapshot, columns, row_id_filter(chosen))
    rows = concatenated(list(batches))
    rows = rows[np.argsort(rows.row_ids_N)]
    codecs = snapshot.codecs
    assert codecs.newest is not None, "rows have codes"
    moves_QD = random.normal(size=(len(rows), codecs.dim))
    moves_QD *= math.sqrt(codecs.newest.report.validation_mse) / np.linalg.norm(
        moves_QD, axis=1, keepdims=True
    )
    queries_QD = as_vectors(to_float32(codecs.decode(rows.codes) + moves_QD), metric=codecs.metric)
    return TuningQueries(queries_QD, rows.row_ids_N)
