"""Fragments of a table: which columns they have, and putting new rows in the place of old ones."""

from collections.abc import Iterator, Sequence

import lance
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lance.file import LanceFileReader
from lance.fragment import FragmentMetadata, RowIdSequence, write_fragments


def has_column(dataset: lance.LanceDataset, fragment: lance.LanceFragment, name: str) -> bool:
    """Whether a fragment has data for a column; all of its rows are null there otherwise."""
    field_ids = {field.id() for field in dataset.lance_schema.fields() if field.name() == name}
    return any(field_ids.intersection(file.fields) for file in fragment.data_files())


def count_rows(dataset: lance.LanceDataset, fragment: lance.LanceFragment, condition: str) -> int:
    """Rows of a fragment that match an SQL condition.

    Not by the fragment's own method: that lets no other thread of the process run meanwhile, which in a
    bucket is as long as the network takes.
    """
    scanner = dataset.scanner(columns=[], with_row_id=True, filter=condition, fragments=[fragment])
    return int(scanner.count_rows())


def write_fragment(
    dataset: lance.LanceDataset, schema: pa.Schema, batches: Iterator[pa.RecordBatch]
) -> FragmentMetadata:
    """Write rows as one fragment that belongs to nothing yet.

    Args:
        dataset: the table that it is meant for.
        schema: columns of the batches; the rows are null in others.
        batches: at least one row.
    """
    failures: list[Exception] = []
    reader = pa.RecordBatchReader.from_batches(schema, noting(batches, failures))
    try:
        (fragment,) = write_fragments(reader, dataset, mode="append", max_rows_per_file=2**31)
    except Exception as error:
        if failures:  # Lance reports a failing stream as text only; raise what really happened
            raise failures[0] from error
        raise
    return fragment


def read_written(
    dataset: lance.LanceDataset, fragment: FragmentMetadata, columns: Sequence[str], positions: list[int]
) -> pa.Table:
    """Some rows of a fragment that was written and not committed, read from its file."""
    (file,) = fragment.files
    path = f"{dataset.uri}/data/{file.path}"
    reader = LanceFileReader(path, storage_options=dataset.initial_storage_options, columns=list(columns))
    return reader.take_rows(positions).to_table()


def replace_fragment(
    dataset: lance.LanceDataset,
    old: lance.LanceFragment,
    new: FragmentMetadata,
    row_ids_N: npt.NDArray[np.uint64],
) -> None:
    """Put a written fragment in the place of an old one, in one commit.

    Rows keep their ids. Rows that others append meanwhile are no conflict.

    Args:
        dataset: the version that `old` was read from.
        old: all of its rows must be in `new`.
        new: what is written.
        row_ids_N: ids of its rows, in its order; not used in a table without stable row ids.

    Raises:
        OSError: rows of `old` were changed or deleted since; nothing was replaced.
    """
    if dataset.has_stable_row_ids:
        new.row_id_meta = RowIdSequence(row_ids_N.tolist()).to_inline_metadata()
    operation = lance.LanceOperation.Update(removed_fragment_ids=[old.fragment_id], new_fragments=[new])
    lance.LanceDataset.commit(
        dataset.uri,
        operation,
        read_version=dataset.version,
        storage_options=dataset.initial_storage_options,
    )


def noting(batches: Iterator[pa.RecordBatch], failures: list[Exception]) -> Iterator[pa.RecordBatch]:
    """The batches; what raises instead is put into `failures`, as Lance reports it as text only."""
    try:
        yield from batches
    except Exception as error:
        failures.append(error)
        raise
