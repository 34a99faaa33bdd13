"""Registry: codecs kept inside the database, which tables need them, and removal of unused ones.

One row per codec in the LanceDB table `_rqmoe_codecs`: fingerprint, config as JSON, weights, time.
Rows are appended, and removed when no version of any table needs them any more. Two processes that save the
same codec at once leave two equal rows, which is harmless: a load takes the first one that is intact.
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

_FRESH = datetime.timedelta(days=1)
"""A codec that was saved longer ago is saved again when it is needed again: only what was saved long ago is
ever removed, and the table that needs it may not be committed for a while."""

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
    """Keep `codec` in `db`, unless an intact copy was saved lately; returns the registry's table.

    A table may give its vectors up for the codec, so it is loaded and tried before it is written, and read
    back afterwards.

    Raises:
        InvalidInputError: the codec could not be loaded again.
        ArtifactError: the table of codecs cannot be read.
        StorageError: something else is read back than was written.
    """
    artifact = require_storable(codec).to_artifact()
    registry = open_or_create(db)
    now = datetime.datetime.now(datetime.UTC)
    if artifact in stored(
        registry, f"{is_codec(codec.fingerprint)} AND created_at > {sql_time(now - _FRESH)}"
    ):
        return registry
    row = {
        "fingerprint": codec.fingerprint,
        "config_json": artifact.config_json,
        "weights": artifact.weights,
        "created_at": now,
    }
    registry.add(pa.Table.from_pylist([row], schema=_SCHEMA))
    if artifact not in stored(registry, is_codec(codec.fingerprint)):
        raise StorageError(
            f"The codec was written to table {REGISTRY_TABLE!r}, and something else is read back. No table "
            "uses it, and no vector was touched; check the storage, and try again."
        )
    return registry


def load(db: DBConnection, fingerprint: str) -> Codec:
    """The codec with this fingerprint.

    Raises:
        ArtifactError: `db` has no such codec, or every stored copy is damaged.
    """
    registry = opened(db)
    artifacts = [] if registry is None else stored(registry, is_codec(fingerprint))
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
            return Codec.from_artifact(artifact)
        except ArtifactError as error:
            damage = error  # another intact copy may follow; without one this is raised below
    raise ArtifactError(
        f"The codec with fingerprint {fingerprint!r} in table {REGISTRY_TABLE!r} is damaged ({damage}). "
        "Save an intact copy again with rqmoe_store.store.registry.save(db, codec)."
    ) from damage


def stored(registry: Table, condition: str) -> list[Artifact]:
    """The codecs in the rows of the registry's newest version that match, be they intact or not.

    Raises:
        ArtifactError: it cannot be read.
    """
    rows = _read(registry, ["config_json", "weights"], condition)
    return [Artifact(row["config_json"] or "", row["weights"] or b"") for row in rows]


def saved_at(registry: Table) -> dict[str, list[datetime.datetime]]:
    """When the copies of every codec were saved, by its fingerprint. Raises as `stored`."""
    times: dict[str, list[datetime.datetime]] = {}
    for row in _read(registry, ["fingerprint", "created_at"], "created_at IS NOT NULL"):
        times.setdefault(row["fingerprint"], []).append(row["created_at"])
    return times


def is_codec(fingerprint: str) -> str:
    """An SQL condition for the rows of one codec."""
    return f"fingerprint = {literal(fingerprint)}"


def sql_time(moment: datetime.datetime) -> str:
    """A time to compare `created_at` with, in SQL."""
    return f"timestamp '{moment.isoformat()}'"


def _read(registry: Table, columns: list[str], condition: str) -> list[dict[str, Any]]:
    try:
        registry.checkout_latest()  # type: ignore[no-untyped-call]  # LanceDB leaves it unannotated
        rows = registry.search().where(condition).select(columns).to_arrow()
    except Exception as error:  # LanceDB panics on some damage, with an exception of no other class
        raise _unreadable(error) from error
    if rows.schema.types != [_SCHEMA.field(name).type for name in rows.schema.names]:
        raise _unreadable(f"its columns are {rows.schema.types}")
    return list(rows.to_pylist())


def opened(db: DBConnection) -> Table | None:
    """The registry's table; None in a database without. Raises as `stored`."""
    try:
        return open_if_exists(db, REGISTRY_TABLE)
    except Exception as error:  # as above
        raise _unreadable(error) from error


def _unreadable(reason: object) -> ArtifactError:
    return ArtifactError(
        f"The table {REGISTRY_TABLE!r}, which keeps the codecs of this database, cannot be read ({reason}). "
        "Restore it from a copy, or drop it and save every codec again with "
        "rqmoe_store.store.registry.save(db, codec)."
    )


def open_or_create(db: DBConnection) -> Table:
    """The registry's table, made anew if need be.

    Raises:
        ArtifactError: it is there and cannot be read.
    """
    registry = opened(db)
    return create_if_absent(db, REGISTRY_TABLE, _SCHEMA) if registry is None else registry


