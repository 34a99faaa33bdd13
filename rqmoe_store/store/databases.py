"""Databases: which tables exist, where they are, and how one is created whole or not at all."""

import concurrent.futures
import dataclasses
import datetime
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import lancedb
import pyarrow as pa
from lancedb.db import DBConnection, LanceDBConnection
from lancedb.table import LanceTable, Table

from rqmoe_store.codecs.parallel import use_storage
from rqmoe_store.errors import InvalidInputError, TableError, TableNotFoundError
from rqmoe_store.store.appends import ApartColumn, commit_new, write_table

_TABLE_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_IN_MEMORY = "memory:"
_SUFFIX = ".lance"


def open_if_exists(
    db: DBConnection, name: str, *, branch: str | None = None, version: int | None = None
) -> Table | None:
    """Table `name` of `db`, at its newest version or pinned to one; None when there is no such table."""
    use_storage()
    try:
        return db.open_table(name, branch=branch, version=version)
    except ValueError as error:
        # LanceDB has no class of its own for this. Listing the tables instead would be wrong: it
        # also names folders that an interrupted write left without a table in them.
        if "was not found" not in str(error):
            raise
        return None


def table_names(db: DBConnection) -> Iterator[str]:
    """Names of everything that `db` lists as a table; some may be folders without a table in them."""
    use_storage()
    token = None
    while True:
        page = db.list_tables(page_token=token)
        yield from page.tables
        token = page.page_token
        if not token:
            return


def no_such_table(uri: str, name: str) -> TableNotFoundError:
    """What to raise when the database at `uri` has no table `name`."""
    return TableNotFoundError(f"The database {uri!r} has no table {name!r}. Check the name and the path.")


def require_table_name(name: object) -> None:
    """Raise InvalidInputError unless LanceDB accepts `name` as a table name."""
    if not isinstance(name, str) or not _TABLE_NAME.fullmatch(name):
        raise InvalidInputError(
            f"{name!r} cannot be a table name; use letters, digits, underscores, hyphens and periods."
        )


