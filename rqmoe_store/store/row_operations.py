"""Row operations: adding, updating, deleting and counting the rows of a table."""

import datetime
import decimal
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import pyarrow as pa
from lancedb.expr import Expr

from rqmoe_store.arguments import whole_number
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.storage_errors import is_gone, translates_errors
from rqmoe_store.store.appends import append_rows
from rqmoe_store.store.creation import spool
from rqmoe_store.store.lance import on_newest
from rqmoe_store.store.merge import MergeInsert
from rqmoe_store.store.open_table import OpenTable
from rqmoe_store.store.row_encoder import BadVectors, OnBadVectors, RowEncoder
from rqmoe_store.store.snapshot import Snapshot

_WITHOUT_SQL = (decimal.Decimal, datetime.time, datetime.timedelta)


@translates_errors
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


class RowOperations(OpenTable):
    """The methods of a table that work on rows."""

    def add(
        self,
        rows: Any,
        mode: Literal["append"] = "append",
        on_bad_vectors: OnBadVectors = "error",
        fill_value: float = 0.0,
        *,
        encode: bool | None = None,
    ) -> int:
        """Encode and append rows, all in one commit or none at all.

        Memory stays bounded for iterators and readers, however long; their encoded rows wait in a
        temporary file until all of them have been checked. A key of the table is not looked at:
        `merge_insert` replaces rows that are there already.

        Args:
            rows: a list of dicts, a pandas or polars frame, an Arrow table, record batch or reader,
                or an iterable of those. Columns are the user's columns and the vector column;
                nullable ones may be left out, a null vector is stored as null. In a table with an
                embedding function, missing vectors are computed from its source column.
            mode: "append".
            on_bad_vectors: what becomes of rows whose vector has another dimension, missing, NaN or
                infinite components, ones beyond float16 where the table keeps them in it, or no
                direction under cosine: "error", "drop" for leaving the rows out, "null" for adding
                them without a vector, "fill" for putting `fill_value` in place of such components and
                cutting or lengthening to the dimension. As in LanceDB, "drop" and "fill" take rows
                without a vector for bad ones as well.
            fill_value: a finite number.
            encode: False to keep the vectors raw, which is quicker, and have `optimize` encode them
                later; searches find them all the same. None to encode if the table has a codec.

        Returns:
            Number of rows added.

        Raises:
            InvalidInputError: unknown or missing columns, values of another type, a bad vector with
                "error", or with "fill" one that filling does not make good (named by row position);
                another `mode`.
            RQMoEError: the embedding function is needed and not registered, lacks a package, or fails.
            TableError: an earlier version is checked out; `encode` is True and the table has no codec yet.
            StorageError: the disk or bucket refuses to take them; no row was added.
        """
        if mode != "append":
            raise InvalidInputError(
                f"Got mode={mode!r}; expected 'append'. To replace all rows, delete('true') them and add the "
                "new ones."
            )
        bad, encoder = BadVectors(on_bad_vectors, fill_value), self._encoder(encode)
        # No row is committed before all of them are good.
        with spool(encoder.encoded(rows, bad)) as encoded:
            drift = encoder.drift.take() if encoder.drift else None
            properties = drift.properties if drift else {}
            if drift is not None and (warning := self._watch.note(self.table, encoder.codecs, drift)):
                warnings.warn(warning, stacklevel=3)
            if encoded.count > 0:
                append_rows(
                    self.table,
                    encoded.reader(),
                    properties,
                    check=lambda: encoder.require_known_to(self.table),
                )
        return encoded.count

    def merge_insert(self, on: str | Iterable[str] | None = None) -> MergeInsert:
        """Start an upsert, in LanceDB's words.

            store.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(rows)

        A null key matches nothing. In a table with a key, merges by it are safe beside each other: a new key
        is inserted once, whichever process comes first.

        Args:
            on: the column that tells rows apart, or several together; None for the table's key.

        Raises:
            InvalidInputError: no names of columns.
        """
        return MergeInsert(self, on)

    def update(
        self,
        where: str | Expr | None = None,
        values: Mapping[str, Any] | None = None,
        *,
        values_sql: Mapping[str, str] | None = None,
    ) -> Any:
        """Change columns of rows, all in one commit or none at all.

        A new vector is encoded; codes of other rows, and of all rows where other columns are changed, stay as
        they are. New text that an embedding function reads brings a new vector, unless one is given.

        Args:
            where: the rows: SQL, or an expression of `lancedb.expr`. None for all.
            values: new values by column; None for null.
            values_sql: SQL expressions over the row as it was, by column, such as {"n": "n + 1"}. Not for the
                vector, nor for text that vectors are computed from.

        Returns:
            LanceDB's result, with `rows_updated` and `version`.

        Raises:
            InvalidInputError: neither or both kinds of values; columns that are unknown, code or partition of
                the vector, or the key; a vector that cannot be used; what LanceDB refuses.
            RQMoEError: the embedding function is needed and not registered, lacks a package, or fails.
            TableError: an earlier version is checked out, or others write to the table all the time.
        """
        return update_rows(self, where, values, values_sql)

    def delete(self, where: str | Expr) -> int:
        """Delete the rows that match a condition; returns how many.

        Args:
            where: SQL, or an expression of `lancedb.expr`.

        Raises:
            InvalidInputError: `where` cannot be parsed or names an unknown column.
            TableError: an earlier version is checked out, or others write to the table all the time.
        """
        self.refresh()

        def delete() -> Any:  # LanceDB's annotation lacks the number of rows
            return self.table.delete(self.conditions.checked(self.table, where))

        return int(on_newest(self.table, delete).num_deleted_rows)

    def count_rows(self, filter: str | Expr | None = None) -> int:
        """Number of rows, or of those that match a condition.

        Args:
            filter: SQL, or an expression of `lancedb.expr`.

        Raises:
            InvalidInputError: `filter` cannot be parsed or names an unknown column.
        """
        if filter is None:
            return self.snapshots.current().rows
        return self.snapshots.read(lambda snapshot: self._counted(snapshot, filter))

    def _counted(self, snapshot: Snapshot, filter: str | Expr) -> int:
        condition = self.conditions.checked(snapshot.table, filter, called="filter")
        return int(snapshot.dataset.count_rows(condition))

    def head(self, n: int = 5) -> pa.Table:
        """The first rows, in the user's columns. Raises InvalidInputError for a number below 0."""
        rows = whole_number("n", n, 0)

        def first(snapshot: Snapshot) -> pa.Table:
            schema = self._users_of(snapshot.schema)
            return snapshot.table.head(rows).select(schema.names).replace_schema_metadata(schema.metadata)

        return self.snapshots.read(first)
