"""What a compressed table says about itself, in the metadata of its schema."""

import dataclasses
import itertools
import json
from typing import Any

import pyarrow as pa

from rqmoe_store.config import CodecConfig
from rqmoe_store.errors import TableError
from rqmoe_store.store.stored_values import readable_text

FORMAT_VERSION = 2
"""Raised whenever an older release of this package could misread a table."""

PREFIX = "rqmoe_store."

_LARGEST = 2**31 - 1  # of dimensions and partition ids, in Arrow as in the columns of the table


@dataclasses.dataclass(frozen=True)
class GenerationMark:
    """A codec that rows of a table were encoded with."""

    fingerprint: str
    """Of the codec, under which the registry has it."""
    num_partitions: int
    """Partition ids that its rows may have, at least 1. The ids of a generation follow on those of the one
    before, so that a row's partition says which codec it needs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableMarks:
    """Which column a table replaces by codes, how raw vectors are kept, and which codecs it has."""

    format_version: int = FORMAT_VERSION
    vector_column: str
    dim: int
    """Components of a vector."""
    keep_vectors: str
    config: CodecConfig
    """Of the codecs; what is None in it is decided whenever one is trained."""
    generations: tuple[GenerationMark, ...] = ()
    """Oldest first. None is ever taken away: partition ids count on it."""

    @property
    def first_partitions(self) -> tuple[int, ...]:
        """The first partition id of every generation and, as the last, the first that none has."""
        counts = (mark.num_partitions for mark in self.generations)
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
    def read(cls, schema: pa.Schema, table_name: str) -> "TableMarks":
        """The marks kept in `schema`.

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
        """The user's schema metadata with these marks added.

        Raises:
            TableError: a mark could not be read again; nothing must be written then.
        """
        ours = {
            "format_version": str(self.format_version),
            "vector_column": self.vector_column,
            "dim": str(self.dim),
            "keep_vectors": self.keep_vectors,
            "config": json.dumps(self.config.to_dict()),
            "generations": json.dumps([dataclasses.asdict(mark) for mark in self.generations]),
        }
        kept = {name: readable_text(getattr(self, name), text, _PARSERS[name]) for name, text in ours.items()}
        return (metadata or {}) | {(PREFIX + name).encode(): text.encode() for name, text in kept.items()}

    def with_generation(self, mark: GenerationMark, config: CodecConfig) -> "TableMarks":
        """The marks of the table once it has one more codec, of this configuration."""
        return dataclasses.replace(self, config=config, generations=(*self.generations, mark))


def _whole_number(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= _LARGEST:
        raise ValueError(f"expected a whole number from 1 to {_LARGEST}")
    return int(text)


def _config(text: str) -> CodecConfig:
    return CodecConfig(**json.loads(text))


def _generations(text: str) -> tuple[GenerationMark, ...]:
    marks = tuple(GenerationMark(**entry) for entry in json.loads(text))
    for mark in marks:
        count = mark.num_partitions
        if not isinstance(mark.fingerprint, str) or type(count) is not int or not 0 < count <= _LARGEST:
            raise ValueError(f"{mark} is no generation")
    if sum(mark.num_partitions for mark in marks) > _LARGEST:
        raise ValueError(f"more than {_LARGEST} partition ids in all")
    return marks


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


def has_marks(schema: pa.Schema) -> bool:
    """Whether any mark of ours is in `schema`, be it readable or not."""
    return bool(_ours(schema))


def without_ours(schema: pa.Schema) -> pa.Schema:
    """`schema` without the marks this package added."""
    ours = _ours(schema)
    kept = {key: value for key, value in (schema.metadata or {}).items() if key not in ours}
    return schema.with_metadata(kept or None)
