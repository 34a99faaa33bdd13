"""Handle: an open compressed table, with its columns, its codecs, and the version that is read."""

from typing import Any, Protocol, Self, cast, runtime_checkable

import pyarrow as pa
from lancedb.db import DBConnection
from lancedb.table import LanceTable

from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.device import chosen_device
from rqmoe_store.config import Metric
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.store import databases
from rqmoe_store.store.columns import CodeColumns, user_schema
from rqmoe_store.store.conditions import Conditions
from rqmoe_store.store.databases import TablePlace
from rqmoe_store.store.embeddings import TableEmbedding
from rqmoe_store.store.health import DriftWatch
from rqmoe_store.store.keys import key_of
from rqmoe_store.store.lance import follow, to_newest
from rqmoe_store.store.metadata import TableMetadata, without_ours
from rqmoe_store.store.reencoding import BackgroundEncoding
from rqmoe_store.store.row_encoder import RowEncoder
from rqmoe_store.store.snapshot import Snapshot, Snapshots, snapshots_of
from rqmoe_store.store.table_codec import TableCodec


class Handle:
    """An open compressed table.

    Search, ingestion, upkeep and every operation on rows, columns and versions take a handle;
    `CompressedTable` is the public face of one.

    Reads see the newest version of the table, whichever process wrote it, or the version that is checked
    out. Writes go to the newest version, and none is possible while an earlier one is checked out.
    """

    def __init__(self, table: LanceTable, codecs: TableCodec) -> None:
        """Wrap a table that is open; `Handle.open` opens one by its name.

        Args:
            table: one that this package made.
            codecs: those that its metadata names.

        Raises:
            TableError: a column is missing or of another type than the metadata says.
        """
        metadata = codecs.metadata
        self.metadata: TableMetadata = metadata
        """As it was when the table was opened; its `lasting` part never changes."""
        metadata.columns.require_in(table.schema, code_bytes=codecs.code_bytes)
        metadata.columns.require_all_in(table.schema)
        self.kept = metadata.kept
        """Whether the table keeps its raw vectors, and how."""
        self.kept.require_in(table.schema, table.name)
        self.table = table
        """The LanceDB table. Rows written through it directly need their own codes; check versions out by
        `checkout`, not through it. Read directly, it is at the version it was brought to last."""
        self.checked_out: int | None = None
        """The version that everything is read from; None for the newest one."""
        self.snapshots = self._follow(snapshots_of(table, codecs))
        """Gives the version that is read."""
        if self.snapshots.known.metadata != metadata:  # another handle, of an older version, shares them
            self.snapshots.current()
        self.embedding = TableEmbedding.read(
            table.schema.metadata, metadata.vector_dim, metadata.metric, table.name
        )
        """The LanceDB embedding function its vectors come from; None when there is none."""
        self.drift_watch = DriftWatch()
        """Notices when rows that are added through this handle no longer fit the codec."""
        self.encoding: BackgroundEncoding | None = None
        """The encoding in the background that was started last through this handle."""
        self.pickles_storage_options = False
        """Whether a pickle of this handle may hold the storage options of the connection."""

    @classmethod
    def open(cls, db: DBConnection, name: str, *, branch: str | None = None, device: str = "auto") -> Self:
        """Open the compressed table `name`; its codecs are read from the same database to a device.

        Raises:
            InvalidInputError: the device is unknown, or there is no such GPU.
            TableNotFoundError: no such table.
            TableError: not a compressed one, a column of ours is missing or of another
                type, or a newer release wrote it.
            ArtifactError: a codec is not in the database, is damaged, or is another one.
        """
        databases.require_table_name(name)
        chosen = chosen_device(device)
        table = databases.open_if_exists(db, name, branch=branch)
        if table is None:
            raise databases.no_such_table(db.uri, name)
        metadata = TableMetadata.read(table.schema, name)
        metadata.columns.require_in(table.schema)
        return cls(cast(LanceTable, table), TableCodec.load(db, metadata, device=chosen))

    def __reduce__(self) -> tuple[Any, ...]:
        """Where the table is, and the version checked out; whoever unpickles it opens the table there."""
        place = TablePlace.of(self.table)
        if place.storage_options and not self.pickles_storage_options:
            raise TableError(
                f"Table {self.name!r} was opened with storage options, which may hold secrets and are not "
                "pickled. Open the table in the other process; or call allow_pickling(storage_options=True) "
                "first, if whoever gets the pickle may read them."
            )
        return _reopen, (place, self.checked_out, self.pickles_storage_options, self.device)

    def __copy__(self) -> "Handle":
        return _reopen(TablePlace.of(self.table), self.checked_out, self.pickles_storage_options, self.device)

    def __deepcopy__(self, memo: object) -> "Handle":
        return self.__copy__()

    @property
    def columns(self) -> CodeColumns:
        """The columns that have codes, in the version that was read last."""
        return self.snapshots.known.columns

    @property
    def device(self) -> str:
        """The device that was chosen for the codecs of this handle: "auto", "cpu" or "cuda:<number>"."""
        return self.snapshots.known.chosen_device

    def use_device(self, device: str) -> None:
        """Compute on a device from now on.

        Raises:
            InvalidInputError: the device is unknown, or there is no such GPU.
        """
        codecs = self.snapshots.known.on(chosen_device(device))
        self.snapshots = self._follow(snapshots_of(self.table, codecs, self.checked_out))

    @property
    def conditions(self) -> Conditions:
        """Reads the conditions and expressions that users write over the table."""
        return Conditions(self.columns, self.kept.kept)

    @property
    def codecs(self) -> TableCodec:
        """The codecs of all generations of rows."""
        return self.snapshots.current().codecs

    @property
    def codec(self) -> Codec:
        """The newest codec: encodes the vectors that are added.

        Raises:
            TableError: the table has none yet.
        """
        return self.require_codec(self.snapshots.current())

    def require_codec(self, snapshot: Snapshot) -> Codec:
        """The newest codec of a version. Raises as `codec`."""
        if snapshot.codecs.newest is None:
            raise TableError(
                f"Table {self.name!r} has no codec yet: its {snapshot.rows} rows are kept raw. "
                "Train one with train()."
            )
        return snapshot.codecs.newest

    @property
    def dim(self) -> int:
        """Components of a vector."""
        return self.metadata.vector_dim

    @property
    def metric(self) -> Metric:
        """The distance that the table is searched by."""
        return self.metadata.metric

    @property
    def name(self) -> str:
        """Name of the table."""
        return self.table.name

    @property
    def version(self) -> int:
        """Number of the version that is read."""
        return self.snapshots.current().version

    @property
    def schema(self) -> pa.Schema:
        """The user's columns: the table's schema without codes, partitions and our metadata."""
        return self.user_schema(self.snapshots.current().schema)

    def user_schema(self, schema: pa.Schema) -> pa.Schema:
        """The user's columns of a version with this schema."""
        return without_ours(user_schema(schema, without=self.hidden_columns))

    @property
    def hidden_columns(self) -> tuple[str, ...]:
        """Columns that results leave out unless they are named: codes, partitions, and raw vectors where
        rows keep them only until they are encoded."""
        return self.snapshots.known.metadata.hidden_columns

    @property
    def key(self) -> str | None:
        """The column that is the table's unique key; None without one."""
        return key_of(self.snapshots.current().schema)

    @property
    def summary(self) -> str:
        """Dimension, codes and metric in words; nothing is read for it."""
        metadata = self.snapshots.known.metadata
        config = metadata.vector_config
        size = f"{config.code_bytes} code bytes"
        if config.refine_bytes:
            size += f" and {config.refine_bytes} refine bytes"
        many = "" if metadata.multi_vector is None else "many vectors a row, "
        return f"{many}dim {self.dim} as {size}, {config.kind}, metric {self.metric!r}"

    def refresh(self) -> Snapshot:
        """Bring this handle to the newest version of the table, and return it. Raises as `newest`."""
        snapshot = self.newest()
        to_newest(self.table)
        return snapshot

    def newest(self) -> Snapshot:
        """The newest version of the table, without bringing `table` to it, which takes as long again.

        Raises:
            TableError: an earlier version is checked out; the table was dropped, or made again as one that
                cannot take its place.
            ArtifactError: as `open`.
        """
        if self.checked_out is not None:
            raise TableError(
                f"Table {self.name!r} is checked out at version {self.checked_out}, which cannot be changed. "
                "Call checkout_latest() to go on with the newest version, or restore() to make this one it."
            )
        self.snapshots.freshness.expire()
        return self.snapshots.current()

    def encoder(self, snapshot: Snapshot, encode: bool | None = None) -> RowEncoder:
        """An encoder of rows for a version of the table.

        Args:
            snapshot: the version, from `newest` or `refresh`.
            encode: whether rows get codes; None if the table has a codec.

        Raises:
            TableError: there is no codec to encode with.
        """
        if encode is None:
            encode = snapshot.codecs.newest is not None
        if encode:
            self.require_codec(snapshot)
        return RowEncoder(snapshot.schema, snapshot.codecs, table_name=self.name, encode=encode)

    def checkout(self, number: int) -> None:
        """Read everything from the version `number` until `checkout_latest`.

        Raises as `snapshots_at`.
        """
        snapshots = self.snapshots_at(number)
        self.table.checkout(number)
        self.checked_out, self.snapshots = number, snapshots

    def checkout_latest(self) -> None:
        """Read from the newest version again. Raises as `refresh`."""
        if self.checked_out is not None:
            to_newest(self.table)
            self.checked_out = None
            self.snapshots = self._follow(snapshots_of(self.table, self.snapshots.known))
        self.refresh()

    def snapshots_at(self, number: int) -> Snapshots:
        """What reads the version `number`.

        Raises:
            InvalidInputError: no such version.
            TableError: the table was no compressed one then, or of another vector column.
            ArtifactError: a codec that its rows need is not in the database any more.
        """
        database = databases.database_of(self.table)
        branch = self.table.current_branch()
        try:
            table = cast(LanceTable, database.open_table(self.name, branch=branch, version=number))
        except ValueError as error:
            if "no longer exists" not in str(error):
                raise
            raise unknown_version(number) from error
        metadata = TableMetadata.read(table.schema, self.name)
        if metadata.lasting != self.metadata.lasting:
            raise TableError(
                f"Version {number} of table {self.name!r} is one of {metadata.lasting}; expected "
                f"{self.metadata.lasting}. Was the table dropped and made again?"
            )
        metadata.columns.require_in(table.schema, code_bytes=metadata.config.code_bytes)
        return snapshots_of(table, TableCodec.load(database, metadata, self.snapshots.known), number)

    def _follow(self, snapshots: Snapshots) -> Snapshots:
        """`snapshots`, which are told of what is written through this handle."""
        follow(self.table, snapshots.freshness)
        return snapshots


@runtime_checkable
class OpenTable(Protocol):
    """A table as users hold it, which has a handle: `CompressedTable`."""

    @property
    def handle(self) -> Handle:
        """The open table."""


def unknown_version(version: Any) -> InvalidInputError:
    """What to raise for a version that is not there."""
    return InvalidInputError(
        f"Got version {version!r}; expected one that list_versions() names, or a tag. Versions that were "
        "cleaned up cannot be had again."
    )


def _reopen(place: TablePlace, checked_out: int | None, pickles_storage_options: bool, device: str) -> Handle:
    """A handle like one that was copied or pickled."""
    handle = Handle.open(place.connect(), place.name, branch=place.branch, device=device)
    handle.pickles_storage_options = pickles_storage_options
    if checked_out is not None:
        handle.checkout(checked_out)
    return handle
