"""Metadata of a compressed table: format version, columns and codecs; and tuned search parameters.

`TableMetadata` is stored in the metadata of the table's schema. `TunedSearch` is stored in the metadata of
the table itself, because a new table with the same schema is not tuned. A commit cannot be undone, so every
value is parsed again before it is written: what this release writes, it can read.
"""

import dataclasses
import functools
import itertools
import json
import math
import sys
from collections.abc import Callable, Mapping
from types import NoneType
from typing import Any, Literal, Self, TypeVar, get_type_hints

import pyarrow as pa
from lancedb.table import LanceTable

from rqmoe_store.codecs.subject import RowResiduals, of_rows
from rqmoe_store.config import CodecConfig, Metric, MultiVectorConfig
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.storage_errors import translates_errors
from rqmoe_store.store import databases
from rqmoe_store.store.columns import CodeColumns, KeptVectors
from rqmoe_store.store.vector_arrays import rows_per_batch
from rqmoe_store.store.vector_lists import ROWS_PER_BATCH, KeptVectorLists

Record = TypeVar("Record")

FORMAT_VERSION = 3
"""Raised whenever an older release of this package could misread a table."""
MULTI_VECTOR_FORMAT_VERSION = 5
"""That of tables whose rows have many vectors each. Before 4, none did. In 4, all codes of their vectors were
of whole vectors."""

PREFIX = "rqmoe_store."
"""Prefix of all metadata keys of this package."""

LARGEST_COUNT = 2**63 - 1
"""Largest number of rows, or of a version."""
LARGEST_SUM = sys.float_info.max
"""Largest sum of errors; JSON has no infinity."""
_LARGEST_ID = 2**31 - 1
"""Largest dimension or number of partition ids: they are int32 in Arrow and in the columns of the table."""
_ACCEPTED: dict[Any, tuple[type, ...]] = {
    str: (str,),
    int: (int,),
    int | None: (int, NoneType),
    float: (int, float),
}
"""Declared type of a field -> types of values that it may have; bool does not count as int."""


def json_object(text: str) -> dict[str, Any]:
    """Parse `text` as a JSON object.

    Raises:
        ValueError: it is not one.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError(f"it is a JSON {type(value).__name__}, not an object")
    return value


def as_count(value: int) -> int:
    """The nearest number that can be stored as a count."""
    return min(max(0, value), LARGEST_COUNT)


def as_sum(value: float) -> float:
    """The nearest number that can be stored as a sum of errors; the largest one for NaN."""
    return LARGEST_SUM if math.isnan(value) else min(max(0.0, value), LARGEST_SUM)


def readable_text(record: Record, text: str, read: Callable[[str], Record]) -> str:
    """Return `text`, the stored form of a record, after checking that `read` returns the same record.

    Raises:
        TableError: `read` raises or returns something else; nothing must be written then.
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
    """Return a dataclass or named tuple after checking the types of its fields and the range of numbers.

    Counts must be from 0 to `LARGEST_COUNT` and floats from 0 to `LARGEST_SUM`. Records in fields that are
    mappings are checked, too.

    Raises:
        ValueError: a field has another value.
    """
    for name, declared in get_type_hints(type(record)).items():
        value, accepted = getattr(record, name), _ACCEPTED.get(declared)
        largest = LARGEST_SUM if declared is float else LARGEST_COUNT
        if accepted is not None and not _is_accepted(value, accepted, largest):
            raise ValueError(f"{name} is {value!r}")
        if isinstance(value, Mapping):
            for each in value.values():
                require_types(each)
    return record


def _is_accepted(value: object, accepted: tuple[type, ...], largest: float) -> bool:
    if type(value) not in accepted:
        return False
    return not isinstance(value, int | float) or 0 <= value <= largest


