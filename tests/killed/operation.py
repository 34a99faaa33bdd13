"""What processes are killed in the middle of: calls on a small table, and what must be true afterwards."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import lancedb
import pyarrow as pa
from lancedb.db import DBConnection
from lancedb.table import LanceTable, Table

from killed.intact import Contents, assert_intact, has_vector, vectors_of
from rqmoe_store.codecs.base import Codec
from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.tables import open_table
from rqmoe_store.training.trainer import train

TABLE = "docs"
TRAINING = TrainConfig(epochs=0, progress=False)


def block(number: int, size: int = 20) -> Contents:
    """New rows; those of another number are others."""
    return dict.fromkeys(range(number * size, (number + 1) * size), 0)


FIRST = block(0, 300)
"""What most tables hold to begin with."""


def database(folder: Path) -> DBConnection:
    """The database that an operation works in."""
    return lancedb.connect(folder / "db")


def plain_table(folder: Path, name: str, rows: pa.Table, *, stable: bool) -> Table:
    """A table with vectors, as LanceDB makes it, in several fragments."""
    options = {"new_table_enable_stable_row_ids": str(stable).lower()}
    docs = database(folder).create_table(name, schema=rows.schema, storage_options=options)
    for start in range(0, len(rows), 100):
        docs.add(rows.slice(start, 100))
    return docs


def tiny_codec(seed: int = 0, **changes: object) -> Codec:
    """A codec for the vectors of `FIRST`."""
    training = dataclasses.replace(TRAINING, seed=seed)
    return train(vectors_of(FIRST), config=small_config(**changes), training=training)


def small_config(**changes: object) -> CodecConfig:
    """Of codecs that are trained in no time."""
    return CodecConfig(kind="rq", code_bytes=4, codebook_size=16, beam=1, **changes)


class Operation:
    """Calls that are made one after the other, each acknowledged when it has returned."""

    name: str
    calls: int = 1
    kinds: int = 1
    """After so many calls, the others go like those before."""
    notes_apart = False
    """Whether calls say how their rows fit the codec in another commit, which a kill can come before."""

    def __str__(self) -> str:
        return self.name

    def prepare(self, folder: Path) -> None:
        """Make what there is before the first call. Everything is in `folder`."""
        raise NotImplementedError

    def begin(self, folder: Path) -> Any:
        """What the calls work on, opened."""
        return open_table(database(folder), TABLE)

    def call(self, target: Any, number: int) -> None:
        """Make one call, or finish it, if it was interrupted."""
        raise NotImplementedError

    def contents(self, calls: int) -> Contents:
        """What the table holds after so many calls; may be the same as before."""
        return FIRST

    def encoded_rows(self, calls: int) -> int:
        """Rows that were encoded when they were added, by the newest codec, in so many calls."""
        return 0

    def check(self, folder: Path, acknowledged: int) -> int:
        """Everything is there after so many calls and perhaps one more; returns how many were made."""
        most = min(acknowledged + 1, self.calls)
        possible = [self.contents(calls) for calls in range(acknowledged, most + 1)]
        made = acknowledged + assert_intact(database(folder), TABLE, *possible)
        assert_steady(folder, self.encoded_rows(made), or_fewer=self.notes_apart)
        return made

    def check_done(self, folder: Path, calls: int) -> None:
        """The calls have done what they should, this one the last."""


def assert_same_row_ids(folder: Path, table: LanceTable) -> None:
    """Every row has the row id that it had when this was called before."""
    if not table.to_lance().has_stable_row_ids:
        return
    rows = table.search().select(["id"]).with_row_id(True).to_arrow()
    found = dict(zip(rows["id"].to_pylist(), rows["_rowid"].to_pylist(), strict=True))
    kept = folder / "row_ids.json"
    known = dict(json.loads(kept.read_text())) if kept.exists() else {}
    assert found == found | {row: known[row] for row in found.keys() & known.keys()}
    kept.write_text(json.dumps(list((known | found).items())))


def assert_steady(folder: Path, encoded: int, *, or_fewer: bool = False) -> None:
    """Rows have the row ids they had before; of so many it is known how they fit the newest codec."""
    store = open_table(database(folder), TABLE)
    assert_same_row_ids(folder, store.table)
    health = store.health()
    assert health.complete and (health.rows == encoded or (or_fewer and health.rows < encoded))


def assert_all_coded(folder: Path, *, generations: int) -> None:
    """Every vector of the table has a code of the newest codec."""
    store = open_table(database(folder), TABLE)
    assert len(store.codecs.generations) == generations
    rows = store.table.search().select(["id", *store.columns.names]).to_arrow()
    codes, coded = store.columns.from_arrow(rows)
    assert coded.tolist() == [has_vector(row) for row in rows["id"].to_pylist()]
    assert codes.partitions.min() >= store.codecs.generations[-1].first_partition


def finish(operation: Operation, folder: Path, calls: int, until: int | None = None) -> None:
    """Make the calls that are still to be made, after so many; all of them, or until there are that many."""
    target, until = operation.begin(folder), operation.calls if until is None else max(until, calls)
    for number in range(calls, until):
        operation.call(target, number)
    assert operation.check(folder, until) == until
    operation.check_done(folder, until)
    shutil.rmtree(folder)
