"""Adding, changing and dropping the columns of a table, its key, and indexes on its columns."""

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
from rqmoe_store.store.columns import require_readable
from rqmoe_store.store.keys import column_names, set_key
from rqmoe_store.store.lance import on_newest
from rqmoe_store.store.open_table import OpenTable
from rqmoe_store.store.sql import quoted

ScalarIndex = Literal["BTREE", "BITMAP", "LABEL_LIST"]

_CONFIGS = {"BTREE": BTree, "BITMAP": Bitmap, "LABEL_LIST": LabelList}
_KINDS = ("BTree", "Bitmap", "LabelList")
"""The same, as LanceDB lists them."""

_CHANGES = {"path", "rename", "nullable", "data_type"}


class TableStructure(OpenTable):
    """The methods of a table that work on columns as a whole."""

    def set_key(self, key: str) -> None:
        """Make a column the key that tells rows apart. It allows no nulls from then on, and stays the key.

        Of two concurrent merges by the key that would insert the same new one, the second updates it. `add`
        does not look whether a key is there already.

        Args:
            key: a column of int32, int64, text or bytes; its values are held in memory once, to compare them.

        Raises:
            InvalidInputError: no such column, or several rows have the same value.
            TableError: a row has none, the table has another key, or an earlier version is checked out.
            StorageError: the disk or bucket refuses the change.
        """
        self.refresh()
        self._require_users([key])
        set_key(self.table, key)

    def add_columns(self, transforms: Mapping[str, str] | pa.Field | Iterable[pa.Field] | pa.Schema) -> None:
        """Add columns, all or none; they allow nulls, and rows to come may leave them out.

        Args:
            transforms: SQL expressions over the other columns, by name, such as {"double": "2 * n"}; or Arrow
                fields, for columns of nulls.

        Raises:
            InvalidInputError: names that are taken, or what LanceDB refuses.
            TableError: names that LanceDB does not find again, or an earlier version is checked out.
            StorageError: the disk or bucket refuses the change.
        """
        self.refresh()
        added: Any
        if isinstance(transforms, Mapping):
            names = list(transforms)
            added = {
                name: self.conditions.expression(self.table, sql, called=repr(name))
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
        self._require_free(names)
        if isinstance(added, dict):
            self._require_expressions(added)
        self._change(transforms, lambda: self.table.add_columns(added))
        # A literal makes a column that allows no nulls, to which rows without it could not be added.
        strict: list[Any] = [
            {"path": name, "nullable": True} for name in names if not self.table.schema.field(name).nullable
        ]
        if strict:
            self._change(transforms, lambda: self.table.alter_columns(*strict))

    def alter_columns(self, *alterations: Mapping[str, Any]) -> None:
        """Rename columns, or change their type or whether they allow nulls, in one commit or none at all.

        Args:
            alterations: one for every column, as in LanceDB: {"path": <column>} with "rename", "nullable" or
                "data_type".

        Raises:
            InvalidInputError: unknown columns, the vector's or what is written along with it, the key but for
                its name, the name of text that vectors are computed from, or what LanceDB refuses.
            TableError: names that LanceDB does not find again, or an earlier version is checked out.
            StorageError: the disk or bucket refuses the change.
        """
        encoder = self._encoder()
        for change in alterations:
            if not isinstance(change, Mapping):
                raise InvalidInputError(
                    f"Got {change!r} as one of the alterations; expected dicts such as "
                    "{'path': 'title', 'rename': 'heading'}."
                )
            unknown = sorted(set(change) - _CHANGES)
            if unknown or not isinstance(change.get("path"), str):
                raise InvalidInputError(
                    f"Got {dict(change)!r}; expected path and some of {sorted(_CHANGES)}."
                )
            column = change["path"].partition(".")[0]
            self._require_users([column])
            if column == self.key and set(change) - {"path", "rename"}:
                raise InvalidInputError(f"Got {dict(change)!r} for the table's key; it can only be renamed.")
            if "rename" in change and change["path"] in encoder.computed.values():
                raise InvalidInputError(
                    f"Got another name for column {column!r}, which vectors are computed from by that name."
                )
            if "rename" in change:
                self._require_free([change["rename"]])
        changes: Any = alterations  # LanceDB's annotation is of something else
        self._change(alterations, lambda: self.table.alter_columns(*changes))

    def drop_columns(self, columns: str | Iterable[str]) -> None:
        """Drop columns and the indexes on them, in one commit or none at all.

        Args:
            columns: names of user columns, but for the key.

        Raises:
            InvalidInputError: unknown columns, the vector's or what is written along with it, or the key.
            TableError: an earlier version is checked out.
            StorageError: the disk or bucket refuses the change.
        """
        self.refresh()
        names = column_names(columns, called="columns")
        self._require_users(names)
        if self.key in names:
            raise InvalidInputError(f"Got column {self.key!r} to drop, which is the table's key.")
        self._change(names, lambda: self.table.drop_columns(names))

    def create_scalar_index(
        self,
        column: str,
        *,
        replace: bool = True,
        index_type: ScalarIndex = "BTREE",
        name: str | None = None,
    ) -> None:
        """Make LanceDB's index on a column, for quicker filters and merges.

        Args:
            column: a user column.
            replace: whether the new index takes the place of one on the column.
            index_type: "BTREE", "BITMAP" for few different values, or "LABEL_LIST" for lists.
            name: of the index; by default from that of the column.

        Raises:
            InvalidInputError: an unknown column or kind, or values that it is not for.
            TableError: there is an index and `replace` is False, or an earlier version is checked out.
            StorageError: the disk or bucket refuses to take it.
        """
        self.refresh()
        if index_type not in get_args(ScalarIndex):
            raise InvalidInputError(
                f"Got index_type={index_type!r}; expected one of {', '.join(get_args(ScalarIndex))}."
            )
        self._require_users([column])
        if name is not None and not is_text(name):
            raise InvalidInputError(f"Got name={name!r}; expected text of valid Unicode for the index.")
        before = self._scalar_indexes(column)
        if before and not replace:
            raise TableError(f"Column {column!r} has an index; set replace=True to put another in its place.")
        config: Any = _CONFIGS[index_type]()
        self._change(
            (column, index_type),
            lambda: self.table.create_index(column, config=config, replace=replace, name=name),
        )
        # LanceDB keeps one of another kind or name beside the new one.
        for uuid, stale in self._scalar_indexes(column).items():
            if uuid in before:
                on_newest(self.table, functools.partial(self.table.drop_index, stale))

    def list_indices(self) -> list[IndexConfig]:
        """The indexes on columns of the user's, as LanceDB describes them."""
        if self.checked_out is None:
            self.refresh()
        indexes = self.table.list_indices()
        return [index for index in indexes if not set(index.columns) & set(self.hidden_columns)]

    def index_stats(self, index_name: str) -> IndexStatistics | None:
        """Kind of an index, and how many rows are in it or not yet; None if there is no such index.

        Args:
            index_name: as `list_indices` has it.

        Raises:
            InvalidInputError: not a name.
        """
        if self.checked_out is None:
            self.refresh()
        return self.table.index_stats(_index_name(index_name))

    def drop_index(self, name: str) -> None:
        """Drop an index; columns and rows stay.

        Args:
            name: as `list_indices` has it.

        Raises:
            InvalidInputError: no such index.
            TableError: an earlier version is checked out.
            StorageError: the disk or bucket refuses the change.
        """
        self.refresh()
        names = [index.name for index in self.list_indices()]
        if _index_name(name) not in names:
            raise InvalidInputError(
                f"Got index {name!r} to drop; expected one of {', '.join(names) or 'none'}."
            )
        on_newest(self.table, lambda: self.table.drop_index(name))

    def _scalar_indexes(self, column: str) -> dict[str, str]:
        """Names of the indexes on a column, but for full-text ones, by what is theirs alone."""
        return {
            str(index.index_uuid): index.name
            for index in self.table.list_indices()
            if index.index_type in _KINDS and index.columns == [column]
        }

    def _change(self, asked: object, change: Callable[[], object]) -> None:
        """Make a change; raises InvalidInputError for what LanceDB says of the arguments."""
        try:
            on_newest(self.table, change)
        except TableError:
            raise
        except (ValueError, TypeError) as error:
            if is_gone(error):
                raise
            raise InvalidInputError(f"LanceDB refuses {asked!r}: {error}\nNothing was changed.") from error

    def _require_expressions(self, expressions: dict[str, str | Expr]) -> None:
        code = self.columns.code
        try:
            # With a column that is there: Lance scans for nothing else than expressions.
            self.table.search().select({**expressions, code: quoted(code)}).output_schema()
        except Exception as error:  # LanceDB panics on some, with an exception of no other class
            raise InvalidInputError(
                f"Got {expressions!r} as new columns, which LanceDB refuses: {error}\nExpected SQL "
                "expressions over the table's columns."
            ) from error

    def _require_users(self, names: Iterable[str]) -> None:
        """Raise InvalidInputError unless these are columns of the user's, without the vector column."""
        known = [name for name in self.schema.names if name != self.columns.vector_column]
        unknown = [name for name in names if name not in known]
        if unknown:
            raise InvalidInputError(
                f"Got column {unknown[0]!r}; expected some of {', '.join(known) or 'none'}."
            )

    def _require_free(self, names: Iterable[Any]) -> None:
        for name in names:
            if not isinstance(name, str) or name in self.table.schema.names:
                raise InvalidInputError(f"Got {name!r} as the name of a column; expected one that is free.")
            require_readable(pa.schema([pa.field(name, pa.null())]))


def _index_name(name: Any) -> str:
    if not isinstance(name, str):
        raise InvalidInputError(
            f"Got {name!r} as the name of an index; expected a text, as list_indices() has it."
        )
    return name


def _as_list(transforms: Any) -> list[Any]:
    return list(transforms) if isinstance(transforms, Iterable) and not isinstance(transforms, str) else []