@dataclasses.dataclass(frozen=True)
class GenerationMetadata:
    """A codec that rows of a table are encoded with."""

    fingerprint: str
    """Fingerprint of the codec, under which the registry has it."""
    num_partitions: int
    """Number of partition ids that its rows may have, at least 1. The ids of a generation follow those of the
    previous one, so that a row's partition id says which codec it needs."""
    refine_bytes: int = 0
    """Bytes of the refine codes of its rows; 0 if they have none."""
    token_codec: str = ""
    """Fingerprint of the codec of a row's vectors, where rows have many; its rows are then found by one
    encoding each, which the other codec is for. Empty in other tables."""
    tuned: str = ""
    """Fingerprint of the codec that reads the rows: one with the same codes that corrects distances. It may
    be the codec that rows are encoded with. Empty if the codec was not tuned."""

    @property
    def reader(self) -> str:
        """Fingerprint of the codec that reads the rows."""
        return self.tuned or self.fingerprint

    @property
    def untuned(self) -> "GenerationMetadata":
        """What says how rows were encoded."""
        return dataclasses.replace(self, tuned="")

    @property
    def fingerprints(self) -> set[str]:
        """Fingerprints of all codecs that its rows need, and of the one that encoded them."""
        return {self.fingerprint, self.reader, self.token_codec} - {""}

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-ready values, as older releases read them where there is no other codec."""
        fields = dataclasses.asdict(self)
        return {key: value for key, value in fields.items() if key not in ("token_codec", "tuned") or value}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiVector:
    """How the rows of a table have many vectors each."""

    dim: int
    """Dimension of the vectors."""
    config: CodecConfig
    """Configuration of the codecs of vectors; fields that are None are decided whenever one is trained."""
    encoding: MultiVectorConfig
    """How a row's vectors become one encoding."""

    @property
    def token_metric(self) -> Metric:
        """Metric of the codecs of vectors: that of the table, or one by which the lengths count of what means
        leave over."""
        return "dot" if self.encoding.subtract_mean else self.config.metric

    @property
    def encodes(self) -> Literal["vectors"] | RowResiduals:
        """What the codecs of vectors encode."""
        return of_rows(self.config.metric, self.encoding)

    def write(self) -> str:
        """The record as JSON."""
        settings = {"config": self.config.to_dict(), "encoding": self.encoding.to_dict()}
        return json.dumps({"dim": self.dim} | settings)

    @classmethod
    def read(cls, text: str) -> "MultiVector | None":
        """The record that `write` wrote; None for an empty text.

        Raises:
            ValueError, TypeError: another text.
        """
        if not text:
            return None
        fields = json_object(text)
        config = CodecConfig(**fields["config"])
        encoding = MultiVectorConfig(**{"subtract_mean": False} | fields["encoding"])
        return cls(dim=_whole_number(str(fields["dim"])), config=config, encoding=encoding)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableMetadata:
    """The vector column of a table, how raw vectors are kept, and its codecs."""

    format_version: int = FORMAT_VERSION
    vector_column: str
    dim: int
    """Dimension of the vectors that scans score: those of rows, or their fixed dimensional encodings."""
    keep_vectors: str
    config: CodecConfig
    """Configuration of the codecs; fields that are None are decided whenever one is trained."""
    refine_bytes: int = 0
    """Bytes of the refine codes that the table has a column for; 0 if it has no such column. A table may have
    the column while its newest codec has no refine codes, or while no row has one yet."""
    generations: tuple[GenerationMetadata, ...] = ()
    """Oldest first. None is ever removed, because partition ids depend on all of them."""
    multi_vector: MultiVector | None = None
    """How rows have many vectors each; None in a table with one vector a row."""

    @functools.cached_property
    def columns(self) -> CodeColumns:
        """The columns that have codes."""
        return CodeColumns(self.vector_column, self.refine_bytes, self.multi_vector is not None)

    @functools.cached_property
    def hidden_columns(self) -> tuple[str, ...]:
        """Columns that results leave out unless they are named: codes, partitions, and raw vectors where
        rows keep them only until they are encoded."""
        return self.columns.names if self.kept.kept else (*self.columns.names, self.vector_column)

    @functools.cached_property
    def kept(self) -> "KeptVectors | KeptVectorLists":
        """The column of raw vectors."""
        column, keep, many = self.vector_column, self.keep_vectors, self.multi_vector
        if many is not None:
            return KeptVectorLists(column=column, keep=keep, dim=many.dim, metric=many.config.metric)
        return KeptVectors(column=column, keep=keep, dim=self.dim, metric=self.config.metric)

    @functools.cached_property
    def vector_dim(self) -> int:
        """Dimension of the user's vectors."""
        return self.dim if self.multi_vector is None else self.multi_vector.dim

    @property
    def vector_config(self) -> CodecConfig:
        """Configuration of the codecs of the user's vectors."""
        return self.config if self.multi_vector is None else self.multi_vector.config

    @property
    def encodes(self) -> Literal["vectors"] | RowResiduals:
        """What the codecs of the user's vectors encode."""
        return "vectors" if self.multi_vector is None else self.multi_vector.encodes

    @functools.cached_property
    def metric(self) -> Metric:
        """The metric that users search by."""
        return self.vector_config.metric

    @property
    def rows_per_batch(self) -> int:
        """Number of rows to hold in memory at a time."""
        return rows_per_batch(self.dim) if self.multi_vector is None else ROWS_PER_BATCH

    @property
    def first_partitions(self) -> tuple[int, ...]:
        """The first partition id of every generation, followed by the number of all partition ids."""
        counts = (each.num_partitions for each in self.generations)
        return tuple(itertools.accumulate(counts, initial=0))

    @property
    def lasting(self) -> dict[str, object]:
        """The properties that never change in the life of a table, by names for messages."""
        return {
            "vector column": self.vector_column,
            "dimension": self.dim,
            "keep_vectors": self.keep_vectors,
            "metric": self.metric,
            "code bytes": self.config.code_bytes,
        } | self._lasting_of_many

    @property
    def _lasting_of_many(self) -> dict[str, object]:
        many = self.multi_vector
        return {} if many is None else {"dimension of every vector": many.dim, "encoding": many.encoding}

    @classmethod
    def read(cls, schema: pa.Schema, table_name: str) -> "TableMetadata":
        """Read the metadata of a table from its `schema`.

        Raises:
            TableError: there is none, a value is missing or cannot be read, or a newer release wrote it.
        """
        return cls._read(frozenset(_ours(schema).items()), table_name)

    @classmethod
    @functools.lru_cache(maxsize=256)  # read whenever rows are written
    def _read(cls, ours: frozenset[tuple[bytes, bytes]], table_name: str) -> Self:
        stored = {key.decode(errors="replace").removeprefix(PREFIX): value for key, value in ours}
        if "format_version" not in stored:
            raise TableError(
                f"Table {table_name!r} is not a compressed table; make one with "
                "rqmoe_store.compress(table, codec, into=...) or rqmoe_store.create_table(...)."
            )
        version = _parsed("format_version", stored["format_version"], table_name)
        if version > MULTI_VECTOR_FORMAT_VERSION:
            raise TableError(
                f"Table {table_name!r} has format version {version}; this release of rqmoe-store "
                f"reads up to {MULTI_VECTOR_FORMAT_VERSION}. Upgrade rqmoe-store."
            )
        if version < FORMAT_VERSION:
            stored = _BEFORE_REFINE_CODES | stored
        if version <= FORMAT_VERSION:
            stored = _ONE_VECTOR_A_ROW | stored
        return cls(**{name: _parsed(name, stored.get(name), table_name) for name in _PARSERS})

    def write(self, metadata: dict[bytes, bytes] | None) -> dict[bytes, bytes]:
        """The schema metadata to store: the user's, with that of the table added.

        Raises:
            TableError: a field could not be read back; nothing must be written then.
        """
        ours = {
            "format_version": str(self.format_version),
            "vector_column": self.vector_column,
            "dim": str(self.dim),
            "keep_vectors": self.keep_vectors,
            "config": json.dumps(self.config.to_dict()),
            "refine_bytes": str(self.refine_bytes),
            "generations": json.dumps([each.to_dict() for each in self.generations]),
        }
        if self.multi_vector is not None:
            ours["multi_vector"] = self.multi_vector.write()
        kept = {name: readable_text(getattr(self, name), text, _PARSERS[name]) for name, text in ours.items()}
        return (metadata or {}) | {(PREFIX + name).encode(): text.encode() for name, text in kept.items()}

    def with_generation(self, generation: GenerationMetadata, config: CodecConfig) -> "TableMetadata":
        """The metadata of the table with one more codec of the user's vectors, of this configuration. Raises
        as `columns_with`."""
        many = self.multi_vector and dataclasses.replace(self.multi_vector, config=config)
        return dataclasses.replace(
            self,
            format_version=MULTI_VECTOR_FORMAT_VERSION if many else FORMAT_VERSION,
            config=self.config if many else config,
            multi_vector=many,
            generations=(*self.generations, generation),
            refine_bytes=self.columns_with(generation.refine_bytes).refine_bytes,
        )

    def column_refine_bytes(self, config: CodecConfig) -> int:
        """Bytes of the refine codes that a codec of the user's vectors needs a column for."""
        return config.refine_bytes if self.multi_vector is None else self.refine_bytes

    def with_tuned_codec(self, fingerprint: str) -> "TableMetadata":
        """The metadata of the table once a codec of this fingerprint reads the rows of its newest codec; ""
        for the codec that they were encoded with."""
        (*older, newest) = self.generations
        return dataclasses.replace(self, generations=(*older, dataclasses.replace(newest, tuned=fingerprint)))

    def columns_with(self, refine_bytes: int) -> CodeColumns:
        """The columns of the table once it has a codec with refine codes of `refine_bytes` bytes, or without.

        Raises:
            InvalidInputError: the table has a column for refine codes of another size.
        """
        if self.refine_bytes and refine_bytes not in (0, self.refine_bytes):
            raise InvalidInputError(
                f"Got a codec with refine codes of {refine_bytes} bytes; the table has a column for "
                f"{self.refine_bytes}. Retrain with refine_bytes=0, call optimize(), which drops the "
                "column, and retrain again; or compress into a new table. Nothing was written."
            )
        return dataclasses.replace(self.columns, refine_bytes=self.refine_bytes or refine_bytes)


