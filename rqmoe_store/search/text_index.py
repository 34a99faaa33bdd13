"""LanceDB's full-text indexes on the columns a compressed table has kept."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from lancedb.index import FTS
from lancedb.table import Table

from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.refusals import names_refusals
from rqmoe_store.store.retries import on_newest
from rqmoe_store.store.table import StoredTable


@names_refusals
def create_text_index(
    store: StoredTable, columns: str | Sequence[str], *, replace: bool, exist_ok: bool, **options: Any
) -> None:
    """A full-text index on every one of `columns`; see `CompressedTable.create_fts_index`."""
    known = [field.name for field in dataclasses.fields(FTS)]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise InvalidInputError(f"Got unknown option {unknown[0]!r}; available are {', '.join(known)}.")
    wanted = _as_list(columns)
    if exist_ok and not replace and wanted:
        indexed = store.snapshots.read(lambda snapshot: indexed_columns(snapshot.table))
        if all(name in indexed for name in wanted):
            return
    schema = store.refresh().schema
    names = text_columns(schema, wanted)
    for name in _to_be_made(store, names, replace, exist_ok):
        on_newest(store.table, functools.partial(_make, store, name, replace, exist_ok, options))


def _make(store: StoredTable, column: str, replace: bool, exist_ok: bool, options: Mapping[str, Any]) -> None:
    # Asked again, for others may have made it since: LanceDB would say so in no words of its own.
    for name in _to_be_made(store, [column], replace, exist_ok):
        try:
            store.table.create_index(name, config=FTS(**options), replace=replace)
        except (TypeError, ValueError) as error:
            raise InvalidInputError(
                f"LanceDB refuses a full-text index on column {name!r} with options {dict(options)}: {error}"
            ) from error


def _to_be_made(store: StoredTable, columns: Sequence[str], replace: bool, exist_ok: bool) -> list[str]:
    """Those of the columns that need an index; raises TableError where one has it and must not."""
    indexed = [] if replace else indexed_columns(store.table)
    taken = [name for name in columns if name in indexed]
    if taken and not exist_ok:
        raise TableError(
            f"Column {taken[0]!r} has a full-text index already; set replace=True to redo it, or "
            "exist_ok=True to leave it as it is."
        )
    return [name for name in columns if name not in taken]


def text_columns(schema: pa.Schema, columns: str | Sequence[str]) -> list[str]:
    """`columns` as a list of columns of `schema` that hold text.

    Raises:
        InvalidInputError: none, unknown ones, or columns of other values.
    """
    names = _as_list(columns)
    texts = [field.name for field in schema if _is_text(field.type)]
    unusable = [name for name in names if name not in texts]
    if unusable or not names:
        raise InvalidInputError(
            f"Got columns {unusable or names} for full-text search; expected columns of text, here "
            f"{', '.join(texts) or 'none'}."
        )
    return names


def indexed_columns(table: Table) -> list[str]:
    """Columns with a full-text index."""
    indexes = [index for index in table.list_indices() if index.index_type == "FTS"]
    # LanceDB quotes names that are no identifiers; of our columns none has a backtick.
    return [column.strip("`") for index in indexes for column in index.columns]


def _as_list(columns: str | Sequence[str]) -> list[str]:
    return [columns] if isinstance(columns, str) else list(columns)


def _is_text(data_type: pa.DataType) -> bool:
    is_list = pa.types.is_list(data_type) or pa.types.is_large_list(data_type)
    data_type = data_type.value_type if is_list else data_type
    return bool(
        pa.types.is_string(data_type)
        or pa.types.is_large_string(data_type)
        or pa.types.is_string_view(data_type)
    )
