"""Vectors to advise on: a LanceDB table, a compressed one, an array or a path, read in order or by position.

Shape legend: N rows of a batch, n of them with a vector, D vector dimension.
"""

import dataclasses
import functools
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from lancedb.table import Table

from rqmoe_store.arguments import is_text
from rqmoe_store.codecs.vectors import Float32Array, as_vectors, is_dense
from rqmoe_store.config import Metric
from rqmoe_store.errors import InvalidInputError, warn_caller
from rqmoe_store.evaluation.data import VectorSource
from rqmoe_store.search.multivector import require_one_vector
from rqmoe_store.search.resident import read_codes
from rqmoe_store.search.segments import concatenated, no_rows
from rqmoe_store.store.compress import require_local_table
from rqmoe_store.store.databases import database_of
from rqmoe_store.store.handle import Handle, OpenTable
from rqmoe_store.store.health import CommitError, HealthReport, measure_health, recent_errors
from rqmoe_store.store.metadata import has_metadata
from rqmoe_store.store.vector_arrays import is_vector_type, plain_vectors, require_vector_column

Offsets = npt.NDArray[np.int64]
"""Positions of rows in the source, rows without a vector included."""

_CHUNK_ROWS = 16_384


@dataclasses.dataclass(frozen=True)
class ArrayVectors:
    """Vectors of an array, which may be memory-mapped."""

    name: str
    data: Any
    metric: Metric | None = None
    """The metric that the source is searched by; None if it does not say."""

    @property
    def offsets(self) -> int:
        """Number of positions."""
        return len(self.data)

    def chunks(self, metric: Metric) -> Iterator[tuple[Offsets, Float32Array]]:
        """Yield all positions, ascending, and their vectors (n, D)."""
        for start in range(0, self.offsets, _CHUNK_ROWS):
            yield self.take(np.arange(start, min(start + _CHUNK_ROWS, self.offsets)), metric)

    def take(self, offsets: Offsets, metric: Metric) -> tuple[Offsets, Float32Array]:
        """The positions, of ascending ones, that have a vector, and these vectors (n, D)."""
        return offsets, _as_source(self.name, self.data[offsets], metric=metric, positions=offsets)


@dataclasses.dataclass(frozen=True)
class TableVectors:
    """Vectors of a column of a LanceDB table."""

    name: str
    table: Any
    column: str
    metric: Metric | None = None

    @functools.cached_property
    def offsets(self) -> int:
        return int(self.table.count_rows())

    def chunks(self, metric: Metric) -> Iterator[tuple[Offsets, Float32Array]]:
        first, dim = 0, None
        for batch in self.table.search().select([self.column]).to_batches(_CHUNK_ROWS):
            offsets = np.arange(first, first + len(batch))
            offsets, vectors_nD = self._read(batch[self.column], offsets, dim, metric)
            first += len(batch)
            if len(offsets):
                dim = vectors_nD.shape[1]
                yield offsets, vectors_nD

    def take(self, offsets: Offsets, metric: Metric) -> tuple[Offsets, Float32Array]:
        rows = self.table.take_offsets(offsets.tolist()).select([self.column]).to_arrow()
        return self._read(rows[self.column], offsets, None, metric)

    def _read(
        self, column: Any, offsets: Offsets, dim: int | None, metric: Metric
    ) -> tuple[Offsets, Float32Array]:
        array = plain_vectors(column)
        present = offsets[array.is_valid().to_numpy(zero_copy_only=False)]
        array = array.drop_null()
        dims = set(np.unique(array.value_lengths().to_numpy(zero_copy_only=False)).tolist())
        if dim is not None and len(array):
            dims.add(dim)
        if len(dims) > 1:
            raise InvalidInputError(
                f"Column {self.column!r} of table {self.name!r} holds vectors of dimensions {sorted(dims)}; "
                "expected one. Were they made by different embedding models?"
            )
        if len(array) == 0:
            return present, np.empty((0, dim or 0), np.float32)
        values = array.flatten().to_numpy(zero_copy_only=False)
        try:
            vectors_nD = as_vectors(values.reshape(len(array), -1), metric=metric, positions=present)
        except InvalidInputError as error:
            raise InvalidInputError(f"Table {self.name!r}, column {self.column!r}: {error}") from error
        return present, vectors_nD


