"""Earlier versions of a table: looking at them, naming them, and going back."""

from typing import Any, cast

from lancedb.table import LanceTable

from rqmoe_store.arguments import is_text
from rqmoe_store.codecs.parallel import use_storage
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.storage_errors import TranslatesErrors
from rqmoe_store.store import databases
from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.lance import on_newest, to_newest
from rqmoe_store.store.metadata import TableMetadata
from rqmoe_store.store.open_table import OpenTable
from rqmoe_store.store.snapshot import Snapshots, snapshots_of
from rqmoe_store.store.table_codec import TableCodec


class TableTags(TranslatesErrors):
    """Names for the versions of a table, with the calls of LanceDB's."""

    def __init__(self, store: "TableVersions") -> None:
        self._store = store

    def list(self) -> dict[str, Any]:
        """All tags: what LanceDB says of each, its `version` among it."""
        tags: dict[str, Any] = dict(self._store.table.tags.list())
        if not tags:
            self._store.list_versions()  # raises when the table is gone
        return tags

    def get_version(self, tag: str) -> int:
        """The version that a tag names. Raises InvalidInputError if there is no such tag."""
        self._require(tag)
        return self._store.table.tags.get_version(tag)

    def create(self, tag: str, version: int) -> None:
        """Name a version.

        Raises:
            InvalidInputError: no such version, or what LanceDB takes for no name.
            TableError: there is such a tag; `update` makes it name another version.
            StorageError: the disk or bucket refuses it.
        """
        _require_name(tag)
        self._require_version(version)
        if tag in self.list():
            raise TableError(f"There is a tag {tag!r} already; make it name another version with update().")
        try:
            self._store.table.tags.create(tag, version)
        except RuntimeError as error:
            if "Ref is invalid" not in str(error):
                raise
            raise InvalidInputError(f"Got tag={tag!r}, which LanceDB takes for no name: {error}") from error

    def update(self, tag: str, version: int) -> None:
        """Let a tag name another version. Raises InvalidInputError for no such tag or version."""
        self._require(tag)
        self._require_version(version)
        self._store.table.tags.update(tag, version)

    def delete(self, tag: str) -> None:
        """Forget a name. Raises InvalidInputError if there is no such tag."""
        self._require(tag)
        self._store.table.tags.delete(tag)

    def _require(self, tag: str) -> None:
        _require_name(tag)
        known = sorted(self.list())
        if tag not in known:
            there_are = f"one of {', '.join(known)}" if known else "one that create() made; there is none"
            raise InvalidInputError(f"Got tag={tag!r}; expected {there_are}.")

    def _require_version(self, version: int) -> None:
        known = [each["version"] for each in self._store.table.list_versions()]
        if not known:
            self._store.list_versions()  # raises when the table is gone
        if isinstance(version, bool) or not isinstance(version, int) or version not in known:
            raise _unknown(version)


def _require_name(tag: object) -> None:
    if not is_text(tag) or not tag:
        raise InvalidInputError(f"Got tag={tag!r}; expected a name, such as 'before-clean-up'.")


class TableVersions(OpenTable):
    """The methods of a table that work on its versions."""

    @property
    def tags(self) -> TableTags:
        """Names for versions, as in LanceDB: `tags.create(name, version)`, `list`, `get_version`, `update`
        and `delete`. A version that has one is not cleaned up."""
        use_storage()
        return TableTags(self)

    def list_versions(self) -> list[dict[str, Any]]:
        """All versions that can be checked out or restored: `version`, `timestamp` and `metadata` of each.

        Raises:
            TableError: the table was dropped.
        """
        versions = self.snapshots.read(lambda snapshot: (snapshot.table.list_versions(), snapshot.version))
        entries, newest = versions
        # One that is newer than all else that is read is none yet.
        return [each for each in entries if self.checked_out is not None or each["version"] <= newest]

    def checkout(self, version: int | str) -> None:
        """Read everything through this handle, searches included, from an earlier version.

        Until `checkout_latest` or `restore` nothing can be written through it. Other handles do not notice.

        Args:
            version: a number, or the name of a tag.

        Raises:
            InvalidInputError: no such version or tag.
            TableError: the table was no compressed one then, or of another vector column.
            ArtifactError: a codec that its rows need is not in the database any more.
        """
        number = self._number(version)
        snapshots = self._snapshots_at(number)
        self.table.checkout(number)
        self.checked_out, self.snapshots = number, snapshots

    def checkout_latest(self) -> None:
        """Read from the newest version again, and follow what is written. Raises as `refresh`."""
        if self.checked_out is not None:
            to_newest(self.table)
            self.checked_out = None
            self.snapshots = self._followed(snapshots_of(self.table, self.snapshots.known))
        self.refresh()

    def restore(self, version: int | str | None = None) -> None:
        """Make a new version that is like an earlier one, and go on with it.

        Args:
            version: a number, or the name of a tag; None for what is checked out.

        Raises:
            InvalidInputError: no such version or tag, or None without anything checked out.
            TableError, ArtifactError: as `checkout`.
            StorageError: the disk or bucket refuses the change.
        """
        if version is None and self.checked_out is None:
            raise InvalidInputError("Got no version to restore; expected one, or an earlier one checked out.")
        number = self._number(cast(int | str, self.checked_out if version is None else version))
        self._snapshots_at(number)  # raises for what could not be read
        on_newest(self.table, lambda: self.table.restore(number))
        self.checkout_latest()

    def _number(self, version: int | str) -> int:
        """The number of a version, which a tag may name."""
        tags = self.tags.list() if isinstance(version, str) else {}
        number = tags[version]["version"] if version in tags else version
        if isinstance(number, bool) or not isinstance(number, int) or not 0 < number < 2**63:
            raise _unknown(version)
        return number

    def _snapshots_at(self, number: int) -> Snapshots:
        """What reads from a version, if it can be read as one of this table."""
        database = databases.database_of(self.table)
        branch = self.table.current_branch()
        try:
            table = cast(LanceTable, database.open_table(self.name, branch=branch, version=number))
        except ValueError as error:
            if "no longer exists" not in str(error):
                raise
            raise _unknown(number) from error
        marks = TableMetadata.read(table.schema, self.name)
        if marks.lasting != self._marks.lasting:
            raise TableError(
                f"Version {number} of table {self.name!r} is one of {marks.lasting}; expected "
                f"{self._marks.lasting}. Was the table dropped and made again?"
            )
        CodeColumns(marks.vector_column).require_in(table.schema, code_bytes=marks.config.code_bytes)
        return snapshots_of(table, TableCodec.load(database, marks, self.snapshots.known), number)


def _unknown(version: Any) -> InvalidInputError:
    return InvalidInputError(
        f"Got version {version!r}; expected one that list_versions() names, or a tag. Versions that were "
        "cleaned up cannot be had again."
    )
