"""Documents as rows of a table, and rows as documents.

Shapes: N documents, V of them with an embedding, D components.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from haystack.dataclasses import ByteStream, Document, SparseEmbedding
from haystack.document_stores.errors import DocumentStoreError
from haystack_integrations.document_stores.rqmoe._metadata import as_json, dates_of, require_unicode

import rqmoe_store as rqs

ID, CONTENT, META, EMBEDDING = "id", "content", "meta", "embedding"
DATES = "dates"
"""The column of the ISO dates in metadata, as numbers."""
BLOB, BLOB_ABOUT, SCORE, SPARSE_EMBEDDING = "blob", "blob_about", "score", "sparse_embedding"

NULL_WHERE = {name: f"({name} IS NULL)" for name in (EMBEDDING, BLOB, SCORE, SPARSE_EMBEDDING)}
"""Fields other than texts and metadata, and where a document lacks them."""

DOCUMENT_COLUMNS = [ID, CONTENT, META, BLOB, BLOB_ABOUT, SCORE, SPARSE_EMBEDDING]
"""What a document is made of, but for its embedding."""

COLUMNS = pa.schema(
    [
        pa.field(ID, pa.string(), nullable=False),
        pa.field(CONTENT, pa.string()),
        pa.field(META, pa.json_(pa.string())),
        pa.field(DATES, pa.json_(pa.string())),
        pa.field(BLOB, pa.large_binary()),
        pa.field(BLOB_ABOUT, pa.string()),
        pa.field(SCORE, pa.float64()),
        pa.field(SPARSE_EMBEDDING, pa.string()),
    ]
)
"""All columns but that of embeddings."""


def schema_of(dim: int) -> pa.Schema:
    """Columns of a table of documents whose embeddings have `dim` components."""
    return COLUMNS.append(pa.field(EMBEDDING, pa.list_(pa.float32(), dim)))


def checked_id(document_id: Any) -> str:
    """The id of a document; a UUID's text. Raises DocumentStoreError unless it can be one."""
    document_id = rqs.as_json_value(document_id)
    if not isinstance(document_id, str) or not document_id:
        raise DocumentStoreError(
            f"Got {document_id!r} ({type(document_id).__name__}) as the id of a document; expected text. "
            "Nothing was written."
        )
    require_unicode(document_id, ID)
    return document_id


def rows_of(documents: Sequence[Document], dim: int) -> pa.Table:
    """Documents as rows, in the columns of `schema_of(dim)`.

    Raises:
        DocumentStoreError: content that is no text, a blob that is no bytes, values that JSON cannot hold,
            embeddings of another dimension or that are no numbers.
    """
    columns = {
        ID: [document.id for document in documents],
        CONTENT: [_checked_content(document) for document in documents],
        **_metadata_columns([(document.id, document.meta) for document in documents]),
        BLOB: [_checked_blob(document) for document in documents],
        BLOB_ABOUT: [_blob_about(document) for document in documents],
        SCORE: [document.score for document in documents],
        SPARSE_EMBEDDING: [_sparse_json(document) for document in documents],
    }
    try:
        arrays = [pa.array(columns[field.name], field.type) for field in COLUMNS]
    except (TypeError, ValueError, pa.ArrowException) as error:
        raise DocumentStoreError(
            f"Got documents with values of a type that Haystack does not have there ({error}). Nothing was "
            "written."
        ) from error
    return pa.Table.from_arrays([*arrays, _embeddings(documents, dim)], schema=schema_of(dim))


def metadata_rows(ids: Sequence[str], metas: Sequence[dict[str, Any]]) -> pa.Table:
    """New metadata for documents that there are. Raises as `rows_of`."""
    columns = {ID: list(ids), **_metadata_columns(list(zip(ids, metas, strict=True)))}
    fields = [COLUMNS.field(name) for name in columns]
    arrays = [pa.array(columns[field.name], field.type) for field in fields]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def metas_of(rows: pa.Table) -> list[dict[str, Any]]:
    """The metadata of rows with the column `meta`."""
    return [json.loads(text) for text in rows[META].to_pylist()]


def documents_of(rows: pa.Table, scores: Sequence[float] | None = None) -> list[Document]:
    """The documents of rows with `DOCUMENT_COLUMNS` and, if they are to have embeddings, that of these.

    Args:
        rows: N rows.
        scores: N scores to give them; None for those that they were written with.
    """
    embeddings = _lists_of(rows[EMBEDDING]) if EMBEDDING in rows.column_names else [None] * rows.num_rows
    parts = zip(rows.select(DOCUMENT_COLUMNS).to_pylist(), embeddings, metas_of(rows), strict=True)
    return [
        Document(
            id=row[ID],
            content=row[CONTENT],
            blob=_blob_of(row),
            meta=meta,
            score=row[SCORE] if scores is None else scores[place],
            embedding=embedding,
            sparse_embedding=_sparse_of(row[SPARSE_EMBEDDING]),
        )
        for place, (row, embedding, meta) in enumerate(parts)
    ]


