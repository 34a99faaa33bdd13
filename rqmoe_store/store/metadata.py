"""Metadata of a compressed table, kept in its schema: format, codecs, tuned search parameters.

What was committed cannot be taken back, so that nothing may be written that the same release refuses to read.

In that of the table, not of its schema: a table made from the rows of this one is not a tuned one.
"""

import dataclasses
import itertools
import json
import math
import sys
from collections.abc import Callable, Mapping
from types import NoneType
from typing import Any, Self, TypeVar, get_type_hints

import pyarrow as pa
from lancedb.table import LanceTable

from rqmoe_store.config import CodecConfig
from rqmoe_store.errors import TableError
from rqmoe_store.storage_errors import translates_errors
from rqmoe_store.store import databases

Record = TypeVar("Record")

LARGEST_COUNT = 2**63 - 1
"""Of rows and versions."""
LARGEST_SUM = sys.float_info.max
"""Of errors. JSON has no number for infinity."""
_ACCEPTED: dict[Any, tuple[type, ...]] = {
    str: (str,),
    int: (int,),
    int | None: (int, NoneType),
    float: (int, float),
}
"""What a field that is declared as the key may hold; a bool is no int here."""


def json_object(text: str) -> dict[str, Any]:
    """The object that `text` is in JSON.

    Raises:
        ValueError: it is none.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError(f"it is a JSON {type(value).__name__}, not an object")
    return value


def as_count(value: int) -> int:
    """The nearest number that can be kept as a count."""
    return min(max(0, value), LARGEST_COUNT)


def as_sum(value: float) -> float:
    """The nearest number that can be kept as a sum of errors; the largest for one that overflowed."""
    return LARGEST_SUM if math.isnan(value) else min(max(0.0, value), LARGEST_SUM)


def readable_text(record: Record, text: str, read: Callable[[str], Record]) -> str:
    """`text`, which a record is to be kept as, once `read` has made the same record of it.

    Raises:
        TableError: it is not what comes back; nothing must be written then.
    """
    try:
        again = read(text)
    except (ValueError, TypeError) as error:
        raise _not_readable(record, error) from error
    if again != record:
        raise _not_readable(record, f"it would come back as {again!r}")
    return text


def _not_readable(record: object, reason: object) -> TableError:
    return TableError(
        f"{record!r} cannot be kept in the table: it could not be read again ({reason}). Nothing was written."
    )


def require_types(record: Record) -> Record:
    """A dataclass or named tuple, once its fields hold what they are declared to hold, and no number that is
    negative or beyond all counts (or sums, for one that is no count); the same for records in a mapping that
    it has.

    Raises:
        ValueError: a field holds something else.
    """
    for name, declared in get_type_hints(type(record)).items():
        value, accepted = getattr(record, name), _ACCEPTED.get(declared)
        largest = LARGEST_SUM if declared is float else LARGEST_COUNT
        if accepted is not None and not _is_one(value, accepted, largest):
            raise ValueError(f"{name} is {value!r}")
        if isinstance(value, Mapping):
            for each in value.values():
                require_types(each)
    return record


def _is_one(value: object, accepted: tuple[type, ...], largest: float) -> bool:
    if type(value) not in accepted:
        return False
    return not isinstance(value, int | float) or 0 <= value <= largest


FORMAT_VERSION = 2
"""Raised whenever an older release of this package could misread a table."""

PREFIX = "rqmoe_store."

_LARGEST = 2**31 - 1  # of dimensions and partition ids, in Arrow as in the columns of the table


@dataclasses.dataclass(frozen=True)
class GenerationMetadata:
    """A codec that rows of a table were encoded with."""

    fingerprint: str
    """Of the codec, under which the registry has it."""
    num_partitions: int
    """Partition ids that its rows may have, at least 1. The ids of a generation follow on those of the one
    before, so that a row's partition says which codec it needs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableMetadata:
    """Which column a table replaces by codes, how raw vectors are kept, and which codecs it has."""

    format_version: int = FORMAT_VERSION
    vector_column: str
    dim: int
    """Components of a vector."""
    keep_vectors: str
    config: CodecConfig
    """Of the codecs; what is None in it is decided whenever one is trained."""
    generations: tuple[GenerationMetadata, ...] = ()
    """Oldest first. None is ever taken away: partition ids count on it."""

    @property
    def first_partitions(self) -> tuple[int, ...]:
        """The first partition id of every generation and, as the last, the first that none has."""
        counts = (each.num_partitions for each in self.generations)
        return tuple(itertools.accumulate(counts, initial=0))

    @property
    def lasting(self) -> dict[str, object]:
        """What no change of a table changes."""
        return {
            "vector column": self.vector_column,
            "dimension": self.dim,
            "keep_vectors": self.keep_vectors,
            "metric": self.config.metric,
            "code bytes": self.config.code_bytes,
        }

    @classmethod
    def read(cls, schema: pa.Schema, table_name: str) -> "TableMetadata":
        """The metadata kept in `schema`.

        Raises:
            TableError: there are none, one is missing or unreadable, or a newer release wrote them.
        """
        stored = {
            key.decode(errors="replace").removeprefix(PREFIX): value for key, value in _ours(schema).items()
        }
        if "format_version" not in stored:
            raise TableError(
                f"Table {table_name!r} is not a compressed table; make one with "
                "rqmoe_store.compress(table, codec, into=...) or rqmoe_store.create_table(...)."
            )
        version = _parsed("format_version", stored["format_version"], table_name)
        if version > FORMAT_VERSION:
            raise TableError(
                f"Table {table_name!r} has format version {version}; this release of rqmoe-store "
                f"reads up to {FORMAT_VERSION}. Upgrade rqmoe-store."
            )
        return cls(**{name: _parsed(name, stored.get(name), table_name) for name in _PARSERS})

    def write(self, metadata: dict[bytes, bytes] | None) -> dict[bytes, bytes]:
        """The user's schema metadata with that of the table added.

        Raises:
            TableError: a field could not be read again; nothing must be written then.
        """
        ours = {
            "format_version": str(self.format_version),
            "vector_column": self.vector_column,
            "dim": str(self.dim),
            "keep_vectors": self.keep_vectors,
            "config": json.dumps(self.config.to_dict()),
            "generations": json.dumps([dataclasses.asdict(each) for each in self.generations]),
        }
        kept = {name: readable_text(getattr(self, name), text, _PARSERS[name]) for name, text in ours.items()}
        return (metadata or {}) | {(PREFIX + name).encode(): text.encode() for name, text in kept.items()}

    def with_generation(self, generation: GenerationMetadata, config: CodecConfig) -> "TableMetadata":
        """The metadata of the table once it has one more codec, of this configuration."""
        return dataclasses.replace(self, config=config, generations=(*self.generations, generation))


