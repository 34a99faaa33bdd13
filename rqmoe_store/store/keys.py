"""Unique key of a table: which column it is, and checks that its values are unique.

The key is LanceDB's primary key, which LanceDB stores in the metadata of a field and does not enforce, with
one exception: if two concurrent `merge_insert`s by the key would insert the same value, the second one
starts again.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
from lancedb.table import LanceTable, Table

from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.store.lance import on_newest

_POSITION = b"lance-schema:unenforced-primary-key:position"
_FIELD_METADATA = {_POSITION, b"lance-schema:unenforced-primary-key"}
"""Metadata keys of which a primary key field has one, depending on the release of Lance."""
_KEYS_LISTED = 3
_SCAN_ROWS = 131_072


def key_of(schema: pa.Schema) -> str | None:
    """Name of the key column; None in a table without a key."""
    keys = [field.name for field in schema if _FIELD_METADATA & set(field.metadata or {})]
    return keys[0] if keys else None


def with_key(schema: pa.Schema, key: str) -> pa.Schema:
    """The schema of a new table whose first version already has the key column `key`.

    Raises:
        InvalidInputError: there is no such column, or its type is not int32, int64, text or bytes.
    """
    _require_key_type(schema, key)
    field = schema.field(key)
    changed = field.with_nullable(False).with_metadata({**(field.metadata or {}), _POSITION: b"1"})
    return schema.set(schema.get_field_index(key), changed)


def set_key(table: LanceTable, key: str) -> None:
    """Make the column `key` the key of a table; it allows no nulls from then on.

    Raises as `require_key`, and TableError if the table has another key, which LanceDB does not change.
    """
    require_key(table, key)
    if key_of(table.schema) not in (None, key):
        raise TableError(
            f"Table {table.name!r} has the key {key_of(table.schema)!r}, which cannot be changed to {key!r}. "
            "Copy its rows into a new table."
        )

    def write() -> None:
        if key_of(table.schema) is None:
            not_null: Any = {"path": key, "nullable": False}
            table.alter_columns(not_null)
            table.set_unenforced_primary_key(key)

    on_newest(table, write)


def column_names(columns: str | Iterable[str] | None, *, called: str) -> list[str]:
    """One or several column names as a list. Raises InvalidInputError for no name, or repeated names."""
    names = [columns] if isinstance(columns, str) else list(columns) if isinstance(columns, Iterable) else []
    if not names or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise InvalidInputError(
            f"Got {called}={columns!r}; expected the name of a column, or several different ones."
        )
    return names


def require_unique(keys: Iterable[pa.Table | pa.RecordBatch], names: Sequence[str], where: str) -> None:
    """Raise if any key occurs more than once; keys with a null are not compared.

    Args:
        keys: rows with the columns `names`; all of them are held in memory.
        names: the columns that make up the key.
        where: what the rows are, for messages.

    Raises:
        InvalidInputError: a key is repeated (names some of them), or its type cannot be compared.
    """
    parts = [pa.table([part[name] for name in names], names=list(names)) for part in keys]
    if not parts:
        return
    try:
        together = pa.concat_tables(parts).drop_null()
        counts = together.group_by(list(names)).aggregate([([], "count_all")])
    except pa.ArrowNotImplementedError as error:
        raise InvalidInputError(
            f"Got the key {', '.join(names)}, whose values cannot be compared ({error}). Name a column of "
            "numbers or text."
        ) from error
    repeated = counts.filter(pa.compute.greater(counts["count_all"], 1))
    if repeated.num_rows:
        shown = [
            ", ".join(f"{name}={row[name]!r}" for name in names)
            for row in repeated[:_KEYS_LISTED].to_pylist()
        ]
        more = f" and {repeated.num_rows - _KEYS_LISTED} more" if repeated.num_rows > _KEYS_LISTED else ""
        raise InvalidInputError(
            f"Got several rows of the same key in {where}: {'; '.join(shown)}{more}. Nothing was written; "
            "keep one row of each and try again."
        )


def require_key(table: Table, key: str) -> None:
    """Raise unless the column `key` can be the unique key of a table; holds its values in memory.

    Raises:
        InvalidInputError: there is no such column, its type is not int32, int64, text or bytes, or several
            rows have the same value.
        TableError: a row has no value.
    """
    _require_key_type(table.schema, key)
    batches = list(table.search().select([key]).to_batches(_SCAN_ROWS))
    if any(batch[key].null_count for batch in batches):
        raise TableError(
            f"Column {key!r} of table {table.name!r} has nulls, which a key cannot have. Delete these rows "
            "or fill them, or leave key out."
        )
    require_unique(batches, [key], f"table {table.name!r}")


def _require_key_type(schema: pa.Schema, key: str) -> None:
    usable = [field.name for field in schema if _can_be_key(field.type)]
    if key not in usable:
        raise InvalidInputError(
            f"Got key={key!r}; expected a column of int32, int64, text or bytes, here "
            f"{', '.join(usable) or 'none'}."
        )


def _can_be_key(data_type: pa.DataType) -> bool:
    return bool(
        data_type in (pa.int32(), pa.int64(), pa.string(), pa.large_string(), pa.binary(), pa.large_binary())
        or pa.types.is_fixed_size_binary(data_type)
    )
