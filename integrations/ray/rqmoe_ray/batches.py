"""Batches of Ray Data as Arrow's own types: tensors become lists of fixed length.

Shapes: N rows, D components.
"""

from typing import Any

import pyarrow as pa

import rqmoe_store as rqs


def plain_table(table: pa.Table) -> pa.Table:
    """`table` with the types that are stored.

    Raises:
        InvalidInputError: tensors that are no vectors of one length, or Python objects.
    """
    fields = [_plain_field(field) for field in table.schema]
    columns = [_plain_column(column, field) for column, field in zip(table.columns, fields, strict=True)]
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def dataset_schema(dataset: Any) -> pa.Schema:
    """The columns that batches of a dataset have as `plain_table`.

    Raises:
        InvalidInputError: it has none, or as `plain_table`.
    """
    known = dataset.schema(fetch_if_missing=False)
    if known is not None and isinstance(known.base_schema, pa.Schema):  # it may be one of pandas
        return plain_table(known.base_schema.empty_table()).schema
    first = next(iter(dataset.limit(1).iter_batches(batch_size=1, batch_format="pyarrow")), None)
    if first is None:
        raise rqs.InvalidInputError("The dataset has no rows; expected some, to know the columns.")
    return plain_table(first).schema


def _plain_field(field: pa.Field) -> pa.Field:
    if not isinstance(field.type, pa.BaseExtensionType):
        return field
    shape, numbers = getattr(field.type, "shape", None), getattr(field.type, "value_type", None)
    if shape is None or len(shape) != 1 or numbers is None:
        raise rqs.InvalidInputError(
            f"Column {field.name!r} of the dataset is {field.type}; expected a column of Arrow's own types, "
            "or vectors of one length. Drop or convert it."
        )
    return pa.field(field.name, pa.list_(numbers, shape[0]))


def _plain_column(column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    if column.type == field.type:
        return column
    chunks = [
        pa.FixedSizeListArray.from_arrays(chunk.storage.flatten(), field.type.list_size)
        for chunk in column.chunks
    ]
    return pa.chunked_array(chunks, field.type)
