"""Plain tables and a compressed one of the same columns, for timing what is done to their rows.

Shape suffixes: B rows.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, TypeVar

import lancedb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lancedb.db import DBConnection
from lancedb.table import Table

from rqmoe_store.codecs.base import Codec
from rqmoe_store.evaluation.search_index import ID, VECTOR
from rqmoe_store.evaluation.search_synthetic import create_random_table

Done = TypeVar("Done")
Ids = npt.NDArray[np.int64]

_BATCH_ROWS = 131_072
_WORDS = ("river", "bridge", "stone", "water", "light", "paper", "engine", "forest")


class TimedCodec:
    """A codec, which every version of a table has in common, and the time that it takes from now on."""

    def __init__(self, codec: Codec) -> None:
        self.dim = codec.dim
        self.seconds = 0.0
        for name in ("encode", "decode"):
            setattr(codec, name, self._timed(getattr(codec, name)))

    def _timed(self, work: Callable[..., Done]) -> Callable[..., Done]:
        @functools.wraps(work)
        def timed(*arguments: Any, **settings: Any) -> Done:
            started = time.perf_counter()
            done = work(*arguments, **settings)
            self.seconds += time.perf_counter() - started
            return done

        return timed


@dataclasses.dataclass
class Side:
    """One of the tables; their methods have the same names."""

    table: Any
    codec: TimedCodec | None
    """None for plain tables, whose rows have no vectors."""
    next_id: int

    def rows(self, ids_B: Ids) -> pa.Table:
        """Rows with these ids, other texts than before, and vectors if the table takes them."""
        rows = pa.Table.from_batches([rows_of(ids_B)])
        rows = rows.set_column(2, "text", pa.array([f"changed {row}" for row in ids_B]))
        if self.codec is None:
            return rows
        random = np.random.default_rng(int(ids_B[0]))
        vectors = pa.array(random.normal(size=len(ids_B) * self.codec.dim).astype(np.float32))
        return rows.append_column(VECTOR, pa.FixedSizeListArray.from_arrays(vectors, self.codec.dim))

    def new(self, count: int) -> Ids:
        """Ids that no row has had."""
        self.next_id += count
        return np.arange(self.next_id - count, self.next_id)


def rows_of(ids_B: Ids) -> pa.RecordBatch:
    """Rows with a number, a language, a text and a price."""
    texts = [f"{_WORDS[row % 8]} {_WORDS[row // 8 % 8]} number {row}" for row in ids_B.tolist()]
    return pa.record_batch(
        {
            ID: ids_B,
            "lang": pa.array(np.array(["en", "de", "fr"])[ids_B % 3]),
            "text": pa.array(texts, pa.string()),
            "price": ids_B.astype(np.float64) / 7,
        }
    )


def make_sides(folder: str, codec: Codec, rows: int, seed: int) -> list[Side]:
    """A plain table, one whose rows keep their ids for good, as those of compressed tables do, and a
    compressed one, all of the same rows, in a database in `folder`."""
    db = lancedb.connect(folder)
    plain = [
        Side(_plain_table(db, name, rows, stable), None, rows)
        for name, stable in (("plain", False), ("stable", True))
    ]
    made = create_random_table(db, "compressed", codec, rows, seed=seed, rows_of=rows_of)
    return [*plain, Side(made, TimedCodec(made.codec), rows)]


def _plain_table(db: DBConnection, name: str, rows: int, stable: bool) -> Table:
    batches = (
        rows_of(np.arange(start, min(start + _BATCH_ROWS, rows))) for start in range(0, rows, _BATCH_ROWS)
    )
    reader = pa.RecordBatchReader.from_batches(rows_of(np.arange(0)).schema, batches)
    options = {"new_table_enable_stable_row_ids": str(stable).lower()}
    return db.create_table(name, reader, storage_options=options)
