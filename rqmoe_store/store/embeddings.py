"""Embedding functions: LanceDB's functions that compute the vector column, or other columns, from texts.

LanceDB describes embedding functions in the metadata of a table's schema, and refuses rows if a described
column is missing. A compressed table has codes in place of its vector column, so the description of that
column moves to a metadata key of this package, and `TableEmbedding` calls its function. Functions of other
columns stay where they are, and `complete_others` calls them.

Shape legend: N rows, W rows without a vector, V rows with one, D components.
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
    """The description, in schema metadata, of the embedding function of a table's vector column, if any."""
    return (metadata or {}).get(_OUR_KEY)


def metadata_with_moved_embedding(metadata: Metadata | None, vector_column: str, table_name: str) -> Metadata:
    """Schema `metadata` with the embedding function of `vector_column` described under the package's key.

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
        # Of several descriptions of a column LanceDB uses the last.
        own = [each for each in described if each["vector_column"] == vector_column][-1]
        kept[_OUR_KEY] = json.dumps(own).encode()
    return kept


class TableEmbedding:
    """The embedding function of the vector column, instantiated when first needed."""

    def __init__(self, description: dict[str, Any], dim: int, metric: Metric) -> None:
        self.name: str = description["name"]
        """Name of the function in LanceDB's registry."""
        self.source_column: str = description["source_column"]
        """Column that the function computes vectors from."""
        self._description = description
        self._dim, self._metric = dim, metric

    @classmethod
    def read(
        cls, metadata: Metadata | None, dim: int, metric: Metric, table_name: str
    ) -> "TableEmbedding | None":
        """The embedding function described in schema `metadata`; None if there is none.

        Args:
            metadata: metadata of the table's schema.
            dim: dimension that its vectors must have.
            metric: metric of the table.
            table_name: name of the table, for messages.

        Raises:
            TableError: the description cannot be read.
        """
        stored = embedding_description(metadata)
        return None if stored is None else cls(_parsed(stored, dict, table_name), dim, metric)

    def embed_query(self, query: Any) -> Float32Array:
        """Compute the vector of a query (text, or whatever else the function takes): float32 (D,).

        Raises:
            RQMoEError: the function is not registered, lacks a package, or fails.
            InvalidInputError: it returns no vector, or one that the table cannot be searched by.
        """
        made = self._call(self._function.compute_query_embeddings_with_retry, query)
        vectors_VD, rows_V = self._checked(made[:1], np.zeros(1, dtype=np.int64))
        if len(rows_V) == 0:
            raise InvalidInputError(f"{self} gives no vector for {query!r}; pass a vector instead.")
        (vector_D,) = vectors_VD
        return np.asarray(vector_D)

    def embed_missing(
        self, vectors_VD: Float32Array, valid_N: npt.NDArray[np.bool_], rows: pa.Table, first_row: int
    ) -> tuple[Float32Array, npt.NDArray[np.bool_]]:
        """Compute vectors for the rows without one from their source column, and check them.

        Rows whose source is null, or for which the function returns nothing, remain without a vector.

        Args:
            vectors_VD: vectors of the rows where `valid_N` is True.
            valid_N: which of the rows have a vector.
            rows: N rows; without the source column nothing is computed.
            first_row: position of the first row, for messages.

        Returns:
            `vectors_VD` and `valid_N` with the computed vectors added.

        Raises:
            RQMoEError, InvalidInputError: as `embed_query`, with rows named by position.
        """
        if self.source_column not in rows.column_names:
            return vectors_VD, valid_N
        rows_W, made = self._embed(rows, ~valid_N)
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

    def embed_missing_unchecked(self, vectors: pa.Array, rows: pa.Table) -> pa.Array:
        """Compute vectors as `embed_missing` does, in place of null lists in `vectors` (N), without a check.

        Raises:
            RQMoEError: the function is not registered, lacks a package, or fails.
            InvalidInputError: it returns anything but lists of numbers.
        """
        if self.source_column not in rows.column_names:
            return vectors
        rows_W, made = self._embed(rows, vectors.is_null().to_numpy(zero_copy_only=False))
        lists = pa.list_(pa.float32())
        try:
            arrays = [
                None if each is None else np.asarray(from_torch(each), dtype=np.float32) for each in made
            ]
            values = pa.array(arrays, type=lists)
        except (TypeError, ValueError) as error:
            raise InvalidInputError(f"{self} gives unusable vectors: {error}") from error
        return with_replaced(vectors.cast(lists, safe=False), rows_W, values)

    def _embed(
        self, rows: pa.Table, missing_N: npt.NDArray[np.bool_]
    ) -> tuple[npt.NDArray[np.int64], list[Any]]:
        """Call the function on the sources of rows whose vector is missing; returns these rows (W,), too."""
        source = rows[self.source_column].combine_chunks()
        rows_W = np.flatnonzero(missing_N & source.is_valid().to_numpy(zero_copy_only=False))
        if len(rows_W) == 0:
            return rows_W, []
        made = self._call(self._function.compute_source_embeddings_with_retry, source.take(rows_W))
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
            # Before any text is embedded, so that a missing package shows at once and not after LanceDB's
            # retries.
            dim = config.function.ndims()
        except ImportError as error:
            raise RQMoEError(f"{self} needs a package that is not installed: {error}") from error
        except Exception as error:
            raise RQMoEError(f"{self} cannot be made ({type(error).__name__}: {error}).") from error
        if dim != self._dim:
            raise InvalidInputError(f"{self} makes vectors of dimension {dim}; expected {self._dim}.")
        return config.function

    def _call(self, compute: Callable[[Any], Any], argument: Any) -> list[Any]:
        try:
            return list(compute(argument))
        except Exception as error:
            raise RQMoEError(f"{self} failed ({type(error).__name__}: {error}).") from error

    def _checked(
        self, made: list[Any], positions_W: npt.NDArray[np.int64]
    ) -> tuple[Float32Array, npt.NDArray[np.int64]]:
        """The embeddings that are not empty, as float32 (V, D), and their positions (V,)."""
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
    """Parse a description of an embedding function, or a list of descriptions, from JSON."""
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


