"""Whatever the user names as a source, opened: columns and pieces are known, rows are not read yet."""

import itertools
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import lance
import pyarrow.dataset as pads
from lancedb.table import LanceTable

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.ingestion import arrays, files, lance_tables, streams
from rqmoe_store.ingestion.filesystems import common_folder, files_at, is_uri
from rqmoe_store.ingestion.pieces import Source


def open_source(
    source: Any,
    *,
    vector_column: str,
    metadata: str | os.PathLike[str] | None = None,
    storage_options: Mapping[str, str] | None = None,
    job: str | None = None,
    takes_all: bool = True,
    texts: Collection[str] = (),
) -> Source:
    """A source that `ingest` takes, ready to be read.

    Args:
        source: path, URI or pattern of files, or several of these; dataset, table, reader, frame or iterator.
        vector_column: what to call the vectors of a .npy file, and what dicts call them.
        metadata: path or URI of the other columns of a .npy file.
        storage_options: for paths that are URIs.
        job: name for a stream, which has none of its own.
        takes_all: whether all columns are to be taken, be it that only some files or batches have them.
        texts: columns of the table that are text; in CSV files they are even if they read like numbers.

    Raises:
        InvalidInputError, TableError: nothing there, or nothing that can be read.
    """
    locations, source = _locations(source)
    if locations:
        if not any(map(is_uri, locations)):
            _require_none("storage_options", storage_options, "URIs")
        if any(_ends(location, arrays.ENDING) for location in locations):
            return _open_arrays(locations, metadata, vector_column, storage_options, texts)
        _require_none("metadata", metadata, "files in .npy")
        if any(_ends(location, lance_tables.ENDING) for location in locations):
            return lance_tables.open_uri(_only(locations, lance_tables.ENDING), storage_options)
        dataset, location = files.dataset_at(
            locations if len(locations) > 1 else locations[0], storage_options, texts=texts
        )
        return files.open_files(dataset, location, takes_all=takes_all)
    _require_none("metadata", metadata, "files in .npy")
    _require_none("storage_options", storage_options, "URIs")
    if isinstance(source, LanceTable):
        return lance_tables.open_dataset(source.to_lance())
    if isinstance(source, lance.LanceDataset):
        return lance_tables.open_dataset(source)
    if isinstance(source, pads.Dataset):
        return files.open_files(source)
    return streams.open_stream(source, job, vector_column, takes_all=takes_all)


def _locations(source: Any) -> tuple[list[str], Any]:
    """The paths and URIs that a source is, and the source, whose first element may have been looked at."""
    if isinstance(source, (str, os.PathLike)):
        return [os.fspath(source)], source
    plain = isinstance(source, (list, tuple, set, frozenset))
    if not plain and not isinstance(source, Iterator):
        return [], source
    elements = iter(source)
    first = list(itertools.islice(elements, 1))
    if not first or not isinstance(first[0], (str, os.PathLike)):
        return [], source if plain else itertools.chain(first, elements)
    together = [*first, *elements]
    if odd := [each for each in together if not isinstance(each, (str, os.PathLike))]:
        raise InvalidInputError(f"Got {type(odd[0]).__name__} among paths; expected paths or URIs alone.")
    return [os.fspath(each) for each in together], source


def _ends(location: str, ending: str) -> bool:
    return location.rstrip("/").endswith(ending)


def _only(locations: Sequence[str], ending: str) -> str:
    if len(locations) > 1:
        raise InvalidInputError(
            f"Got {len(locations)} paths, with folders in {ending} among them; expected one of those alone. "
            "Ingest one after the other."
        )
    return locations[0]


def _open_arrays(
    locations: Sequence[str],
    metadata: str | os.PathLike[str] | None,
    vector_column: str,
    storage_options: Mapping[str, str] | None,
    texts: Collection[str],
) -> Source:
    """One or several .npy files of vectors of one type."""
    places = [files_at(location, storage_options) for location in locations]
    found = [file for place in places for file in place.locations]
    beside = None if metadata is None else os.fspath(metadata)
    if beside is not None:
        _require_none("metadata", beside if len(found) > 1 else None, "one file in .npy")
    opened = [arrays.open_array(file, beside, vector_column, storage_options, texts=texts) for file in found]
    if len(opened) == 1:
        return opened[0]
    pieces = sorted((each.pieces[0] for each in opened), key=lambda piece: piece.name)
    for before, piece in itertools.pairwise(pieces):
        if before.name == piece.name:
            raise InvalidInputError(f"The source has {piece.name!r} twice; expected each file once.")
    for file, each in zip(found, opened, strict=True):
        if each.schema != opened[0].schema:
            raise InvalidInputError(
                f"Got vectors as {opened[0].schema.field(0).type} in {found[0]!r} and as "
                f"{each.schema.field(0).type} in {file!r}; expected files of one type."
            )
    location = common_folder([file.rpartition("/")[0] for file in found])
    return Source(schema=opened[0].schema, pieces=pieces, location=f"arrays {location}")


def _require_none(argument: str, value: object, what: str) -> None:
    if value is not None:
        raise InvalidInputError(f"Got {argument}={value!r}; expected it with {what} only.")
