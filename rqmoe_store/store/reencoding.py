"""Re-encoding: rows without a code, and those of older codecs, in place or in the background.

One fragment of the table after the other is written anew, with the same rows under the same ids, and
committed before the next is begun. So searches find every row at any time, and what a lost process had not
committed yet is simply begun again.
Shapes: N rows of a batch, V of them with a vector, S of these encoded now, D components.
"""

import contextlib
import dataclasses
import functools
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import lance
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lancedb.table import LanceTable

from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.parallel import Lock
from rqmoe_store.codecs.vectors import Float32Array, as_vectors
from rqmoe_store.errors import RQMoEError, TableError
from rqmoe_store.storage_errors import TranslatesErrors, translates_errors
from rqmoe_store.store import databases
from rqmoe_store.store.columns import CodeColumns, KeptVectors, user_schema
from rqmoe_store.store.lance import (
    count_rows,
    expire,
    read_written,
    replace_fragment,
    retry_on_conflict,
    write_fragment,
)
from rqmoe_store.store.metadata import TableMetadata
from rqmoe_store.store.sql import quoted
from rqmoe_store.store.table_codec import TableCodec, codecs_of
from rqmoe_store.store.vector_arrays import read_vectors, rows_per_batch

_SAMPLED_ROWS = 256
"""Rows of every fragment that are read back and compared with their vectors before it is committed."""

Advance = Callable[[int], Any]


@dataclasses.dataclass(frozen=True)
class Reencoded:
    """What was done and how well the codec fits: errors are those of rows read back from the disk."""

    rows: int = 0
    """Rows that got a code of the newest codec."""
    sampled: int = 0
    """Those of them that were decoded again and compared with their vectors."""
    squared_error: float = 0.0
    """Sum of ||x - x_hat||^2 over these."""
    squared_length: float = 0.0
    """Sum of ||x||^2 over these."""

    def __add__(self, other: "Reencoded") -> "Reencoded":
        sums = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Reencoded(*(mine + theirs for mine, theirs in sums))

    @property
    def mse(self) -> float | None:
        """Mean squared error of the rows compared; None without any."""
        return self.squared_error / self.sampled if self.sampled else None


def stale_filter(columns: CodeColumns, codecs: TableCodec) -> str:
    """An SQL condition for the rows that the newest codec has not encoded."""
    older = f"{quoted(columns.partition)} < {codecs.generations[-1].first_partition}"
    return f"({columns.raw_filter}) OR {older}"


def reencode_table(table: LanceTable, codecs: TableCodec, advance: Advance) -> Reencoded:
    """Do all steps of `reencoding_steps`, whose arguments and errors these are; what they did together."""
    return sum(reencoding_steps(table, codecs, advance), Reencoded())


def reencoding_steps(table: LanceTable, codecs: TableCodec, advance: Advance) -> Iterator[Reencoded]:
    """Bring all rows to the newest codec, as the table is now; rows added meanwhile may be left.

    A table that gets another codec meanwhile, or is restored to a version that has others, is begun again.

    Args:
        table: any handle on it.
        codecs: of some version.
        advance: told after every batch how many rows have been read since it was called last. What it raises
            ends the step that is under way, of which nothing is committed.

    Yields: what was done, after every fragment that is committed.

    Raises:
        TableError: the codec does not fit the vectors, or other writers never leave a fragment alone.
    """
    while True:
        newest = databases.reopen(table)
        codecs = codecs_of(newest, codecs)
        if codecs.newest is None:
            return
        with contextlib.suppress(_OtherCodecsError):
            yield from _pass(newest, codecs, advance)
            return


def _pass(table: LanceTable, codecs: TableCodec, advance: Advance) -> Iterator[Reencoded]:
    """Encode every fragment that needs it."""
    condition = stale_filter(CodeColumns(codecs.metadata.vector_column), codecs)
    dataset = table.to_lance()
    for fragment in dataset.get_fragments():
        if count_rows(dataset, fragment, condition):
            step = _FragmentStep(table, codecs, fragment.fragment_id)
            yield retry_on_conflict(functools.partial(step.run, advance))


