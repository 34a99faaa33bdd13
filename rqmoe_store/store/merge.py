"""Merge (upsert): rows that replace those of the same key, are inserted, or say which ones to delete."""

import dataclasses
import datetime
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Self

import lance
import pyarrow as pa
from lancedb.expr import Expr

from rqmoe_store.errors import InvalidInputError, TableError, warn_caller
from rqmoe_store.storage_errors import TranslatesErrors
from rqmoe_store.store.conditions import as_text
from rqmoe_store.store.creation import SpooledRows, spool
from rqmoe_store.store.handle import Handle
from rqmoe_store.store.health import DriftSums, commit_drift
from rqmoe_store.store.keys import column_names, require_unique
from rqmoe_store.store.lance import PATIENCE, on_newest
from rqmoe_store.store.row_encoder import BadVectors, OnBadVectors, RowEncoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergeResult:
    """What a merge did; the same fields as LanceDB's result."""

    version: int
    """Version of the table that it made."""
    num_updated_rows: int
    num_inserted_rows: int
    num_deleted_rows: int
    num_attempts: int
    """Attempts; more than one if others changed the same rows meanwhile."""

    @property
    def num_rows(self) -> int:
        """Rows written."""
        return self.num_updated_rows + self.num_inserted_rows


class _Wheres(NamedTuple):
    """The conditions of a merge, as SQL for Lance."""

    update: str | None
    delete: str | None


