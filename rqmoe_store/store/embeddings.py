"""Embedding functions: LanceDB's, of the table's vector column and of others.

LanceDB describes it in the metadata of a table's schema, beside the column it computes. A compressed
table has no such column, so the description moves to a key of ours, and the function is called from here.
Shapes: N rows, W rows still without a vector, V rows with one, D components.

Shapes: N rows.
"""

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lancedb.embeddings import EmbeddingFunction, EmbeddingFunctionConfig, get_registry

from rqmoe_store.codecs.vectors import Float32Array, as_vectors, from_torch
from rqmoe_store.config import Metric
from rqmoe_store.errors import InvalidInputError, RQMoEError, TableError
from rqmoe_store.store.metadata import PREFIX
from rqmoe_store.store.vector_arrays import with_replaced

Metadata = dict[bytes, bytes]

_LANCEDB_KEY = b"embedding_functions"
_OUR_KEY = f"{PREFIX}embedding_function".encode()
_DESCRIBED_BY = {"name": str, "model": dict, "source_column": str, "vector_column": str}


def embedding_description(metadata: Metadata | None) -> bytes | None:
    """What schema metadata say about the embedding function of a table's vectors, if it has one."""
    return (metadata or {}).get(_OUR_KEY)


def moved_embedding(metadata: Metadata | None, vector_column: str, table_name: str) -> Metadata:
    """Schema `metadata` for a table without `vector_column`.

    The description of that column's embedding function is under our key, where LanceDB, which could
    not add rows to the table otherwise, does not look for it. Those of other columns stay.

    Raises:
        TableError: the descriptions are not what LanceDB writes.
    """
    metadata = metadata or {}
    described = _parsed(metadata.get(_LANCEDB_KEY, b"[]"), list, table_name)
    others = [each for each in described if each["vector_column"] != vector_column]
    kept = {key: value for key, value in metadata.items() if key not in (_LANCEDB_KEY, _OUR_KEY)}
    if others:
        kept[_LANCEDB_KEY] = json.dumps(others).encode()
    if len(others) < len(described):
        # LanceDB takes the last one, should a column have several.
        own = [each for each in described if each["vector_column"] == vector_column][-1]
        kept[_OUR_KEY] = json.dumps(own).encode()
    return kept