class _OtherCodecsError(Exception):
    """The newest version of the table has other codecs; nothing was committed."""


class _FragmentStep:
    """One fragment, encoded anew."""

    def __init__(self, table: LanceTable, codecs: TableCodec, fragment_id: int) -> None:
        self._table, self._codecs, self._fragment_id = table, codecs, fragment_id
        metadata = codecs.metadata
        self._columns = CodeColumns(metadata.vector_column)
        self._kept = KeptVectors(column=metadata.vector_column, keep=metadata.keep_vectors, dim=metadata.dim)

    def run(self, advance: Advance) -> Reencoded:
        """Write and commit it; nothing where another writer has done so.

        Raises:
            OSError: a conflict; nothing was committed.
            _OtherCodecsError: as it says.
        """
        newest = databases.reopen(self._table)
        if TableMetadata.read(newest.schema, newest.name) != self._codecs.metadata:
            raise _OtherCodecsError
        self._dataset = newest.to_lance()
        fragment = self._dataset.get_fragment(self._fragment_id)
        if fragment is None or fragment.count_rows() == 0:
            return Reencoded()
        self._rows, self._written = 0, 0
        self._row_ids: list[npt.NDArray[np.uint64]] = []
        self._sampled: list[tuple[int, Float32Array, Codes]] = []
        new = write_fragment(self._dataset, self._schema, self._batches(fragment, advance))
        done = self._verified(new)
        replace_fragment(self._dataset, fragment, new, np.concatenate(self._row_ids))
        return done

    @property
    def _others(self) -> pa.Schema:
        ours = (*self._columns.names, self._columns.vector_column)
        return user_schema(self._dataset.schema, without=ours)

    @property
    def _schema(self) -> pa.Schema:
        fields = [*self._others, *self._columns.fields(self._codecs.code_bytes)]
        return pa.schema([*fields, self._kept.field] if self._kept.kept else fields)

    def _batches(self, fragment: lance.LanceFragment, advance: Advance) -> Iterator[pa.RecordBatch]:
        names = [*self._others.names, *self._columns.names, self._columns.vector_column]
        scanner = self._dataset.scanner(
            columns=names,
            fragments=[fragment],
            with_row_id=True,
            batch_size=rows_per_batch(self._codecs.dim),
            scan_in_order=True,
        )
        for batch in scanner.to_batches():
            self._row_ids.append(batch["_rowid"].to_numpy().astype(np.uint64, copy=False))
            yield self._encoded(batch)
            self._written += len(batch)
            advance(len(batch))

    def _encoded(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        vectors_VD, valid_N = self._vectors(batch)
        codes, coded_N = self._columns.from_arrow(batch)
        newest = self._codecs.generations[-1].first_partition
        # What the newest codec has encoded stays: its vector may be gone, and encoding is slow.
        fresh_N = np.zeros(len(batch), dtype=bool)
        fresh_N[coded_N] = codes.partitions >= newest
        stale_N = valid_N & ~fresh_N
        stale_SD = vectors_VD[~fresh_N[valid_N]]
        made = self._codecs.encode(stale_SD)
        whole = _merged(len(batch), codes, coded_N, made, stale_N)
        self._sample(stale_SD, made, stale_N)
        self._rows += len(made)
        arrays = [batch[name] for name in self._others.names]
        arrays += self._columns.to_arrow(whole[valid_N], valid_N)
        if self._kept.kept:
            arrays.append(batch[self._columns.vector_column])
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)

    def _vectors(self, batch: pa.RecordBatch) -> tuple[Float32Array, npt.NDArray[np.bool_]]:
        """The vectors of a batch, raw where there are any and decoded elsewhere."""
        codecs = self._codecs
        raw_VD, raw_N = read_vectors(
            batch[self._columns.vector_column], dim=codecs.dim, metric=codecs.metric, first_row=self._written
        )
        codes, coded_N = self._columns.from_arrow(batch)
        vectors_ND = np.zeros((len(batch), codecs.dim), dtype=np.float32)
        decoded_N = coded_N & ~raw_N
        vectors_ND[decoded_N] = codecs.decode(codes[~raw_N[coded_N]])
        vectors_ND[raw_N] = raw_VD
        valid_N = raw_N | coded_N
        return vectors_ND[valid_N], valid_N

    def _sample(self, vectors_SD: Float32Array, made: Codes, stale_N: npt.NDArray[np.bool_]) -> None:
        """Remember the first rows that were encoded now, where they will be and as what."""
        wanted = _SAMPLED_ROWS - len(self._sampled)
        places = self._written + np.flatnonzero(stale_N)[:wanted]
        self._sampled += [
            (place, vectors_SD[row].copy(), made[row]) for row, place in enumerate(places.tolist())
        ]

    def _verified(self, new: Any) -> Reencoded:
        """Decode the remembered rows from what is on disk and compare them with their vectors.

        Raises TableError where these would be lost to a codec that does not fit them.
        """
        if not self._sampled:
            return Reencoded(self._rows)
        positions = [position for position, _, _ in self._sampled]
        metric = self._codecs.metric
        vectors_VD = as_vectors(np.stack([vector for _, vector, _ in self._sampled]), metric=metric)
        written = read_written(self._dataset, new, self._columns.names, positions)
        codes, valid = self._columns.from_arrow(written)
        # Not encoded again: other rows beside them may have a vector between two codewords get the other.
        expected = np.concatenate([made.codes for _, _, made in self._sampled])
        if not valid.all() or not np.array_equal(codes.codes, expected):
            raise TableError(
                f"Fragment {self._fragment_id} of table {self._table.name!r} reads back other codes than "
                "were written. The rows are as they were; check the storage, and try again."
            )
        errors_VD = vectors_VD.astype(np.float64) - self._codecs.decode(codes)
        squared_error = float(np.square(errors_VD, dtype=np.float64).sum())
        squared_length = float(np.square(vectors_VD, dtype=np.float64).sum())
        if squared_error > squared_length and not self._kept.kept:
            raise TableError(
                f"The codec does not fit the vectors of {self._table.name!r}: decoded, {len(positions)} of "
                f"them differ by more than their own length ({squared_error:.4g} > {squared_length:.4g}, "
                "sums of squares). The rows are as they were; train another codec on them."
            )
        return Reencoded(self._rows, len(positions), squared_error, squared_length)


