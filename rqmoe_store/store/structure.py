"""Table structure: adding, changing and dropping columns, the key, and scalar indexes."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, get_args

import pyarrow as pa
from lancedb.expr import Expr
from lancedb.index import Bitmap, BTree, IndexConfig, LabelList
from lancedb.table import IndexStatistics

from rqmoe_store.arguments import is_text
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.storage_errors import is_gone
from rqmoe_store.store import keys
from rqmoe_store.store.columns import require_column_names
from rqmoe_store.store.handle import Handle
from rqmoe_store.store.keys import column_names
from rqmoe_store.store.lance import on_newest
from rqmoe_store.store.sql import quoted

ScalarIndex = Literal["BTREE", "BITMAP", "LABEL_LIST"]

_CONFIGS = {"BTREE": BTree, "BITMAP": Bitmap, "LABEL_LIST": LabelList}
_KINDS = ("BTree", "Bitmap", "LabelList")
"""How LanceDB lists these types."""

_CHANGES = {"path", "rename", "nullable", "data_type"}


def set_key(handle: Handle, key: str) -> None:
    """See `CompressedTable.set_key`."""
    handle.refresh()
    _require_users(handle, [key])
    keys.set_key(handle.table, key)


def add_columns(
    handle: Handle, transforms: Mapping[str, str] | pa.Field | Iterable[pa.Field] | pa.Schema
) -> None:
    """See `CompressedTable.add_columns`."""
    handle.refresh()
    added: Any
    if isinstance(transforms, Mapping):
        names = list(transforms)
        added = {
            name: handle.conditions.expression(handle.table, sql, called=repr(name))
            for name, sql in transforms.items()
        }
    else:
        fields = [transforms] if isinstance(transforms, pa.Field) else _as_list(transforms)
        if not fields or not all(isinstance(field, pa.Field) for field in fields):
            raise InvalidInputError(
                f"Got transforms={transforms!r}; expected SQL expressions by name, or Arrow fields."
            )
        added = pa.schema(fields)
        names = added.names
    _require_free(handle, names)
    if isinstance(added, dict):
        _require_expressions(handle, added)
    _change(handle, transforms, lambda: handle.table.add_columns(added))
    # An expression such as a literal makes a column without nulls; rows that lack it could not be added.
    strict: list[Any] = [
        {"path": name, "nullable": True} for name in names if not handle.table.schema.field(name).nullable
    ]
    if strict:
        _change(handle, transforms, lambda: handle.table.alter_columns(*strict))


def alter_columns(handle: Handle, *alterations: Mapping[str, Any]) -> None:
    """See `CompressedTable.alter_columns`."""
    encoder = handle.encoder(handle.refresh())
    for change in alterations:
        if not isinstance(change, Mapping):
            raise InvalidInputError(
                f"Got {change!r} as one of the alterations; expected dicts such as "
                "{'path': 'title', 'rename': 'heading'}."
            )
        unknown = sorted(set(change) - _CHANGES)
        if unknown or not isinstance(change.get("path"), str):
            raise InvalidInputError(f"Got {dict(change)!r}; expected path and some of {sorted(_CHANGES)}.")
        column = change["path"].partition(".")[0]
        _require_users(handle, [column])
        if column == handle.key and set(change) - {"path", "rename"}:
            raise InvalidInputError(f"Got {dict(change)!r} for the table's key; it can only be renamed.")
        if "rename" in change and change["path"] in encoder.source_columns.values():
            raise InvalidInputError(
                f"Got another name for column {column!r}, which vectors are computed from by that name."
            )
        if "rename" in change:
            _require_free(handle, [change["rename"]])
    changes: Any = alterations  # LanceDB's annotation is of something else
    _change(handle, alterations, lambda: handle.table.alter_columns(*changes))


def drop_columns(handle: Handle, columns: str | Iterable[str]) -> None:
    """See `CompressedTable.drop_columns`."""
    handle.refresh()
    names = column_names(columns, called="columns")
    _require_users(handle, names)
    if handle.key in names:
        raise InvalidInputError(f"Got column {handle.key!r} to drop, which is the table's key.")
    _change(handle, names, lambda: handle.table.drop_columns(names))


def create_scalar_index(
    handle: Handle,
    column: str,
    *,
    replace: bool,
    index_type: ScalarIndex,
    name: str | None,
) -> None:
    """See `CompressedTable.create_scalar_index`."""
    handle.refresh()
    if index_type not in get_args(ScalarIndex):
        raise InvalidInputError(
            f"Got index_type={index_type!r}; expected one of {', '.join(get_args(ScalarIndex))}."
        )
    _require_users(handle, [column])
    if name is not None and not is_text(name):
        raise InvalidInputError(f"Got name={name!r}; expected text of valid Unicode for the index.")
    before = _scalar_indexes(handle, column)
    if before and not replace:
        raise TableError(f"Column {column!r} has an index; set replace=True to put another in its place.")
    config: Any = _CONFIGS[index_type]()
    _change(
        handle,
        (column, index_type),
        lambda: handle.table.create_index(column, config=config, replace=replace, name=name),
    )
    # LanceDB does not replace an index of another type or name.
    for uuid, stale in _scalar_indexes(handle, column).items():
        if uuid in before:
            on_newest(handle.table, functools.partial(handle.table.drop_index, stale))


def list_indices(handle: Handle) -> list[IndexConfig]:
    """See `CompressedTable.list_indices`."""
    if handle.checked_out is None:
        handle.refresh()
    indexes = handle.table.list_indices()
    return [index for index in indexes if not set(index.columns) & set(handle.hidden_columns)]


def index_stats(handle: Handle, index_name: str) -> IndexStatistics | None:
    """See `CompressedTable.index_stats`."""
    if handle.checked_out is None:
        handle.refresh()
    return handle.table.index_stats(_index_name(index_name))


def drop_index(handle: Handle, name: str) -> None:
    """See `CompressedTable.drop_index`."""
    handle.refresh()
    names = [index.name for index in list_indices(handle)]
    if _index_name(name) not in names:
        raise InvalidInputError(f"Got index {name!r} to drop; expected one of {', '.join(names) or 'none'}.")
    on_newest(handle.table, lambda: handle.table.drop_index(name))


def _scalar_indexes(handle: Handle, column: str) -> dict[str, str]:
    """Names of the scalar indexes on a column, by their UUID."""
    return {
        str(index.index_uuid): index.name
        for index in handle.table.list_indices()
        if index.index_type in _KINDS and index.columns == [column]
    }


def _change(handle: Handle, asked: object, change: Callable[[], object]) -> None:
    """Make a change, again on conflicts; raise InvalidInputError if LanceDB refuses the arguments."""
    try:
        on_newest(handle.table, change)
    except TableError:
        raise
    except (ValueError, TypeError) as error:
        if is_gone(error):
            raise
        raise InvalidInputError(f"LanceDB refuses {asked!r}: {error}\nNothing was changed.") from error


def _require_expressions(handle: Handle, expressions: dict[str, str | Expr]) -> None:
    code = handle.columns.code
    try:
        # With a stored column beside them, as Lance scans no expressions alone.
        handle.table.search().select({**expressions, code: quoted(code)}).output_schema()
    except Exception as error:  # LanceDB panics on some, with an exception of no other class
        raise InvalidInputError(
            f"Got {expressions!r} as new columns, which LanceDB refuses: {error}\nExpected SQL "
            "expressions over the table's columns."
        ) from error


def _require_users(handle: Handle, names: Iterable[str]) -> None:
    """Raise InvalidInputError unless these are columns of the user, other than the vector column."""
    known = [name for name in handle.schema.names if name != handle.columns.vector_column]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InvalidInputError(f"Got column {unknown[0]!r}; expected some of {', '.join(known) or 'none'}.")


def _require_free(handle: Handle, names: Iterable[Any]) -> None:
    for name in names:
        if not isinstance(name, str) or name in handle.table.schema.names:
            raise InvalidInputError(f"Got {name!r} as the name of a column; expected one that is free.")
        require_column_names(pa.schema([pa.field(name, pa.null())]))


def _index_name(name: Any) -> str:
    if not isinstance(name, str):
        raise InvalidInputError(
            f"Got {name!r} as the name of an index; expected a text, as list_indices() has it."
        )
    return name


def _as_list(transforms: Any) -> list[Any]:
    return list(transforms) if isinstance(transforms, Iterable) and not isinstance(transforms, str) else []
