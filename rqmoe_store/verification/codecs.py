"""The codecs of a table: whether those that rows need are intact, and whether others are kept for nothing."""

import dataclasses
import datetime

import lance
from lancedb.db import DBConnection

from rqmoe_store.codecs.base import Codec
from rqmoe_store.errors import ArtefactError, TableError
from rqmoe_store.store import registry
from rqmoe_store.store.codec_needs import places_in_use
from rqmoe_store.store.generations import generations_in
from rqmoe_store.store.metadata import TableMarks
from rqmoe_store.store.statistics import readable
from rqmoe_store.store.unused_codecs import GRACE, unused_codecs
from rqmoe_store.verification.findings import Findings


@dataclasses.dataclass(frozen=True)
class VerifiedCodec:
    """A codec that rows of the table need."""

    first_partition: int
    num_partitions: int
    codec: Codec | None
    """None where it is missing or damaged."""


def verify_codecs(
    db: DBConnection, dataset: lance.LanceDataset, marks: TableMarks, findings: Findings
) -> list[VerifiedCodec]:
    """Load every codec that rows need, as searches do: fingerprint, numbers, shapes and fit are checked."""
    places = list(range(len(marks.generations)))
    with findings.during("cannot tell which codecs rows need"):
        places = places_in_use(dataset, marks)
    generations, verified = generations_in(db, marks), []
    for place in places:
        generation = generations[place]
        codec = None
        with findings.during(f"codec {place + 1} of {len(generations)}"):
            codec = generation.codec
            _find_damaged_copies(db, codec, findings)
        verified.append(VerifiedCodec(generation.first_partition, generation.mark.num_partitions, codec))
    return verified


def _find_damaged_copies(db: DBConnection, codec: Codec, findings: Findings) -> None:
    table = registry.opened(db)
    copies = [] if table is None else registry.stored(table, registry.is_codec(codec.fingerprint))
    damaged = len(copies) - copies.count(codec.to_artefact())
    if damaged:
        findings.advice.append(
            f"{damaged} of {len(copies)} copies of codec {codec.fingerprint[:12]} in the database are "
            "damaged; another one is used"
        )


def find_unused_codecs(db: DBConnection, findings: Findings) -> None:
    """Note the codecs in the registry of `db` that no version of any table needs."""
    try:
        table = registry.opened(db)
        if table is None:
            return
        saved = registry.saved_at(table)
        unused = unused_codecs(db, saved, datetime.datetime.now(datetime.UTC) - GRACE)
        sizes = [
            len(each.weights) for name in unused for each in registry.stored(table, registry.is_codec(name))
        ]
    except (ArtefactError, TableError) as error:
        findings.advice.append(f"cannot tell which codecs the database keeps for nothing: {error}")
        return
    if unused:
        findings.advice.append(
            f"{len(unused)} codecs in the database ({readable(sum(sizes))}) are needed by no table; "
            "optimize() removes them"
        )