def _merged(
    rows: int, codes: Codes, coded_N: npt.NDArray[np.bool_], made: Codes, made_N: npt.NDArray[np.bool_]
) -> Codes:
    """Codes of all rows: those there were, but those made now where any were; zeros elsewhere."""
    codes_NM = np.zeros((rows, made.codes.shape[1]), dtype=np.uint8)
    partitions_N = np.zeros(rows, dtype=np.int32)
    for some, some_N in ((codes, coded_N), (made, made_N)):
        codes_NM[some_N], partitions_N[some_N] = some.codes, some.partitions
    return Codes(codes_NM, partitions_N)


class _StoppedError(Exception):
    """Raised into a step that is not to be finished; nothing of it is committed."""


class BackgroundEncoding(TranslatesErrors):
    """Rows being encoded by the newest codec of a table, in a thread of this process.

    Every step writes one fragment anew and commits it, so searches and writes go on meanwhile, through any
    handle, and what is left when the process ends is done by the next `encode_in_background` or `optimize`.
    When the main thread has ended the thread stops, before its next batch of rows (at most 16,384), and the
    interpreter exits. A failure is warned of when it happens, and raised by `wait`.
    """

    def __init__(self, table: LanceTable, codecs: TableCodec) -> None:
        """Begin; `CompressedTable.encode_in_background` calls this.

        Args:
            table: any handle on it; the thread works with another one.
            codecs: of some version.
        """
        self._begun_by, self._table = table, databases.reopen(table)
        self._codecs = codecs
        self._lock = Lock()
        self._process = os.getpid()
        self._again, self._ended = False, False
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._done, self._left = Reencoded(), 0
        # Not a daemon: the interpreter would end in the middle of a commit.
        self._thread = threading.Thread(target=self._run, name=f"encoding of {table.name}", daemon=False)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether there is more to do. In a forked process it is never so: the thread stays where it is."""
        return self._thread.is_alive()

    @property
    def rows_encoded(self) -> int:
        """Rows that have been encoded and committed."""
        return self._done.rows

    @property
    def rows_left(self) -> int:
        """Rows to encode, as they were counted last, without those that have been since. They are counted
        when the thread begins, and when it has come to the last of them."""
        return self._left

    def wait(self, timeout: float | None = None) -> Reencoded:
        """Wait until it has ended.

        Args:
            timeout: seconds; None for as long as it takes.

        Returns:
            The rows that were encoded, and how well the codec fits them.

        Raises:
            TimeoutError: it goes on.
            TableError: the codec does not fit the vectors, other writers never left a fragment alone, the
                table was dropped, or this is a process that was forked from the one that encodes.
            StorageError: the disk or bucket refused a write.
        """
        if self._process != os.getpid():
            raise TableError(
                f"Rows of table {self._table.name!r} are encoded by a thread of the process that this one "
                "was forked from; wait for it there."
            )
        self._thread.join(timeout)
        if self.running:
            raise TimeoutError(f"{self}, after {timeout} seconds of waiting; it goes on.")
        if self._error is not None:
            raise self._error
        return self._done

    def stop(self) -> None:
        """Have it end before its next batch of rows, and wait for that. What was committed stays."""
        if self._process == os.getpid():
            self._stop.set()
            self._thread.join()

    def takes_more(self) -> bool:
        """Have it look once more, before it ends, for rows to encode; False if it is ending already."""
        with self._lock:
            self._again = self.running and not (self._ended or self._stop.is_set())
            return self._again

    def __repr__(self) -> str:
        state = "running" if self.running else "ended" if self._error is None else f"failed: {self._error}"
        done = f"{self.rows_encoded:,} rows encoded, {self.rows_left:,} left"
        return f"<BackgroundEncoding of {self._table.name!r}: {done}, {state}>"

    def _run(self) -> None:
        try:
            self._encode()
        except _StoppedError:
            pass
        except BaseException as error:  # panics in Lance are no Exception
            # Threads that compute for this one take no more work once the interpreter exits.
            if "interpreter shutdown" in str(error):
                return
            self._error = error
            warnings.warn(
                f"Table {self._table.name!r} is not encoded in the background any more: {error}\n"
                "Its rows are all there and searchable. Call encode_in_background() or optimize() to go on.",
                stacklevel=1,
            )
        finally:
            with self._lock:
                self._ended = True

    @translates_errors
    def _encode(self) -> None:
        try:
            while self._finds_rows():
                for done in reencoding_steps(self._table, self._codecs, self._go_on):
                    self._done += done
                    self._left = max(0, self._left - done.rows)
                    expire(self._begun_by)
                    self._go_on()
        except (_StoppedError, RQMoEError):
            raise
        except Exception as error:
            database = databases.database_of(self._table)
            if databases.open_if_exists(database, self._table.name) is not None:
                raise
            raise TableError(f"Table {self._table.name!r} was dropped while it was encoded.") from error

    def _finds_rows(self) -> bool:
        """Whether there are rows to encode: those that others change meanwhile move to other fragments."""
        with self._lock:
            self._again = False
        self._go_on()
        newest = databases.reopen(self._table)
        self._codecs, self._left = codecs_of(newest, self._codecs), 0
        if self._codecs.newest is not None:
            columns = CodeColumns(self._codecs.metadata.vector_column)
            self._left = newest.count_rows(stale_filter(columns, self._codecs))
        with self._lock:
            self._ended = not (self._left or self._again)
            return not self._ended

    def _go_on(self, rows: int = 0) -> None:
        """Raise if it is not to go on; called after every batch of rows."""
        if self._stop.is_set() or not threading.main_thread().is_alive():
            raise _StoppedError
