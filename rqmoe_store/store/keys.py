"""Unique key of a table: which column it is, setting it, and checking that it is unique.

LanceDB keeps the key in the metadata of its fields. It enforces it in one case only: if two concurrent
`merge_insert`s by the key insert the same new key, the second one starts again.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
from lancedb.table import LanceTable, Table

from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.store.lance import on_newest

_MARK = b"lance-schema:unenforced-primary-key:position"
_MARKS = {_MARK, b"lance-schema:unenforced-primary-key"}
_SHOWN = 3
_SCAN_ROWS = 131_072


def key_of(schema: pa.Schema) -> str | None:
    """Name of the column that is the key; None without one."""
    marked = [field.name for field in schema if _MARKS & set(field.metadata or {})]
    return marked[0] if marked else None


def keyed(schema: pa.Schema, key: str) -> pa.Schema:
    """The schema of a new table whose key is the column `key`, from the moment that others can see it.

    Raises:
        InvalidInputError: no such column, or of other values than integers (32 or 64 bits), text or bytes.
    """
    _require_usable(schema, key)
    field = schema.field(key)
    marked = field.with_nullable(False).with_metadata({**(field.metadata or {}), _MARK: b"1"})
    return schema.set(schema.get_field_index(key), marked)


def set_key(table: LanceTable, key: str) -> None:
    """Make the column `key` the key of a table; it allows no nulls from then on.

    Raises as `require_key`, and TableError when the table has another key, which LanceDB does not change.
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
    """One or several names as a list. Raises InvalidInputError for none, doubled ones, or other things."""
    names = [columns] if isinstance(columns, str) else list(columns) if isinstance(columns, Iterable) else []
    if not names or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise InvalidInputError(
            f"Got {called}={columns!r}; expected the name of a column, or several different ones."
        )
    return names


def require_unique(keys: Iterable[pa.Table | pa.RecordBatch], names: Sequence[str], where: str) -> None:
    """Raise unless every key is there once; keys with a null are not compared.

    Args:
        keys: rows with the columns `names`, held in memory together.
        names: the columns that make a key.
        where: what the rows are, for messages.

    Raises:
        InvalidInputError: a key is repeated (some are named), or of a type that cannot be compared.
    """
    parts = [pa.table([part[name] for name in names], names=list(names)) for part in keys]
    if not parts:
        return
    try:
        together = pa.concat_tables(parts).drop_null()
        counts = together.group_by(list(names)).aggregate([([], "count_all")])
    except pa.ArrowNotImplementedError as error:
        raise InvalidInputError(
            f"Got rows told apart by {', '.join(names)}, which cannot be compared ({error}). Name a column "
            "of numbers or text."
        ) from error
    repeated = counts.filter(pa.compute.greater(counts["count_all"], 1))
    if repeated.num_rows:
        shown = [
            ", ".join(f"{name}={row[name]!r}" for name in names) for row in repeated[:_SHOWN].to_pylist()
        ]
        more = f" and {repeated.num_rows - _SHOWN} more" if repeated.num_rows > _SHOWN else ""
        raise InvalidInputError(
            f"Got several rows of the same key in {where}: {'; '.join(shown)}{more}. Nothing was written; "
            "keep one row of each and try again."
        )


def require_key(table: Table, key: str) -> None:
    """Raise unless the column `key` can be the unique key of a table; its values are held in memory.

    Raises:
        InvalidInputError: no such column, or of other values than integers (32 or 64 bits), text or bytes;
            several rows have the same.
        TableError: a row has none.
    """
    _require_usable(table.schema, key)
    batches = list(table.search().select([key]).to_batches(_SCAN_ROWS))
    if any(batch[key].null_count for batch in batches):
        raise TableError(
            f"Column {key!r} of table {table.name!r} has nulls, which a key cannot have. Delete these rows "
            "or fill them, or leave key out."
        )
    require_unique(batches, [key], f"table {table.name!r}")


def _require_usable(schema: pa.Schema, key: str) -> None:
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