def unneeded_codecs(db: DBConnection, candidates: Collection[str], recent: Collection[str]) -> set[str]:
    """Those of the codecs that no version of any table of `db` needs.

    Tags and branches count: the versions they keep can be opened. A version needs its newest codec and every
    other one that a row of it was encoded with. What a codec of `recent` has replaced counts as needed, too:
    who began to add rows before may not have committed them yet.

    Args:
        db: a database in a folder or bucket.
        candidates: fingerprints.
        recent: fingerprints of codecs that may have been given to a table a short while ago.

    Raises:
        TableError: a table cannot be read, so that nobody knows what it needs.
    """
    left = set(candidates)
    for name in databases.table_names(db):
        if not left:
            break
        try:
            with panics_as_errors():
                for dataset in _versions(db, name):
                    left -= _needed(dataset, name, left, recent)
        except Exception as error:  # whatever is wrong with a table, Lance has no class of its own for it
            raise TableError(f"table {name!r} cannot be read ({error})") from error
    return left


def places_in_use(dataset: lance.LanceDataset, metadata: TableMetadata) -> list[int]:
    """Places in `metadata.generations` of those that any row has a code of; the last is always among them.

    Args:
        dataset: the version of a table that the metadata is of.
        metadata: its metadata.
    """
    firsts, last = metadata.first_partitions, len(metadata.generations) - 1
    if last < 1 or not _any_in(dataset, metadata, 0, firsts[last]):
        return [last] if metadata.generations else []
    return [place for place in range(last) if _any_in(dataset, metadata, *firsts[place : place + 2])] + [last]


def _any_in(dataset: lance.LanceDataset, metadata: TableMetadata, first: int, stop: int) -> bool:
    """Whether any row has a partition id from `first` up to, but without, `stop`."""
    column = quoted(CodeColumns(metadata.vector_column).partition)
    return _any(dataset, f"{column} >= {first} AND {column} < {stop}")


def _any(dataset: lance.LanceDataset, condition: str) -> bool:
    found = dataset.scanner(columns=[], filter=condition, with_row_id=True, limit=1).to_table()
    return bool(found.num_rows)


def _versions(db: DBConnection, name: str) -> Iterator[lance.LanceDataset]:
    """Every version of a table that can be opened, newest first, of all branches."""
    table = databases.open_if_exists(db, name)
    if table is None:
        return  # listed for a folder that an interrupted write left, without any version in it
    newest = cast(LanceTable, table).to_lance()
    for branch in [None, *newest.branches.list()]:
        line = newest if branch is None else newest.checkout_version((branch, None))
        for number in reversed(_numbers(line)):
            try:
                version = line.checkout_version((branch, number))
            except (OSError, ValueError, RuntimeError):
                if number in _numbers(line):  # otherwise it was cleaned up since
                    raise
            else:
                yield version


def _numbers(line: lance.LanceDataset) -> list[int]:
    return [int(reference["version"]) for reference in line.version_refs()]


def _needed(
    dataset: lance.LanceDataset, name: str, candidates: Iterable[str], recent: Collection[str]
) -> set[str]:
    """Those of the codecs that one version of a table needs."""
    if not has_metadata(dataset.schema):
        _require_uncoded(dataset)
        return set()
    metadata = TableMetadata.read(dataset.schema, name)
    names = [each.fingerprint for each in metadata.generations]
    replaced = {older for older, newer in itertools.pairwise(names) if newer in recent}
    needed = {*replaced, *names[-1:]}
    if needed.issuperset(set(candidates) & set(names)):
        return needed
    return needed | {names[place] for place in places_in_use(dataset, metadata)}


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


GRACE = datetime.timedelta(days=7)
"""Codecs saved or replaced since may be needed by what another process has not committed yet."""


@dataclasses.dataclass(frozen=True)
class RemovedCodecs:
    """What `remove_unused` did."""

    codecs: int = 0
    """Codecs that are gone."""
    bytes: int = 0
    """Size of these, and of copies of codecs that were there more than once."""
    kept_because: str | None = None
    """Why nothing was removed, although something might have been; None otherwise."""


def remove_unused(db: DBConnection, older_than: datetime.timedelta = GRACE) -> RemovedCodecs:
    """Remove the codecs that no version of any table of `db` needs, and copies of codecs that stay.

    Args:
        db: a database in a folder or bucket.
        older_than: what was saved or replaced since then stays. Less than 7 days only while no other process
            is writing to any table of `db`.
    """
    before = datetime.datetime.now(datetime.UTC) - older_than
    try:
        table = opened(db)
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
    """Fingerprints of codecs that nothing needs and that nobody has saved, or replaced, since `before`.

    Args:
        db: a database in a folder or bucket.
        saved: when every codec was saved, as `registry.saved_at` gives it.
        before: end of the grace period.

    Raises:
        TableError: a table cannot be read, so that nobody knows what it needs.
    """
    old = {fingerprint for fingerprint, times in saved.items() if max(times) <= before}
    return unneeded_codecs(db, old, recent=saved.keys() - old)


def _remove_copies(table: Table, fingerprint: str) -> int:
    """Remove what was saved before the last copy of a codec, if that is intact; returns the bytes removed."""
    last = sql_time(max(saved_at(table)[fingerprint]))
    copies = stored(table, f"{is_codec(fingerprint)} AND created_at = {last}")
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
    """Remove those copies of a codec that match; returns the bytes removed."""
    condition = f"{is_codec(fingerprint)} AND {condition}"
    size = sum(len(each.config_json) + len(each.weights) for each in stored(table, condition))
    retry_on_conflict(lambda: table.delete(condition))
    return size