def source_columns(metadata: Mapping[bytes, bytes] | None) -> dict[str, str]:
    """Vector column with a LanceDB embedding function -> column that the function computes it from."""
    described = json.loads((metadata or {}).get(_LANCEDB_KEY, b"[]"))
    return {each["vector_column"]: each["source_column"] for each in described}


def complete_others(metadata: Mapping[bytes, bytes] | None, table_name: str, rows: pa.Table) -> pa.Table:
    """Compute missing vectors of other columns than the table's vector column by their embedding functions.

    Vectors that rows have, and rows whose source is null, remain as they are.

    Args:
        metadata: metadata of the table's schema, which describes the functions.
        table_name: name of the table, for messages.
        rows: rows with some of the columns of the table.

    Raises:
        RQMoEError: a function that is needed is not registered, lacks a package, or fails.
    """
    for column, config in _functions(metadata or {}, table_name).items():
        if column in rows.column_names and config.source_column in rows.column_names:
            place = rows.schema.get_field_index(column)
            rows = rows.set_column(place, rows.schema.field(place), _complete(rows, column, config))
    return rows


def _functions(metadata: Mapping[bytes, bytes], table_name: str) -> dict[str, EmbeddingFunctionConfig]:
    if _LANCEDB_KEY not in metadata:
        return {}
    try:
        return get_registry().parse_functions({_LANCEDB_KEY: metadata[_LANCEDB_KEY]})
    except (KeyError, ImportError, ValueError) as error:
        raise RQMoEError(
            f"An embedding function of table {table_name!r} cannot be made ({error!r}). "
            "Import the module that registers it with lancedb.embeddings.register, and install what it needs."
        ) from error


def _complete(rows: pa.Table, column: str, config: EmbeddingFunctionConfig) -> pa.Array:
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
