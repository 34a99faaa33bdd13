"""Rows that wait to be written until all of them have been checked."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterable, Iterator
from typing import IO, cast

import pyarrow as pa

SPOOL_BYTES = 64 * 2**20
"""They stay in memory up to this size, then move to a temporary file."""

# Streams may hold numbers of 16 bytes, such as decimals, at multiples of 8, at which Lance panics.
_ALIGNED = pa.ipc.IpcReadOptions(ensure_alignment=pa.ipc.Alignment.At64Byte)


@dataclasses.dataclass(frozen=True)
class SpooledRows:
    """Rows that can be read again and again."""

    count: int
    schema: pa.Schema | None
    """None without any rows."""
    are_few: bool
    """Whether they fit in memory all at once."""
    _file: IO[bytes]

    def reader(self) -> pa.RecordBatchReader:
        """All rows, of which there must be some, from the first one on. One reader at a time."""
        self._file.seek(0)
        return pa.ipc.open_stream(self._file, options=_ALIGNED)


@contextlib.contextmanager
def spooled(tables: Iterable[pa.Table]) -> Iterator[SpooledRows]:
    """The rows of `tables`, all of the same schema, once the last one has come."""
    with tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES) as spool:
        file = cast(IO[bytes], spool)
        rows, writer, schema = 0, None, None
        try:
            for table in tables:
                if writer is None:
                    schema, writer = table.schema, pa.ipc.new_stream(file, table.schema)
                writer.write_table(table)
                rows += table.num_rows
        finally:
            if writer is not None:
                writer.close()
        yield SpooledRows(rows, schema, spool.tell() <= SPOOL_BYTES, file)
