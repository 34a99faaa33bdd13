"""Giving a table one more codec, and raw vectors to train it on."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lancedb.table import LanceTable

from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import CodecConfig
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.store import databases, registry
from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.generations import mark_of
from rqmoe_store.store.metadata import TableMarks
from rqmoe_store.store.sql import quoted
from rqmoe_store.store.table_codec import TableCodec
from rqmoe_store.store.takes import take_rows
from rqmoe_store.store.vector_arrays import read_vectors, rows_per_batch


def add_generation(
    table: LanceTable, codec: Codec, config: CodecConfig, known: TableCodec, *, first: bool
) -> bool:
    """Make `codec` the newest one of a table, from the next commit on; no row is encoded by it yet.

    Args:
        table: any handle on it.
        codec: of the table's dimension, metric and code width.
        config: what it was asked to be, with nothing decided from the rows yet.
        known: the codecs of some version.
        first: leave a table alone that has a codec, which others may have given it while this one was
            trained: what theirs has encoded would lose more by being encoded again.

    Returns:
        Whether it is the newest one now.

    Raises:
        InvalidInputError: a codec of another shape.
    """
    database = databases.database_of(table)
    _require_fit(codec, known, table.name)
    registry.save(database, codec)  # before the table that needs it says so
    mark = mark_of(codec)
    while True:
        newest = databases.reopened(table)
        marks = TableMarks.read(newest.schema, table.name)
        if marks.generations and (first or marks.generations[-1] == mark):
            return marks.generations[-1] == mark
        dataset = newest.to_lance()
        changed = marks.with_generation(mark, config)
        written: dict[str, str | None] = {
            key.decode(): value.decode() for key, value in changed.write(None).items()
        }
        try:
            dataset.update_schema_metadata(written)
        except OSError:
            # Two writers of the marks are a conflict: the one that comes second starts again.
            if dataset.latest_version == dataset.version:
                raise
        else:
            return True


def sampled_vectors(
    table: LanceTable, codecs: TableCodec, *, decoded: bool, max_rows: int, seed: int
) -> Float32Array:
    """A seeded sample of the vectors of a table, at most `max_rows` (n, D), in random order.

    Args:
        table: any handle on it.
        codecs: of its newest version.
        decoded: take what codes decode to, instead of vectors that are there as they were.
        max_rows, seed: of the sample.

    Raises:
        TableError: there are none.
    """
    columns, newest = CodeColumns(codecs.marks.vector_column), databases.reopened(table)
    column = columns.code if decoded else columns.vector_column
    condition = f"{quoted(column)} IS NOT NULL"
    found = newest.to_lance().scanner(columns=[], filter=condition, with_row_id=True).to_table()
    if found.num_rows == 0:
        raise TableError(
            f"Table {table.name!r} has no {'codes to decode' if decoded else 'raw vectors'} to train on. "
            "Add rows, or pass vectors."
        )
    random = np.random.default_rng(seed)
    row_ids = found["_rowid"].to_numpy()
    chosen = np.sort(random.choice(row_ids, min(max_rows, len(row_ids)), replace=False))
    step = rows_per_batch(codecs.dim)
    parts = [
        _vectors_of(newest, columns, codecs, chosen[start : start + step], decoded)
        for start in range(0, len(chosen), step)
    ]
    return random.permutation(np.concatenate(parts))  # what lies together in a table is often alike


def _vectors_of(
    table: LanceTable,
    columns: CodeColumns,
    codecs: TableCodec,
    row_ids: npt.NDArray[np.uint64],
    decoded: bool,
) -> Float32Array:
    if decoded:
        taken = pa.table(take_rows(table, columns.names, row_ids), names=list(columns.names))
        return codecs.decode(columns.from_arrow(taken)[0])
    (column,) = take_rows(table, [columns.vector_column], row_ids)
    return read_vectors(column, dim=codecs.dim, metric=codecs.metric, first_row=0)[0]


def _require_fit(codec: Codec, known: TableCodec, table_name: str) -> None:
    expected = {"dim": known.dim, "metric": known.metric, "code_bytes": known.code_bytes}
    found = {"dim": codec.dim, "metric": codec.config.metric, "code_bytes": codec.config.code_bytes}
    for name, value in expected.items():
        if found[name] != value:
            raise InvalidInputError(
                f"Got a codec of {name} {found[name]!r} for table {table_name!r}; expected {name} {value!r}, "
                "which a table has for good. Compress it into a new table to change that."
            )
