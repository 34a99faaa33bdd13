"""Versions of a table: listing them, naming them with tags, and restoring one."""

from typing import Any, cast

from rqmoe_store.arguments import is_text
from rqmoe_store.codecs.parallel import use_storage
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.storage_errors import TranslatesErrors
from rqmoe_store.store.handle import Handle, unknown_version
from rqmoe_store.store.lance import on_newest


class TableTags(TranslatesErrors):
    """Names for the versions of a table, with the methods of LanceDB's tags."""

    def __init__(self, handle: Handle) -> None:
        use_storage()
        self._handle = handle

    def list(self) -> dict[str, Any]:
        """All tags: what LanceDB says of each, its `version` among it."""
        tags: dict[str, Any] = dict(self._handle.table.tags.list())
        if not tags:
            list_versions(self._handle)  # raises when the table is gone
        return tags

    def get_version(self, tag: str) -> int:
        """The version that a tag names. Raises InvalidInputError if there is no such tag."""
        self._require(tag)
        return self._handle.table.tags.get_version(tag)

    def create(self, tag: str, version: int) -> None:
        """Name a version.

        Raises:
            InvalidInputError: no such version, or a name that LanceDB does not take.
            TableError: there is such a tag; `update` makes it name another version.
            StorageError: the disk or bucket refuses it.
        """
        _require_name(tag)
        self._require_version(version)
        if tag in self.list():
            raise TableError(f"There is a tag {tag!r} already; make it name another version with update().")
        try:
            self._handle.table.tags.create(tag, version)
        except RuntimeError as error:
            if "Ref is invalid" not in str(error):
                raise
            raise InvalidInputError(f"Got tag={tag!r}, which LanceDB takes for no name: {error}") from error

    def update(self, tag: str, version: int) -> None:
        """Let a tag name another version. Raises InvalidInputError for no such tag or version."""
        self._require(tag)
        self._require_version(version)
        self._handle.table.tags.update(tag, version)

    def delete(self, tag: str) -> None:
        """Delete a tag; the version stays. Raises InvalidInputError if there is no such tag."""
        self._require(tag)
        self._handle.table.tags.delete(tag)

    def _require(self, tag: str) -> None:
        _require_name(tag)
        known = sorted(self.list())
        if tag not in known:
            there_are = f"one of {', '.join(known)}" if known else "one that create() made; there is none"
            raise InvalidInputError(f"Got tag={tag!r}; expected {there_are}.")

    def _require_version(self, version: int) -> None:
        known = [each["version"] for each in self._handle.table.list_versions()]
        if not known:
            list_versions(self._handle)  # raises when the table is gone
        if isinstance(version, bool) or not isinstance(version, int) or version not in known:
            raise unknown_version(version)


def _require_name(tag: object) -> None:
    if not is_text(tag) or not tag:
        raise InvalidInputError(f"Got tag={tag!r}; expected a name, such as 'before-clean-up'.")


def list_versions(handle: Handle) -> list[dict[str, Any]]:
    """See `CompressedTable.list_versions`."""
    versions = handle.snapshots.read(lambda snapshot: (snapshot.table.list_versions(), snapshot.version))
    entries, newest = versions
    # A version newer than the one that reads see must not be listed: they know nothing of it yet.
    return [each for each in entries if handle.checked_out is not None or each["version"] <= newest]


def checkout(handle: Handle, version: int | str) -> None:
    """See `CompressedTable.checkout`."""
    handle.checkout(_number_of(handle, version))


def restore(handle: Handle, version: int | str | None) -> None:
    """See `CompressedTable.restore`."""
    if version is None and handle.checked_out is None:
        raise InvalidInputError("Got no version to restore; expected one, or an earlier one checked out.")
    number = _number_of(handle, cast(int | str, handle.checked_out if version is None else version))
    handle.snapshots_at(number)  # raises for a version that cannot be read
    on_newest(handle.table, lambda: handle.table.restore(number))
    handle.checkout_latest()


def _number_of(handle: Handle, version: int | str) -> int:
    """The number of a version, which a tag may name."""
    tags = TableTags(handle).list() if isinstance(version, str) else {}
    number = tags[version]["version"] if version in tags else version
    if isinstance(number, bool) or not isinstance(number, int) or not 0 < number < 2**63:
        raise unknown_version(version)
    return number
