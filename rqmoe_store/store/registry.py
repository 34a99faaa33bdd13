"""Codecs kept inside the database, so that a compressed table opens anywhere with nothing else.

One row per codec in the LanceDB table `_rqmoe_codecs`: fingerprint, config as JSON, weights, time.
Rows are appended, and removed when no version of any table needs them any more. Two processes that save the
same codec at once leave two equal rows, which is harmless: a load takes the first one that is intact.
"""

import datetime
from typing import Any

import pyarrow as pa
from lancedb.db import DBConnection
from lancedb.table import Table

from rqmoe_store.codecs.artefact import Artefact, require_fingerprint
from rqmoe_store.codecs.base import Codec, require_storable
from rqmoe_store.errors import ArtefactError, StorageError
from rqmoe_store.refusals import names_refusals
from rqmoe_store.store.databases import create_if_absent, open_if_exists
from rqmoe_store.store.sql import literal

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


@names_refusals
def save(db: DBConnection, codec: Codec) -> Table:
    """Keep `codec` in `db`, unless an intact copy was saved lately; returns the registry's table.

    A table may give its vectors up for the codec, so it is loaded and tried before it is written, and read
    back afterwards.

    Raises:
        InvalidInputError: the codec could not be loaded again.
        ArtefactError: the table of codecs cannot be read.
        StorageError: something else is read back than was written.
    """
    artefact = require_storable(codec).to_artefact()
    registry = open_or_create(db)
    now = datetime.datetime.now(datetime.UTC)
    if artefact in stored(
        registry, f"{is_codec(codec.fingerprint)} AND created_at > {sql_time(now - _FRESH)}"
    ):
        return registry
    row = {
        "fingerprint": codec.fingerprint,
        "config_json": artefact.config_json,
        "weights": artefact.weights,
        "created_at": now,
    }
    registry.add(pa.Table.from_pylist([row], schema=_SCHEMA))
    if artefact not in stored(registry, is_codec(codec.fingerprint)):
        raise StorageError(
            f"The codec was written to table {REGISTRY_TABLE!r}, and something else is read back. No table "
            "uses it, and no vector was touched; check the storage, and try again."
        )
    return registry


def load(db: DBConnection, fingerprint: str) -> Codec:
    """The codec with this fingerprint.

    Raises:
        ArtefactError: `db` has no such codec, or every stored copy is damaged.
    """
    registry = opened(db)
    artefacts = [] if registry is None else stored(registry, is_codec(fingerprint))
    if not artefacts:
        raise ArtefactError(
            f"The database has no codec with fingerprint {fingerprint!r} (table {REGISTRY_TABLE!r}); "
            "the tables compressed with it cannot be read without it. If you have it as a folder, load it "
            "with rqmoe_store.load_codec and keep it here with rqmoe_store.store.registry.save(db, codec)."
        )
    damage: ArtefactError | None = None
    for artefact in artefacts:
        try:
            require_fingerprint(artefact, fingerprint)
            return Codec.from_artefact(artefact)
        except ArtefactError as error:
            damage = error  # another intact copy may follow; without one this is raised below
    raise ArtefactError(
        f"The codec with fingerprint {fingerprint!r} in table {REGISTRY_TABLE!r} is damaged ({damage}). "
        "Save an intact copy again with rqmoe_store.store.registry.save(db, codec)."
    ) from damage


def stored(registry: Table, condition: str) -> list[Artefact]:
    """The codecs in the rows of the registry's newest version that match, be they intact or not.

    Raises:
        ArtefactError: it cannot be read.
    """
    rows = _read(registry, ["config_json", "weights"], condition)
    return [Artefact(row["config_json"] or "", row["weights"] or b"") for row in rows]


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


def _unreadable(reason: object) -> ArtefactError:
    return ArtefactError(
        f"The table {REGISTRY_TABLE!r}, which keeps the codecs of this database, cannot be read ({reason}). "
        "Restore it from a copy, or drop it and save every codec again with "
        "rqmoe_store.store.registry.save(db, codec)."
    )


def open_or_create(db: DBConnection) -> Table:
    """The registry's table, made anew if need be.

    Raises:
        ArtefactError: it is there and cannot be read.
    """
    registry = opened(db)
    return create_if_absent(db, REGISTRY_TABLE, _SCHEMA) if registry is None else registry
