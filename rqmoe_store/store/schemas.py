"""The user's view of a table's schema: types in which values are read and written."""

import pyarrow as pa

from rqmoe_store.errors import TableError

_EXTENSION = b"ARROW:extension:name"
_LANCE_JSON = b"lance.json"
_UNREADABLE = {"`", "."}
_OF_RESULTS = {"_distance", "_score", "_relevance_score", "_rowid", "query_index"}
"""Columns that searches add to what they find."""


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
