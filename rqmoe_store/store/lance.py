"""Lance: retry on commit conflict, freshness of reads, fragments, changes of the schema, and takes by row id.

Shape legend: N rows of a fragment, B row ids.
"""

import contextlib
import dataclasses
import datetime
import json
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import lance
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lance.file import LanceFileReader
from lance.fragment import FragmentMetadata, RowIdSequence, write_fragments
from lance.schema import LanceSchema
from lancedb.table import LanceTable, Table
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_message,
    stop_after_delay,
    wait_random_exponential,
)

from rqmoe_store.errors import TableError

Result = TypeVar("Result")

PATIENCE = datetime.timedelta(seconds=60)
"""Default for how long a write is retried."""

_TAKEN_ROWS = 8_192
"""Most rows to take in one call, which returns them in one batch."""

# Lance has no exception class for commit conflicts. After one, nothing was written.
_CONFLICT = "(?is).*(commit conflict|concurrent writers|concurrent transaction).*"


def retry_on_conflict(action: Callable[[], Result], *, patience: datetime.timedelta = PATIENCE) -> Result:
    """Call `action`, again after every commit conflict, and return what it returns.

    Args:
        action: reads the newest version of a table and commits a change to it, or raises Lance's commit
            conflict if another writer has changed that version meanwhile.
        patience: time after which no further attempt begins.

    Raises:
        TableError: every attempt met a conflict.
    """
    attempts = Retrying(
        retry=retry_if_exception_message(match=_CONFLICT),
        stop=stop_after_delay(patience),
        wait=wait_random_exponential(multiplier=0.05, max=5),
        retry_error_callback=_give_up,
    )
    return attempts(action)


def on_newest(
    table: LanceTable, write: Callable[[], Result], *, patience: datetime.timedelta = PATIENCE
) -> Result:
    """Call `write` on the newest version of `table`, again after every commit conflict.

    Args:
        table: checked out at the newest version before every attempt and at the end.
        write: commits once through any handle, or raises without a commit.
        patience: as for `retry_on_conflict`.
    """

    def attempt() -> Result:
        to_newest(table)
        return write()

    result = retry_on_conflict(attempt, patience=patience)
    to_newest(table)  # `write` may have committed through another handle
    return result


def to_newest(table: LanceTable) -> None:
    """Check out the newest version of any writer, and have reads through this handle look for it.

    To be called after every write.
    """
    table.checkout_latest()  # type: ignore[no-untyped-call]  # LanceDB leaves it unannotated
    expire(table)


def _give_up(state: RetryCallState) -> Any:
    assert state.outcome is not None, "there was an attempt"
    error = state.outcome.exception()
    raise TableError(
        f"Others changed the same rows during each of {state.attempt_number} attempts to write. Nothing was "
        f"written by these; try again when there are fewer writers. In Lance's words: {error}"
    ) from error


class Freshness:
    """Tells when a handle must look for a newer version of its table.

    LanceDB's `read_consistency_interval` lets reads be that much older than the newest version, which saves
    requests to the storage. A handle still sees its own writes at once.
    """

    def __init__(self, interval: datetime.timedelta | None) -> None:
        """Start with a look due.

        Args:
            interval: how old a read may be; None, like zero, to look before every read.
        """
        self._seconds = 0.0 if interval is None else interval.total_seconds()
        # Every write sets a new object. Unlike incrementing a number, several threads can do so at once.
        self._last_write, self._seen_write = object(), object()
        self._looked_at = 0.0

    def is_due(self) -> bool:
        """Whether to look for a newer version before the next read."""
        if self._seconds <= 0 or self._seen_write is not self._last_write:
            return True
        return time.monotonic() >= self._looked_at + self._seconds

    def begin(self) -> "Look":
        """Begin a look, before the storage is asked, since the answer may miss a write during the look."""
        return Look(self, self._last_write, time.monotonic())

    def expire(self) -> None:
        """Make a look due."""
        self._last_write = object()


class Look:
    """One look for a newer version."""

    def __init__(self, freshness: Freshness, last_write: object, now: float) -> None:
        self._freshness, self._last_write, self._now = freshness, last_write, now

    def done(self) -> None:
        """Record that the handle is as new as the table was when the look began."""
        self._freshness._seen_write, self._freshness._looked_at = self._last_write, self._now


