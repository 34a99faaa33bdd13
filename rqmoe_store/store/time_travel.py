"""Earlier versions of a table: looking at them, naming them, and going back."""

from typing import Any, cast

from lancedb.table import LanceTable, Tags

from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.store import databases
from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.metadata import TableMarks
from rqmoe_store.store.open_table import OpenTable
from rqmoe_store.store.refusals import names_refusals
from rqmoe_store.store.retries import on_newest
from rqmoe_store.store.table_codec import TableCodec


class TableVersions(OpenTable):
    """The methods of a table that work on its versions."""

    @property
    def tags(self) -> Tags:
        """Names for versions, as in LanceDB: `tags.create(name, version)`, `list`, `get_version`, `update`
        and `delete`. A version that has one is not cleaned up."""
        return self.table.tags

    def list_versions(self) -> list[dict[str, Any]]:
        """All versions that can be checked out or restored: `version`, `timestamp` and `metadata` of each."""
        return self.table.list_versions()

    def checkout(self, version: int | str) -> None:
        """Read everything through this handle, searches included, from an earlier version.

        Until `checkout_latest` or `restore` nothing can be written through it. Other handles do not notice.

        Args:
            version: a number, or the name of a tag.

        Raises:
            InvalidInputError: no such version or tag.
            TableError: the table was no compressed one then, or of another vector column.
            ArtefactError: a codec that its rows need is not in the database any more.
        """
        number = self._number(version)
        self._codecs = self._codecs_at(number)
        self.table.checkout(number)
        self.checked_out = number

    def checkout_latest(self) -> None:
        """Read from the newest version again, and follow what is written. Raises as `refresh`."""
        self.checked_out = None
        self.refresh()

    @names_refusals
    def restore(self, version: int | str | None = None) -> None:
        """Make a new version that is like an earlier one, and go on with it.

        Args:
            version: a number, or the name of a tag; None for what is checked out.

        Raises:
            InvalidInputError: no such version or tag, or None without anything checked out.
            TableError, ArtefactError: as `checkout`.
            StorageError: the disk or bucket refuses the change.
        """
        if version is None and self.checked_out is None:
            raise InvalidInputError("Got no version to restore; expected one, or an earlier one checked out.")
        number = self._number(cast(int | str, self.checked_out if version is None else version))
        self._codecs_at(number)  # raises for what could not be read
        on_newest(self.table, lambda: self.table.restore(number))
        self.checkout_latest()

    def _number(self, version: int | str) -> int:
        """The number of a version, which a tag may name."""
        tags = self.table.tags.list() if isinstance(version, str) else {}
        number = tags[version]["version"] if version in tags else version
        if isinstance(number, bool) or not isinstance(number, int) or not 0 < number < 2**63:
            raise _unknown(version)
        return number

    def _codecs_at(self, number: int) -> TableCodec:
        """The codecs of a version, if it can be read as one of this table."""
        database = databases.database_of(self.table)
        branch = self.table.current_branch()
        try:
            table = cast(LanceTable, database.open_table(self.name, branch=branch, version=number))
        except ValueError as error:
            if "no longer exists" not in str(error):
                raise
            raise _unknown(number) from error
        marks = TableMarks.read(table.schema, self.name)
        if marks.vector_column != self.columns.vector_column or marks.keep_vectors != self.kept.keep:
            raise TableError(
                f"Version {number} of table {self.name!r} keeps column {marks.vector_column!r} as "
                f"{marks.keep_vectors!r}; expected {self.columns.vector_column!r} as {self.kept.keep!r}. Was "
                "the table dropped and made again?"
            )
        CodeColumns(marks.vector_column).require_in(table.schema, code_bytes=marks.config.code_bytes)
        return TableCodec.load(database, marks, self._codecs)


def _unknown(version: Any) -> InvalidInputError:
    return InvalidInputError(
        f"Got version {version!r}; expected one that list_versions() names, or a tag. Versions that were "
        "cleaned up cannot be had again."
    )
