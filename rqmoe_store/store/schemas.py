"""The user's view of a table's schema: types in which values are read and written."""

import inspect

import pyarrow as pa
from lancedb.pydantic import LanceModel, pydantic_to_schema
from pydantic import BaseModel

from rqmoe_store.errors import InvalidInputError, TableError

_EXTENSION = b"ARROW:extension:name"
_LANCE_JSON = b"lance.json"
_UNREADABLE = {"`", "."}
_OF_RESULTS = {"_distance", "_score", "_relevance_score", "_rowid", "query_index"}
"""Columns that searches add to what they find."""


def as_schema(schema: object) -> pa.Schema:
    """A schema of Arrow's, as it is or as a pydantic model describes it, embedding functions included.

    Raises:
        InvalidInputError: something else, or a model with fields that LanceDB cannot store.
    """
    if isinstance(schema, pa.Schema):
        return schema
    try:
        if inspect.isclass(schema) and issubclass(schema, LanceModel):
            described: pa.Schema = schema.to_arrow_schema()  # type: ignore[no-untyped-call]
            return described
        if inspect.isclass(schema) and issubclass(schema, BaseModel):
            return pydantic_to_schema(schema)
    except TypeError as error:
        raise InvalidInputError(
            f"Got schema={schema!r}, a model that LanceDB cannot read as columns ({error}). Pass a pyarrow "
            "schema."
        ) from error
    raise InvalidInputError(
        f"Got schema={schema!r}; expected a pyarrow schema or a LanceModel class. Put the columns into "
        "pa.schema([...])."
    )


def user_schema(schema: pa.Schema, *, without: tuple[str, ...]) -> pa.Schema:
    """`schema` less the columns named in `without`; field and schema metadata are kept."""
    fields = [_as_read(field) for field in schema if field.name not in without]
    return pa.schema(fields, metadata=schema.metadata)


def require_readable(schema: pa.Schema) -> None:
    """Raise TableError for column names that LanceDB may store, but does not find again when it reads or
    cannot search beside, as it adds columns of that name to results."""
    bad = [name for name in schema.names if name in ("", "*") or set(name) & _UNREADABLE]
    if bad:
        raise TableError(
            f"Columns named {', '.join(map(repr, bad))} cannot be read from a LanceDB table. Rename them: a "
            "name has at least one character, neither a backtick nor a period in it, and is not '*'."
        )
    taken = [name for name in schema.names if name in _OF_RESULTS]
    if taken:
        raise TableError(
            f"Columns named {', '.join(map(repr, taken))} would be mistaken for what searches add to their "
            f"results ({', '.join(sorted(_OF_RESULTS))}). Rename or drop them."
        )


def _as_read(field: pa.Field) -> pa.Field:
    # A JSON column is declared as its stored bytes but read and written as Arrow JSON text; bytes
    # written as declared would be taken for Lance's binary encoding.
    if (field.metadata or {}).get(_EXTENSION) != _LANCE_JSON:
        return field
    kept = {key: value for key, value in field.metadata.items() if not key.startswith(b"ARROW:extension:")}
    return pa.field(field.name, pa.json_(), nullable=field.nullable, metadata=kept or None)