_freshness_of: "weakref.WeakKeyDictionary[LanceTable, Freshness]" = weakref.WeakKeyDictionary()


def follow(table: LanceTable, freshness: Freshness) -> None:
    """Have `expire` of this very handle expire `freshness`."""
    _freshness_of[table] = freshness


def expire(table: LanceTable) -> None:
    """Have the next read through this handle look for a newer version, because it was written through."""
    freshness = _freshness_of.get(table)
    if freshness is not None:
        freshness.expire()


def has_column(dataset: lance.LanceDataset, fragment: lance.LanceFragment, name: str) -> bool:
    """Whether a fragment has data of a column; otherwise all of its rows are null there."""
    fields = [field for field in dataset.lance_schema.fields() if field.name() == name]
    own = {
        each for field in fields for each in field_ids(field)
    }  # files have lists of lists by what is in them
    return any(own.intersection(file.fields) for file in fragment.data_files())


def count_rows(dataset: lance.LanceDataset, fragment: lance.LanceFragment, condition: str) -> int:
    """Number of rows of a fragment that match an SQL condition.

    The fragment's own method holds the GIL meanwhile, which in a bucket is as long as the network takes.
    """
    scanner = dataset.scanner(columns=[], with_row_id=True, filter=condition, fragments=[fragment])
    return int(scanner.count_rows())


def write_fragment(
    dataset: lance.LanceDataset, schema: pa.Schema, batches: Iterator[pa.RecordBatch]
) -> FragmentMetadata:
    """Write rows as one fragment that belongs to no version yet.

    Args:
        dataset: the table that the fragment is for.
        schema: columns of the batches; the rows are null in other columns.
        batches: at least one row.
    """
    failures: list[Exception] = []
    reader = pa.RecordBatchReader.from_batches(schema, record_failures(batches, failures))
    try:
        (fragment,) = write_fragments(reader, dataset, mode="append", max_rows_per_file=2**31)
    except Exception as error:
        if failures:  # Lance reports the exception of a stream as text only
            raise failures[0] from error
        raise
    return fragment


def read_written(
    dataset: lance.LanceDataset, fragment: FragmentMetadata, columns: Sequence[str], positions: list[int]
) -> pa.Table:
    """Read some rows of a fragment that was written and not committed, from its file."""
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
    """Replace a fragment by a written one in one commit.

    Rows keep their ids. Rows that other writers append meanwhile are no conflict.

    Args:
        dataset: the version that `old` was read from.
        old: a fragment of which all rows are in `new`.
        new: the written fragment.
        row_ids_N: row ids in the order of `new`; not used in a table without stable row ids.

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


def commit_schema(
    dataset: lance.LanceDataset,
    metadata: Mapping[str, str],
    *,
    added: pa.Field | None = None,
    dropped: str | None = None,
) -> None:
    """Set metadata of the schema, and add a column of nulls or drop a column, in one commit.

    Lance's own methods take a commit for each, and one that drops a column undoes what another writer has set
    meanwhile. Rows that other writers append meanwhile are no conflict.

    Args:
        dataset: the version to change.
        metadata: entries to set; others stay.
        added: name and type of a column to add.
        dropped: name of a column to drop.

    Raises:
        OSError: other writers have changed the table since; nothing was committed.
    """
    rebuilt, (text, *protobufs) = _pickled(dataset.lance_schema)
    left, pieces = iter(protobufs), []
    for field in dataset.lance_schema.fields():
        own = [next(left) for _ in field_ids(field)]
        pieces += [] if field.name() == dropped else own
    if added is not None:
        # Lance numbers fields from 0 on, and no file of the table may have the number of the new one.
        before = [pa.field(str(number), pa.null()) for number in range(dataset.max_field_id + 1)]
        pieces.append(_pickled(LanceSchema.from_pyarrow(pa.schema([*before, added])))[1][-1])
    changed = json.loads(text) | {name: list(value.encode()) for name, value in metadata.items()}
    schema = rebuilt(json.dumps(changed), *pieces)
    fragments = _fragments_with(dataset, schema)
    operation = lance.LanceOperation.Merge(fragments, schema, preserves_nullability=True)
    lance.LanceDataset.commit(
        dataset.uri,
        operation,
        read_version=dataset.version,
        storage_options=dataset.initial_storage_options,
    )


def _pickled(schema: LanceSchema) -> tuple[Any, tuple[Any, ...]]:
    """What a schema is pickled as: a function and its arguments, which are the metadata as JSON and a
    protobuf for every field and nested field, in order.

    Lance has no other way to change a schema and keep its ids.
    """
    pickled: tuple[Any, tuple[Any, ...]] = cast(Any, schema).__reduce__()
    return pickled


def field_ids(field: Any) -> list[int]:
    """The ids of a field of Lance's schema and of the fields in it, in order."""
    return [int(field.id()), *(each for child in field.children() for each in field_ids(child))]