def folder_of(table: LanceTable) -> str:
    """URI of the database that `table` lives in.

    Raises:
        TableError: the database cannot be told from the table (in memory, or a custom location).
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
    """A connection to the database that `table` lives in. Raises as `folder_of`."""
    return lancedb.connect(folder_of(table), storage_options=table.initial_storage_options())


def storage_options(table: LanceTable) -> dict[str, str] | None:
    """Those of the connection which `table` was opened by, also where its storage has no use for them."""
    options: dict[str, str] | None = table._conn.storage_options
    return options


def read_consistency_interval(table: LanceTable) -> datetime.timedelta | None:
    """That of the connection which `table` was opened by."""
    # Of a table LanceDB does not tell it in public.
    interval: datetime.timedelta | None = table._conn.read_consistency_interval
    return interval


def reopen(table: LanceTable) -> LanceTable:
    """Another handle on `table`, at its newest version. Raises as `database_of`."""
    return cast(LanceTable, database_of(table).open_table(table.name, branch=table.current_branch()))


def create_whole(
    db: DBConnection,
    name: str,
    schema: pa.Schema,
    columns: Sequence[str],
    batches: Iterator[pa.RecordBatch],
    *,
    neighbor: LanceTable,
    apart: ApartColumn | None = None,
) -> LanceTable:
    """Create table `name` from a stream, with stable row ids; on any failure nothing of it remains.

    It appears with all its rows at once.

    Ctrl-C counts as a failure. The writer works in the background and could go on after the interrupt,
    so the stream is told to stop and the writer is waited for before cleaning up.

    Args:
        db: the database.
        name: name of the new table.
        schema: its columns and metadata.
        columns: those that `batches` have, in their order; others are null, but for `apart`.
        batches: its rows.
        neighbor: any table of `db`; tells where its tables are stored and the file format that this
            release of LanceDB writes.
        apart: a column that is written after the stream, into data files of its own.
    """
    stopped = threading.Event()
    failures: list[Exception] = []
    written = pa.schema([schema.field(column) for column in columns])
    reader = pa.RecordBatchReader.from_batches(written, _until(batches, stopped, failures))
    if apart is not None:
        apart = dataclasses.replace(apart, read=_while_not(stopped, apart.read))
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as pool:
        writing = pool.submit(
            _write_beside, cast(LanceDBConnection, db), neighbor, name, schema, reader, apart
        )
        try:
            writing.result()
        except BaseException as error:
            stopped.set()
            concurrent.futures.wait([writing])
            kept = not _clean_up(db, name, writing)
            if not isinstance(error, Exception):
                raise
            if failures:  # LanceDB reports a failing stream as text only; raise what really happened
                raise failures[0] from error
            if kept:
                raise TableError(
                    f"Another process made table {name!r} meanwhile; it is kept. Choose another name."
                ) from error
            raise
    return cast(LanceTable, db.open_table(name))


def create_if_absent(db: DBConnection, name: str, schema: pa.Schema) -> Table:
    """Table `name`, made without rows if there is none; of several makers at once all get the same."""
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
    """Remove table `name`, or what an unfinished writer left of it."""
    cast(LanceDBConnection, db).drop_table(name, ignore_missing=True)


def location(db: DBConnection, name: str) -> str:
    """Where table `name` of a database on disk is, or would be."""
    return f"{db.uri.rstrip('/')}/{name}{_SUFFIX}"


def _write_beside(
    db: LanceDBConnection,
    neighbor: LanceTable,
    name: str,
    schema: pa.Schema,
    reader: pa.RecordBatchReader,
    apart: ApartColumn | None,
) -> None:
    # Not through LanceDB's create_table: that takes other lists of numbers in the table for vectors
    # and refuses or changes rows where they are null, NaN or of unequal length.
    file_format: Any = neighbor.to_lance().data_storage_version
    write_table(
        f"{neighbor.uri.rpartition('/')[0]}/{name}{_SUFFIX}",
        schema,
        reader,
        apart=apart,
        file_format=file_format,
        storage_options=db.storage_options,
    )


def _clean_up(db: DBConnection, name: str, writing: "concurrent.futures.Future[None]") -> bool:
    """Remove what a writer that has ended left of table `name`, unless someone else made it; says whether."""
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
            f"Table {table.name!r} was created without stable row ids although they were asked for; "
            "this release of LanceDB cannot be used. Install a release that rqmoe-store supports."
        )


def _until(
    batches: Iterator[pa.RecordBatch], stopped: threading.Event, failures: list[Exception]
) -> Iterator[pa.RecordBatch]:
    try:
        for batch in batches:
            _require_running(stopped)
            yield batch
    except Exception as error:
        failures.append(error)
        raise


def _while_not(
    stopped: threading.Event, read: Callable[[int, int], pa.Array]
) -> Callable[[int, int], pa.Array]:
    def checked(start: int, stop: int) -> pa.Array:
        _require_running(stopped)
        return read(start, stop)

    return checked


def _require_running(stopped: threading.Event) -> None:
    if stopped.is_set():
        raise InterruptedError("The write was interrupted.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TablePlace:
    """Where a table is; can be sent to another process."""

    database: str
    """URI of the database."""
    storage_options: Mapping[str, str] | None = dataclasses.field(repr=False)
    """To connect to it with; they may hold secrets."""
    name: str
    """Name of the table."""
    branch: str | None
    read_consistency_interval: datetime.timedelta | None = None
    """Of the connection."""

    @classmethod
    def of(cls, table: LanceTable) -> "TablePlace":
        """Where `table` is. Raises TableError where that cannot be told."""
        return cls(
            database=folder_of(table),
            storage_options=table.initial_storage_options() or storage_options(table),
            name=table.name,
            branch=table.current_branch(),
            read_consistency_interval=read_consistency_interval(table),
        )

    def connected(self) -> DBConnection:
        """A connection of this process to the database."""
        options = None if self.storage_options is None else dict(self.storage_options)
        return lancedb.connect(
            self.database,
            storage_options=options,
            read_consistency_interval=self.read_consistency_interval,
        )

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for tables that are reached in the same way, and are read as fresh as each other."""
        options = tuple(sorted((self.storage_options or {}).items()))
        # Zero means what None does.
        return self.database, options, self.name, self.branch, self.read_consistency_interval or None


KEPT_FOR = datetime.timedelta(days=7)
"""How long versions can be restored, if nothing else is said; the same as in LanceDB."""

_AT_ONCE = datetime.timedelta(microseconds=1)  # Lance takes a zero for nothing said


def remove_old_versions(table: LanceTable, older_than: datetime.timedelta | None) -> None:
    """Remove versions older than this, but for the newest and those that a tag or a branch keeps.

    Args:
        table: any handle on it; it stays at the version it is at.
        older_than: None for 7 days.
    """
    reopen(table).to_lance().cleanup_old_versions(
        older_than=max(_AT_ONCE, KEPT_FOR if older_than is None else older_than),
        error_if_tagged_old_versions=False,
    )
