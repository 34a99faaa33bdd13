"""Documents as rows of a table, and rows as documents.

Shape suffixes: N documents, D vector dimension.
"""

import dataclasses
import json
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from langchain_core.documents import Document

from langchain_rqmoe.metadata import is_unicode, json_text
from rqmoe_store import InvalidInputError

Float32Array = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of the columns of a table of documents, which must differ."""

    id: str = "id"
    text: str = "text"
    metadata: str = "metadata"
    vector: str = "vector"

    def __post_init__(self) -> None:
        names = dataclasses.astuple(self)
        if len(set(names)) < len(names) or not all(isinstance(name, str) and name for name in names):
            raise InvalidInputError(
                f"Got columns {names}; expected four different names as id_key, text_key, metadata_key and "
                "vector_key."
            )

    @property
    def read(self) -> list[str]:
        """The columns that documents are made of."""
        return [self.id, self.text, self.metadata]

    @property
    def without_vector(self) -> pa.Schema:
        """All columns but that of vectors."""
        return pa.schema(
            [
                pa.field(self.id, pa.string(), nullable=False),
                pa.field(self.text, pa.string(), nullable=False),
                pa.field(self.metadata, pa.json_(pa.string())),
            ]
        )

    def schema(self, dim: int) -> pa.Schema:
        """Columns of a new table for vectors of `dim` numbers."""
        return self.without_vector.append(pa.field(self.vector, pa.list_(pa.float32(), dim)))


@dataclasses.dataclass(frozen=True)
class Texts:
    """Texts to add, each with its id and metadata; checked, but not embedded yet."""

    texts: list[str]
    ids: list[str]
    metadata: list[str]
    """JSON texts."""
    new: bool
    """Whether all ids were generated just now, so that the table cannot have them."""

    @classmethod
    def of(
        cls,
        texts: Iterable[str],
        metadatas: Iterable[dict[str, Any]] | None,
        ids: Iterable[str | None] | None,
    ) -> "Texts":
        """Check what a caller wants to add, and generate the ids that are missing.

        Raises:
            InvalidInputError: texts or ids of other types, empty or not Unicode; metadata that JSON cannot
                give back; other numbers of them than of texts.
        """
        listed = [_checked_text(text, "text", position) for position, text in enumerate(texts)]
        metadatas = None if metadatas is None else list(metadatas)  # either may be a generator
        ids = None if ids is None else list(ids)
        for name, others in (("metadatas", metadatas), ("ids", ids)):
            if others is not None and len(others) != len(listed):
                raise InvalidInputError(
                    f"Got {len(others)} {name} for {len(listed)} texts; expected one for each. Nothing was "
                    "written."
                )
        return cls(
            texts=listed,
            ids=[_checked_id(given, place) for place, given in enumerate(ids or [None] * len(listed))],
            metadata=[json_text(one, place) for place, one in enumerate(metadatas or [{}] * len(listed))],
            new=not ids or all(given is None for given in ids),
        )

    def batches(self, size: int | None) -> Iterator[list[str]]:
        """The texts, `size` of them at a time; None for all at once.

        Raises:
            InvalidInputError: a size below 1.
        """
        if size is not None and (type(size) is not int or size < 1):
            raise InvalidInputError(f"Got batch_size={size!r}; expected a whole number from 1, or None.")
        step = size or max(1, len(self.texts))
        return (self.texts[start : start + step] for start in range(0, len(self.texts), step))

    def rows(self, vectors: Sequence[Sequence[float]], columns: Columns) -> pa.Table:
        """One row for each id, the last one where an id comes again.

        Args:
            vectors: one for each text.
            columns: their names.

        Raises:
            InvalidInputError: another number of vectors, or vectors of several dimensions.
        """
        vectors_ND = as_matrix(vectors, len(self.texts))
        table = pa.table(
            [
                pa.array(self.ids, pa.string()),
                pa.array(self.texts, pa.string()),
                pa.array(self.metadata, pa.string()).cast(pa.json_(pa.string())),
                pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.ravel()), vectors_ND.shape[1]),
            ],
            schema=columns.schema(vectors_ND.shape[1]),
        )
        last = {given: position for position, given in enumerate(self.ids)}
        return table if len(last) == len(self.ids) else table.take(sorted(last.values()))


def as_matrix(vectors: Sequence[Sequence[float]], count: int) -> Float32Array:
    """The vectors as an array (N, D); raises InvalidInputError unless they are `count` of one dimension."""
    arrays = [as_vector(vector) for vector in vectors]
    if len(arrays) != count:
        raise InvalidInputError(
            f"Got {len(arrays)} vectors for {count} texts; expected one for each. Nothing was written."
        )
    odd = next((place for place, array in enumerate(arrays) if len(array) != len(arrays[0])), None)
    if odd is not None:
        raise InvalidInputError(
            f"Got vectors of {len(arrays[0])} numbers for document 0 and of {len(arrays[odd])} for document "
            f"{odd}; expected one dimension. Nothing was written; embed all documents with one model."
        )
    return np.stack(arrays)


def as_vector(vector: object) -> Float32Array:
    """A vector as an array (D,); raises InvalidInputError for what is none."""
    try:
        array: Float32Array = np.asarray(vector, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"Got a vector that cannot be read as numbers ({error}).") from error
    if array.ndim != 1 or len(array) == 0:
        raise InvalidInputError(
            f"Got a vector of shape {array.shape}; expected a list of numbers, as an embedding model returns."
        )
    return array


def documents_of(found: pa.Table, columns: Columns) -> list[Document]:
    """The documents of rows that have the columns `columns.read`."""
    ids, texts, metadata = (found[name].to_pylist() for name in columns.read)
    return [
        Document(id=given, page_content=text, metadata=json.loads(json_) if json_ else {})
        for given, text, json_ in zip(ids, texts, metadata, strict=True)
    ]


def _checked_id(given: object, position: int) -> str:
    if given is None:
        return str(uuid.uuid4())
    if isinstance(given, uuid.UUID):
        return str(given)
    if given == "":
        raise InvalidInputError(
            f"The id of document {position} is an empty text; expected another one, or None to have one "
            f"generated. Nothing was written."
        )
    return _checked_text(given, "id", position)


def _checked_text(given: object, called: str, position: int) -> str:
    if not isinstance(given, str):
        raise InvalidInputError(
            f"The {called} of document {position} is {type(given).__name__} ({given!r}); expected a str. "
            f"Nothing was written."
        )
    if not is_unicode(given):
        raise InvalidInputError(
            f"The {called} of document {position} has lone surrogates, which are no Unicode text. Nothing "
            f"was written; encode it with errors='replace' and decode it again."
        )
    return given