def _whole_number(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= _LARGEST:
        raise ValueError(f"expected a whole number from 1 to {_LARGEST}")
    return int(text)


def _config(text: str) -> CodecConfig:
    return CodecConfig(**json.loads(text))


def _generations(text: str) -> tuple[GenerationMetadata, ...]:
    generations = tuple(GenerationMetadata(**entry) for entry in json.loads(text))
    for each in generations:
        count = each.num_partitions
        if not isinstance(each.fingerprint, str) or type(count) is not int or not 0 < count <= _LARGEST:
            raise ValueError(f"{each} is no generation")
    if sum(each.num_partitions for each in generations) > _LARGEST:
        raise ValueError(f"more than {_LARGEST} partition ids in all")
    return generations


def _name(text: str) -> str:
    return text.encode().decode()  # raises for what is no text


_PARSERS: dict[str, Any] = {
    "format_version": _whole_number,
    "vector_column": _name,
    "dim": _whole_number,
    "keep_vectors": _name,
    "config": _config,
    "generations": _generations,
}


def _parsed(name: str, value: bytes | None, table_name: str) -> Any:
    try:
        if value is None:
            raise ValueError("it is missing")
        return _PARSERS[name](value.decode())
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise TableError(
            f"Metadata {PREFIX + name!r} of table {table_name!r} is {value!r}; expected what rqmoe_store "
            f"wrote ({error}). Restore an earlier version of the table."
        ) from error


def _ours(schema: pa.Schema) -> dict[bytes, bytes]:
    metadata: dict[bytes, bytes] = schema.metadata or {}
    return {key: value for key, value in metadata.items() if key.startswith(PREFIX.encode())}


def has_metadata(schema: pa.Schema) -> bool:
    """Whether `schema` has any metadata of this package, readable or not."""
    return bool(_ours(schema))


def without_ours(schema: pa.Schema) -> pa.Schema:
    """`schema` without the metadata that this package added."""
    ours = _ours(schema)
    kept = {key: value for key, value in (schema.metadata or {}).items() if key not in ours}
    return schema.with_metadata(kept or None)


KEY = PREFIX + "tuned_search"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TunedSearch:
    """What searches of a table use unless they ask for something else."""

    nprobes: int
    """Partitions searched."""
    shortlist: int
    """Rows decoded and reranked."""
    limit: int
    """Rows per query that the shortlist was chosen for."""
    target_recall: float
    """Share of them that was to be found."""

    @classmethod
    def read(cls, metadata: Mapping[str, str], table_name: str) -> Self | None:
        """The setting kept in a table's metadata; None for one that was never tuned.

        Raises:
            TableError: it is not what `write` wrote.
        """
        text = metadata.get(KEY)
        if text is None:
            return None
        try:
            return cls._parsed(text)
        except (TypeError, ValueError) as error:
            raise TableError(
                f"Metadata {KEY!r} of table {table_name!r} is {text!r}; expected what tune() wrote. Tune the "
                "table again, or restore an earlier version of it."
            ) from error

    @classmethod
    def _parsed(cls, text: str) -> Self:
        setting = require_types(cls(**json_object(text)))
        if min(setting.nprobes, setting.shortlist, setting.limit) < 1 or not 0 < setting.target_recall <= 1:
            raise ValueError("a number is out of its range")
        return setting

    @translates_errors
    def write(self, table: LanceTable) -> None:
        """Keep the setting in the newest version of `table`; only metadata is written.

        Of several writers the last one wins. The handle itself stays at the version it is at.

        Raises:
            TableError: it could not be read again; nothing is written then.
        """
        text = readable_text(self, json.dumps(dataclasses.asdict(self)), self._parsed)
        while True:
            dataset = databases.reopen(table).to_lance()
            try:
                dataset.update_metadata({KEY: text})
            except OSError:
                # Two writers of one key are a conflict: the one that comes second starts again.
                if dataset.latest_version == dataset.version:
                    raise
            else:
                return