class MergeInsert(TranslatesErrors):
    """A merge, built step by step and done by `execute`. Methods that add an action return the merge."""

    def __init__(self, handle: Handle, on: str | Iterable[str] | None) -> None:
        """Start a merge; `merge_insert` of a table is the usual way, and says what `on` is.

        Raises:
            InvalidInputError: no names of columns.
        """
        self._handle = handle
        self._on = None if on is None else column_names(on, called="on")
        self._update = self._insert = self._delete = False
        self._update_where: str | None = None
        self._delete_where: str | Expr | None = None
        self._use_index = True

    def when_matched_update_all(self, *, where: str | None = None) -> Self:
        """Replace rows of the table by new ones of the same key, in those columns that these have.

        Args:
            where: SQL condition on both rows, such as "target.updated < source.updated"; rows that
                do not match it stay as they are.

        Raises:
            InvalidInputError: not a string.
        """
        self._update, self._update_where = True, where
        if where is not None:
            as_text(where, called="where")
        return self

    def when_not_matched_insert_all(self) -> Self:
        """Insert new rows whose key the table does not have."""
        self._insert = True
        return self

    def when_not_matched_by_source_delete(self, condition: str | Expr | None = None) -> Self:
        """Delete rows of the table whose key no new row has.

        Args:
            condition: only those of them that match this condition: SQL, or an expression of
                `lancedb.expr`. None for all.

        Raises:
            InvalidInputError: neither of these.
        """
        self._delete, self._delete_where = True, condition
        if condition is not None:
            as_text(condition, called="condition")
        return self

    def use_index(self, use_index: bool) -> Self:
        """Whether a scalar index of the key may be used to find its rows; by default it may."""
        self._use_index = bool(use_index)
        return self

    def execute(
        self,
        new_data: Any,
        on_bad_vectors: OnBadVectors = "error",
        fill_value: float = 0.0,
        timeout: datetime.timedelta | None = None,
    ) -> MergeResult:
        """Encode and merge rows, all in one commit or none at all.

        Columns that `new_data` lacks, also vectors and codes, stay as they are in rows that are replaced, and
        are null in rows that are inserted. A null vector removes the vector of a row. An embedding function
        computes missing vectors wherever there is text.

        Args:
            new_data: rows as for `add`, every key once; with the columns of the key and any others.
            on_bad_vectors, fill_value: as for `add`.
            timeout: when others keep changing the same rows, no attempt begins after it. None for a minute.

        Raises:
            InvalidInputError: no action was chosen; no key columns; a condition that LanceDB
                refuses; a key that is repeated in `new_data`; columns that are unknown, or are missing and
                the key, or ones that allow no nulls where rows are inserted; otherwise as `add`.
            RQMoEError: the embedding function is needed and not registered, lacks a package, or fails.
            TableError: an earlier version is checked out, or others change the same rows all the time.
            StorageError: the disk or bucket refuses a write; nothing was changed.
        """
        bad, encoder = BadVectors(on_bad_vectors, fill_value), self._handle.encoder(self._handle.refresh())
        if not (self._update or self._insert or self._delete):
            raise InvalidInputError(
                "Got a merge without any action; expected when_matched_update_all(), "
                "when_not_matched_insert_all() or when_not_matched_by_source_delete() before execute(...)."
            )
        on = self._columns(encoder)
        wheres = self._wheres(on)
        keys: list[pa.Table] = []
        new = self._checked(
            encoder.encoded_given_columns(new_data, bad), on, wheres, encoder.vector_fields, keys
        )
        with spool(new) as rows:
            require_unique(keys, on, "the new rows")
            if rows.count == 0 and not self._delete:
                return MergeResult(
                    version=self._handle.version,
                    num_updated_rows=0,
                    num_inserted_rows=0,
                    num_deleted_rows=0,
                    num_attempts=0,
                )
            drift = encoder.drift.take() if encoder.drift else None
            if drift is not None and drift.rows:
                warning = self._handle.drift_watch.add(self._handle.table, encoder.codecs, drift)
                if warning:
                    warn_caller(warning)
            done = self._merged(rows, on, wheres, encoder, PATIENCE if timeout is None else timeout)
        if drift is not None and drift.rows:
            self._note(drift)
        return done

    def _note(self, drift: DriftSums) -> None:
        """Note how merged rows fit the codec, in a commit of its own, as merges carry no properties."""
        try:
            commit_drift(self._handle.table, drift)
        except (OSError, RuntimeError, TableError) as error:  # not raised, as the rows were merged
            warn_caller(
                f"The rows were merged into table {self._handle.name!r}, but the note on how they fit its "
                f"codec, which health() reads, could not be written: {error}"
            )

    def _wheres(self, on: list[str]) -> _Wheres:
        """The conditions as SQL for Lance; raises InvalidInputError for those that it refuses."""
        handle, update, delete = self._handle, self._update_where, self._delete_where
        wheres = _Wheres(
            None if update is None else handle.conditions.of_merge(handle.table, update, called="where"),
            None if delete is None else handle.conditions.checked(handle.table, delete, called="condition"),
        )
        merge = handle.table.to_lance().merge_insert(on)
        try:
            merge.when_not_matched_by_source_delete(wheres.delete)
        except (OSError, ValueError) as error:
            raise InvalidInputError(
                f"Got condition={delete!r}, which LanceDB refuses: {error}\nExpected an SQL condition over "
                "the table's own columns."
            ) from error
        return wheres

    def _columns(self, encoder: RowEncoder) -> list[str]:
        """The key columns of the merge."""
        key, others = self._handle.key, encoder.others.names
        if self._on is None and key is None:
            raise InvalidInputError(
                f"Got no columns to tell rows apart by, and table {self._handle.name!r} has no key; expected "
                "merge_insert(on), or a key as set_key() sets it."
            )
        on = [str(key)] if self._on is None else self._on
        if not set(on) <= set(others):
            raise InvalidInputError(f"Got on={on!r}; expected some of the columns {', '.join(others)}.")
        return on

    def _checked(
        self,
        tables: Iterator[pa.Table],
        on: list[str],
        wheres: _Wheres,
        ours: list[pa.Field],
        keys: list[pa.Table],
    ) -> Iterator[pa.Table]:
        """The tables, once it is clear that they can be merged; their keys are put into `keys`."""
        for position, table in enumerate(tables):
            if position == 0:  # all have the same columns
                self._require_columns(table.schema.names, on)
                self._require_condition(table.schema, on, wheres, ours)
            keys.append(table.select(on))
            yield table

    def _require_columns(self, names: list[str], on: list[str]) -> None:
        needed = list(on)
        if self._insert:
            needed += [field.name for field in self._handle.schema if not field.nullable]
        missing = [name for name in dict.fromkeys(needed) if name not in names]
        if missing:
            raise InvalidInputError(
                f"The rows to merge do not have all columns that are needed (missing: {', '.join(missing)}). "
                "Nothing was written; add these columns, which allow no nulls, or leave out "
                "when_not_matched_insert_all() to change other columns of rows that exist."
            )

    def _require_condition(
        self, new_rows: pa.Schema, on: list[str], wheres: _Wheres, ours: list[pa.Field]
    ) -> None:
        if wheres.update is None:
            return
        try:
            self._configured(self._handle.table.to_lance(), on, wheres).explain_plan(_whole(new_rows, ours))
        except (OSError, ValueError) as error:
            raise InvalidInputError(
                f"Got where={self._update_where!r}, which LanceDB refuses: {error}\nExpected an SQL "
                "condition over columns named as target.<column> and source.<column>."
            ) from error

    def _configured(self, dataset: lance.LanceDataset, on: list[str], wheres: _Wheres) -> Any:
        merge = dataset.merge_insert(on).use_index(self._use_index)
        if self._update:
            merge = merge.when_matched_update_all(wheres.update)
        if self._insert:
            merge = merge.when_not_matched_insert_all()
        if self._delete:
            merge = merge.when_not_matched_by_source_delete(wheres.delete)
        return merge

    def _merged(
        self,
        rows: SpooledRows,
        on: list[str],
        wheres: _Wheres,
        encoder: RowEncoder,
        timeout: datetime.timedelta,
    ) -> MergeResult:
        table, attempts = self._handle.table, 0

        def merge() -> MergeResult:
            nonlocal attempts
            attempts += 1
            dataset = table.to_lance()
            encoder.require_codec_in(dataset.schema)
            # Not by LanceDB's own merge, which refuses rows with a null in another vector column.
            merge = self._configured(dataset, on, wheres).conflict_retries(0)
            nothing = encoder.others.empty_table().select(on)
            new = (
                nothing.to_reader()
                if rows.schema is None
                else _source(rows, rows.schema, encoder.vector_fields)
            )
            # Given as a table, Lance knows that they are few, and keeps them in memory, not the stored rows.
            done = merge.execute(new.read_all() if rows.are_few else new)
            return MergeResult(version=int(dataset.version), num_attempts=attempts, **done)

        return on_newest(table, merge, patience=timeout)


def _source(rows: SpooledRows, schema: pa.Schema, ours: list[pa.Field]) -> pa.RecordBatchReader:
    """A reader of the new rows, from the first one on."""
    whole = _whole(schema, ours)
    missing = list(whole)[len(schema) :]
    batches = (
        pa.RecordBatch.from_arrays(
            [*batch.columns, *(pa.nulls(len(batch), field.type) for field in missing)], schema=whole
        )
        for batch in rows.reader()
    )
    return pa.RecordBatchReader.from_batches(whole, batches)


def _whole(schema: pa.Schema, ours: list[pa.Field]) -> pa.Schema:
    """The columns of new rows. With a code or a raw vector there are both, as a new vector replaces what
    a row had of either."""
    missing = [field for field in ours if field.name not in schema.names]
    return pa.schema([*schema, *(missing if len(missing) < len(ours) else [])])
