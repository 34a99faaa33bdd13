"""Snapshots: one version of a table, the newest or one checked out, for reads that belong together."""

import copy
import dataclasses
import functools
import weakref
from collections.abc import Callable
from typing import TypeVar, cast

import lance
import pyarrow as pa
from lancedb.db import DBConnection
from lancedb.table import LanceTable

from rqmoe_store.codecs.parallel import Lock, use_storage
from rqmoe_store.errors import RQMoEError, TableError
from rqmoe_store.store import databases
from rqmoe_store.store.databases import TablePlace
from rqmoe_store.store.embeddings import embedding_description
from rqmoe_store.store.lance import Freshness
from rqmoe_store.store.metadata import TableMetadata, TunedSearch
from rqmoe_store.store.neighbor_graph import NeighborGraph
from rqmoe_store.store.registry import places_in_use
from rqmoe_store.store.table_codec import TableCodec

State = TypeVar("State")
Result = TypeVar("Result")

_snapshots: "weakref.WeakValueDictionary[tuple[object, ...], Snapshots]" = weakref.WeakValueDictionary()
_snapshots_lock = Lock()


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """One version of a table, which stays the same whatever is written."""

    dataset: lance.LanceDataset
    """The dataset, at this version."""
    database: DBConnection = dataclasses.field(repr=False)
    """The database of the table."""
    name: str
    """Name of the table."""
    branch: str | None
    schema: pa.Schema
    transaction: str
    """Id of the write that made the version. The number alone does not identify it: a table that was dropped
    and created again counts from 1."""
    codecs: TableCodec
    """The codecs of the version's rows."""

    @classmethod
    def of(
        cls, dataset: lance.LanceDataset, database: DBConnection, place: TablePlace, known: TableCodec
    ) -> "Snapshot":
        """A snapshot of the version that a dataset is at.

        Args:
            dataset: the table; nobody may check out another version through it.
            database: where codecs are loaded from.
            place: where the table is.
            known: the codecs of another version, which are not loaded again.

        Raises as `TableMetadata.read` and `TableCodec.load`, and TableError if the column of refine codes is
        gone.
        """
        schema = dataset.schema
        metadata = TableMetadata.read(schema, place.name)
        metadata.columns.require_all_in(schema)
        codecs = TableCodec.load(database, metadata, known)
        return cls(dataset, database, place.name, place.branch, schema, _transaction(dataset), codecs)

    @property
    def version(self) -> int:
        """Number of the version."""
        return int(self.dataset.version)

    @functools.cached_property
    def table(self) -> LanceTable:
        """LanceDB's table, pinned to the version.

        Raises:
            OSError: the version is gone.
        """
        table = databases.open_if_exists(self.database, self.name, branch=self.branch, version=self.version)
        if table is None or _transaction(cast(LanceTable, table).to_lance()) != self.transaction:
            raise FileNotFoundError(f"Version {self.version} of table {self.name!r} is gone.")
        return cast(LanceTable, table)

    @functools.cached_property
    def rows(self) -> int:
        """Number of rows, with a vector or without."""
        return int(self.dataset.count_rows())

    @functools.cached_property
    def places_in_use(self) -> list[int]:
        """Positions of the codecs that any row has a code of; the newest is always among them."""
        return places_in_use(self.dataset, self.codecs.metadata)

    @functools.cached_property
    def neighbor_graph(self) -> NeighborGraph:
        """The neighbors of its rows. Raises as `NeighborGraph.open`."""
        return NeighborGraph.open(self.dataset, self.database, self.name)

    @functools.cached_property
    def tuned(self) -> TunedSearch | None:
        """The search parameters that `tune` chose; None if the table was not tuned.

        Raises TableError if they cannot be read.
        """
        return TunedSearch.read(self.dataset.metadata, self.name)