@dataclasses.dataclass(frozen=True)
class DecodedVectors:
    """Decoded vectors of a compressed table that keeps no others; its codes are in memory."""

    name: str
    handle: Handle
    metric: Metric | None

    @functools.cached_property
    def _codes(self) -> Any:
        snapshot = self.handle.snapshots.current()
        batches = read_codes(snapshot, self.handle.columns, refine=True)
        return concatenated([no_rows(snapshot.codecs.code_bytes), *batches]).codes

    @property
    def offsets(self) -> int:
        return len(self._codes)

    def chunks(self, metric: Metric) -> Iterator[tuple[Offsets, Float32Array]]:
        for start in range(0, self.offsets, _CHUNK_ROWS):
            yield self.take(np.arange(start, min(start + _CHUNK_ROWS, self.offsets)), metric)

    def take(self, offsets: Offsets, metric: Metric) -> tuple[Offsets, Float32Array]:
        decoded_nD = self.handle.codecs.decode(self._codes[offsets])
        return offsets, as_vectors(decoded_nD, metric=metric, positions=offsets)

    def health(self) -> tuple[HealthReport, tuple[CommitError, ...]]:
        """Whether the codec of the table fits the rows added to it, in all and by commit."""
        snapshot = self.handle.snapshots.current()
        commits = recent_errors(snapshot.dataset, snapshot.codecs)
        return measure_health(snapshot.table, snapshot.codecs), tuple(commits)


Vectors = ArrayVectors | TableVectors | DecodedVectors
"""Vectors that are read in order or by position; rows without a vector are left out of both."""


def open_vectors(source: Any, vector_column: str) -> Vectors:
    """The vectors of a table, an array, or the path of a .npy file or of a table's .lance folder.

    Raises:
        TableError: there is no such table or column, or the table is empty.
        InvalidInputError: the source is none of these, or cannot be read.
    """
    if isinstance(source, OpenTable):
        return _of_handle(source.handle)
    if isinstance(source, str | os.PathLike):
        return _at_path(os.fspath(source), vector_column)
    if isinstance(source, Table):
        return _of_table(source, vector_column)
    if is_dense(source) and source.ndim == 2:
        return ArrayVectors("array", source)
    if hasattr(source, "count_rows") or not hasattr(source, "__len__"):
        raise InvalidInputError(
            f"Got {type(source).__name__} as the source; expected a LanceDB table, an array of vectors "
            "(rows, dim), or the path of a .npy file or of a table's .lance folder."
        )
    return ArrayVectors("array", _as_source("array", source))


def _as_source(name: str, data: Any, **settings: Any) -> Float32Array:
    """The data as vectors; errors name the source."""
    try:
        return as_vectors(data, **settings)
    except InvalidInputError as error:
        raise InvalidInputError(f"The source {name!r}: {error}") from error


def _at_path(path: Any, vector_column: str) -> Vectors:
    if not is_text(path):
        raise InvalidInputError(f"Got source {path!r}; expected a path of valid Unicode.")
    data = VectorSource.open("source", path, vector_column).data
    return ArrayVectors(path, data) if isinstance(data, np.ndarray) else _of_table(data, vector_column)


def _of_table(table: Table, vector_column: str) -> Vectors:
    local = require_local_table(table)
    if has_metadata(local.schema):
        return _of_handle(Handle.open(database_of(local), local.name))
    schema = local.schema
    if vector_column not in schema.names or not is_vector_type(schema.field(vector_column).type):
        require_vector_column(schema, vector_column, 0)
    return TableVectors(local.name, local, vector_column)


def _of_handle(handle: Handle) -> Vectors:
    """The raw vectors of a compressed table if it has them, and what its codes decode to otherwise."""
    require_one_vector(handle, "advise", "Give an array of vectors like those of its rows.")
    handle.snapshots.current()
    if handle.kept.kept or handle.codecs.newest is None:
        return TableVectors(handle.name, handle.table, handle.kept.column, handle.metric)
    warn_caller(
        f"Table {handle.name!r} keeps no raw vectors. Its decoded vectors stand in for them, so errors of "
        "its own codec do not show: recall of the original vectors is lower than advised. Give the table or "
        "file that it was made from."
    )
    return DecodedVectors(handle.name, handle, handle.metric)
