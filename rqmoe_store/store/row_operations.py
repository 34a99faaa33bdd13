"""Adding, changing, deleting and counting the rows of a table."""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import pyarrow as pa
from lancedb.expr import Expr

from rqmoe_store.arguments import whole_number
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.store.appends import append_rows
from rqmoe_store.store.bad_vectors import BadVectors, OnBadVectors
from rqmoe_store.store.merge import MergeInsert
from rqmoe_store.store.open_table import OpenTable
from rqmoe_store.store.retries import on_newest
from rqmoe_store.store.snapshot import Snapshot
from rqmoe_store.store.spooled_rows import spooled
from rqmoe_store.store.updates import update_rows


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
        with spooled(encoder.encoded(rows, bad)) as encoded:
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
