"""What a compressed table says about itself, in the metadata of its schema."""

import dataclasses

import pyarrow as pa

from rqmoe_store.codecs.base import Codec
from rqmoe_store.errors import ArtefactError, TableError

FORMAT_VERSION = 1
"""Raised whenever an older release of this package could misread a table."""

PREFIX = "rqmoe_store."


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableMarks:
    """Which codec a table belongs to, which column it replaced, and how raw vectors are kept."""

    format_version: int
    fingerprint: str
    vector_column: str
    metric: str
    dim: int
    keep_vectors: str

    @classmethod
    def of(cls, codec: Codec, vector_column: str, keep_vectors: str) -> "TableMarks":
        """The marks of a table whose `vector_column` is kept as codes of `codec`, and raw as said."""
        return cls(
            format_version=FORMAT_VERSION,
            fingerprint=codec.fingerprint,
            vector_column=vector_column,
            metric=codec.config.metric,
            dim=codec.dim,
            keep_vectors=keep_vectors,
        )

    @classmethod
    def read(cls, schema: pa.Schema, table_name: str) -> "TableMarks":
        """The marks kept in `schema`.

        Raises:
            TableError: there are none, one is missing or unreadable, or a newer release wrote them.
        """
        stored = {key.decode(): value.decode() for key, value in _ours(schema).items()}
        if not stored:
            raise TableError(
                f"Table {table_name!r} is not a compressed table; make one with "
                "rqmoe_store.compress(table, codec, into=...)."
            )
        values: dict[str, str | int] = {}
        for field in dataclasses.fields(cls):
            text = stored.get(PREFIX + field.name)
            if text is None or (field.type is int and not text.isdecimal()):
                raise TableError(
                    f"Metadata {PREFIX + field.name!r} of table {table_name!r} is {text!r}; "
                    "expected what rqmoe_store.compress wrote. Restore an earlier version of the table."
                )
            values[field.name] = int(text) if field.type is int else text
            if field.name == "format_version" and int(text) > FORMAT_VERSION:
                raise TableError(
                    f"Table {table_name!r} has format version {text}; this release of rqmoe-store "
                    f"reads up to {FORMAT_VERSION}. Upgrade rqmoe-store."
                )
        return cls(**values)  # type: ignore[arg-type]  # checked against the fields just above

    def write(self, metadata: dict[bytes, bytes] | None) -> dict[bytes, bytes]:
        """The user's schema metadata with these marks added."""
        ours = {PREFIX + name: str(value) for name, value in dataclasses.asdict(self).items()}
        return (metadata or {}) | {key.encode(): value.encode() for key, value in ours.items()}

    def require_match(self, codec: Codec, table_name: str) -> None:
        """Raise ArtefactError unless the table was written with `codec`."""
        expected = TableMarks.of(codec, self.vector_column, self.keep_vectors)
        for name in ("fingerprint", "metric", "dim"):
            if getattr(self, name) != getattr(expected, name):
                raise ArtefactError(
                    f"Table {table_name!r} was written with a codec of {name} {getattr(self, name)!r}; "
                    f"got one of {name} {getattr(expected, name)!r}. Use the codec it was compressed with."
                )


def _ours(schema: pa.Schema) -> dict[bytes, bytes]:
    metadata: dict[bytes, bytes] = schema.metadata or {}
    return {key: value for key, value in metadata.items() if key.startswith(PREFIX.encode())}


def without_ours(schema: pa.Schema) -> pa.Schema:
    """`schema` without the marks this package added."""
    ours = _ours(schema)
    kept = {key: value for key, value in (schema.metadata or {}).items() if key not in ours}
    return schema.with_metadata(kept or None)
