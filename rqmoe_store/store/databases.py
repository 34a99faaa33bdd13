"""Databases: open, list, create and drop tables, tell where a table is, and remove its old versions."""

import concurrent.futures
import dataclasses
import datetime
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import lance
import lancedb
import pyarrow as pa
from lancedb.db import DBConnection, LanceDBConnection
from lancedb.table import LanceTable, Table

from rqmoe_store.codecs.parallel import use_storage
from rqmoe_store.errors import InvalidInputError, TableError, TableNotFoundError
from rqmoe_store.store.appends import SeparateColumn, commit_new, write_table

_TABLE_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_IN_MEMORY = "memory:"
_SUFFIX = ".lance"

KEPT_FOR = datetime.timedelta(days=7)
"""Default for how long old versions are kept and can be restored; the same as LanceDB's."""

_AT_ONCE = datetime.timedelta(microseconds=1)  # Lance treats zero as the default


def open_if_exists(
    db: DBConnection, name: str, *, branch: str | None = None, version: int | None = None
) -> Table | None:
    """Open table `name` of `db`, at its newest version or pinned to one; None if there is no such table."""
    use_storage()
    try:
        return db.open_table(name, branch=branch, version=version)
    except ValueError as error:
        # LanceDB has no exception class for this. Listing the tables instead would be wrong: the list
        # includes folders without a table that an interrupted write has left.
        if "was not found" not in str(error):
            raise
        return None


def table_names(db: DBConnection) -> Iterator[str]:
    """Names of everything that `db` lists as a table; some may be folders without a table."""
    use_storage()
    token = None
    while True:
        page = db.list_tables(page_token=token)
        yield from page.tables
        token = page.page_token
        if not token:
            return


def no_such_table(uri: str, name: str) -> TableNotFoundError:
    """The exception that says that the database at `uri` has no table `name`."""
    return TableNotFoundError(f"The database {uri!r} has no table {name!r}. Check the name and the path.")


def require_table_name(name: object) -> None:
    """Raise InvalidInputError unless LanceDB accepts `name` as a table name."""
    if not isinstance(name, str) or not _TABLE_NAME.fullmatch(name):
        raise InvalidInputError(
            f"{name!r} cannot be a table name; use letters, digits, underscores, hyphens and periods."
        )


def folder_of(table: LanceTable) -> str:
    """URI of the database that `table` is in.

    Raises:
        TableError: the location of the table does not tell (it is in memory, or a custom location).
    """
    use_storage()
    folder, _, last = table.uri.rstrip("/").rpartition("/")
    if last != f"{table.name}{_SUFFIX}" or folder.startswith(_IN_MEMORY):
        raise TableError(
            f"The database of table {table.name!r} cannot be told from its location {table.uri!r}; expected "
            "<database>/<table>.lance in a folder or bucket. Keep the table in a database on disk."
        )
    return folder


def database_of(table: LanceTable) -> DBConnection:
    """Connect to the database that `table` is in. Raises as `folder_of`."""
    return lancedb.connect(folder_of(table), storage_options=table.initial_storage_options())


def storage_options(table: LanceTable) -> dict[str, str] | None:
    """The storage options of the connection that opened `table`, including those its storage does not use."""
    options: dict[str, str] | None = table._conn.storage_options
    return options


def read_consistency_interval(table: LanceTable) -> datetime.timedelta | None:
    """The read consistency interval of the connection that opened `table`."""
    # LanceDB has no public way to ask a table for it.
    interval: datetime.timedelta | None = table._conn.read_consistency_interval
    return interval


def reopen(table: LanceTable) -> LanceTable:
    """Open another handle on `table`, at its newest version. Raises as `database_of`."""
    return cast(LanceTable, database_of(table).open_table(table.name, branch=table.current_branch()))


def create_atomically(
    db: DBConnection,
    name: str,
    schema: pa.Schema,
    columns: Sequence[str],
    batches: Iterator[pa.RecordBatch],
    *,
    neighbor: LanceTable,
    separate: Sequence[SeparateColumn] = (),
) -> LanceTable:
    """Create table `name` from a stream, with stable row ids and all rows in one commit.

    After a failure nothing of the table remains. Ctrl-C counts as a failure: the writer works in another
    thread and could continue after the interrupt, so this stops the stream and waits for the writer before it
    cleans up.

    Args:
        db: the database.
        name: name of the new table.
        schema: columns and metadata of the table.
        columns: columns of `batches`, in their order; other columns are null, except separate ones.
        batches: rows of the table.
        neighbor: any table of `db`; its location tells where tables of the database are stored, and its
            files have the format version that this release of LanceDB writes.
        separate: columns to write after the stream, each into data files of its own.
    """
    stopped = threading.Event()
    failures: list[Exception] = []
    written = pa.schema([schema.field(column) for column in columns])
    reader = pa.RecordBatchReader.from_batches(written, _stoppable_batches(batches, stopped, failures))
    stoppable = [
        dataclasses.replace(column, read=_stoppable_read(column.read, stopped)) for column in separate
    ]
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as pool:
        writing = pool.submit(
            _write_beside, cast(LanceDBConnection, db), neighbor, name, schema, reader, stoppable
        )
        try:
            writing.result()
        except BaseException as error:
            stopped.set()
            concurrent.futures.wait([writing])
            cleaned_up = _clean_up(db, name, writing)
            if not isinstance(error, Exception):
                raise
            if failures:  # LanceDB reports the exception of a stream as text only
                raise failures[0] from error
            if not cleaned_up:
                raise TableError(
                    f"Another process made table {name!r} meanwhile; it is kept. Choose another name."
                ) from error
            raise
    return cast(LanceTable, db.open_table(name))