class Snapshots:
    """Gives the newest version of a table as a `Snapshot`, or always the one that was checked out.

    All handles of a process that open a table in the same way, on the same device, share one of these.
    """

    def __init__(self, table: LanceTable, place: TablePlace, codecs: TableCodec, version: int | None) -> None:
        """Start with the version that `table` is at; `snapshots_of` calls this.

        Args:
            table: any handle on the table, at `version` if that is not None.
            place: where the table is.
            codecs: the codecs of any version.
            version: the version to stay at; None to follow the newest.
        """
        self._place, self._checked_out = place, version
        self._lasting = _lasting(codecs.metadata, table.schema)
        self.freshness = Freshness(place.read_consistency_interval)
        """Tells whether `current` has to look for a newer version."""
        self._lock = Lock()
        self._database = databases.database_of(table)
        self._newest: lance.LanceDataset
        self._pinned: Snapshot
        self._pinned_identity: tuple[object, ...]
        self._pin(table.to_lance(), codecs)

    def current(self) -> Snapshot:
        """The version that was checked out, or the newest one, whichever process wrote it.

        If the connection has a `read_consistency_interval`, it may be that much older than the newest.

        Raises:
            TableError: the table was dropped, or created again in a way that this object cannot follow.
        """
        use_storage()
        with self._lock:  # of several threads that find a new version, one reads it
            if self._checked_out is None and self.freshness.is_due():
                self._look()
            return self._pinned

    @property
    def last(self) -> Snapshot:
        """The version that was read last."""
        return self._pinned

    @property
    def known(self) -> TableCodec:
        """The codecs of the version that was read last."""
        return self._pinned.codecs

    def read(self, action: Callable[[Snapshot], Result]) -> Result:
        """Return what `action` returns for the current version; again for a later one if this is lost.

        Raises as `current` and `action`.
        """

        def current() -> tuple[Snapshot, Snapshot]:
            snapshot = self.current()
            return snapshot, snapshot

        return self.read_state(current, action)

    def read_state(
        self, current: Callable[[], tuple[Snapshot, State]], action: Callable[[State], Result]
    ) -> Result:
        """As `read`, but `action` gets what `current` returns together with the current version."""
        while True:
            snapshot = None
            try:
                snapshot, state = current()
                return action(state)
            except (OSError, RuntimeError, ValueError, pa.ArrowException) as error:
                # Old versions may be cleaned up, and tables replaced, while they are read.
                if isinstance(error, RQMoEError) or not self.is_lost(snapshot):
                    raise

    def is_lost(self, snapshot: Snapshot | None) -> bool:
        """Whether a version cannot be read any more, as its files were removed or the table was replaced.

        If so, `current` gives another version from now on. None stands for the one that it gave last.

        Raises TableError if the table was dropped, or the lost version is the one that was checked out.
        """
        with self._lock:
            snapshot, newest = snapshot or self._pinned, self._open()
            kept = any(entry["version"] == snapshot.version for entry in newest.versions())
            if kept and _transaction(self._open(snapshot.version)) == snapshot.transaction:
                return False
            if self._checked_out is not None:
                raise TableError(
                    f"Version {self._checked_out} of table {self._place.name!r}, which is checked out, was "
                    "cleaned up. Call checkout_latest(); a version that has a tag is kept."
                )
            self._pin(newest, self._pinned.codecs)
            return True

    def _look(self) -> None:
        look = self.freshness.begin()
        try:
            self._newest.checkout_latest()  # type: ignore[no-untyped-call]  # pylance leaves it unannotated
        except (OSError, ValueError):
            self._newest = self._open()  # raises when the table is gone
        if _identity(self._newest) != self._pinned_identity:
            self._pin(self._newest, self._pinned.codecs)
        look.done()

    def _pin(self, dataset: lance.LanceDataset, known: TableCodec) -> None:
        """Make the version that a dataset is at the current one."""
        snapshot = Snapshot.of(copy.copy(dataset), self._database, self._place, known)
        self._require_lasting(snapshot)
        self._newest, self._pinned, self._pinned_identity = dataset, snapshot, _identity(snapshot.dataset)

    def _require_lasting(self, snapshot: Snapshot) -> None:
        found = _lasting(snapshot.codecs.metadata, snapshot.schema)
        changed = [name for name, value in self._lasting.items() if found[name] != value]
        if changed:
            raise TableError(
                f"Table {self._place.name!r} was dropped and made again as another one, of "
                f"{_described(found, changed)}; this handle was opened on one of "
                f"{_described(self._lasting, changed)}. Open the table again."
            )

    def _open(self, version: int | None = None) -> lance.LanceDataset:
        place = self._place
        table = databases.open_if_exists(self._database, place.name, branch=place.branch, version=version)
        if table is None:
            raise TableError(
                f"Table {place.name!r} is no longer in {place.database!r}: it was dropped or renamed "
                "after it was opened. Open another table."
            )
        return cast(LanceTable, table).to_lance()


def snapshots_of(table: LanceTable, codecs: TableCodec, version: int | None = None) -> Snapshots:
    """The `Snapshots` that all handles of this process share which open a table in the same way.

    They exist as long as one of these handles does.

    Args:
        table: at `version` if that is not None, otherwise at the newest version.
        codecs: the codecs of any version, on the device that was chosen for them.
        version: the version to stay at; None to follow the newest.
    """
    place = TablePlace.of(table)
    key = place.key, tuple(_lasting(codecs.metadata, table.schema).values()), version, codecs.chosen_device
    with _snapshots_lock:
        snapshots = _snapshots.get(key)
        if snapshots is None:
            snapshots = _snapshots[key] = Snapshots(table, place, codecs, version)
        else:
            snapshots.freshness.expire()  # opening a table shows it as it is now
        return snapshots


def _lasting(metadata: TableMetadata, schema: pa.Schema) -> dict[str, object]:
    """What must stay the same as long as a handle on a table is used."""
    return {**metadata.lasting, "embedding function": embedding_description(schema.metadata)}


def _described(lasting: dict[str, object], names: list[str]) -> str:
    return ", ".join(f"{name} {lasting[name]!r}" for name in names)


def _identity(dataset: lance.LanceDataset) -> tuple[object, ...]:
    """Identifies a version, also after the table was dropped and created again; unlike the transaction, it is
    in memory already."""
    version = dataset._ds.current_version()
    return version["version"], version["timestamp"]


def _transaction(dataset: lance.LanceDataset) -> str:
    transaction = dataset.read_transaction(dataset.version)
    return "" if transaction is None else str(transaction.uuid)