class TableEmbedding:
    """An embedding function as LanceDB describes it, made when first needed."""

    def __init__(self, description: dict[str, Any], dim: int, metric: Metric) -> None:
        self.name: str = description["name"]
        """Name under which LanceDB's registry knows the function."""
        self.source_column: str = description["source_column"]
        """Column whose values the function turns into vectors."""
        self._description = description
        self._dim, self._metric = dim, metric

    @classmethod
    def read(
        cls, metadata: Metadata | None, dim: int, metric: Metric, table_name: str
    ) -> "TableEmbedding | None":
        """The embedding function kept in schema `metadata`, or None when there is none.

        Args:
            metadata: of the table's schema.
            dim, metric: what its vectors must fit.
            table_name: for messages.

        Raises:
            TableError: its description is unreadable.
        """
        stored = embedding_description(metadata)
        return None if stored is None else cls(_parsed(stored, dict, table_name), dim, metric)

    def of_query(self, query: Any) -> Float32Array:
        """The vector of a query (text, or whatever else the function takes): float32 (D,).

        Raises:
            RQMoEError: the function is not registered, lacks a package, or fails.
            InvalidInputError: it gives no vector, or one the table cannot be searched by.
        """
        made = self._called(self._function.compute_query_embeddings_with_retry, query)
        vectors_VD, rows_V = self._checked(made[:1], np.zeros(1, dtype=np.int64))
        if len(rows_V) == 0:
            raise InvalidInputError(f"{self} gives no vector for {query!r}; pass a vector instead.")
        (vector_D,) = vectors_VD
        return np.asarray(vector_D)

    def complete(
        self, vectors_VD: Float32Array, valid_N: npt.NDArray[np.bool_], rows: pa.Table, first_row: int
    ) -> tuple[Float32Array, npt.NDArray[np.bool_]]:
        """Vectors for the rows without one, from their source column.

        Rows whose source is null, or for which the function gives nothing, stay without.

        Args:
            vectors_VD: vectors of the rows where `valid_N` is True.
            valid_N: which of the rows have a vector.
            rows: N rows; without the source column nothing is computed.
            first_row: position of the first row, for messages.

        Returns:
            `vectors_VD` and `valid_N` with the computed ones filled in.

        Raises:
            RQMoEError, InvalidInputError: as `of_query`, with rows named by position.
        """
        if self.source_column not in rows.column_names:
            return vectors_VD, valid_N
        rows_W, made = self._made(rows, ~valid_N)
        if len(rows_W) == 0:
            return vectors_VD, valid_N
        made_VD, positions_V = self._checked(made, first_row + rows_W)
        made_rows = positions_V - first_row
        vectors_ND = np.zeros((len(valid_N), self._dim), dtype=np.float32)
        vectors_ND[valid_N] = vectors_VD
        vectors_ND[made_rows] = made_VD
        valid_N = valid_N.copy()
        valid_N[made_rows] = True
        return vectors_ND[valid_N], valid_N

    def filled_in(self, vectors: pa.Array, rows: pa.Table) -> pa.Array:
        """`vectors` (N), lists of numbers, with those that are null computed as in `complete`; what comes out
        of the function is not looked at.

        Raises:
            RQMoEError: the function is not registered, lacks a package, or fails.
            InvalidInputError: it gives something else than lists of numbers.
        """
        if self.source_column not in rows.column_names:
            return vectors
        rows_W, made = self._made(rows, vectors.is_null().to_numpy(zero_copy_only=False))
        lists = pa.list_(pa.float32())
        try:
            arrays = [
                None if each is None else np.asarray(from_torch(each), dtype=np.float32) for each in made
            ]
            values = pa.array(arrays, type=lists)
        except (TypeError, ValueError) as error:
            raise InvalidInputError(f"{self} gives unusable vectors: {error}") from error
        return with_replaced(vectors.cast(lists, safe=False), rows_W, values)

    def _made(
        self, rows: pa.Table, missing_N: npt.NDArray[np.bool_]
    ) -> tuple[npt.NDArray[np.int64], list[Any]]:
        """What the function makes of the sources of rows whose vector is missing, and which rows (W,)."""
        source = rows[self.source_column].combine_chunks()
        rows_W = np.flatnonzero(missing_N & source.is_valid().to_numpy(zero_copy_only=False))
        if len(rows_W) == 0:
            return rows_W, []
        made = self._called(self._function.compute_source_embeddings_with_retry, source.take(rows_W))
        if len(made) != len(rows_W):
            raise InvalidInputError(f"{self} gives {len(made)} vectors for {len(rows_W)} rows.")
        return rows_W, made

    @functools.cached_property
    def _function(self) -> EmbeddingFunction:
        registry = get_registry()
        try:
            registry.get(self.name)
        except KeyError as error:
            raise RQMoEError(
                f"{self} is not registered in this process. Import the module that registers it with "
                "lancedb.embeddings.register, or pass vectors instead of text."
            ) from error
        try:
            described = {_LANCEDB_KEY: json.dumps([self._description]).encode()}
            (config,) = registry.parse_functions(described).values()
            # Asked before any text is embedded: a package that is missing shows at once, not after
            # LanceDB's retries.
            dim = config.function.ndims()
        except ImportError as error:
            raise RQMoEError(f"{self} needs a package that is not installed: {error}") from error
        except Exception as error:
            raise RQMoEError(f"{self} cannot be made ({type(error).__name__}: {error}).") from error
        if dim != self._dim:
            raise InvalidInputError(f"{self} makes vectors of dimension {dim}; expected {self._dim}.")
        return config.function

    def _called(self, compute: Callable[[Any], Any], argument: Any) -> list[Any]:
        try:
            return list(compute(argument))
        except Exception as error:
            raise RQMoEError(f"{self} failed ({type(error).__name__}: {error}).") from error

    def _checked(
        self, made: list[Any], positions_W: npt.NDArray[np.int64]
    ) -> tuple[Float32Array, npt.NDArray[np.int64]]:
        """The embeddings as float32 (V, D), less empty ones, and where they stand (V,)."""
        dim, metric = self._dim, self._metric
        try:
            arrays = [
                np.zeros(0) if each is None else np.asarray(from_torch(each), dtype=np.float32)
                for each in made
            ]
            filled = [index for index, array in enumerate(arrays) if array.size > 0]
            for index in filled:
                if arrays[index].shape != (dim,):
                    raise InvalidInputError(
                        f"row {positions_W[index]} has shape {arrays[index].shape}; expected ({dim},)."
                    )
            vectors_VD = np.array([arrays[index] for index in filled], dtype=np.float32).reshape(-1, dim)
            positions_V = positions_W[filled]
            as_vectors(vectors_VD, dim=dim, metric=metric, positions=positions_V)
        except (TypeError, ValueError) as error:  # an InvalidInputError is a ValueError
            raise InvalidInputError(f"{self} gives unusable vectors: {error}") from error
        return vectors_VD, positions_V

    def __str__(self) -> str:
        return f"The embedding function {self.name!r} of column {self.source_column!r}"


