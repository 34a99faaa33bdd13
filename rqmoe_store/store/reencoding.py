"""Re-encoding: encode rows without a code, and those of older codecs, at once or in the background.

Fragments are rewritten one after the other, with the same rows under the same row ids, and each is committed
before the next one begins. Searches therefore find every row at any time, and another call repeats only the
fragment that a lost process had not committed.

Shape legend: N rows of a batch, V of them with a vector, S of these to encode now, D components.
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
from rqmoe_store.store.columns import CodeColumns, Vectors, user_schema
from rqmoe_store.store.lance import (
    count_rows,
    expire,
    read_written,
    replace_fragment,
    retry_on_conflict,
    write_fragment,
)
from rqmoe_store.store.metadata import TableMetadata
from rqmoe_store.store.ragged import Ragged, RowCodes, components_of
from rqmoe_store.store.sql import quoted
from rqmoe_store.store.table_codec import TableCodec, codecs_of

_SAMPLED_ROWS = 256
"""Rows of every fragment that are read back and compared with their vectors before the commit."""
_SAMPLED_LISTS = 16
"""The same where rows have many vectors."""

Advance = Callable[[int], Any]


@dataclasses.dataclass(frozen=True)
class Reencoded:
    """Number of re-encoded rows, and the error of a sample of them that was read back from storage."""

    rows: int = 0
    """Rows that got a code of the newest codec."""
    sampled: int = 0
    """Rows that were read back, decoded and compared with their vectors."""
    squared_error: float = 0.0
    """Sum of ||x - x_hat||^2 over the sampled rows."""
    squared_length: float = 0.0
    """Sum of ||x||^2 over the sampled rows."""

    def __add__(self, other: "Reencoded") -> "Reencoded":
        sums = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Reencoded(*(mine + theirs for mine, theirs in sums))

    @property
    def mse(self) -> float | None:
        """Mean squared error of the sampled rows; None if there are none."""
        return self.squared_error / self.sampled if self.sampled else None


def stale_filter(columns: CodeColumns, codecs: TableCodec) -> str:
    """SQL condition for the rows that the newest codec has not encoded."""
    older = f"{quoted(columns.partition)} < {codecs.generations[-1].first_partition}"
    return f"({columns.raw_filter}) OR {older}"


def reencode_table(table: LanceTable, codecs: TableCodec, advance: Advance) -> Reencoded:
    """Re-encode all rows; arguments and exceptions are those of `reencoding_steps`."""
    return sum(reencoding_steps(table, codecs, advance), Reencoded())


def reencoding_steps(table: LanceTable, codecs: TableCodec, advance: Advance) -> Iterator[Reencoded]:
    """Re-encode all rows that the table has now with its newest codec; rows added meanwhile may be left out.

    If the table gets another codec meanwhile, or is restored to a version with other codecs, this starts
    again.

    Args:
        table: any handle on the table.
        codecs: codecs of some version of the table.
        advance: called after every batch with the number of rows read since its last call. If it raises, the
            fragment at hand is not committed.

    Yields:
        The result of each fragment, after its commit.

    Raises:
        TableError: the codec does not fit the vectors, or other writers changed a fragment in every attempt.
    """
    while True:
        newest = databases.reopen(table)
        codecs = codecs_of(newest, codecs)
        if codecs.newest is None:
            return
        with contextlib.suppress(_CodecsChangedError):
            yield from _reencode_fragments(newest, codecs, advance)
            return


def _reencode_fragments(table: LanceTable, codecs: TableCodec, advance: Advance) -> Iterator[Reencoded]:
    condition = stale_filter(codecs.columns, codecs)
    dataset = table.to_lance()
    for fragment in dataset.get_fragments():
        if count_rows(dataset, fragment, condition):
            step = _FragmentStep(table, codecs, fragment.fragment_id)
            yield retry_on_conflict(functools.partial(step.run, advance))


class _CodecsChangedError(Exception):
    """The newest version of the table has other codecs; nothing was committed."""


class _FragmentStep:
    """Re-encodes one fragment."""

    def __init__(self, table: LanceTable, codecs: TableCodec, fragment_id: int) -> None:
        self._table, self._codecs, self._fragment_id = table, codecs, fragment_id
        self._columns = codecs.columns
        self._kept = codecs.metadata.kept

    def run(self, advance: Advance) -> Reencoded:
        """Write and commit the fragment, unless another writer has replaced it.

        Raises:
            OSError: a commit conflict; nothing was committed.
            _CodecsChangedError: the table has other codecs now.
        """
        newest = databases.reopen(self._table)
        if TableMetadata.read(newest.schema, newest.name) != self._codecs.metadata:
            raise _CodecsChangedError
        self._dataset = newest.to_lance()
        fragment = self._dataset.get_fragment(self._fragment_id)
        if fragment is None or fragment.count_rows() == 0:
            return Reencoded()
        self._rows, self._written = 0, 0
        self._row_ids: list[npt.NDArray[np.uint64]] = []
        self._sampled: list[tuple[int, Float32Array, Codes]] = []
        new = write_fragment(self._dataset, self._schema, self._batches(fragment, advance))
        done = self._verify(new)
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
            batch_size=self._codecs.metadata.rows_per_batch,
            scan_in_order=True,
        )
        for batch in scanner.to_batches():
            self._row_ids.append(batch["_rowid"].to_numpy().astype(np.uint64, copy=False))
            yield self._encode(batch)
            self._written += len(batch)
            advance(len(batch))

    def _encode(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        codes, coded_N = self._codecs.read(batch)
        raw, raw_N = self._kept.read(batch[self._columns.vector_column], self._written)
        vectors_VD, valid_N = self._codecs.raw_or_decoded(raw, raw_N, codes, coded_N)
        newest = self._codecs.generations[-1].first_partition
        # Codes of the newest codec stay: their raw vectors may be gone, and encoding is slow.
        fresh_N = np.zeros(len(batch), dtype=bool)
        fresh_N[coded_N] = codes.partitions >= newest
        stale_N = valid_N & ~fresh_N
        stale_SD = vectors_VD[~fresh_N[valid_N]]
        new = self._codecs.encode(stale_SD)
        whole = _merged(len(batch), codes, coded_N, new, stale_N)
        self._keep_sample(stale_SD, new, stale_N)
        self._rows += len(new)
        arrays = [batch[name] for name in self._others.names]
        arrays += self._columns.to_arrow(whole[valid_N], valid_N)
        if self._kept.kept:
            arrays.append(batch[self._columns.vector_column])
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)

    def _keep_sample(self, vectors_SD: Vectors, new: Codes, stale_N: npt.NDArray[np.bool_]) -> None:
        """Keep the first re-encoded rows for `_verify`: position in the new fragment, vector and code."""
        most = _SAMPLED_ROWS if self._codecs.metadata.multi_vector is None else _SAMPLED_LISTS
        wanted = most - len(self._sampled)
        places = self._written + np.flatnonzero(stale_N)[:wanted]
        self._sampled += [
            (place, components_of(vectors_SD[row : row + 1]).copy(), new[row])
            for row, place in enumerate(places.tolist())
        ]

    def _verify(self, new: Any) -> Reencoded:
        """Read the sampled rows back from the new fragment, decode them and compare them with their vectors.

        Raises:
            TableError: other codes are read back, or vectors would be lost to a codec that does not fit them.
        """
        if not self._sampled:
            return Reencoded(self._rows)
        positions = [position for position, _, _ in self._sampled]
        metric = self._codecs.metadata.metric
        vectors_VD = as_vectors(np.concatenate([vectors for _, vectors, _ in self._sampled]), metric=metric)
        written = read_written(self._dataset, new, self._columns.names, positions)
        codes, valid = self._codecs.read(written)
        if not self._codecs.generations[-1].metadata.refine_bytes:
            codes = codes.unrefined  # a column for those of an older codec is null in these rows
        # Encoding again would not do: a vector between two codewords may get the other one in another batch.
        expected = np.concatenate([concatenated_bytes(code) for _, _, code in self._sampled])
        found = np.concatenate([concatenated_bytes(codes[row]) for row in range(len(codes))])
        if not valid.all() or not np.array_equal(found, expected):
            raise TableError(
                f"Fragment {self._fragment_id} of table {self._table.name!r} reads back other codes than "
                "were written. The rows are as they were; check the storage, and try again."
            )
        errors_VD = vectors_VD.astype(np.float64) - components_of(self._codecs.decode_rows(codes))
        squared_error = float(np.square(errors_VD, dtype=np.float64).sum())
        squared_length = float(np.square(vectors_VD, dtype=np.float64).sum())
        if squared_error > squared_length and not self._kept.kept:
            raise TableError(
                f"The codec does not fit the vectors of {self._table.name!r}: decoded, {len(positions)} of "
                f"them differ by more than their own length ({squared_error:.4g} > {squared_length:.4g}, "
                "sums of squares). The rows are as they were; train another codec on them."
            )
        return Reencoded(self._rows, len(vectors_VD), squared_error, squared_length)


def concatenated_bytes(codes: Codes) -> npt.NDArray[np.uint8]:
    """All bytes of the codes of a row: code, refine code and codes of many vectors if there are any."""
    parts = [codes.codes.ravel()] if codes.refine is None else [codes.codes.ravel(), codes.refine.ravel()]
    return np.concatenate([*parts, codes.tokens.values] if isinstance(codes, RowCodes) else parts)


def _merged(
    rows: int, old: Codes, coded_N: npt.NDArray[np.bool_], new: Codes, stale_N: npt.NDArray[np.bool_]
) -> Codes:
    """Codes of N rows: the new code where a row has one, else the old one, else zeros."""
    codes_NM = np.zeros((rows, new.codes.shape[1]), dtype=np.uint8)
    partitions_N = np.zeros(rows, dtype=np.int32)
    refine_NR = None if new.refine is None else np.zeros((rows, new.refine.shape[1]), dtype=np.uint8)
    for some, some_N in ((old, coded_N), (new, stale_N)):
        codes_NM[some_N], partitions_N[some_N] = some.codes, some.partitions
        if refine_NR is not None and some.refine is not None:
            refine_NR[some_N] = some.refine
    if isinstance(old, RowCodes) and isinstance(new, RowCodes):
        tokens = Ragged.merged(old.tokens, coded_N, new.tokens, stale_N)
        return RowCodes(codes_NM, partitions_N, refine_NR, tokens)
    return Codes(codes_NM, partitions_N, refine_NR)


class _StoppedError(Exception):
    """Ends a step early; nothing of it is committed."""


class BackgroundEncoding(TranslatesErrors):
    """A thread of this process that encodes rows of a table with its newest codec.

    Fragments are rewritten and committed one after the other, so searches and writes through any handle
    continue meanwhile. The next `encode_in_background` or `optimize` encodes what is left when the process
    ends. Once the main thread has ended, this thread stops before its next batch of rows (at most 16,384),
    and the interpreter exits. A failure gives a warning when it happens, and `wait` raises it.
    """

    def __init__(self, table: LanceTable, codecs: TableCodec) -> None:
        """Start the thread; `CompressedTable.encode_in_background` calls this.

        Args:
            table: any handle on the table; the thread uses another one.
            codecs: codecs of some version of the table.
        """
        self._caller_table, self._table = table, databases.reopen(table)
        self._codecs = codecs
        self._lock = Lock()
        self._process = os.getpid()
        self._again, self._ended = False, False
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._done, self._left = Reencoded(), 0
        # The interpreter would end a daemon thread in the middle of a commit.
        self._thread = threading.Thread(target=self._run, name=f"encoding of {table.name}", daemon=False)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether the thread is running. Never in a forked process, which does not get the thread."""
        return self._thread.is_alive()

    @property
    def rows_encoded(self) -> int:
        """Rows that have been encoded and committed."""
        return self._done.rows

    @property
    def rows_left(self) -> int:
        """Rows left to encode of those counted last: at the start of the thread, or when none was left."""
        return self._left

    def wait(self, timeout: float | None = None) -> Reencoded:
        """Wait until the thread has ended.

        Args:
            timeout: seconds to wait; None for as long as it takes.

        Returns:
            The number of rows that were encoded, and how well the codec fits them.

        Raises:
            TimeoutError: the thread is still running, and continues.
            TableError: the codec does not fit the vectors, other writers changed a fragment in every attempt,
                the table was dropped, or this process was forked from the one that has the thread.
            StorageError: the disk or bucket could not be written to.
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
        """End the thread before its next batch of rows, and wait for that. What was committed stays."""
        if self._process == os.getpid():
            self._stop.set()
            self._thread.join()

    def request_another_pass(self) -> bool:
        """Have the thread look for rows once more before it ends; return False if it is ending already."""
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
            # Threads that compute for this one accept no more work once the interpreter exits.
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
            while self._find_rows():
                for done in reencoding_steps(self._table, self._codecs, self._raise_if_stopped):
                    self._done += done
                    self._left = max(0, self._left - done.rows)
                    expire(self._caller_table)
                    self._raise_if_stopped()
        except (_StoppedError, RQMoEError):
            raise
        except Exception as error:
            database = databases.database_of(self._table)
            if databases.open_if_exists(database, self._table.name) is not None:
                raise
            raise TableError(f"Table {self._table.name!r} was dropped while it was encoded.") from error

    def _find_rows(self) -> bool:
        """Count the rows to encode; return False and end if there are none and no other pass was requested.

        A pass may leave rows, since rows that other writers change meanwhile move to other fragments.
        """
        with self._lock:
            self._again = False
        self._raise_if_stopped()
        newest = databases.reopen(self._table)
        self._codecs, self._left = codecs_of(newest, self._codecs), 0
        if self._codecs.newest is not None:
            self._left = newest.count_rows(stale_filter(self._codecs.columns, self._codecs))
        with self._lock:
            self._ended = not (self._left or self._again)
            return not self._ended

    def _raise_if_stopped(self, rows: int = 0) -> None:
        """Raise if the thread is to stop; called after every batch of rows."""
        if self._stop.is_set() or not threading.main_thread().is_alive():
            raise _StoppedError
