"""Registry: codecs stored inside the database, which tables need them, and removal of unused ones.

The LanceDB table `_rqmoe_codecs` has one row per codec: fingerprint, configuration as JSON, weights, time.
Rows are appended, and removed when no version of any table needs the codec any more. If two processes save
the same codec at once, there are two equal rows. That is harmless: `load` takes the first intact one.
"""

import dataclasses
import datetime
import itertools
from collections.abc import Collection, Iterable, Iterator
from typing import Any, cast

import lance
import pyarrow as pa
from lancedb.db import DBConnection
from lancedb.table import LanceTable, Table

from rqmoe_store.codecs.artifact import Artifact, require_fingerprint
from rqmoe_store.codecs.base import Codec, require_storable
from rqmoe_store.errors import ArtifactError, StorageError, TableError
from rqmoe_store.storage_errors import translates_errors
from rqmoe_store.store import databases
from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.databases import create_if_absent, open_if_exists, remove_old_versions
from rqmoe_store.store.lance import panics_as_errors, retry_on_conflict
from rqmoe_store.store.metadata import TableMetadata, has_metadata
from rqmoe_store.store.sql import literal, quoted

REGISTRY_TABLE = "_rqmoe_codecs"

GRACE = datetime.timedelta(days=7)
"""Codecs saved or replaced later than this ago are never removed: another process may not have committed yet
what needs them."""

_FRESH = datetime.timedelta(days=1)
"""A codec that was saved longer ago is saved again, so that its grace period lasts until the table that needs
it is committed."""

