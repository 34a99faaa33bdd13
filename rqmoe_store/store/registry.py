"""Codecs kept inside the database, so that a compressed table opens anywhere with nothing else.

One row per codec in the LanceDB table `_rqmoe_codecs`: fingerprint, config as JSON, weights, time.
Rows are only ever appended. Two processes that save the same codec at once leave two equal rows,
which is harmless: a load takes the first one that is intact.
"""

import datetime
from typing import cast

import pyarrow as pa
from lancedb.db import DBConnection, LanceDBConnection
from lancedb.table import Table

from rqmoe_store.codecs.artefact import Artefact, require_fingerprint
from rqmoe_store.codecs.base import Codec
from rqmoe_store.errors import ArtefactError
from rqmoe_store.store.databases import location, open_if_exists
from rqmoe_store.store.new_table import commit_new
from rqmoe_store.store.refusals import names_refusals
from rqmoe_store.store.sql import literal

REGISTRY_TABLE = "_rqmoe_codecs"

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
    """Keep `codec` in `db`, unless an intact copy is there already; returns the registry's table.

    Raises:
        ArtefactError: the table of codecs cannot be read.
    """
    artefact = codec.to_artefact()
    registry = open_or_create(db)
    if artefact in _stored(registry, codec.fingerprint):
        return registry
    row = {
        "fingerprint": codec.fingerprint,
        "config_json": artefact.config_json,
        "weights": artefact.weights,
        "created_at": datetime.datetime.now(datetime.UTC),
    }
    registry.add(pa.Table.from_pylist([row], schema=_SCHEMA))
    return registry


def load(db: DBConnection, fingerprint: str) -> Codec:
    """The codec with this fingerprint.

    Raises:
        ArtefactError: `db` has no such codec, or every stored copy is damaged.
    """
    registry = _opened(db)
    artefacts = [] if registry is None else _stored(registry, fingerprint)
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


def _stored(registry: Table, fingerprint: str) -> list[Artefact]:
    condition = f"fingerprint = {literal(fingerprint)}"
    try:
        registry.checkout_latest()  # type: ignore[no-untyped-call]  # LanceDB leaves it unannotated
        rows = registry.search().where(condition).select(["config_json", "weights"]).to_arrow()
    except Exception as error:  # LanceDB panics on some damage, with an exception of no other class
        raise _unreadable(error) from error
    if rows.schema.types != [_SCHEMA.field(name).type for name in rows.schema.names]:
        raise _unreadable(f"its columns are {rows.schema.types}")
    return [Artefact(row["config_json"] or "", row["weights"] or b"") for row in rows.to_pylist()]


def _opened(db: DBConnection) -> Table | None:
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
    registry = _opened(db)
    if registry is not None:
        return registry
    try:
        commit_new(
            location(db, REGISTRY_TABLE),
            _SCHEMA,
            [],
            storage_options=cast(LanceDBConnection, db).storage_options,
        )
    except OSError:
        registry = _opened(db)
        if registry is None:
            raise
        return registry  # another process made it between the two calls
    return db.open_table(REGISTRY_TABLE)
