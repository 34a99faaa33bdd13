"""Embedding functions of vector columns that are not compressed: LanceDB describes them, we call them.

Shapes: N rows.
"""

import json
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from lancedb.embeddings import EmbeddingFunctionConfig, get_registry

from rqmoe_store.errors import RQMoEError
from rqmoe_store.store.vector_arrays import with_replaced

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
