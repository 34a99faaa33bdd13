"""The data files of a new table, and the one commit that makes them a table.

Files are written first and belong to nothing; a reader sees the table whole or not at all, whichever
file a failure or a lost process interrupts.
"""

import dataclasses
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lance
import pyarrow as pa
from lance.file import LanceFileWriter
from lance.fragment import DataFile, FragmentMetadata, write_fragments
from lance.schema import LanceSchema

ROWS_PER_FILE = 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class ApartColumn:
    """A column of numbers or of fixed-size lists of them, kept in data files of its own."""

    field: pa.Field
    """Its name and type."""
    read: Callable[[int, int], pa.Array]
    """Its values in rows start to stop of the new table."""
    batch_rows: int = 1
    """Rows to read at a time."""


def write_table(
    uri: str,
    schema: pa.Schema,
    reader: pa.RecordBatchReader,
    *,
    apart: ApartColumn | None,
    file_format: str,
    storage_options: dict[str, str] | None,
    rows_per_file: int = ROWS_PER_FILE,
) -> None:
    """Write the rows of `reader`, then the column `apart`, and commit all as one table.

    Row ids are stable. Nothing is a table before this returns; after an error the caller removes the
    folder, unless there is a table of someone else in it.

    Args:
        uri: folder or bucket URI of the table.
        schema: of the table. What neither `reader` nor `apart` has is null, which takes no space.
        reader: some of its columns, in its order.
        apart: a column that goes into files of its own; None without.
        file_format: version of the data files.
        storage_options: how to reach `uri`; None for a local folder.
        rows_per_file: rows of one data file.
    """
    fragments = write_fragments(
        reader,
        uri,
        mode="create",
        max_rows_per_file=rows_per_file,
        data_storage_version=file_format,
        storage_options=storage_options,
    )
    ids = _ids_in(schema, reader.schema)
    fragments = [_renumbered(fragment, ids) for fragment in fragments]
    if apart is not None:
        fragments = _with_column(uri, fragments, schema, apart, file_format, storage_options)
    commit_new(uri, schema, fragments, storage_options=storage_options, enable_stable_row_ids=True)


def commit_new(
    uri: str,
    schema: pa.Schema,
    fragments: Sequence[FragmentMetadata],
    *,
    storage_options: dict[str, str] | None,
    enable_stable_row_ids: bool | None = None,
) -> None:
    """Commit fragments as the first version of a table; of several writers that do so at once, one succeeds.

    Raises:
        OSError: there is a table at `uri` already, which stays as it is, or the commit failed.
    """
    lance.LanceDataset.commit(
        uri,
        lance.LanceOperation.Overwrite(LanceSchema.from_pyarrow(schema), fragments),
        storage_options=storage_options,
        enable_stable_row_ids=enable_stable_row_ids,
        max_retries=0,  # with retries a table that is there would get this one as its next version
    )


def _ids_in(schema: pa.Schema, written: pa.Schema) -> dict[int, int]:
    """Ids of the fields of files with some columns of a table, as they are in the whole table."""
    whole = {field.name(): field for field in LanceSchema.from_pyarrow(schema).fields()}
    return {
        old: new
        for field in LanceSchema.from_pyarrow(written).fields()
        for old, new in zip(_ids_of(field), _ids_of(whole[field.name()]), strict=True)
    }


def _ids_of(field: Any) -> list[int]:
    return [int(field.id()), *(each for child in field.children() for each in _ids_of(child))]


def _renumbered(fragment: FragmentMetadata, ids: Mapping[int, int]) -> FragmentMetadata:
    files = [
        DataFile(
            file.path,
            fields=[ids[each] for each in file.fields],
            column_indices=file.column_indices,
            file_major_version=file.file_major_version,
            file_minor_version=file.file_minor_version,
            file_size_bytes=file.file_size_bytes,
        )
        for file in fragment.files
    ]
    return dataclasses.replace(fragment, files=files)


def _with_column(
    uri: str,
    fragments: list[FragmentMetadata],
    schema: pa.Schema,
    apart: ApartColumn,
    file_format: str,
    storage_options: dict[str, str] | None,
) -> list[FragmentMetadata]:
    """The fragments with one more data file each, which holds the column `apart` of `schema`."""
    place = schema.get_field_index(apart.field.name)
    field_id: Any = LanceSchema.from_pyarrow(schema).fields()[place].id()
    extended, first = [], 0
    for fragment in fragments:
        stop, path = first + fragment.physical_rows, f"{uuid.uuid4().hex}.lance"
        with LanceFileWriter(
            f"{uri}/data/{path}",
            pa.schema([apart.field]),
            version=file_format,
            storage_options=storage_options,
        ) as writer:
            for start in range(first, stop, apart.batch_rows):
                array = apart.read(start, min(start + apart.batch_rows, stop))
                writer.write_batch(pa.record_batch([array], schema=pa.schema([apart.field])))
        written = fragment.files[0]
        file = DataFile(
            path,
            fields=[field_id],
            column_indices=[0],  # lists of a fixed size are one column of the file
            file_major_version=written.file_major_version,
            file_minor_version=written.file_minor_version,
            file_size_bytes=writer.size_bytes,
        )
        extended.append(dataclasses.replace(fragment, files=[*fragment.files, file]))
        first = stop
    return extended
