"""Row operations: adding, updating, deleting, counting and reading the rows of a table."""

import copy
import datetime
import decimal
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from lancedb.expr import Expr

from rqmoe_store.arguments import whole_number
from rqmoe_store.errors import InvalidInputError, TableError, warn_caller
from rqmoe_store.storage_errors import is_gone
from rqmoe_store.store.appends import append_rows
from rqmoe_store.store.creation import spool
from rqmoe_store.store.handle import Handle
from rqmoe_store.store.lance import on_newest
from rqmoe_store.store.row_encoder import BadVectors, OnBadVectors, RowEncoder
from rqmoe_store.store.snapshot import Snapshot

_WITHOUT_SQL = (decimal.Decimal, datetime.time, datetime.timedelta)


def add_rows(
    handle: Handle,
    rows: Any,
    *,
    mode: str,
    on_bad_vectors: OnBadVectors,
    fill_value: float,
    encode: bool | None,
) -> int:
    """See `CompressedTable.add`."""
    if mode != "append":
        raise InvalidInputError(
            f"Got mode={mode!r}; expected 'append'. To replace all rows, delete('true') them and add the "
            "new ones."
        )
    bad, snapshot = BadVectors(on_bad_vectors, fill_value), handle.newest()
    encoder = handle.encoder(snapshot, encode)
    # No row is written before all of them have been checked.
    with spool(encoder.encoded(rows, bad)) as encoded:
        drift = encoder.drift.take() if encoder.drift else None
        properties = drift.properties if drift else {}
        if drift is not None and (warning := handle.drift_watch.add(handle.table, encoder.codecs, drift)):
            warn_caller(warning)
        if encoded.count > 0:
            append_rows(
                handle.table,
                encoded.reader(),
                properties,
                dataset=copy.copy(snapshot.dataset),
                check=encoder.require_codec_in,
            )
    return encoded.count


def update_rows(
    handle: Handle,
    where: str | Expr | None,
    values: Mapping[str, Any] | None,
    values_sql: Mapping[str, str] | None,
) -> Any:
    """See `CompressedTable.update`."""
    encoder = handle.encoder(handle.refresh())
    if (not values) == (not values_sql):
        raise InvalidInputError(
            f"Got values={values!r} and values_sql={values_sql!r}; expected one of them, with a column at "
            "least."
        )
    condition = None if where is None else handle.conditions.checked(handle.table, where)
    _require_changeable(handle, encoder, list(values or values_sql or {}))
    changes: dict[str, Any]
    if values:
        changes = {"values": _stored(encoder, values)}
    else:
        changes = {"values_sql": _expressions(handle, encoder, values_sql or {})}

    def update() -> Any:
        encoder.require_codec_in(handle.table.schema)
        return handle.table.update(where=condition, **changes)

    try:
        return on_newest(handle.table, update)
    except TableError:
        raise
    except (ValueError, NotImplementedError) as error:
        if is_gone(error):
            raise
        raise InvalidInputError(
            f"LanceDB refuses {values or values_sql!r} as new values: {error}\nNothing was written."
        ) from error


def _require_changeable(handle: Handle, encoder: RowEncoder, names: list[str]) -> None:
    known = [*encoder.others.names, handle.columns.vector_column]
    unknown = [name for name in names if name not in known]
    if unknown:
        ours = "written along with the vector" if unknown[0] in handle.columns.names else "unknown"
        raise InvalidInputError(
            f"Got a new value for column {unknown[0]!r}, which is {ours}; expected some of "
            f"{', '.join(known)}."
        )
    if handle.key in names:
        raise InvalidInputError(
            f"Got a new value for column {handle.key!r}, the table's key, which cannot be changed. Delete "
            "the rows and add new ones."
        )


def _stored(encoder: RowEncoder, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as they are stored, together with those of the columns that are computed from them."""
    changed = {name: value for name, value in values.items() if name != encoder.columns.vector_column}
    _require_allowed(encoder.others, changed)
    (made,) = (stored for table in encoder.encoded_given_columns([values]) for stored in table.to_pylist())
    ours = [field.name for field in encoder.vector_fields]
    if any(name in made for name in ours):
        # A new vector replaces both the code and the raw vector.
        made = dict.fromkeys(ours) | made
    # LanceDB cannot write some stored values as SQL, but can those that were given.
    return changed | {name: value for name, value in made.items() if not isinstance(value, _WITHOUT_SQL)}


def _require_allowed(schema: pa.Schema, values: Mapping[str, Any]) -> None:
    nulls = [name for name, value in values.items() if value is None and not schema.field(name).nullable]
    if nulls:
        raise InvalidInputError(f"Got None as the new value for column {nulls[0]!r}, which allows no nulls.")


def _expressions(handle: Handle, encoder: RowEncoder, values_sql: Mapping[str, str]) -> dict[str, str]:
    vector_column, computed = encoder.columns.vector_column, encoder.source_columns
    for name in values_sql:
        read_by = [column for column, source in computed.items() if source == name]
        if name == vector_column or read_by:
            reason = f"column {read_by[0]!r} is computed from" if read_by else "has to be encoded"
            raise InvalidInputError(
                f"Got an SQL expression for column {name!r}, which {reason}; expected a value of it in "
                "values=."
            )
    return {
        name: handle.conditions.expression(handle.table, sql, called=f"values_sql[{name!r}]")
        for name, sql in values_sql.items()
    }


def delete_rows(handle: Handle, where: str | Expr) -> int:
    """See `CompressedTable.delete`."""
    handle.refresh()

    def delete() -> Any:  # LanceDB's annotation lacks the number of rows
        return handle.table.delete(handle.conditions.checked(handle.table, where))

    return int(on_newest(handle.table, delete).num_deleted_rows)


def count_rows(handle: Handle, filter: str | Expr | None) -> int:
    """See `CompressedTable.count_rows`."""
    if filter is None:
        return handle.snapshots.current().rows

    def count(snapshot: Snapshot) -> int:
        condition = handle.conditions.checked(snapshot.table, filter, called="filter")
        return int(snapshot.dataset.count_rows(condition))

    return handle.snapshots.read(count)


def first_rows(handle: Handle, n: int) -> pa.Table:
    """See `CompressedTable.head`."""
    rows = whole_number("n", n, 0)

    def first(snapshot: Snapshot) -> pa.Table:
        schema = handle.user_schema(snapshot.schema)
        return snapshot.table.head(rows).select(schema.names).replace_schema_metadata(schema.metadata)

    return handle.snapshots.read(first)