def _fragments_with(dataset: lance.LanceDataset, schema: LanceSchema) -> list[FragmentMetadata]:
    """All fragments, without the files of which the schema has no column any more."""
    kept = {field_id for field in schema.fields() for field_id in field_ids(field)}
    fragments = [fragment.metadata for fragment in dataset.get_fragments()]
    return [
        dataclasses.replace(each, files=[file for file in each.files if kept.intersection(file.fields)])
        for each in fragments
    ]


def record_failures(batches: Iterator[pa.RecordBatch], failures: list[Exception]) -> Iterator[pa.RecordBatch]:
    """Yield the batches, and append what they raise to `failures`, because Lance reports it as text only."""
    try:
        yield from batches
    except Exception as error:
        failures.append(error)
        raise


def take_rows(table: Table, names: Sequence[str], row_ids_B: npt.NDArray[np.uint64]) -> list[pa.ChunkedArray]:
    """Take the columns `names` of the rows with these distinct ids, in the order of the ids.

    Raises:
        TableError: the table has no row with one of the ids.
    """
    if not names:
        return []
    taken = table.take_row_ids(row_ids_B.tolist()).select(list(names)).with_row_id().to_arrow()
    taken_ids = taken["_rowid"].to_numpy()
    if len(taken_ids) != len(row_ids_B):
        raise TableError(f"Took {len(taken_ids)} of {len(row_ids_B)} rows of {table.name!r}. Try again.")
    # LanceDB returns the rows sorted by id.
    places_B = np.empty(len(row_ids_B), dtype=np.int64)
    places_B[np.argsort(row_ids_B)] = np.argsort(taken_ids)
    return list(taken.select(list(names)).take(places_B).columns)


def take_rows_of_version(
    dataset: lance.LanceDataset, names: Sequence[str], row_ids_B: npt.NDArray[np.uint64]
) -> pa.Table:
    """Take the columns `names` as `take_rows` does, from the version that a dataset is at.

    Raises:
        TableError: the version has no row with one of the ids.
    """
    taken = take_existing_rows(dataset, [*names, "_rowid"], row_ids_B)
    if not np.array_equal(taken["_rowid"].to_numpy(), row_ids_B):
        raise TableError(
            f"Took {len(taken)} of {len(row_ids_B)} rows of version {dataset.version} in {dataset.uri!r}. "
            "Open the table again; verify() tells whether it is damaged."
        )
    return taken.select(list(names))


@contextlib.contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raise RuntimeError for a panic inside Lance, whose class is no `Exception` and cannot be imported."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise RuntimeError(f"Lance met data it cannot make sense of: {error}") from error


def take_existing_rows(
    dataset: lance.LanceDataset, columns: list[str] | dict[str, str], row_ids_B: npt.NDArray[np.uint64]
) -> pa.Table:
    """Take columns, or SQL by name, of the rows with these ids that a version has, in the order of the ids.

    LanceDB's own way plans a query first, be it a filter on row ids, which takes longer than reading the rows
    of a page, and a third of the time for those of a shortlist.
    """
    starts = range(0, max(1, len(row_ids_B)), _TAKEN_ROWS)
    return pa.concat_tables(
        dataset._take_rows(row_ids_B[start : start + _TAKEN_ROWS].tolist(), columns) for start in starts
    )
