"""Benchmark of row operations: a compressed table compared with plain tables of the same columns.

Shape suffixes: B rows.
"""

import dataclasses
import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import lancedb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import rich.table
import torch
from lancedb.db import DBConnection
from lancedb.index import BTree
from lancedb.table import LanceTable, Table

from rqmoe_store.codecs.base import Codec
from rqmoe_store.evaluation.codec_measurement import require_disk
from rqmoe_store.evaluation.machine import describe_machine
from rqmoe_store.evaluation.search_measurement import ID, VECTOR
from rqmoe_store.evaluation.search_scaling import create_random_table
from rqmoe_store.evaluation.tables import table_of

FEW, MANY = 1, 1_000
"""Rows that an operation is about."""

_ROW_BYTES = 220
"""Bytes of a row in all tables together, without its code, but with what operations leave behind."""

_BATCH_ROWS = 131_072
_WORDS = ("river", "bridge", "stone", "water", "light", "paper", "engine", "forest")

Done = TypeVar("Done")
Ids = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowResult:
    """Median times of one operation on plain tables and on a compressed one."""

    operation: str
    rows: int
    """Rows that the operation is about."""
    indexed: bool
    """Whether the column of ids has a scalar index."""
    plain_ms: float
    """Time on a LanceDB table of the same columns, without vectors."""
    stable_ms: float
    """Time on such a table with stable row ids, which compressed tables have."""
    compressed_ms: float
    """Time on the compressed table, without encoding."""
    encoding_ms: float
    """Time of encoding, and of decoding a sample of the codes to see whether the codec fits."""

    @property
    def times_plain(self) -> float:
        """Compressed time as a multiple of the plain one."""
        return self.compressed_ms / self.plain_ms

    @property
    def times_stable(self) -> float:
        """Compressed time as a multiple of the plain one with stable row ids."""
        return self.compressed_ms / self.stable_ms


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowReport:
    """All results."""

    settings: dict[str, Any]
    machine: dict[str, Any]
    results: list[RowResult]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values."""
        results = [
            {**dataclasses.asdict(each), "times_plain": each.times_plain, "times_stable": each.times_stable}
            for each in self.results
        ]
        return {"settings": self.settings, "machine": self.machine, "results": results}


class TimedCodec:
    """Measures the time that a codec takes from now on, in all tables that share it."""

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
    """One of the tables compared. Their methods have the same names."""

    table: Any
    codec: TimedCodec | None
    """None for plain tables, whose rows have no vectors."""
    next_id: int

    def rows(self, ids_B: Ids) -> pa.Table:
        """Rows with these ids, changed texts, and vectors if the table has them."""
        rows = pa.Table.from_batches([rows_of(ids_B)])
        rows = rows.set_column(2, "text", pa.array([f"changed {row}" for row in ids_B]))
        if self.codec is None:
            return rows
        random = np.random.default_rng(int(ids_B[0]))
        vectors = pa.array(random.normal(size=len(ids_B) * self.codec.dim).astype(np.float32))
        return rows.append_column(VECTOR, pa.FixedSizeListArray.from_arrays(vectors, self.codec.dim))

    def new(self, count: int) -> Ids:
        """Reserve ids that no row has had, and return them."""
        self.next_id += count
        return np.arange(self.next_id - count, self.next_id)


@dataclasses.dataclass(frozen=True)
class Operation:
    """An operation that is timed on each table."""

    name: str
    rows: int
    """Number of existing rows, chosen at random, whose ids `prepare` gets; 0 for none."""
    run: Callable[[Any, Any], object]
    """Runs the operation on a table with what `prepare` returned. This is timed."""
    prepare: Callable[[Side, Ids], Any] = lambda side, ids_B: ids_B
    by_id: bool = True
    """Whether an index of the ids can make a difference."""


def benchmark_rows(
    codec: Codec,
    *,
    rows: int,
    repeats: int,
    seed: int,
    on_done: Callable[[RowReport], None] = lambda report: None,
) -> RowReport:
    """Time row operations on tables of `rows` rows, in a temporary database.

    Every operation runs `repeats` times on each table in turn, after one run to warm up.

    Args:
        codec: codec of the compressed table. Its codes, and vectors that are added, are random.
        rows: at least 10,000.
        repeats: at least 1.
        seed: of everything random.
        on_done: called with the report whenever there is another result.

    Raises:
        InvalidInputError: the temporary folder has too little space.
    """
    require_disk(rows, codec.config.code_bytes + _ROW_BYTES)
    report = RowReport(
        settings={
            "rows": rows,
            "repeats": repeats,
            "seed": seed,
            "dim": codec.dim,
            "codec": codec.config.to_dict(),
        },
        machine=describe_machine(torch.device("cpu")),
        results=[],
    )
    with tempfile.TemporaryDirectory(prefix="rqmoe-bench-") as folder:
        sides = create_sides(folder, codec, rows, seed)
        for indexed in (False, True):
            if indexed:
                for side in sides:
                    _index(side.table)
            for operation in operations():
                if operation.by_id or not indexed:
                    report.results.append(_measure(operation, sides, rows, repeats, seed, indexed))
                    on_done(report)
    return report


def operations() -> list[Operation]:
    """The operations to time."""

    def both(name: str, run: Callable[[Any, Any], object], **settings: Any) -> Iterator[Operation]:
        yield from (Operation(name, count, run, **settings) for count in (FEW, MANY))

    return [
        *both("add", lambda table, rows: table.add(rows), prepare=_new, by_id=False),
        *both("merge_insert of new rows", _upsert, prepare=_new),
        *both("merge_insert of rows that are there", _upsert, prepare=Side.rows),
        *both("merge_insert of one column", _update, prepare=_texts),
        *both("update", lambda table, where: table.update(where, {"text": "changed"}), prepare=_among),
        *both("delete", lambda table, where: table.delete(where), prepare=_among),
        *both("count_rows of some", lambda table, where: table.count_rows(where), prepare=_among),
        Operation("count_rows", 0, lambda table, _: table.count_rows(), by_id=False),
        Operation("head", 0, lambda table, _: table.head(10), by_id=False),
        Operation("add_columns, drop_columns", 0, _another_column, by_id=False),
        Operation("checkout, checkout_latest", 0, _look_back, by_id=False),
        Operation("create_scalar_index", 0, lambda table, _: _index(table), by_id=False),
    ]


def _new(side: Side, ids_B: Ids) -> pa.Table:
    return side.rows(side.new(len(ids_B)))


def _texts(side: Side, ids_B: Ids) -> pa.Table:
    return side.rows(ids_B).select([ID, "text"])


def _among(side: Side, ids_B: Ids) -> str:
    return f"{ID} IN ({', '.join(map(str, ids_B.tolist()))})"


def _upsert(table: Any, rows: pa.Table) -> None:
    table.merge_insert(ID).when_matched_update_all().when_not_matched_insert_all().execute(rows)


def _update(table: Any, rows: pa.Table) -> None:
    table.merge_insert(ID).when_matched_update_all().execute(rows)


def _another_column(table: Any, _: Ids) -> None:
    table.add_columns({"double": "price * 2"})
    table.drop_columns(["double"])


def _look_back(table: Any, _: Ids) -> None:
    table.checkout(table.version - 1)
    table.checkout_latest()


def _index(table: Any) -> None:
    if isinstance(table, LanceTable):  # whose `create_scalar_index` is deprecated
        table.create_index(ID, config=BTree())
    else:
        table.create_scalar_index(ID)


def _measure(
    operation: Operation, sides: list[Side], rows: int, repeats: int, seed: int, indexed: bool
) -> RowResult:
    seconds: list[list[tuple[float, float]]] = [[] for _ in sides]
    for repeat in range(repeats + 1):
        ids_B = np.random.default_rng((seed, repeat)).choice(rows, size=operation.rows, replace=False)
        for number, side in enumerate(sides):
            prepared = operation.prepare(side, ids_B)
            before = side.codec.seconds if side.codec else 0.0
            started = time.perf_counter()
            operation.run(side.table, prepared)
            taken = time.perf_counter() - started
            encoding = side.codec.seconds - before if side.codec else 0.0
            if repeat > 0:
                seconds[number].append((taken - encoding, encoding))
    plain_ms, stable_ms, compressed_ms = (
        1e3 * statistics.median(taken for taken, _ in of_side) for of_side in seconds
    )
    return RowResult(
        operation=operation.name,
        rows=operation.rows,
        indexed=indexed,
        plain_ms=plain_ms,
        stable_ms=stable_ms,
        compressed_ms=compressed_ms,
        encoding_ms=1e3 * statistics.median(encoding for _, encoding in seconds[-1]),
    )


def create_sides(folder: str, codec: Codec, rows: int, seed: int) -> list[Side]:
    """Create tables of the same rows: a plain one, a plain one with stable row ids, and a compressed one."""
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


def rows_of(ids_B: Ids) -> pa.RecordBatch:
    """Rows with an id, a language, a text and a price."""
    texts = [f"{_WORDS[row % 8]} {_WORDS[row // 8 % 8]} number {row}" for row in ids_B.tolist()]
    return pa.record_batch(
        {
            ID: ids_B,
            "lang": pa.array(np.array(["en", "de", "fr"])[ids_B % 3]),
            "text": pa.array(texts, pa.string()),
            "price": ids_B.astype(np.float64) / 7,
        }
    )


def row_table(report: RowReport) -> rich.table.Table:
    """The results as a table for a terminal."""
    shown = table_of(
        f"Row operations: {report.settings['rows']:,} rows",
        "operation; rows; index; plain ms; with stable ids; compressed; times; times stable; encoding",
        caption=(
            "Median ms. Plain: a LanceDB table of the same columns without vectors; then one with stable "
            "row ids. Compressed: without the time of encoding, which is the last column."
        ),
    )
    for result in report.results:
        shown.add_row(
            result.operation,
            f"{result.rows:,}" if result.rows else "all",
            "yes" if result.indexed else "no",
            f"{result.plain_ms:,.1f}",
            f"{result.stable_ms:,.1f}",
            f"{result.compressed_ms:,.1f}",
            f"{result.times_plain:.2f}",
            f"{result.times_stable:.2f}",
            f"{result.encoding_ms:,.1f}" if result.encoding_ms else "-",
        )
    return shown