def dimension_of(documents: Sequence[Document]) -> int | None:
    """Components of the first embedding; None when no document has one. Raises DocumentStoreError if it is no
    list."""
    return next((_length(document) for document in documents if document.embedding is not None), None)


def _length(document: Document) -> int:
    if not isinstance(document.embedding, list | tuple | np.ndarray):
        raise DocumentStoreError(
            f"Got {document.embedding!r} as the embedding of document {document.id!r}; expected a list of "
            "numbers. Nothing was written."
        )
    return len(document.embedding)


def _checked_content(document: Document) -> str | None:
    if document.content is not None and not isinstance(document.content, str):
        raise DocumentStoreError(
            f"Got {type(document.content).__name__} as the content of document {document.id!r}; expected "
            "text or None. Nothing was written."
        )
    if document.content is not None:
        require_unicode(document.content, f"the content of document {document.id!r}")
    return document.content


def _checked_blob(document: Document) -> bytes | None:
    if document.blob is None:
        return None
    if not isinstance(document.blob.data, bytes):
        raise DocumentStoreError(
            f"Got {type(document.blob.data).__name__} as the data of the blob of document {document.id!r}; "
            "expected bytes. Nothing was written."
        )
    return document.blob.data


def _metadata_columns(metas: Sequence[tuple[str, Any]]) -> dict[str, list[Any]]:
    """The columns that metadata are kept in, as JSON texts, given with the ids of their documents."""
    texts = [_meta_json(document_id, meta) for document_id, meta in metas]
    dates = [dates_of(meta) for _, meta in metas]
    return {META: texts, DATES: [json.dumps(found) if found else None for found in dates]}


def _meta_json(document_id: str, meta: Any) -> str:
    if not isinstance(meta, dict):
        raise DocumentStoreError(
            f"Got {meta!r} ({type(meta).__name__}) as the metadata of document {document_id!r}; expected a "
            "dict. Nothing was written."
        )
    return as_json(meta, META, document_id)


def _blob_about(document: Document) -> str | None:
    blob = document.blob
    if blob is None:
        return None
    return as_json({META: blob.meta, "mime_type": blob.mime_type}, BLOB, document.id)


def _blob_of(row: dict[str, Any]) -> ByteStream | None:
    return None if row[BLOB] is None else ByteStream(data=row[BLOB], **json.loads(row[BLOB_ABOUT]))


def _sparse_json(document: Document) -> str | None:
    sparse = document.sparse_embedding
    return None if sparse is None else as_json(sparse.to_dict(), SPARSE_EMBEDDING, document.id)


def _sparse_of(text: str | None) -> SparseEmbedding | None:
    return None if text is None else SparseEmbedding.from_dict(json.loads(text))


def _embeddings(documents: Sequence[Document], dim: int) -> pa.Array:
    """A list of `dim` single floats per document, null where it has none."""
    valid_N = np.array([document.embedding is not None for document in documents], dtype=bool)
    vectors_ND = np.zeros((len(documents), dim), dtype=np.float32)
    if valid_N.any():
        embedded = [document for document in documents if document.embedding is not None]
        vectors_ND[valid_N] = _vectors(embedded, dim)
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.ravel()), dim, mask=pa.array(~valid_N))


def _vectors(documents: Sequence[Document], dim: int) -> npt.NDArray[np.float32]:
    for document in documents:
        if _length(document) != dim:
            raise DocumentStoreError(
                f"Got an embedding of {_length(document)} components for document {document.id!r}; expected "
                f"{dim}, as this store has. Nothing was written. Embed all documents by the same model, or "
                "write those of another model to a store with another table_name."
            )
    try:
        with np.errstate(over="ignore"):  # becomes infinite, which the table refuses by the document's id
            return np.array([document.embedding for document in documents], dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise DocumentStoreError(
            f"Got embeddings that are no lists of numbers ({error}). Nothing was written."
        ) from error


def _lists_of(column: pa.ChunkedArray) -> list[list[float] | None]:
    """Each row's vector as Haystack has it."""
    vectors: list[list[float] | None] = column.to_pylist()
    return vectors
