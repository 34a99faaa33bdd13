"""Lance datasets and LanceDB tables: a piece is a fragment of the version that was passed."""

from collections.abc import Iterator, Mapping, Sequence

import lance
import pyarrow as pa
from lance.fragment import LanceFragment

from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.ingestion.filesystems import absolute
from rqmoe_store.ingestion.pieces import Chunk, Piece, Source, even_cuts, stamp_of
from rqmoe_store.store.schemas import user_schema

ENDING = ".lance"

_READ_AHEAD_BYTES = 128 * 2**20
_BLOB, _EXTENSION = b"lance-encoding:blob", b"ARROW:extension:name"


class FragmentPiece(Piece):
    """The rows of a fragment that are not deleted."""

    def __init__(self, dataset: lance.LanceDataset, fragment: LanceFragment) -> None:
        files = [file.path for file in fragment.metadata.files]
        sizes = [file.file_size_bytes or 0 for file in fragment.metadata.files]
        super().__init__(
            f"{dataset.uri} fragment {fragment.fragment_id}",
            stamp_of(files, repr(fragment.metadata.deletion_file)),
            sum(sizes) or None,
        )
        self._dataset, self._fragment = dataset, fragment

    def cuts(self, size: int) -> list[int]:
        return even_cuts(self._fragment.count_rows(), self.source_bytes, size)

    def read(self, start: int, columns: Sequence[str], batch_rows: int) -> Iterator[Chunk]:
        rows = self._fragment.count_rows()
        if start >= rows:
            return
        row_bytes = (self.source_bytes or 0) / rows
        scanner = self._dataset.scanner(
            columns=list(columns),
            fragments=[self._fragment],
            offset=start,
            batch_size=batch_rows,
            batch_readahead=1,
            io_buffer_size=_READ_AHEAD_BYTES,
            scan_in_order=True,
        )
        for batch in scanner.to_batches():
            yield Chunk(batch, round(row_bytes * batch.num_rows))


def open_uri(location: str, storage_options: Mapping[str, str] | None) -> Source:
    """The newest version of the Lance dataset at a path or URI.

    Raises:
        TableError: there is none.
        InvalidInputError: as `open_dataset`.
    """
    options = None if storage_options is None else dict(storage_options)
    try:
        dataset = lance.dataset(absolute(location), storage_options=options)
    except (ValueError, OSError) as error:
        raise TableError(
            f"There is no table at {location!r} ({error}); expected the folder of a Lance dataset or LanceDB "
            "table, such as ./data/docs.lance."
        ) from error
    return open_dataset(dataset)


def open_dataset(dataset: lance.LanceDataset) -> Source:
    """A Lance dataset, at the version it is at.

    Raises:
        InvalidInputError: it has blob columns.
    """
    if blobs := [field.name for field in dataset.schema if _is_blob(field)]:
        raise InvalidInputError(
            f"The dataset {dataset.uri!r} has blob columns {blobs}, which cannot be read with their content. "
            "Ingest a copy of it without them."
        )
    return Source(
        schema=user_schema(dataset.schema, without=()),
        pieces=[FragmentPiece(dataset, fragment) for fragment in dataset.get_fragments()],
        location=f"lance {dataset.uri}",
        version_note=f"version {dataset.version}",
        replaces_pieces=True,
    )


def _is_blob(field: pa.Field) -> bool:
    metadata = field.metadata or {}
    extension = getattr(field.type, "extension_name", metadata.get(_EXTENSION, b"").decode())
    return metadata.get(_BLOB) == b"true" or extension.startswith("lance.blob")
