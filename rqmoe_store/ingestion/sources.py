"""Whatever the user names as a source, opened: columns and pieces are known, rows are not read yet."""

import os
from collections.abc import Mapping
from typing import Any

import lance
import pyarrow.dataset as pads
from lancedb.table import LanceTable

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.ingestion import arrays, files, lance_tables, streams
from rqmoe_store.ingestion.filesystems import absolute, is_uri
from rqmoe_store.ingestion.pieces import Source


def open_source(
    source: Any,
    *,
    vector_column: str,
    metadata: str | os.PathLike[str] | None = None,
    storage_options: Mapping[str, str] | None = None,
    job: str | None = None,
) -> Source:
    """A source that `ingest` takes, ready to be read.

    Args:
        source: path, URI, dataset, table, reader, frame or iterator.
        vector_column: what to call the vectors of a .npy file.
        metadata: path or URI of the other columns of a .npy file.
        storage_options: for paths that are URIs.
        job: name for a stream, which has none of its own.

    Raises:
        InvalidInputError, TableError: nothing there, or nothing that can be read.
    """
    if isinstance(source, (str, os.PathLike)):
        location = os.fspath(source)
        if not is_uri(location):
            _require_none("storage_options", storage_options, "URIs")
        if location.rstrip("/").endswith(arrays.ENDING):
            beside = None if metadata is None else os.fspath(metadata)
            return arrays.open_array(location, beside, vector_column, storage_options)
        _require_none("metadata", metadata, "files in .npy")
        if location.rstrip("/").endswith(lance_tables.ENDING):
            return lance_tables.open_uri(location, storage_options)
        return files.open_files(files.dataset_at(location, storage_options), absolute(location))
    _require_none("metadata", metadata, "files in .npy")
    _require_none("storage_options", storage_options, "URIs")
    if isinstance(source, LanceTable):
        return lance_tables.open_dataset(source.to_lance())
    if isinstance(source, lance.LanceDataset):
        return lance_tables.open_dataset(source)
    if isinstance(source, pads.Dataset):
        return files.open_files(source)
    return streams.open_stream(source, job)


def _require_none(argument: str, value: object, what: str) -> None:
    if value is not None:
        raise InvalidInputError(f"Got {argument}={value!r}; expected it with {what} only.")
