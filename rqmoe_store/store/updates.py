"""Changing columns of rows in place."""

import datetime
import decimal
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from lancedb.expr import Expr

from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.refusals import is_gone, names_refusals
from rqmoe_store.store.open_table import OpenTable
from rqmoe_store.store.retries import on_newest
from rqmoe_store.store.row_encoder import RowEncoder

_WITHOUT_SQL = (decimal.Decimal, datetime.time, datetime.timedelta)


@names_refusals
def update_rows(
    store: OpenTable,
    where: str | Expr | None,
    values: Mapping[str, Any] | None,
    values_sql: Mapping[str, str] | None,
) -> Any:
    """What `RowOperations.update` does."""
    encoder = store._encoder()
    if (not values) == (not values_sql):
        raise InvalidInputError(
            f"Got values={values!r} and values_sql={values_sql!r}; expected one of them, with a column at "
            "least."
        )
    condition = None if where is None else store.conditions.checked(store.table, where)
    _require_changeable(store, encoder, list(values or values_sql or {}))
    changes: dict[str, Any]
    if values:
        changes = {"values": _stored(encoder, values)}
    else:
        changes = {"values_sql": _expressions(store, encoder, values_sql or {})}

    def update() -> Any:
        encoder.require_known_to(store.table)
        return store.table.update(where=condition, **changes)

    try:
        return on_newest(store.table, update)
    except TableError:
        raise
    except (ValueError, NotImplementedError) as error:
        if is_gone(error):
            raise
        raise InvalidInputError(
            f"LanceDB refuses {values or values_sql!r} as new values: {error}\nNothing was written."
        ) from error


def _require_changeable(store: OpenTable, encoder: RowEncoder, names: list[str]) -> None:
    known = [*encoder.others.names, store.columns.vector_column]
    unknown = [name for name in names if name not in known]
    if unknown:
        ours = "written along with the vector" if unknown[0] in store.columns.names else "unknown"
        raise InvalidInputError(
            f"Got a new value for column {unknown[0]!r}, which is {ours}; expected some of "
            f"{', '.join(known)}."
        )
    if store.key in names:
        raise InvalidInputError(
            f"Got a new value for column {store.key!r}, the table's key, which cannot be changed. Delete the "
            "rows and add new ones."
        )


def _stored(encoder: RowEncoder, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as the columns hold them, and with them those of all columns that are computed from them."""
    changed = {name: value for name, value in values.items() if name != encoder.columns.vector_column}
    _require_allowed(encoder.others, changed)
    (made,) = (stored for table in encoder.given([values]) for stored in table.to_pylist())
    ours = [field.name for field in encoder.ours]
    if any(name in made for name in ours):
        # What a vector takes the place of must go: a code, or the raw vector of a row that had none.
        made = dict.fromkeys(ours) | made
    # LanceDB writes no SQL for some values that it can make of what was given.
    return changed | {name: value for name, value in made.items() if not isinstance(value, _WITHOUT_SQL)}


def _require_allowed(schema: pa.Schema, values: Mapping[str, Any]) -> None:
    nulls = [name for name, value in values.items() if value is None and not schema.field(name).nullable]
    if nulls:
        raise InvalidInputError(f"Got None as the new value for column {nulls[0]!r}, which allows no nulls.")


def _expressions(store: OpenTable, encoder: RowEncoder, values_sql: Mapping[str, str]) -> dict[str, str]:
    vector_column, computed = encoder.columns.vector_column, encoder.computed
    for name in values_sql:
        read_by = [column for column, source in computed.items() if source == name]
        if name == vector_column or read_by:
            reason = f"column {read_by[0]!r} is computed from" if read_by else "has to be encoded"
            raise InvalidInputError(
                f"Got an SQL expression for column {name!r}, which {reason}; expected a value of it in "
                "values=."
            )
    return {
        name: store.conditions.expression(store.table, sql, called=f"values_sql[{name!r}]")
        for name, sql in values_sql.items()
    }