_SCHEMA = pa.schema(
    [
        pa.field("fingerprint", pa.string(), nullable=False),
        pa.field("config_json", pa.string(), nullable=False),
        pa.field("weights", pa.large_binary(), nullable=False),
        pa.field("created_at", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)


@translates_errors
def save(db: DBConnection, codec: Codec) -> Table:
    """Save `codec` in `db`, unless an intact copy was saved lately; return the registry table.

    Since tables may drop their vectors in reliance on the codec, it is loaded and tried before it is written,
    and read back afterwards.

    Raises:
        InvalidInputError: the codec could not be loaded again.
        ArtifactError: the registry cannot be read.
        StorageError: the codec reads back differently from what was written.
    """
    artifact = require_storable(codec).to_artifact()
    registry = open_or_create_registry(db)
    now = datetime.datetime.now(datetime.UTC)
    fresh = f"{codec_condition(codec.fingerprint)} AND created_at > {sql_time(now - _FRESH)}"
    if artifact in stored_artifacts(registry, fresh):
        return registry
    row = {
        "fingerprint": codec.fingerprint,
        "config_json": artifact.config_json,
        "weights": artifact.weights,
        "created_at": now,
    }
    registry.add(pa.Table.from_pylist([row], schema=_SCHEMA))
    if artifact not in stored_artifacts(registry, codec_condition(codec.fingerprint)):
        raise StorageError(
            f"The codec was written to table {REGISTRY_TABLE!r}, and something else is read back. No table "
            "uses it, and no vector was touched; check the storage, and try again."
        )
    return registry


def load(db: DBConnection, fingerprint: str, *, device: str = "auto") -> Codec:
    """Load the codec with this fingerprint to a device, as in `Codec.to`.

    Raises:
        ArtifactError: `db` has no such codec, or every stored copy is damaged.
    """
    registry = open_registry(db)
    artifacts = [] if registry is None else stored_artifacts(registry, codec_condition(fingerprint))
    if not artifacts:
        raise ArtifactError(
            f"The database has no codec with fingerprint {fingerprint!r} (table {REGISTRY_TABLE!r}); "
            "the tables compressed with it cannot be read without it. If you have it as a folder, load it "
            "with rqmoe_store.load_codec and keep it here with rqmoe_store.store.registry.save(db, codec)."
        )
    damage: ArtifactError | None = None
    for artifact in artifacts:
        try:
            require_fingerprint(artifact, fingerprint)
            return Codec.from_artifact(artifact, device=device)
        except ArtifactError as error:
            damage = error  # an intact copy may follow
    raise ArtifactError(
        f"The codec with fingerprint {fingerprint!r} in table {REGISTRY_TABLE!r} is damaged ({damage}). "
        "Save an intact copy again with rqmoe_store.store.registry.save(db, codec)."
    ) from damage


def stored_artifacts(registry: Table, condition: str) -> list[Artifact]:
    """The codecs, intact or not, in the rows of the registry's newest version that match an SQL condition.

    Raises:
        ArtifactError: the registry cannot be read.
    """
    rows = _read(registry, ["config_json", "weights"], condition)
    return [Artifact(row["config_json"] or "", row["weights"] or b"") for row in rows]


def saved_at(registry: Table) -> dict[str, list[datetime.datetime]]:
    """Fingerprint of a codec -> when its copies were saved. Raises as `stored_artifacts`."""
    times: dict[str, list[datetime.datetime]] = {}
    for row in _read(registry, ["fingerprint", "created_at"], "created_at IS NOT NULL"):
        times.setdefault(row["fingerprint"], []).append(row["created_at"])
    return times


def codec_condition(fingerprint: str) -> str:
    """SQL condition for the rows of one codec."""
    return f"fingerprint = {literal(fingerprint)}"


def sql_time(moment: datetime.datetime) -> str:
    """A time as an SQL literal to compare `created_at` with."""
    return f"timestamp '{moment.isoformat()}'"


def _read(registry: Table, columns: list[str], condition: str) -> list[dict[str, Any]]:
    try:
        registry.checkout_latest()  # type: ignore[no-untyped-call]  # LanceDB leaves it unannotated
        rows = registry.search().where(condition).select(columns).to_arrow()
    except Exception as error:  # LanceDB panics on some damage, with a plain Exception
        raise _unreadable(error) from error
    if rows.schema.types != [_SCHEMA.field(name).type for name in rows.schema.names]:
        raise _unreadable(f"its columns are {rows.schema.types}")
    return list(rows.to_pylist())


def open_registry(db: DBConnection) -> Table | None:
    """Open the registry table; None in a database without a registry. Raises as `stored_artifacts`."""
    try:
        return open_if_exists(db, REGISTRY_TABLE)
    except Exception as error:  # as in `_read`
        raise _unreadable(error) from error


def _unreadable(reason: object) -> ArtifactError:
    return ArtifactError(
        f"The table {REGISTRY_TABLE!r}, which keeps the codecs of this database, cannot be read ({reason}). "
        "Restore it from a copy, or drop it and save every codec again with "
        "rqmoe_store.store.registry.save(db, codec)."
    )


def open_or_create_registry(db: DBConnection) -> Table:
    """Open the registry table, or create it.

    Raises:
        ArtifactError: it exists and cannot be read.
    """
    registry = open_registry(db)
    return create_if_absent(db, REGISTRY_TABLE, _SCHEMA) if registry is None else registry


def unneeded_codecs(db: DBConnection, candidates: Collection[str], recent: Collection[str]) -> set[str]:
    """Those of the codecs that no version of any table of `db` needs.

    A version needs its newest codec and every other codec that any of its rows is encoded with. Versions that
    tags and branches keep count, because they can be opened. A codec that one of `recent` has replaced is
    needed, too: a writer that began before the replacement may not have committed its rows yet.

    Args:
        db: a database in a folder or bucket.
        candidates: fingerprints of the codecs to check.
        recent: fingerprints of codecs that tables may have got recently.

    Raises:
        TableError: a table cannot be read, so that it is unknown what it needs.
    """
    left = set(candidates)
    for name in databases.table_names(db):
        if not left:
            break
        try:
            with panics_as_errors():
                for dataset in _versions(db, name):
                    left -= _needed(dataset, name, left, recent)
        except Exception as error:  # Lance has no exception class for damaged tables
            raise TableError(f"table {name!r} cannot be read ({error})") from error
    return left


def places_in_use(dataset: lance.LanceDataset, metadata: TableMetadata) -> list[int]:
    """Indexes of the generations of which any row has a code, and of the last generation in any case.

    Args:
        dataset: a version of a table.
        metadata: the metadata of that version.
    """
    firsts, last = metadata.first_partitions, len(metadata.generations) - 1
    if last < 1 or not _any_in(dataset, metadata, 0, firsts[last]):
        return [last] if metadata.generations else []
    return [place for place in range(last) if _any_in(dataset, metadata, *firsts[place : place + 2])] + [last]


def _any_in(dataset: lance.LanceDataset, metadata: TableMetadata, first: int, stop: int) -> bool:
    """Whether any row has a partition id from `first` to before `stop`."""
    column = quoted(metadata.columns.partition)
    return _any(dataset, f"{column} >= {first} AND {column} < {stop}")


def _any(dataset: lance.LanceDataset, condition: str) -> bool:
    found = dataset.scanner(columns=[], filter=condition, with_row_id=True, limit=1).to_table()
    return bool(found.num_rows)


def _versions(db: DBConnection, name: str) -> Iterator[lance.LanceDataset]:
    """Every version of a table, branch by branch and newest first."""
    table = databases.open_if_exists(db, name)
    if table is None:
        return  # the folder of a table that an interrupted write left without any version
    newest = cast(LanceTable, table).to_lance()
    for branch in [None, *newest.branches.list()]:
        tip = newest if branch is None else newest.checkout_version((branch, None))
        for number in reversed(_version_numbers(tip)):
            try:
                version = tip.checkout_version((branch, number))
            except (OSError, ValueError, RuntimeError):
                if number in _version_numbers(tip):  # otherwise it was cleaned up meanwhile
                    raise
            else:
                yield version


def _version_numbers(tip: lance.LanceDataset) -> list[int]:
    return [int(reference["version"]) for reference in tip.version_refs()]


def _needed(
    dataset: lance.LanceDataset, name: str, candidates: Iterable[str], recent: Collection[str]
) -> set[str]:
    """Fingerprints of the codecs that one version of a table needs, at least those among the candidates."""
    if not has_metadata(dataset.schema):
        _require_uncoded(dataset)
        return set()
    metadata = TableMetadata.read(dataset.schema, name)
    names = [each.fingerprints for each in metadata.generations]
    replaced = [older for older, newer in itertools.pairwise(names) if not newer.isdisjoint(recent)]
    needed = set[str]().union(*replaced, *names[-1:])
    if needed.issuperset(set(candidates) & set[str]().union(*names)):
        return needed
    return needed.union(*(names[place] for place in places_in_use(dataset, metadata)))


def _require_uncoded(dataset: lance.LanceDataset) -> None:
    """Raise TableError for a table that has codes but lost the metadata that names their codec."""
    types = {field.name: field.type for field in dataset.schema}
    for field in dataset.schema:
        columns = CodeColumns(field.name.removesuffix("_code"))
        if (
            columns.code == field.name
            and pa.types.is_fixed_size_binary(field.type)
            and types.get(columns.partition) == pa.int32()
            and _any(dataset, f"{quoted(columns.code)} IS NOT NULL")
        ):
            raise TableError(f"it has codes in column {field.name!r}, but nothing says of which codec")


@dataclasses.dataclass(frozen=True)
class RemovedCodecs:
    """What `remove_unused` did."""

    codecs: int = 0
    """Codecs removed."""
    bytes: int = 0
    """Size of the removed codecs, and of removed copies of codecs that were there more than once."""
    kept_because: str | None = None
    """Why nothing could be removed; None if that did not happen."""


def remove_unused(db: DBConnection, older_than: datetime.timedelta = GRACE) -> RemovedCodecs:
    """Remove the codecs that no version of any table of `db` needs, and further copies of other codecs.

    Args:
        db: a database in a folder or bucket.
        older_than: codecs saved or replaced later than this ago stay. Pass less than 7 days only while no
            other process writes to any table of `db`.
    """
    before = datetime.datetime.now(datetime.UTC) - older_than
    try:
        table = open_registry(db)
        if table is None:
            return RemovedCodecs()
        saved = saved_at(table)
        unused = unused_codecs(db, saved, before)
        size = sum(_remove(table, each, f"created_at <= {sql_time(before)}") for each in unused)
        size += sum(_remove_copies(table, each) for each in saved.keys() - unused if len(saved[each]) > 1)
    except (ArtifactError, TableError) as error:
        return RemovedCodecs(kept_because=str(error))
    remove_old_versions(cast(LanceTable, table), older_than)
    return RemovedCodecs(len(unused), size)


def unused_codecs(
    db: DBConnection, saved: dict[str, list[datetime.datetime]], before: datetime.datetime
) -> set[str]:
    """Fingerprints of the codecs that no table needs and that were neither saved nor replaced since `before`.

    Args:
        db: a database in a folder or bucket.
        saved: result of `saved_at`.
        before: beginning of the grace period.

    Raises:
        TableError: a table cannot be read, so that it is unknown what it needs.
    """
    old = {fingerprint for fingerprint, times in saved.items() if max(times) <= before}
    return unneeded_codecs(db, old, recent=saved.keys() - old)


def _remove_copies(table: Table, fingerprint: str) -> int:
    """Remove all copies of a codec but the last, if that is intact; return the bytes removed."""
    last = sql_time(max(saved_at(table)[fingerprint]))
    copies = stored_artifacts(table, f"{codec_condition(fingerprint)} AND created_at = {last}")
    if not any(_is_intact(each, fingerprint) for each in copies):
        return 0
    return _remove(table, fingerprint, f"created_at < {last}")


def _is_intact(artifact: Artifact, fingerprint: str) -> bool:
    try:
        require_fingerprint(artifact, fingerprint)
        artifact.unpack()
    except ArtifactError:
        return False
    return True


def _remove(table: Table, fingerprint: str, condition: str) -> int:
    """Remove the copies of a codec that match an SQL condition; return the bytes removed."""
    condition = f"{codec_condition(fingerprint)} AND {condition}"
    size = sum(len(each.config_json) + len(each.weights) for each in stored_artifacts(table, condition))
    retry_on_conflict(lambda: table.delete(condition))
    return size