def create_if_absent(db: DBConnection, name: str, schema: pa.Schema) -> Table:
    """Open table `name`, or create it without rows; several callers at once get the same table."""
    try:
        options = cast(LanceDBConnection, db).storage_options
        commit_new(location(db, name), schema, [], storage_options=options)
    except OSError:
        table = open_if_exists(db, name)
        if table is None:
            raise
        return table
    return db.open_table(name)


def drop(db: DBConnection, name: str) -> None:
    """Drop table `name`, or remove what an unfinished writer left of it."""
    cast(LanceDBConnection, db).drop_table(name, ignore_missing=True)


def location(db: DBConnection, name: str) -> str:
    """URI of table `name` of a database on disk, whether or not the table exists."""
    return f"{db.uri.rstrip('/')}/{name}{_SUFFIX}"


def _write_beside(
    db: LanceDBConnection,
    neighbor: LanceTable,
    name: str,
    schema: pa.Schema,
    reader: pa.RecordBatchReader,
    separate: Sequence[SeparateColumn],
) -> None:
    """Write the table into the folder that has `neighbor`."""
    # LanceDB's create_table would treat other lists of numbers as vectors, and refuse or change rows where
    # they are null, NaN or of unequal length.
    file_format: Any = neighbor.to_lance().data_storage_version
    write_table(
        f"{neighbor.uri.rpartition('/')[0]}/{name}{_SUFFIX}",
        schema,
        reader,
        separate=separate,
        file_format=file_format,
        storage_options=db.storage_options,
    )


def _clean_up(db: DBConnection, name: str, writing: "concurrent.futures.Future[None]") -> bool:
    """Remove what a failed writer left of table `name`; return False if another writer created the table."""
    if writing.exception() is not None and open_if_exists(db, name) is not None:
        return False
    drop(db, name)
    return True


def require_on_disk(db: DBConnection) -> None:
    """Raise TableError unless `db` is a database in a folder or bucket that this process can use."""
    use_storage()
    if not isinstance(db, LanceDBConnection) or db.uri.startswith(_IN_MEMORY):
        raise TableError(
            f"Got {db!r} as the database to write to; expected one in a folder or bucket, as opened by "
            "lancedb.connect(<folder or bucket>)."
        )


def require_stable_row_ids(table: LanceTable) -> None:
    """Raise TableError unless row ids of `table` survive updates and compaction."""
    if not table.to_lance().has_stable_row_ids:
        raise TableError(
            f"Table {table.name!r} was created without stable row ids although they were requested; "
            "this release of LanceDB cannot be used. Install a release that rqmoe-store supports."
        )


def _stoppable_batches(
    batches: Iterator[pa.RecordBatch], stopped: threading.Event, failures: list[Exception]
) -> Iterator[pa.RecordBatch]:
    """The batches until `stopped` is set; records what `batches` raises in `failures`."""
    try:
        for batch in batches:
            _require_running(stopped)
            yield batch
    except Exception as error:
        failures.append(error)
        raise


def _stoppable_read(
    read: Callable[[int, int], pa.Array], stopped: threading.Event
) -> Callable[[int, int], pa.Array]:
    def read_unless_stopped(start: int, stop: int) -> pa.Array:
        _require_running(stopped)
        return read(start, stop)

    return read_unless_stopped


def _require_running(stopped: threading.Event) -> None:
    if stopped.is_set():
        raise InterruptedError("The write was interrupted.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TablePlace:
    """Where a table is and how to connect to its database; can be sent to another process."""

    database: str
    """URI of the database."""
    storage_options: Mapping[str, str] | None = dataclasses.field(repr=False)
    """Options to connect to the database with; they may have secrets."""
    name: str
    """Name of the table."""
    branch: str | None
    read_consistency_interval: datetime.timedelta | None = None
    """Read consistency interval of the connection."""

    @classmethod
    def of(cls, table: LanceTable) -> "TablePlace":
        """The place of `table`. Raises as `folder_of`."""
        return cls(
            database=folder_of(table),
            storage_options=table.initial_storage_options() or storage_options(table),
            name=table.name,
            branch=table.current_branch(),
            read_consistency_interval=read_consistency_interval(table),
        )

    def connect(self) -> DBConnection:
        """Connect to the database."""
        options = None if self.storage_options is None else dict(self.storage_options)
        return lancedb.connect(
            self.database,
            storage_options=options,
            read_consistency_interval=self.read_consistency_interval,
        )

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for handles on the same table with the same options and read consistency interval."""
        options = tuple(sorted((self.storage_options or {}).items()))
        # An interval of zero means the same as None.
        return self.database, options, self.name, self.branch, self.read_consistency_interval or None


def remove_old_versions(table: LanceTable, older_than: datetime.timedelta | None) -> None:
    """Remove old versions, except the newest version and those that a tag or a branch needs.

    Args:
        table: any handle on the table; it stays at its version.
        older_than: age of versions to remove; None for 7 days.
    """
    clean_up(reopen(table).to_lance(), older_than)


def clean_up(dataset: lance.LanceDataset, older_than: datetime.timedelta | None) -> None:
    """Remove old versions of a table as `remove_old_versions` does, by a dataset at its newest version."""
    dataset.cleanup_old_versions(
        older_than=max(_AT_ONCE, KEPT_FOR if older_than is None else older_than),
        error_if_tagged_old_versions=False,
    )