def _whole_number(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= _LARGEST_ID:
        raise ValueError(f"expected a whole number from 1 to {_LARGEST_ID}")
    return int(text)


def _size(text: str) -> int:
    if not text.isdecimal() or int(text) > _LARGEST_ID:
        raise ValueError(f"expected a whole number from 0 to {_LARGEST_ID}")
    return int(text)


def _config(text: str) -> CodecConfig:
    return CodecConfig(**json.loads(text))


def _generations(text: str) -> tuple[GenerationMetadata, ...]:
    generations = tuple(GenerationMetadata(**entry) for entry in json.loads(text))
    for each in generations:
        count, size = each.num_partitions, each.refine_bytes
        names = all(isinstance(name, str) for name in (each.fingerprint, each.token_codec, each.tuned))
        if not names or type(count) is not int or not 0 < count <= _LARGEST_ID:
            raise ValueError(f"{each} is no generation")
        if type(size) is not int or not 0 <= size <= _LARGEST_ID:
            raise ValueError(f"{each} is no generation")
    if sum(each.num_partitions for each in generations) > _LARGEST_ID:
        raise ValueError(f"more than {_LARGEST_ID} partition ids in all")
    return generations


def _name(text: str) -> str:
    return text.encode().decode()  # raises for lone surrogates, which are not text


_PARSERS: dict[str, Any] = {
    "format_version": _whole_number,
    "vector_column": _name,
    "dim": _whole_number,
    "keep_vectors": _name,
    "config": _config,
    "generations": _generations,
    "refine_bytes": _size,
    "multi_vector": MultiVector.read,
}
_BEFORE_REFINE_CODES = {"refine_bytes": b"0"}
"""Values of what format version 2 has not."""
_ONE_VECTOR_A_ROW = {"multi_vector": b""}
"""Values of what only tables with many vectors a row have."""


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
    """Tuned search parameters, which are the defaults of searches of a table."""

    nprobes: int
    """Partitions searched."""
    shortlist: int
    """Rows decoded and reranked."""
    limit: int
    """Results per query that the parameters were tuned for."""
    target_recall: float
    """Recall that the parameters were tuned for."""

    @classmethod
    def read(cls, metadata: Mapping[str, str], table_name: str) -> Self | None:
        """Read the parameters from a table's metadata; None for a table that was never tuned.

        Raises:
            TableError: they are not what `write` wrote.
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
        """Write the parameters into the metadata of the newest version of `table`.

        Of several writers the last one wins. The handle itself stays at its version.

        Raises:
            TableError: they could not be read back; nothing is written then.
        """
        text = readable_text(self, json.dumps(dataclasses.asdict(self)), self._parsed)
        while True:
            dataset = databases.reopen(table).to_lance()
            try:
                dataset.update_metadata({KEY: text})
            except OSError:
                # Two writers of one key conflict, and the second one starts again.
                if dataset.latest_version == dataset.version:
                    raise
            else:
                return
