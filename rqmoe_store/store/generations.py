"""A generation of a table's rows: one codec and the partition ids that it owns."""

import dataclasses
import functools
from collections.abc import Callable

from lancedb.db import DBConnection

from rqmoe_store.codecs.base import Codec
from rqmoe_store.errors import ArtefactError
from rqmoe_store.store import registry
from rqmoe_store.store.metadata import GenerationMark, TableMarks


@dataclasses.dataclass(frozen=True)
class Generation:
    """One codec of a table and the partition ids it owns."""

    mark: GenerationMark
    first_partition: int
    load: Callable[[], Codec] = dataclasses.field(repr=False, compare=False)
    """Gets the codec; asked once, when it is first needed."""

    @functools.cached_property
    def codec(self) -> Codec:
        """The codec. The database may have lost that of a generation which no row is of any more.

        Raises:
            ArtefactError: it is not in the database, is damaged, or is not what the marks describe.
        """
        return self.load()

    @property
    def partitions(self) -> slice:
        """Its places in arrays over all partitions."""
        return slice(self.first_partition, self.first_partition + self.mark.num_partitions)


def generations_of(marks: TableMarks, codecs: list[Codec]) -> list[Generation]:
    """The generations of `marks`, oldest first, with codecs that are at hand.

    Raises:
        ArtefactError: a codec is not what the marks describe.
    """
    generations = []
    for mark, first, codec in zip(marks.generations, marks.first_partitions[:-1], codecs, strict=True):
        require_match(codec, mark, marks)
        generations.append(Generation(mark, first, functools.partial(_itself, codec)))
    return generations


def generations_in(db: DBConnection, marks: TableMarks) -> list[Generation]:
    """The generations of `marks`, oldest first, whose codecs the registry of `db` has."""
    return [
        Generation(mark, first, functools.partial(_loaded, db, mark, marks))
        for mark, first in zip(marks.generations, marks.first_partitions[:-1], strict=True)
    ]


def mark_of(codec: Codec) -> GenerationMark:
    """How the marks of a table name a codec."""
    return GenerationMark(codec.fingerprint, codec.num_partitions)


def require_match(codec: Codec, mark: GenerationMark, marks: TableMarks) -> None:
    """Raise ArtefactError unless `codec` is what the marks of a table say of one of its generations."""
    expected = {
        "dim": marks.dim,
        "metric": marks.config.metric,
        "code_bytes": marks.config.code_bytes,
        "num_partitions": mark.num_partitions,
    }
    found = {
        "dim": codec.dim,
        "metric": codec.config.metric,
        "code_bytes": codec.config.code_bytes,
        "num_partitions": codec.num_partitions,
    }
    for name, value in expected.items():
        if found[name] != value:
            raise ArtefactError(
                f"The table was written with a codec of {name} {value!r}; got {mark.fingerprint[:12]!r} "
                f"of {name} {found[name]!r}. Use the codec it was made with, or restore an earlier version."
            )


def _itself(codec: Codec) -> Codec:
    return codec


def _loaded(db: DBConnection, mark: GenerationMark, marks: TableMarks) -> Codec:
    codec = registry.load(db, mark.fingerprint)
    require_match(codec, mark, marks)
    return codec
