"""Lance: retry on commit conflict, freshness of reads, fragments, takes by row id, old versions.

LanceDB's `read_consistency_interval` allows reads to be that much older than the newest version, which saves
looks at the storage. What is written through a handle is seen by it at once all the same.

Shapes: B row ids.
"""

import contextlib
import datetime
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import lance
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lance.file import LanceFileReader
from lance.fragment import FragmentMetadata, RowIdSequence, write_fragments
from lancedb.table import LanceTable, Table
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_message,
    stop_after_delay,
    wait_random_exponential,
)

from rqmoe_store.errors import TableError


class Freshness:
    """Whether what is known of a table may still be read."""

    def __init__(self, interval: datetime.timedelta | None) -> None:
        """Begin with nothing known.

        Args:
            interval: for how long it may; None, like zero, for never.
        """
        self._seconds = 0.0 if interval is None else interval.total_seconds()
        # A new object with every write: unlike a number, it can be changed by several threads at once.
        self._last_write, self._seen_write = object(), object()
        self._looked_at = 0.0

    def is_due(self) -> bool:
        """Whether the storage has to be asked."""
        if self._seconds <= 0 or self._seen_write is not self._last_write:
            return True
        return time.monotonic() >= self._looked_at + self._seconds

    def begin(self) -> "Look":
        """To be called before the storage is asked, for what is written meanwhile may not be seen."""
        return Look(self, self._last_write, time.monotonic())

    def expire(self) -> None:
        """Have the storage asked the next time."""
        self._last_write = object()


class Look:
    """One question to the storage."""

    def __init__(self, freshness: Freshness, last_write: object, now: float) -> None:
        self._freshness, self._last_write, self._now = freshness, last_write, now

    def done(self) -> None:
        """What was asked is known now."""
        self._freshness._seen_write, self._freshness._looked_at = self._last_write, self._now


_written_through: "weakref.WeakKeyDictionary[LanceTable, Freshness]" = weakref.WeakKeyDictionary()


def follow(table: LanceTable, freshness: Freshness) -> None:
    """Have `expire` of this very handle expire what is known."""
    _written_through[table] = freshness


def expire(table: LanceTable) -> None:
    """Have whoever reads by this handle ask the storage the next time: it was written through."""
    freshness = _written_through.get(table)
    if freshness is not None:
        freshness.expire()


Result = TypeVar("Result")

PATIENCE = datetime.timedelta(seconds=60)
"""How long a write is tried again by default."""

# Lance has no class of its own for it. Nothing was written then.
_CONFLICT = "(?is).*(commit conflict|concurrent writers|concurrent transaction).*"


def retry_on_conflict(action: Callable[[], Result], *, patience: datetime.timedelta = PATIENCE) -> Result:
    """What `action` returns, called again after every commit conflict for as long as there is patience.

    Args:
        action: reads the newest version of a table and commits a change to it, or raises what Lance raises
            when that version has been changed meanwhile.
        patience: no attempt but the first begins after it.

    Raises:
        TableError: other writers came first every time.
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
    """As `despite_conflicts`, of the newest version of `table`.

    Args:
        table: brought to the newest version before every attempt, and in the end.
        write: makes one commit through any handle, or none and raises.
        patience: as for `despite_conflicts`.
    """

    def attempt() -> Result:
        to_newest(table)
        return write()

    result = retry_on_conflict(attempt, patience=patience)
    to_newest(table)  # which another handle may have made
    return result


def to_newest(table: LanceTable) -> None:
    """Bring the handle to the newest version, whichever process made it, and have reads look for it, too.

    This is done after every write.
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


def take_rows(table: Table, names: Sequence[str], row_ids_B: npt.NDArray[np.uint64]) -> list[pa.ChunkedArray]:
    """Columns `names` of the rows with these distinct ids, in this order.

    Raises:
        TableError: a row is not in the table.
    """
    if not names:
        return []
    taken = table.take_row_ids(row_ids_B.tolist()).select(list(names)).with_row_id().to_arrow()
    taken_ids = taken["_rowid"].to_numpy()
    if len(taken_ids) != len(row_ids_B):
        raise TableError(f"Took {len(taken_ids)} of {len(row_ids_B)} rows of {table.name!r}. Try again.")
    # LanceDB returns the rows sorted by id; put them back into the order asked for.
    places_B = np.empty(len(row_ids_B), dtype=np.int64)
    places_B[np.argsort(row_ids_B)] = np.argsort(taken_ids)
    return list(taken.select(list(names)).take(places_B).columns)


@contextlib.contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raise RuntimeError for a panic inside Lance, which is no `Exception` and of no class to import."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise RuntimeError(f"Lance met data it cannot make sense of: {error}") from error
