"""Bringing rows to the newest codec in a thread, while the table is searched and written to."""

import os
import threading
import warnings

from lancedb.table import LanceTable

from rqmoe_store.codecs.forks import Lock
from rqmoe_store.errors import RQMoEError, TableError
from rqmoe_store.refusals import NamesRefusals, names_refusals
from rqmoe_store.store import databases, freshness
from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.reencoding import Reencoded, reencoding_steps, stale_filter
from rqmoe_store.store.table_codec import TableCodec, codecs_of


class _StoppedError(Exception):
    """Raised into a step that is not to be finished; nothing of it is committed."""


class BackgroundEncoding(NamesRefusals):
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
        self._begun_by, self._table = table, databases.reopened(table)
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

    @names_refusals
    def _encode(self) -> None:
        try:
            while self._finds_rows():
                for done in reencoding_steps(self._table, self._codecs, self._go_on):
                    self._done += done
                    self._left = max(0, self._left - done.rows)
                    freshness.expire(self._begun_by)
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
        newest = databases.reopened(self._table)
        self._codecs, self._left = codecs_of(newest, self._codecs), 0
        if self._codecs.newest is not None:
            columns = CodeColumns(self._codecs.marks.vector_column)
            self._left = newest.count_rows(stale_filter(columns, self._codecs))
        with self._lock:
            self._ended = not (self._left or self._again)
            return not self._ended

    def _go_on(self, rows: int = 0) -> None:
        """Raise if it is not to go on; called after every batch of rows."""
        if self._stop.is_set() or not threading.main_thread().is_alive():
            raise _StoppedError