def _parsed(text: bytes, container: type, table_name: str) -> Any:
    """A description, or a list of descriptions, from JSON."""
    try:
        parsed = json.loads(text)
    except ValueError:
        parsed = None
    described = parsed if isinstance(parsed, list) else [parsed]
    if not isinstance(parsed, container) or not all(map(_is_description, described)):
        raise TableError(
            f"Table {table_name!r} describes its embedding functions as {text!r}; expected what LanceDB "
            "writes. Restore an earlier version of the table, or remove this key from its schema's metadata."
        )
    return parsed


def _is_description(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(key), kind) for key, kind in _DESCRIBED_BY.items()
    )


_KEY = b"embedding_functions"


def computed_from(metadata: Mapping[bytes, bytes] | None) -> dict[str, str]:
    """Vector columns that LanceDB has an embedding function for, and the columns these take."""
    described = json.loads((metadata or {}).get(_KEY, b"[]"))
    return {each["vector_column"]: each["source_column"] for each in described}


def complete_others(metadata: Mapping[bytes, bytes] | None, table_name: str, rows: pa.Table) -> pa.Table:
    """`rows` with the vectors that LanceDB's embedding functions make of their source columns.

    Vectors that rows have, and rows whose source is null, stay as they are.

    Args:
        metadata: of the table's schema, which describes the functions.
        table_name: for messages.
        rows: with some of its columns.

    Raises:
        RQMoEError: a function that is needed is not registered, lacks a package, or fails.
    """
    for column, config in _functions(metadata or {}, table_name).items():
        if column in rows.column_names and config.source_column in rows.column_names:
            place = rows.schema.get_field_index(column)
            rows = rows.set_column(place, rows.schema.field(place), _completed(rows, column, config))
    return rows


def _functions(metadata: Mapping[bytes, bytes], table_name: str) -> dict[str, EmbeddingFunctionConfig]:
    if _KEY not in metadata:
        return {}
    try:
        return get_registry().parse_functions({_KEY: metadata[_KEY]})
    except (KeyError, ImportError, ValueError) as error:
        raise RQMoEError(
            f"An embedding function of table {table_name!r} cannot be made ({error!r}). "
            "Import the module that registers it with lancedb.embeddings.register, and install what it needs."
        ) from error


def _completed(rows: pa.Table, column: str, config: EmbeddingFunctionConfig) -> pa.Array:
    vectors, source = rows[column].combine_chunks(), rows[config.source_column].combine_chunks()
    missing_N = (vectors.is_null().to_numpy(zero_copy_only=False)) & source.is_valid().to_numpy(
        zero_copy_only=False
    )
    if not missing_N.any():
        return vectors
    try:
        made = config.function.compute_source_embeddings_with_retry(source.filter(pa.array(missing_N)))
        made_array = pa.array([None if each is None else list(each) for each in made], type=vectors.type)
    except Exception as error:
        raise RQMoEError(
            f"The embedding function of column {column!r} failed ({type(error).__name__}: {error})."
        ) from error
    return with_replaced(vectors, np.flatnonzero(missing_N), made_array)
